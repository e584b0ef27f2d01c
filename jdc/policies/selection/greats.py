"""GREATS: a greedy choice of the candidates that together lower the target's loss most."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.weighting import directions

Products = Literal["ghost", "gradient", "update_direction"]
_OBSERVES = {
  "ghost": {"target_alignment", "gradient_product"},
  "gradient": {"gradient", "target"},
  "update_direction": {"update_direction", "target"},
}


class GreatsState(NamedTuple):
  logit_k: jax.Array  # f32[k], those of the row chosen first, second, ...: k, k - 1, ..., 1


def greats(products: Products = "ghost", self_term: bool = False) -> DataPolicy:
  r"""Keeps k candidates whose joint step goes towards the target set.

  A step on the set S moves the parameters by -eta sum_{i in S} d_i, with d_i the gradient g_i
  of candidate i, or its update direction, and eta = learning rate / k as the loss is a mean.
  With g the gradient of the target's loss, and the identity for its Hessian, that lowers it by

    U(S) = eta sum_{i in S} <g, d_i> - eta^2/2 |sum_{i in S} d_i|^2.

  One candidate is chosen after another, the one of the highest score, ties to the lower index,

    score_i = <g, d_i> - eta sum_{j chosen} <d_i, d_j>  [- eta/2 |d_i|^2 with the self term],

  so that of two alike the second counts for less. With the self term the score is exactly what
  i adds to U, over eta; without, as published, candidates of large gradients are preferred
  more. At learning rate 0, as in the first step of a warm-up, <g, d_i> alone decides.

    ghost             products of whole gradients, which are never formed for a row
    gradient          of projected gradients; g is the mean over the target rows
    update_direction  of projected directions of the optimizer, such as Adam's; g as above

  Both products should be by the same parameters. The trainer takes those of `ghost` from one
  pass over candidates and target rows, by the linear maps among the trained parameters.

  Rows without target tokens and rows whose products are not finite are never kept; the latter
  are counted as `num_nonfinite`. If fewer than k are left, only these are kept. Projected
  target gradients whose norm is not finite are left out of the mean and counted as
  `num_nonfinite_targets`.

  Args:
    products: from which statistics inner products are taken.
    self_term: whether a candidate's own curvature counts.

  Returns:
    A step-scope policy that observes `num_tokens` and `example_id` of the candidates,
    `learning_rate` and, by `products`: `target_alignment` f32[B] = <g, g_i> and
    `gradient_product` f32[B, B]; or `gradient` f32[B, R], of `target` as well; or
    `update_direction` f32[B, R] and the `gradient` of `target`. Its decision holds `logits`
    f32[num_candidates]: k for the row chosen first, then k - 1 and so on, and -inf for those
    not chosen; before the first batch 0 for all. They are meant for `top_k`: other draws
    change the order or, with replacement, the set. The metrics count the rows that could be
    chosen, `num_eligible`.

  Raises:
    ValueError: if an argument is unknown; in `init`, if the run has no target set, no batch
      size, fewer candidates than that, or no features where they are needed.

  References:
    Wang et al., "GREATS: Online Selection of High-Quality Data for LLM Training in Every
    Iteration", NeurIPS 2024. The authors' code takes eta = learning rate, with which redundancy
    counts k times too much for a mean loss. Where losses are averaged over tokens, a row's
    share of the step is that of its tokens, 1/k for rows of one length only.

  Example:
    A training step of one's own, here of a regression:

    >>> from jdc.policies import TargetStats
    >>> spec = RunSpec(9, 1, ("all",), (9,), (1.0,), batch_size=2, num_candidates=4)
    >>> spec = spec._replace(num_targets=1, feature_size=2)
    >>> policy = greats("gradient")
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> loss = lambda theta, x, y: (x @ theta - y) ** 2 / 2
    >>> gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))
    >>> @jax.jit
    ... def step(theta, state, ids, x, y, target, learning_rate):
    ...   gradient = gradients(theta, x, y)
    ...   stats = ExampleStats(
    ...     example_id=ids,
    ...     num_tokens=jnp.ones_like(ids),
    ...     gradient=gradient,
    ...     learning_rate=learning_rate,
    ...     target=TargetStats(gradient=gradients(theta, *target)),
    ...   )
    ...   decision, state = policy.update(stats, state)
    ...   _, kept = jax.lax.top_k(decision.logits, spec.batch_size)
    ...   return theta - learning_rate * gradient[kept].mean(axis=0), state, kept
    >>> x, y = jnp.array([[2.0, 0.0], [2.0, 0.0], [0.0, 1.5], [1.0, 0.0]]), jnp.ones(4)
    >>> target = jnp.array([[1.0, 1.0]]), jnp.array([2.0])
    >>> *_, kept = step(jnp.zeros(2), state, jnp.arange(4), x, y, target, jnp.float32(1.0))
    >>> kept.tolist()  # 1 is a copy of 0
    [0, 2]
  """
  checks.require(
    (
      products in get_args(Products),
      f"products must be in {get_args(Products)}, got {products!r}",
    ),
    (isinstance(self_term, bool), f"self_term must be a bool, got {self_term!r}"),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, GreatsState]:
    del key  # deterministic
    _check(spec, products)
    metrics = {"num_nonfinite": jnp.int32(0), "num_eligible": jnp.int32(spec.num_candidates)}
    if products != "ghost":
      metrics["num_nonfinite_targets"] = jnp.int32(0)
    state = GreatsState(logit_k=jnp.arange(spec.batch_size, 0, -1, dtype=jnp.float32))
    return Decision(logits=jnp.zeros(spec.num_candidates, jnp.float32), metrics=metrics), state

  def update(stats: ExampleStats, state: GreatsState) -> tuple[Decision, GreatsState]:
    target_metrics: dict[str, jax.Array] = {}
    if products == "ghost":
      aligned_B = stats.target_alignment.astype(jnp.float32)
      product_BxB = stats.gradient_product.astype(jnp.float32)
    else:
      target_R, num_lost = _mean_target(stats)
      direction_BxR = getattr(stats, products).astype(jnp.float32)
      aligned_B = directions.dot(direction_BxR, target_R)
      product_BxB = directions.dot(direction_BxR, direction_BxR.T)
      target_metrics = {"num_nonfinite_targets": num_lost}
    valid_B = (stats.example_id >= 0) & (stats.num_tokens > 0)
    eligible_B = valid_B & _finite(aligned_B, product_BxB, valid_B)
    eta = stats.learning_rate.astype(jnp.float32) / state.logit_k.size
    if self_term:
      aligned_B = aligned_B - eta / 2 * jnp.diagonal(product_BxB)
    logits_B = _greedy(aligned_B, eta * product_BxB, eligible_B, state.logit_k)
    metrics = {
      "num_nonfinite": jnp.sum(valid_B & ~eligible_B, dtype=jnp.int32),
      "num_eligible": jnp.sum(eligible_B, dtype=jnp.int32),
    }
    return Decision(logits=logits_B, metrics=metrics | target_metrics), state

  observes = frozenset(_OBSERVES[products] | {"num_tokens", "example_id", "learning_rate"})
  return DataPolicy(init, update, observes, scope="step")


def _check(spec: RunSpec, products: Products) -> None:
  k, num_rows = spec.batch_size, spec.num_candidates
  checks.require(
    (k > 0, f"batch_size must be positive, got {k}"),
    (num_rows > 0, f"greats needs num_candidates > 0, got {num_rows}"),
    (
      k <= num_rows or num_rows <= 0,
      f"batch_size {k} must be at most num_candidates {num_rows}",
    ),
    (spec.num_targets > 0, f"greats needs num_targets > 0, got {spec.num_targets}"),
    (
      products == "ghost" or spec.feature_size > 0,
      f"products={products!r} needs feature_size > 0, got {spec.feature_size}",
    ),
  )


def _mean_target(stats: ExampleStats) -> tuple[jax.Array, jax.Array]:
  """Returns the mean of the target gradients of finite norm, f32[R], and how many have none."""
  assert stats.target is not None
  target_MxR = stats.target.gradient.astype(jnp.float32)
  finite_M = jnp.isfinite(jnp.sum(target_MxR**2, axis=1))
  used_MxR = jnp.where(finite_M[:, None], target_MxR, 0.0)
  mean_R = jnp.sum(used_MxR, axis=0) / jnp.maximum(jnp.sum(finite_M), 1)
  return mean_R, jnp.sum(~finite_M, dtype=jnp.int32)


def _finite(aligned_B: jax.Array, product_BxB: jax.Array, valid_B: jax.Array) -> jax.Array:
  """Returns bool[B], which rows have finite products: with themselves, and with all such."""
  own_B = valid_B & jnp.isfinite(aligned_B) & jnp.isfinite(jnp.diagonal(product_BxB))
  return own_B & jnp.all(jnp.isfinite(product_BxB) | ~own_B, axis=1)


def _greedy(
  score_B: jax.Array, penalty_BxB: jax.Array, eligible_B: jax.Array, logit_k: jax.Array
) -> jax.Array:
  """Returns f32[B], `logit_k` for the rows in the order chosen and -inf for all others.

  Args:
    score_B: scores while nothing is chosen.
    penalty_BxB: what the choice of one row takes from the scores of the others.
    eligible_B: which rows may be chosen; numbers of the others may be anything.
    logit_k: of the row chosen first, second and so on.
  """
  lowest = jnp.finfo(jnp.float32).min
  row_B = jnp.arange(score_B.size)

  def choose(
    carry: tuple[jax.Array, jax.Array], logit: jax.Array
  ) -> tuple[tuple[jax.Array, jax.Array], None]:
    score_B, logits_B = carry
    free_B = eligible_B & (logits_B == -jnp.inf)
    # A score that has left the range of float32 is still that of a row to choose from.
    best = jnp.argmax(jnp.where(free_B, jnp.maximum(score_B, lowest), -jnp.inf))
    logits_B = jnp.where(free_B & (row_B == best), logit, logits_B)
    return (score_B - penalty_BxB[best], logits_B), None

  start = score_B, jnp.full_like(score_B, -jnp.inf)
  (_, logits_B), _ = jax.lax.scan(choose, start, logit_k)
  return logits_B
