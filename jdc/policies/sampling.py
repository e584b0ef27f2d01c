"""Sampling primitives: how log-probabilities become draws.

Logits are unnormalised log-probabilities; an item whose logit is not finite is never drawn.
Functions that take explicit uniforms or probabilities have one implementation for NumPy arrays
(computed in the precision given, on the host) and for JAX arrays, traced or not.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # a NumPy or a JAX array


def temper(logits: Array, temperature: float | Array) -> Array:
  r"""Returns the logits of softmax(l / T), shifted so that the largest is 0.

  T = 0 is uniform over the items with the largest logit, T = inf over all eligible items. One
  that is not eligible (-inf, +inf or NaN) stays at exactly -inf.

  Args:
    logits: f[n], unnormalised log-probabilities.
    temperature: T in [0, inf].

  Returns:
    f[n] in the precision of `logits`, at most 0.

  Raises:
    ValueError: if `temperature` is a Python number that is negative or NaN.

  Example:
    >>> temper(np.log(np.array([1.0, 4.0])), 2.0).round(3).tolist()
    [-0.693, 0.0]
  """
  if isinstance(temperature, int | float) and not temperature >= 0:
    raise ValueError(f"temperature must be in [0, inf], got {temperature}")
  xp = logits.__array_namespace__()
  t = xp.asarray(temperature, dtype=logits.dtype)
  eligible, shifted = _shifted(logits)
  # Bounded so that the quotient stays finite: finite logits never turn into "never".
  bound = xp.finfo(logits.dtype).min / 2 * xp.minimum(t, xp.asarray(1, dtype=t.dtype))
  tempered = xp.maximum(shifted, bound) / xp.where(t > 0, t, xp.ones_like(t))
  tempered = xp.where(t > 0, tempered, xp.where(shifted == 0, 0.0, -math.inf))
  return xp.where(eligible, tempered, -math.inf).astype(logits.dtype)


def multinomial(uniforms: Array, logits: Array) -> Array:
  r"""Draws with replacement: the first item j with u < C_j.

  C is the cumulative sum of softmax(l), with C := 1 from the last eligible item on. An item of
  probability 0 is never returned.

  Args:
    uniforms: f[...], in [0, 1).
    logits: f[n], unnormalised log-probabilities.

  Returns:
    i32[...], the item of each uniform; -1 where no item is eligible.

  Example:
    >>> multinomial(np.array([0.0, 0.24, 0.26]), np.log(np.array([1.0, 3.0]))).tolist()
    [0, 0, 1]
  """
  xp = logits.__array_namespace__()
  weight = _weights(logits)
  edge = _edges(weight, xp.asarray(1.0, dtype=weight.dtype))
  drawn = xp.searchsorted(edge, uniforms, side="right")
  return xp.where(xp.any(weight > 0), drawn, -1).astype(np.int32)


def gumbel_top_k(key: jax.Array, logits: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  r"""Draws k distinct items, one after another without replacement, with unbiased weights.

  Takes the k largest of l_i + g_i with g_i standard Gumbel noise, in decreasing order: the
  first item has the distribution softmax(l), the second softmax(l without the first), and so
  on. With kappa the (k+1)-th largest sum and n the number of eligible items,

    q_i = 1 - exp(-exp(l_i - kappa)),    w_i = 1 / (n q_i),

  satisfy E[sum_{i drawn} w_i f_i] = (1/n) sum_i f_i for every f. Adding a constant to all
  logits changes nothing.

  Args:
    key: a random key.
    logits: f[n], unnormalised log-probabilities.
    k: number of items, 1 <= k <= n.

  Returns:
    ids i32[k], in the order drawn, and weights f32[k]. With fewer than k eligible items, the
    places left have id -1 and weight 0.

  Raises:
    ValueError: if k is not in [1, n].

  References:
    Kool, van Hoof, Welling, "Stochastic Beams and Where to Find Them", 2019, arXiv 1903.06059.

  Example:
    >>> ids, weights = gumbel_top_k(jax.random.key(0), jnp.array([0.0, -jnp.inf, 0.0]), 3)
    >>> sorted(ids.tolist()), weights.tolist()
    ([-1, 0, 2], [0.5, 0.5, 0.0])
  """
  (num_items,) = logits.shape
  if not 1 <= k <= num_items:
    raise ValueError(f"k must be in [1, {num_items}], the number of items, got {k}")
  logits = jnp.where(jnp.isfinite(logits), logits, -jnp.inf).astype(jnp.float32)
  noise = jax.random.gumbel(key, logits.shape, jnp.float32)
  values, ids = jax.lax.top_k(logits + noise, min(k + 1, num_items))
  kappa = values[k] if k < num_items else -jnp.inf
  drawn = values[:k] > -jnp.inf
  ids = jnp.where(drawn, ids[:k], -1)
  # logits are finite where drawn, and kappa is below every drawn value.
  above = jnp.where(drawn, logits[jnp.maximum(ids, 0)] - kappa, 0.0)
  inclusion = -jnp.expm1(-jnp.exp(above))
  num_eligible = jnp.sum(logits > -jnp.inf)
  weights = jnp.where(drawn, 1 / (jnp.maximum(num_eligible, 1) * inclusion), 0.0)
  return ids.astype(jnp.int32), weights.astype(jnp.float32)


def importance_weights(ids: Array, probabilities: Array, target: Array | None = None) -> Array:
  r"""Returns t_i / p_i for items drawn with replacement from p.

  The mean of w_i f_i over the draws is an unbiased estimate of sum_i t_i f_i.

  Args:
    ids: i32[m], items drawn from `probabilities`; -1 marks no draw.
    probabilities: f[n], p, sum 1.
    target: f[n], t; by default uniform over the items with p_i > 0.

  Returns:
    f[m], 0 where there is no draw or the item cannot have been drawn (p_i = 0).

  Example:
    >>> importance_weights(np.array([0, 1, -1]), np.array([0.25, 0.75])).round(3).tolist()
    [2.0, 0.667, 0.0]
  """
  xp = probabilities.__array_namespace__()
  if target is None:
    possible = probabilities > 0
    target = possible / xp.maximum(xp.sum(possible), 1).astype(probabilities.dtype)
  p = probabilities[xp.maximum(ids, 0)]
  valid = (ids >= 0) & (p > 0)
  return xp.where(valid, target[xp.maximum(ids, 0)] / xp.where(valid, p, 1.0), 0.0)


def systematic_counts(probabilities: Array, num: int, offset: float | Array) -> Array:
  r"""Returns how many of the points (u0 + i) / n, i < n, fall to each item.

  Item j owns the interval [C_{j-1}, C_j) of the cumulative sum of the normalised p. Its count
  is the floor or the ceiling of n p_j, and E[count_j] = n p_j for a uniform u0.

  Only the fractions of n p_j are accumulated, so that rounding in a long sum cannot push a
  count past floor or ceiling.

  Args:
    probabilities: f[K], p >= 0, with a positive sum.
    num: n >= 0.
    offset: u0 in [0, 1).

  Returns:
    i32[K], sum n; 0 where p_j = 0.

  Raises:
    ValueError: if `num` is negative, or NumPy `probabilities` are negative, not finite or all
      0.

  Example:
    >>> systematic_counts(np.array([0.1, 0.2, 0.7]), 8, offset=0.5).tolist()
    [1, 1, 6]
  """
  whole, fraction, left = _quotas(probabilities, num)
  xp = fraction.__array_namespace__()
  edge = _edges(fraction, left)
  crossed = xp.ceil(edge - xp.asarray(offset, dtype=edge.dtype)).astype(np.int32)
  before = xp.concatenate([xp.zeros_like(crossed[:1]), crossed[:-1]])
  drawn = xp.where(fraction > 0, xp.clip(crossed - before, 0, 1), 0).astype(np.int32)
  missing = left - xp.sum(drawn)
  return whole + drawn + _largest(xp.where(drawn > 0, 0.0, fraction), missing)


def apportion(probabilities: Array, num: int) -> Array:
  r"""Returns whole numbers in proportion to p by largest remainder.

  Every item gets floor(n p_j); those with the largest fractions get one more until the sum is
  n. Fractions that differ by rounding only are ties, which go to the lower index.

  Args:
    probabilities: f[K], p >= 0, with a positive sum.
    num: n >= 0.

  Returns:
    i32[K], sum n; 0 where p_j = 0.

  Raises:
    ValueError: if `num` is negative, or NumPy `probabilities` are negative, not finite or all
      0.

  Example:
    >>> apportion(np.array([0.5, 0.25, 0.25]), 6).tolist()
    [3, 2, 1]
  """
  whole, fraction, left = _quotas(probabilities, num)
  xp = fraction.__array_namespace__()
  noise = 4 * xp.finfo(fraction.dtype).eps * max(num, 1)
  rank = xp.where(fraction > 0, xp.maximum(xp.round(fraction / noise), 1.0), 0.0)
  return whole + _largest(rank, left)


def _shifted(logits: Array) -> tuple[Array, Array]:
  """Returns which items are eligible, and logits less their maximum, 0 elsewhere."""
  xp = logits.__array_namespace__()
  eligible = xp.isfinite(logits)
  top = xp.max(xp.where(eligible, logits, -math.inf))
  top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
  # Halves cannot overflow; the bound keeps the difference finite.
  half = xp.maximum(
    xp.where(eligible, logits, top) / 2 - top / 2, xp.finfo(logits.dtype).min / 2
  )
  return eligible, 2 * half


def _weights(logits: Array) -> Array:
  """Returns exp(l - max l), 0 for items that are not eligible."""
  xp = logits.__array_namespace__()
  eligible, shifted = _shifted(logits)
  return xp.where(eligible, xp.exp(shifted), 0.0)


def _edges(weight: Array, total: Array) -> Array:
  """Returns the cumulative sum of weights, scaled to end at `total`.

  It never falls, does not move at an item of weight 0, and equals `total` from the last item of
  positive weight on; a parallel sum in floating point has none of these properties.
  """
  xp = weight.__array_namespace__()
  positive = weight > 0
  total = xp.asarray(total, dtype=weight.dtype)
  cumulative = xp.cumsum(weight)
  scale = xp.max(xp.where(positive, cumulative, 0.0))
  cumulative = cumulative / xp.where(scale > 0, scale, xp.ones_like(scale)) * total
  cumulative = xp.where(positive, xp.minimum(cumulative, total), 0.0)
  rising = np.maximum.accumulate(cumulative) if xp is np else jax.lax.cummax(cumulative)
  index = xp.arange(weight.shape[0])
  last = xp.max(xp.where(positive, index, 0))
  return xp.where(index >= last, total, rising)


def _quotas(probabilities: Array, num: int) -> tuple[Array, Array, Array]:
  """Returns floor(n p), the fractions of n p, and how many of n the floors leave."""
  if num < 0:
    raise ValueError(f"num must be at least 0, got {num}")
  if isinstance(probabilities, np.ndarray):
    _check_probabilities(probabilities)
  xp = probabilities.__array_namespace__()
  quota = probabilities / xp.sum(probabilities) * num
  whole = xp.floor(quota)
  counts = whole.astype(np.int32)
  return counts, quota - whole, num - xp.sum(counts)


def _check_probabilities(probabilities: np.ndarray) -> None:
  if not np.all(np.isfinite(probabilities)) or np.any(probabilities < 0):
    bad = [float(p) for p in probabilities if not (np.isfinite(p) and p >= 0)]
    raise ValueError(f"probabilities must be finite and at least 0, got {bad}")
  if not probabilities.sum() > 0:
    raise ValueError("probabilities must have a positive sum, got zeros only")


def _largest(priority: Array, num: Array) -> Array:
  """Returns 1 for the `num` items of largest positive priority, ties to the lower index."""
  xp = priority.__array_namespace__()
  rank = xp.argsort(xp.argsort(-priority, stable=True), stable=True)
  return ((rank < num) & (priority > 0)).astype(np.int32)
