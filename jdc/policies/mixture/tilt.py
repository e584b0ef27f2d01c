"""Losses of domains over a round, and the weights that a tilted mean of them gives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies import domains
from jdc.policies.base import ExampleStats


class RoundLosses(NamedTuple):
  loss_K: jax.Array  # f32[K], nats per token, of the last closed round that had the domain
  known_K: jax.Array  # bool[K], whether any had
  open_loss_K: jax.Array  # f32[K], mean over the batches since then
  open_tokens_K: jax.Array  # f32[K], target tokens in that mean
  num_nonfinite: jax.Array  # i32[], rows left out of it


def start(num_domains: int) -> RoundLosses:
  """Returns the state before any batch."""
  zeros_K = jnp.zeros(num_domains, jnp.float32)
  return RoundLosses(
    zeros_K, jnp.zeros(num_domains, bool), zeros_K, zeros_K, num_nonfinite=jnp.int32(0)
  )


def add(losses: RoundLosses, stats: ExampleStats) -> RoundLosses:
  """Adds a training batch to the open round; reads `loss`, `num_tokens` and `domain`."""
  batch = domains.domain_means(stats.loss, stats, losses.loss_K.size)
  total_K = losses.open_tokens_K + batch.tokens_K
  share_K = batch.tokens_K / jnp.maximum(total_K, 1.0)
  return losses._replace(
    open_loss_K=(1 - share_K) * losses.open_loss_K + share_K * batch.mean_K,
    open_tokens_K=total_K,
    num_nonfinite=losses.num_nonfinite + batch.num_nonfinite,
  )


def close(losses: RoundLosses) -> RoundLosses:
  """Takes over the losses of the domains that the open round had, and opens another."""
  seen_K = losses.open_tokens_K > 0
  return start(losses.loss_K.size)._replace(
    loss_K=jnp.where(seen_K, losses.open_loss_K, losses.loss_K),
    known_K=losses.known_K | seen_K,
  )


def log_tilt(losses: RoundLosses, tau: float) -> jax.Array:
  r"""Returns log y with y_k = tau softmax(tau L)_k, f32[K].

  y is the weight of domain k's gradient in that of log(sum_k exp(tau L_k)) / tau, times tau. A
  domain without a loss has tau / K, and the others share the rest.

  Example:
    >>> losses = start(2)._replace(loss_K=jnp.array([1.0, 2.0]), known_K=jnp.ones(2, bool))
    >>> [round(y, 3) for y in jnp.exp(log_tilt(losses, 3.0)).tolist()]
    [0.142, 2.858]
  """
  known_K, num_domains = losses.known_K, losses.loss_K.size
  top = jnp.max(jnp.where(known_K, losses.loss_K, -jnp.inf))
  # Against the top first: tau times a large loss would overflow.
  tilt_K = jnp.where(known_K, tau * (losses.loss_K - top), 0.0)
  total = jnp.sum(jnp.where(known_K, jnp.exp(tilt_K), 0.0))
  share = jnp.sum(known_K) / num_domains
  scale = jnp.where(total > 0, share / jnp.where(total > 0, total, 1.0), 1.0)
  log_y_K = jnp.where(known_K, tilt_K + jnp.log(scale), -jnp.log(num_domains))
  return jnp.log(tau) + log_y_K
