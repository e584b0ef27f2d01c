"""Means of domains over a batch, and weights of domains that are raised by a factor a step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies.base import ExampleStats


class DomainMeans(NamedTuple):
  """Means over the usable examples of a batch: with target tokens and a finite value."""

  mean_K: jax.Array  # f32[K], 0 for an absent domain
  tokens_K: jax.Array  # f32[K], target tokens of its usable examples
  present_K: jax.Array  # bool[K], whether there are any
  usable_B: jax.Array  # bool[B]
  num_nonfinite: jax.Array  # i32[], examples with target tokens that are not usable


def domain_sums(values: jax.Array, domain: jax.Array, num_domains: int) -> jax.Array:
  """Returns the sum over the examples of each domain, f32[K].

  Args:
    values: [B], 0 where an example is left out.
    domain: i32[B].
    num_domains: K.

  Example:
    >>> domain_sums(jnp.array([1.0, 2.0, 4.0]), jnp.array([0, 2, 0]), 3).tolist()
    [5.0, 0.0, 2.0]
  """
  # A masked reduction and no scatter: the same order of summation on every run and device.
  is_of_KxB = domain == jnp.arange(num_domains)[:, None]
  return jnp.sum(jnp.where(is_of_KxB, values.astype(jnp.float32), 0.0), axis=1)


def domain_means(values: jax.Array, stats: ExampleStats, num_domains: int) -> DomainMeans:
  """Returns the mean per target token of each domain in the batch.

  Examples whose value is not finite are left out and counted.

  Args:
    values: [B], the mean over the target tokens of each example; without any, it may be
      anything.
    stats: holds `num_tokens` and `domain`.
    num_domains: K.

  Example:
    >>> stats = ExampleStats(domain=jnp.array([0, 0, 1]), num_tokens=jnp.array([2, 1, 0]))
    >>> domain_means(jnp.array([1.0, 4.0, jnp.nan]), stats, 2).mean_K.tolist()
    [2.0, 0.0]
  """
  values_B, valid_B = values.astype(jnp.float32), stats.num_tokens > 0
  usable_B = valid_B & jnp.isfinite(values_B)
  tokens_B = jnp.where(usable_B, stats.num_tokens, 0)
  tokens_K = domain_sums(tokens_B, stats.domain, num_domains)
  # Shares first: a sum of large values times tokens would overflow.
  share_B = tokens_B / jnp.maximum(tokens_K, 1.0)[stats.domain]
  values_B = jnp.where(usable_B, values_B, 0.0)
  mean_K = domain_sums(share_B * values_B, stats.domain, num_domains)
  present_K = (tokens_K > 0) & jnp.isfinite(mean_K)
  usable_B &= present_K[stats.domain]
  return DomainMeans(
    mean_K=jnp.where(present_K, mean_K, 0.0),
    tokens_K=jnp.where(present_K, tokens_K, 0.0),
    present_K=present_K,
    usable_B=usable_B,
    num_nonfinite=jnp.sum(valid_B & ~usable_B, dtype=jnp.int32),
  )


def raise_weights(log_weight: jax.Array, gain: jax.Array, known: jax.Array) -> jax.Array:
  """Returns log w' with w'_k proportional to w_k exp(gain_k), sum 1.

  A domain whose gain is not known keeps its weight.

  Args:
    log_weight: f32[K], log w; -inf stays.
    gain: f32[K], not NaN where known.
    known: bool[K].

  Returns:
    f32[K].

  Example:
    >>> w = jnp.log(jnp.array([0.25, 0.25, 0.5]))
    >>> gain = jnp.array([jnp.log(3.0), 0.0, 0.0])
    >>> after = raise_weights(w, gain, jnp.array([True, True, False]))
    >>> [round(p, 3) for p in jnp.exp(after).tolist()]
    [0.375, 0.125, 0.5]
  """
  # Bounded so that differences are never inf - inf; weights that far apart are 0 and 1.
  bound = jnp.finfo(jnp.float32).max / 4
  raised_K = log_weight + jnp.clip(gain, -bound, bound)
  before = jax.nn.logsumexp(jnp.where(known, log_weight, -jnp.inf))
  after = jax.nn.logsumexp(jnp.where(known, raised_K, -jnp.inf))
  # The gain that all known domains have together leaves the share of the others as it is.
  shared = jnp.where(jnp.isfinite(before) & jnp.isfinite(after), after - before, 0.0)
  return jax.nn.log_softmax(jnp.where(known, raised_K, log_weight + shared))


def mix_with_uniform(log_weight: jax.Array, share: float) -> jax.Array:
  """Returns log((1 - c) w + c / K), c being `share`.

  Args:
    log_weight: f32[K], log w with sum w = 1.
    share: c in [0, 1).

  Returns:
    f32[K].
  """
  if share == 0:  # not through exp, which would turn a small weight into 0 for ever
    return log_weight
  return jnp.log((1 - share) * jnp.exp(log_weight) + share / log_weight.size)
