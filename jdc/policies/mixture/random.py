"""Random proportions, drawn anew every round."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec


class RandomState(NamedTuple):
  key: jax.Array
  logits_K: jax.Array  # f32[K], log of the proportions in force


def random(concentration: float = 1.0) -> DataPolicy:
  """Samples domains in proportions p ~ Dirichlet(a, ..., a), a new draw each round.

  The control for mixtures that look at the data. a = 1 is uniform on the simplex, which
  normalised uniform numbers are not.

  Args:
    concentration: a > 0. Large values stay near uniform proportions, small ones near a single
      domain.

  Returns:
    A round-scope policy that observes nothing; its decision holds `logits` f32[K] = log p. The
    proportions are drawn in `init` and again in every update.

  Raises:
    ValueError: if `concentration` is not positive and finite.

  Example:
    >>> spec = RunSpec(8, 2, ("code", "web"), (4, 4), proportions=(0.5, 0.5))
    >>> decision, _ = random().init(spec, jax.random.key(0))
    >>> round(float(jnp.exp(decision.logits).sum()), 5)
    1.0
  """
  claim = checks.is_finite(concentration) and concentration > 0
  checks.require((claim, f"concentration must be positive and finite, got {concentration}"))

  def draw(key: jax.Array, num_domains: int) -> tuple[Decision, RandomState]:
    key, drawn = jax.random.split(key)
    # Normalised as logarithms: a gamma of small concentration is 0 in float32.
    log_gamma_K = jax.random.loggamma(drawn, concentration, (num_domains,), jnp.float32)
    logits_K = jax.nn.log_softmax(log_gamma_K)
    return Decision(logits=logits_K), RandomState(key, logits_K)

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, RandomState]:
    return draw(key, spec.num_domains)

  def update(stats: ExampleStats, state: RandomState) -> tuple[Decision, RandomState]:
    del stats
    return draw(state.key, state.logits_K.size)

  return DataPolicy(init, update, frozenset(), scope="round")
