"""Fixed proportions."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec


class StaticState(NamedTuple):
  logits_K: jax.Array  # f32[K], log proportions


def static(proportions: Sequence[float] | Mapping[str, float] | None = None) -> DataPolicy:
  """Samples domain k with probability p_k / sum p, always.

  Args:
    proportions: p >= 0 with a positive sum, one per domain in the run's order, or by domain
      name; by default the run's base proportions. A domain of proportion 0 is never sampled.

  Returns:
    A step-scope policy that observes nothing; its decision holds `logits` f32[K].

  Raises:
    ValueError: if a proportion is negative or not finite, or none is positive; in `init`, if
      there is not exactly one for each domain of the run.

  Example:
    >>> spec = RunSpec(10, 2, ("code", "web"), (4, 6), proportions=(0.4, 0.6))
    >>> decision, _ = static({"web": 3, "code": 1}).init(spec, jax.random.key(0))
    >>> jnp.exp(decision.logits).tolist()
    [0.25, 0.75]
  """
  if proportions is not None:
    checks.raise_all(proportion_problems(proportions))

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, StaticState]:
    del key  # deterministic
    given = spec.proportions if proportions is None else proportions
    checks.raise_all(fit_problems(given, spec))
    return constant(in_order(given, spec))

  def update(stats: ExampleStats, state: StaticState) -> tuple[Decision, StaticState]:
    del stats
    return Decision(logits=state.logits_K), state

  return DataPolicy(init, update, frozenset(), scope="step")


def constant(proportions_K: np.ndarray) -> tuple[Decision, StaticState]:
  """Returns the decision for fixed proportions, and the state that repeats it."""
  with np.errstate(divide="ignore"):  # log 0 = -inf: never
    log_K = np.log(proportions_K) - np.log(proportions_K.sum())
  logits_K = jnp.asarray(log_K, jnp.float32)
  return Decision(logits=logits_K), StaticState(logits_K)


def proportion_problems(proportions: Sequence[float] | Mapping[str, float]) -> list[str]:
  """What is wrong with proportions in any run."""
  if not isinstance(proportions, Mapping | Sequence | np.ndarray):
    return [f"proportions must be numbers by domain, got {proportions!r}"]
  named = proportions if isinstance(proportions, Mapping) else dict(enumerate(proportions))
  bad = {name: p for name, p in named.items() if not (checks.is_finite(p) and p >= 0)}
  if bad:
    return [f"proportions must be finite and at least 0, got {bad}"]
  if not sum(named.values()) > 0:
    return [f"proportions must have a positive sum: {named}"]
  return []


def fit_problems(
  proportions: Sequence[float] | Mapping[str, float], spec: RunSpec
) -> list[str]:
  """Why proportions are not those of the run's domains."""
  if not isinstance(proportions, Mapping):
    count = len(proportions)
    if count == spec.num_domains:
      return []
    return [f"proportions must be one for each of {spec.domain_names}, got {count} of them"]
  known, given = set(spec.domain_names), set(proportions)
  problems = []
  if not given <= known:
    problems.append(f"unknown domains {_names(given - known)}; known: {spec.domain_names}")
  if not known <= given:
    problems.append(f"proportions are missing for domains {_names(known - given)}")
  return problems


def in_order(proportions: Sequence[float] | Mapping[str, float], spec: RunSpec) -> np.ndarray:
  """Returns proportions that fit the run, in its order of domains."""
  if isinstance(proportions, Mapping):
    proportions = [proportions[name] for name in spec.domain_names]
  return np.asarray(proportions, np.float64)


def _names(names: set) -> list[str]:
  return sorted(map(str, names))
