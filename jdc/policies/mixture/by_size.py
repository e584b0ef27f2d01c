"""Proportions by the sizes of the domains."""

import jax
import numpy as np

from jdc.policies import checks, sampling
from jdc.policies.base import DataPolicy, Decision, RunSpec
from jdc.policies.mixture.static import StaticState, constant, static


def by_size(temperature: float = 1.0) -> DataPolicy:
  """Samples domain k with probability proportional to N_k^(1/T), N_k its number of rows.

  Args:
    temperature: T in [0, inf]. 1 is in proportion to size, larger values raise small domains,
      inf is uniform over domains that are not empty, 0 samples the largest only.

  Returns:
    A step-scope policy that observes nothing; its decision holds `logits` f32[K]. A domain
    without rows is never sampled.

  Raises:
    ValueError: if `temperature` is negative or NaN; in `init`, if no domain has rows.

  References:
    Temperature-based sampling, as in Arivazhagan et al., "Massively Multilingual Neural Machine
    Translation in the Wild", 2019, arXiv 1907.05019.

  Example:
    >>> spec = RunSpec(100, 2, ("code", "web"), (20, 80), proportions=(0.5, 0.5))
    >>> decision, _ = by_size(temperature=2.0).init(spec, jax.random.key(0))
    >>> [round(p, 3) for p in jax.nn.softmax(decision.logits).tolist()]
    [0.333, 0.667]
  """
  claim = checks.is_number(temperature) and temperature >= 0
  checks.require((claim, f"temperature must be in [0, inf], got {temperature}"))

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, StaticState]:
    del key  # deterministic
    sizes_K = np.asarray(spec.domain_sizes, np.float64)
    if not np.any(sizes_K > 0):
      raise ValueError(f"domain_sizes must have a positive size, got {spec.domain_sizes}")
    with np.errstate(divide="ignore"):  # log 0 = -inf: never
      log_size_K = np.log(sizes_K)
    return constant(np.exp(sampling.temper(log_size_K, temperature)))

  return static()._replace(init=init)
