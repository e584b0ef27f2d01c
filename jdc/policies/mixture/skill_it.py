"""Skill-It: domains that help the skills whose loss is high are sampled more."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec

_LEARN = "jdc.recipes.skill_graph learns one"


class SkillItState(NamedTuple):
  losses_WxK: jax.Array  # f32[W, K], of the last rounds, newest last; 0 before the first
  last_K: jax.Array  # f32[K], last known loss, divided if so asked; 1 until known
  initial_K: jax.Array  # f32[K], first known loss; 0 until then
  num_rounds: jax.Array  # i32[]


def skill_it(
  adjacency: Sequence[Sequence[float]] | np.ndarray | None = None,
  learning_rate: float = 0.5,
  window: int = 3,
  normalise: bool = False,
) -> DataPolicy:
  r"""Samples domain i with probability p_i by the losses of the skills that it helps.

  A_ij says how much training on skill i lowers the loss of skill j; a skill is a domain. With
  L_j the sum of the losses of domain j on the target split at the starts of the last `window`
  rounds,

    p_i = exp(eta sum_j A_ij) / sum     in the first round
    p_i = exp(eta sum_j A_ij L_j) / sum in later ones; the previous p does not enter.

  The update before the first step only takes note of the losses, so the first round runs on the
  first line. L_j sums fewer rounds until there are `window` of them, and p sharpens at first.
  Base proportions do not enter. A loss that is not finite, or so large that the sums could
  overflow, is counted, and the domain's previous one taken again; before any, 1, as in the
  first round.

  Args:
    adjacency: A, K rows of K numbers of at least 0. It has no default:
      `jdc.recipes.skill_graph` learns it by training on each skill alone. The authors give
      their hand-made graphs 1 on the diagonal and 0.5 for an edge.
    learning_rate: eta > 0, per nat; the paper's 0.2 to 0.8.
    window: rounds whose losses are summed, at least 1.
    normalise: whether each loss is divided by the domain's first one.

  Returns:
    A round-scope policy that observes `domain_target_loss`; its decision holds `logits` f32[K]
    = log p. Metric: their entropy in nats.

  Raises:
    ValueError: if an argument is missing or out of range; in `init`, if the run has fewer than
      two domains or A has another size.

  References:
    Chen, Roberts, Bhatia, Wang, Zhang, Sala, Re, "Skill-it! A Data-Driven Skills Framework for
    Understanding and Training Language Models", 2023, arXiv 2307.14430; repository
    HazyResearch/skill-it. As there, losses before the first step are part of the sums.
    Departures: the repository turns every off-diagonal 1 of A into 0.5; here A is taken as it
    is. It divides by the second loss measured, here by the first.

  Example:
    >>> policy = skill_it([[1, 0.5], [0, 1]], learning_rate=1.0)
    >>> spec = RunSpec(10, 2, ("letters", "words"), (5, 5), proportions=(0.5, 0.5))
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> for losses in ([2.0, 3.0], [0.5, 2.0]):
    ...   stats = ExampleStats(domain_target_loss=jnp.array(losses))
    ...   decision, state = policy.update(stats, state)
    >>> [round(p, 3) for p in jnp.exp(decision.logits).tolist()]
    [0.5, 0.5]
  """
  problem = _adjacency_problem(adjacency)
  checks.require(
    (not problem, problem),
    (
      checks.is_finite(learning_rate) and learning_rate > 0,
      f"learning_rate must be positive and finite, got {learning_rate}",
    ),
    (checks.is_count(window, 1), f"window must be a whole number >= 1, got {window}"),
    (
      isinstance(normalise, bool),
      f"normalise must be True or False, got {normalise!r}",
    ),
  )
  graph_KxK = np.asarray(adjacency, np.float32)
  # Below it no sum overflows; A is at most a few units a row, so this is far above any loss.
  limit = 1e37 / (max(learning_rate, 1.0) * window * max(graph_KxK.sum(axis=1).max(), 1.0))

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, SkillItState]:
    del key  # deterministic
    num_domains = spec.num_domains
    checks.require(
      (num_domains >= 2, f"skill_it needs at least 2 domains, got {num_domains}"),
      (
        graph_KxK.shape[0] == num_domains,
        f"adjacency must be {num_domains} x {num_domains} for {spec.domain_names}, "
        f"got {graph_KxK.shape}; {_LEARN}",
      ),
    )
    ones_K = jnp.ones(num_domains, jnp.float32)
    state = SkillItState(
      losses_WxK=jnp.zeros((window, num_domains), jnp.float32),
      last_K=ones_K,
      initial_K=jnp.zeros(num_domains, jnp.float32),
      num_rounds=jnp.int32(0),
    )
    return _decide(ones_K, jnp.int32(0)), state

  def update(stats: ExampleStats, state: SkillItState) -> tuple[Decision, SkillItState]:
    loss_K = stats.domain_target_loss.astype(jnp.float32)
    known_K = jnp.abs(loss_K) < limit  # False for NaN
    initial_K = jnp.where(known_K & (state.initial_K == 0), loss_K, state.initial_K)
    if normalise:
      loss_K = loss_K / jnp.where(initial_K == 0, 1.0, initial_K)
      known_K &= jnp.abs(loss_K) < limit
    last_K = jnp.where(known_K, loss_K, state.last_K)
    losses_WxK = jnp.concatenate([state.losses_WxK[1:], last_K[None]])
    total_K = jnp.where(state.num_rounds == 0, 1.0, jnp.sum(losses_WxK, axis=0))
    state = SkillItState(losses_WxK, last_K, initial_K, state.num_rounds + 1)
    return _decide(total_K, jnp.sum(~known_K, dtype=jnp.int32)), state

  def _decide(total_K: jax.Array, num_nonfinite: jax.Array) -> Decision:
    score_K = jnp.matmul(graph_KxK, total_K, precision=jax.lax.Precision.HIGHEST)
    logits_K = jax.nn.log_softmax(learning_rate * score_K)
    entropy = jnp.sum(jax.scipy.special.entr(jnp.exp(logits_K)))
    return Decision(logits_K, metrics={"num_nonfinite": num_nonfinite, "entropy": entropy})

  return DataPolicy(init, update, frozenset({"domain_target_loss"}), scope="round")


def adjacency_from_losses(before: ArrayLike, after: ArrayLike) -> np.ndarray:
  """Returns Skill-It's A from what training on each skill alone did to the losses of all.

    A_ij = max(0, (l_j - l_ij) / l_j) for i != j,  A_ii = 1

  Args:
    before: l, K losses on the target split before training, nats.
    after: l_ij, the K losses after a number of steps from there on skill i alone, a row for
      each i.

  Returns:
    f64[K, K], as `skill_it` takes it.

  Raises:
    ValueError: if the shapes do not fit, a loss is negative or not finite or one before
      training is 0; losses are named by index.

  Example:
    >>> adjacency_from_losses([2.0, 4.0], [[1.0, 3.0], [2.5, 1.0]]).tolist()
    [[1.0, 0.25], [0.0, 1.0]]
  """
  before_K, after_KxK = np.asarray(before, np.float64), np.asarray(after, np.float64)
  K = before_K.size
  checks.require(
    (
      before_K.ndim == 1 and K > 0,
      f"before must be a list of losses, one a skill, got shape {before_K.shape}",
    ),
    (
      after_KxK.shape == (K, K),
      f"after must be {K} x {K}, a row for the run on each skill, got shape {after_KxK.shape}",
    ),
  )
  bad_before = np.flatnonzero(~(np.isfinite(before_K) & (before_K > 0))).tolist()
  bad_after = np.argwhere(~(np.isfinite(after_KxK) & (after_KxK >= 0))).tolist()
  checks.require(
    (
      not bad_before,
      f"before must be finite and positive; at skills {bad_before} it is "
      f"{before_K[bad_before].tolist()}",
    ),
    (
      not bad_after,
      f"after must be finite and at least 0; at [trained on, measured] {bad_after} it is "
      f"{[float(after_KxK[i, j]) for i, j in bad_after]}",
    ),
  )
  adjacency_KxK = np.maximum(0.0, (before_K - after_KxK) / before_K)
  np.fill_diagonal(adjacency_KxK, 1.0)
  return adjacency_KxK


def _adjacency_problem(adjacency: Sequence[Sequence[float]] | np.ndarray | None) -> str:
  """Returns what is wrong with A, or nothing."""
  if adjacency is None:
    return f"adjacency must be given: K rows of K numbers; {_LEARN}"
  try:
    graph = np.asarray(adjacency, np.float64)
  except (TypeError, ValueError):
    return f"adjacency must be K rows of K numbers, got {adjacency!r}; {_LEARN}"
  if graph.ndim != 2 or graph.shape[0] != graph.shape[1] or not graph.size:
    return f"adjacency must be K rows of K numbers, got shape {graph.shape}; {_LEARN}"
  bad = np.argwhere(~((graph >= 0) & (graph < 1e30))).tolist()  # NaN included
  if bad:
    values = [float(graph[i, j]) for i, j in bad]
    return f"adjacency must be in [0, 1e30), at {bad} it is {values}; {_LEARN}"
  return ""
