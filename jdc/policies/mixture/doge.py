"""DoGE: domains whose gradient helps the target, or all domains, are sampled more."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jdc.policies import checks, domains
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.mixture.products import own_blocks

Objective = Literal["universal", "target"]
Rule = Literal["paper", "repository"]


class DogeState(NamedTuple):
  log_alpha_K: jax.Array  # f32[K], of the proportions
  mean_alpha_K: jax.Array  # f32[K], of the proportions after each update; at first alpha_0
  num_updates: jax.Array  # i32[]
  product_KxK: jax.Array  # f32[K, K], <g_i, g_j> before clipping; 0 until measured
  alignment_K: jax.Array  # f32[K], <g_i, g_target>, likewise
  known_K: jax.Array  # bool[K], whether a domain was ever measured


def doge(
  objective: Objective = "universal",
  rule: Rule = "paper",
  learning_rate: float = 5e-4,
  mu: float = 0.05,
  max_grad_norm: float | None = None,
) -> DataPolicy:
  r"""Samples domain i with probability alpha_i, raised as its gradient aligns with the goal's.

  With g_i the gradient of domain i, the mean over its two half-batches, let

    universal  W_i = <g_i, sum_j g_j>      all domains are the goal, the domain itself included
    target     W_i = <g_i, g_target>

  and s_i the step that `rule` takes; at the start of every round

    alpha_i <- alpha_i exp(s_i / mu) / sum_j alpha_j exp(s_j / mu),

    paper       s_i = lr W_i
    repository  s_i = min(max(lr W_i / (mean_j |g_j| + 1e-6), 0), 5 lr)

  from alpha_i = 1/K. With a largest norm c, g_i min(1, c / |g_i|) stands for g_i throughout;
  g_target is not clipped, as only its products are known. The mean of alpha over all updates,
  with which the method trains its final model, is `mean_alpha_K` of the state.

  A domain that is absent from a round, or whose products are not finite, keeps all its products
  of the round before. Until it was measured they are 0, it keeps its alpha, and the others
  share the rest; so also where a step is not finite.

  Args:
    objective: W above.
    rule: s above. The repository's never lowers a domain by itself: what opposes the goal
      counts as indifferent.
    learning_rate: lr > 0. Only lr / mu matters: the default pair is the authors' 5e-4, the
      highest rate of their proxy model, and the paper's mu. The authors update in every step;
      in rounds of n steps, n lr does as much as n updates with the same W.
    mu: mu > 0, how strongly alpha is held back.
    max_grad_norm: c > 0, or `None`: do not clip.

  Returns:
    A round-scope policy that observes `domain_gradient_product` and, towards the target,
    `domain_target_alignment`; its decision holds `logits` f32[K] = log alpha.

  Raises:
    ValueError: if an argument is unknown or out of range; in `init`, if the objective is
      "target" and the run has no target set.

  References:
    Fan, Pagliardini, Jaggi, "DoGE: Domain Reweighting with Generalization Estimation", 2024,
    arXiv 2310.15393; "repository" follows the authors' Olivia-fsm/doge. There the proxy model
    takes the gradient sum_i alpha_i g_i over uniformly drawn domains; here alpha decides what
    is sampled, which has the same expectation. The repository reuses an absent domain's old
    gradient against the others' new ones; here the old products stand.

  Example:
    >>> policy = doge("target", learning_rate=0.1)
    >>> spec = RunSpec(10, 2, ("code", "web"), (5, 5), proportions=(0.5, 0.5), num_targets=4)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> gradient = jnp.array([[[1.0, 0.0], [1.0, 0.2]], [[0.0, 1.0], [0.0, 1.2]]])
    >>> stats = ExampleStats(
    ...   domain_gradient_product=jnp.einsum("iad,jbd->iajb", gradient, gradient),
    ...   domain_target_alignment=gradient @ jnp.array([0.1, 0.6]),
    ... )
    >>> decision, _ = policy.update(stats, state)
    >>> [round(p, 3) for p in jnp.exp(decision.logits).tolist()]
    [0.269, 0.731]
  """
  checks.require(
    (
      objective in get_args(Objective),
      f"objective must be in {get_args(Objective)}, got {objective!r}",
    ),
    (rule in get_args(Rule), f"rule must be in {get_args(Rule)}, got {rule!r}"),
    *(
      (
        checks.is_finite(value) and value > 0,
        f"{name} must be positive and finite, got {value}",
      )
      for name, value in (("learning_rate", learning_rate), ("mu", mu))
    ),
    (
      max_grad_norm is None or (checks.is_finite(max_grad_norm) and max_grad_norm > 0),
      f"max_grad_norm must be None or positive and finite, got {max_grad_norm}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, DogeState]:
    del key  # deterministic
    checks.require(
      (
        objective == "universal" or spec.num_targets > 0,
        f"objective 'target' needs a target set, got num_targets {spec.num_targets}",
      )
    )
    K = spec.num_domains
    alpha_K = jnp.full(K, 1 / K, jnp.float32)
    state = DogeState(
      log_alpha_K=jnp.log(alpha_K),
      mean_alpha_K=alpha_K,
      num_updates=jnp.int32(0),
      product_KxK=jnp.zeros((K, K), jnp.float32),
      alignment_K=jnp.zeros(K, jnp.float32),
      known_K=jnp.zeros(K, bool),
    )
    return Decision(state.log_alpha_K, metrics={"num_nonfinite": jnp.int32(0)}), state

  def update(stats: ExampleStats, state: DogeState) -> tuple[Decision, DogeState]:
    state, nonfinite_K = _measure(stats, state, objective)
    exponent_K = _step(state, objective, rule, learning_rate, max_grad_norm) / mu
    usable_K = jnp.isfinite(exponent_K)
    known_K = state.known_K & usable_K
    log_alpha_K = domains.raise_weights(state.log_alpha_K, exponent_K, known_K)
    num_updates = state.num_updates + 1
    mean_K = state.mean_alpha_K
    mean_K = mean_K + (jnp.exp(log_alpha_K) - mean_K) / num_updates
    state = state._replace(
      log_alpha_K=log_alpha_K, mean_alpha_K=mean_K, num_updates=num_updates
    )
    metrics = {"num_nonfinite": jnp.sum(nonfinite_K | ~usable_K, dtype=jnp.int32)}
    return Decision(log_alpha_K, metrics=metrics), state

  observes = {"domain_gradient_product"}
  if objective == "target":
    observes.add("domain_target_alignment")
  return DataPolicy(init, update, frozenset(observes), scope="round")


def _measure(
  stats: ExampleStats, state: DogeState, objective: Objective
) -> tuple[DogeState, jax.Array]:
  """Returns the state with this round's products, and the domains that were not finite."""
  halves_Kx2xKx2 = stats.domain_gradient_product.astype(jnp.float32)
  _, measured_K, nonfinite_K = own_blocks(halves_Kx2xKx2)
  # Quarters first: a sum of large products would overflow.
  product_KxK = jnp.sum(0.25 * halves_Kx2xKx2, axis=(1, 3))
  fresh_KxK = measured_K[:, None] & measured_K & jnp.isfinite(product_KxK)
  state = state._replace(
    product_KxK=jnp.where(fresh_KxK, product_KxK, state.product_KxK),
    known_K=state.known_K | measured_K,
  )
  if objective == "universal":
    return state, nonfinite_K
  alignment_K = jnp.sum(0.5 * stats.domain_target_alignment.astype(jnp.float32), axis=1)
  finite_K = jnp.isfinite(alignment_K)
  alignment_K = jnp.where(measured_K & finite_K, alignment_K, state.alignment_K)
  return state._replace(alignment_K=alignment_K), nonfinite_K | ~finite_K


def _step(
  state: DogeState,
  objective: Objective,
  rule: Rule,
  learning_rate: float,
  max_grad_norm: float | None,
) -> jax.Array:
  """Returns s."""
  norm_K = jnp.sqrt(jnp.maximum(jnp.diagonal(state.product_KxK), 0.0))
  scale_K = jnp.ones_like(norm_K)
  if max_grad_norm is not None:
    scale_K = jnp.where(norm_K > max_grad_norm, max_grad_norm / norm_K, 1.0)
  if objective == "universal":
    gain_K = scale_K * jnp.sum(scale_K * state.product_KxK, axis=1)
  else:
    gain_K = scale_K * state.alignment_K
  if rule == "paper":
    return learning_rate * gain_K
  known = jnp.maximum(jnp.sum(state.known_K), 1)  # the others' norms are 0
  mean_norm = jnp.sum(scale_K * norm_K) / known
  step_K = learning_rate * gain_K / (mean_norm + 1e-6)
  # A step that is not finite stays so, to be left out.
  return jnp.where(jnp.isfinite(step_K), jnp.clip(step_K, 0.0, 5 * learning_rate), step_K)
