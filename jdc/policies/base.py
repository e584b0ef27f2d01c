"""The types of a data policy: what it is told, what it reads, what it decides.

Dimension letters in array names: B examples, T positions, K domains, N pool rows, C candidates,
M target examples, R projected features, Q projected logits, D width, E experts, S subtasks or
samples.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax

PolicyState = Any  # a pytree of arrays
Scope = Literal["step", "round"]


class RunSpec(NamedTuple):
  """Static facts about a run, known before anything compiles. Hashable.

  Sizes that a run does not have are 0.
  """

  num_examples: int  # rows of the pool, all domains together
  num_domains: int
  domain_names: tuple[str, ...]
  domain_sizes: tuple[int, ...]  # rows of each domain
  proportions: tuple[float, ...]  # base proportions of the domains, sum 1
  batch_size: int = 0  # rows trained in one optimizer step, over all devices
  num_candidates: int = 0  # rows of the batch that a step-scope selection chooses from
  sequence_length: int = 0  # positions of a row
  sweep_size: int = 0  # rows of a pool sweep
  num_targets: int = 0
  num_tasks: int = 0
  num_responses: int = 0  # drawn for each target example, whose rewards policies may observe
  feature_size: int = 0
  embedding_size: int = 0
  num_experts: int = 0
  num_steps: int = 0  # optimizer steps of the whole run
  steps_per_round: int = 0
  draw: str = "shuffle"  # of rows inside a domain: shuffle, top_k, gumbel_top_k, multinomial
  domain_draw: str = "systematic"  # of domains in a batch: systematic, or one domain a step
  probe_size: int = 0  # examples of a half-batch by which the gradient of a domain is probed
  max_segments: int = 0  # examples of a packed row, counted in batch_size; 0: a row is one
  data_fingerprint: str = ""  # of the pool's contents; empty: not known
  logit_projection_size: int = 0
  candidate_draw: str = "top_k"  # of a step-scope selection: top_k, gumbel_top_k, multinomial


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TargetStats:
  """Statistics of the target set: `loss`, `task`, `domain`, and those that the policy observes
  of examples as well, such as `embedding`; `None` where nothing observes a field.
  """

  gradient: Any = None  # f32[M, R]
  embedding: Any = None  # f32[M, D]
  position_weighted_embedding: Any = None  # f32[M, D]
  last_token_embedding: Any = None  # f32[M, D]
  loss: Any = None  # f32[M], nats per token
  task: Any = None  # i32[M]
  domain: Any = None  # i32[M]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExampleStats:
  """Per-example statistics; `None` where nothing observes a field.

  Padding has example id -1, domain 0 and no target tokens.
  """

  example_id: Any = None  # i32[B], row in the pool
  domain: Any = None  # i32[B], 0..K-1
  num_tokens: Any = None  # i32[B], target tokens
  sampling_probability: Any = None  # f32[B], under which the row was drawn
  domain_probability: Any = None  # f32[B], of the row's domain when it was drawn
  loss: Any = None  # f32[B], mean negative log-likelihood per target token, nats
  token_loss: Any = None  # f32[B, T], nats
  token_mask: Any = None  # f32[B, T], 1 where a token counts
  token_segment: Any = None  # i32[rows, T], place in [B] of each token's example; -1 is padding
  reference_loss: Any = None  # f32[B], under the frozen reference model
  reference_token_loss: Any = None  # f32[B, T]
  gradient: Any = None  # f32[B, R], projected per-example gradient
  update_direction: Any = None  # f32[B, R], after the optimizer's preconditioning
  gradient_norm: Any = None  # f32[B], of the unprojected gradient
  gradient_product: Any = None  # f32[B, B], inner products of the unprojected gradients
  el2n: Any = None  # f32[B], mean of |softmax(logits) - onehot(target)|_2 over target tokens
  logit_nuclear_norm: Any = None  # f32[B], of the logits [T, V] at the target tokens
  logit_projection: Any = None  # f32[B, Q], random projection of these logits
  embedding: Any = None  # f32[B, D], mean hidden state
  position_weighted_embedding: Any = None  # f32[B, D]
  last_token_embedding: Any = None  # f32[B, D], hidden state of the last token
  target_alignment: Any = None  # f32[B], inner product with the gradient of the target's loss
  # f32[B], of a row's gradient with the target's Hessian times the sum of the rows' gradients
  target_curvature: Any = None
  # Inner products of mean gradients of two independent half-batches of each domain, and those
  # with the gradient of the target's mean loss.
  domain_gradient_product: Any = None  # f32[K, 2, K, 2]
  domain_target_alignment: Any = None  # f32[K, 2]
  domain_target_loss: Any = None  # f32[K], on the target split
  domain_expert_load: Any = None  # f32[K, E]
  # Probe rows of the round, and the target's loss after an optimizer step on each alone.
  probe_id: Any = None  # i32[P]
  probe_label: Any = None  # f32[P], nats
  score: Any = None  # f32[C] or f32[C, S], what `score` returned over a sweep
  score_age: Any = None  # i32[C], optimizer steps since it was computed
  # Of responses drawn for the target's prompts; `target.gradient` is that of their rewards.
  target_reward: Any = None  # f32[M, S]
  step: Any = None  # i32[], of the optimizer
  learning_rate: Any = None  # f32[], of the optimizer
  target: TargetStats | None = None


class Decision(NamedTuple):
  """What a policy decides; `None` leaves that choice alone.

  `logits` are unnormalised log-probabilities of sampling, -inf never: f32[K] from a mixture,
  f32[C] or f32[N] from a round-scope selection, f32[num_candidates] from a step-scope one.
  `weights` and `token_weights` multiply the loss; 1 is neutral. Which fields are `None`, and
  every shape, are fixed by `init`.
  """

  logits: Any = None
  weights: Any = None  # f32[B], or one per row of a round decision's logits
  token_weights: Any = None  # f32[B, T]
  metrics: Any = None  # dict of scalars to log, fixed names


class InitFn(Protocol):
  """`(spec, key) -> (decision, state)`: the decision in force before any statistic."""

  def __call__(self, spec: RunSpec, key: jax.Array, /) -> tuple[Decision, PolicyState]: ...


class UpdateFn(Protocol):
  """`(stats, state) -> (decision, state)`: pure, traceable, without data-dependent shapes."""

  def __call__(
    self, stats: ExampleStats, state: PolicyState, /
  ) -> tuple[Decision, PolicyState]: ...


class DataPolicy(NamedTuple):
  """A pair of pure functions that decides about data, in the manner of an optax transform.

  `observes` names the fields of `ExampleStats` that `update` and `score` read. A step-scope
  policy is updated in every training step, a round-scope one at the start of every round. A
  `pointwise` policy treats each example by itself. The rest is for round scope: `score` runs
  on each chunk of a pool sweep, `sweep_ids` names the rows to sweep (-1 pads), `observe` also
  sees every training batch and reads `observes_batch`; `prepare` runs once, before the first
  round, on the statistics `observes_pool` of all N rows in order, at once.
  """

  init: InitFn
  update: UpdateFn
  observes: frozenset[str]
  scope: Scope
  pointwise: bool = False
  score: Callable[[ExampleStats, PolicyState], jax.Array] | None = None
  sweep_ids: Callable[[PolicyState], jax.Array] | None = None
  observe: Callable[[ExampleStats, PolicyState], PolicyState] | None = None
  observes_batch: frozenset[str] = frozenset()
  prepare: Callable[[ExampleStats, PolicyState], PolicyState] | None = None
  observes_pool: frozenset[str] = frozenset()


class Ordering(NamedTuple):
  """An order of the rows that a round draws from one domain.

  `order` maps one score per row and a key to a permutation. `observes` holds the field that is
  the score; where it is empty, the scores are given to the trainer by row.
  """

  observes: frozenset[str]
  order: Callable[[jax.Array, jax.Array], jax.Array]  # (score f32[n], key) -> i32[n]
