"""The four slots of a run: which policy decides what."""

import dataclasses
from typing import Any, NamedTuple, get_args

from jdc.policies import checks
from jdc.policies.base import DataPolicy, ExampleStats, Ordering, Scope

_FIELDS = frozenset(field.name for field in dataclasses.fields(ExampleStats))
_ROUND_ONLY = ("score", "sweep_ids", "observe")


class Policies(NamedTuple):
  """The policies of a run by slot; `None` leaves the slot's choice alone."""

  mixture: DataPolicy | None = None  # proportions of the domains
  selection: DataPolicy | None = None  # which examples
  ordering: Ordering | None = None  # in which order
  weighting: DataPolicy | None = None  # how much each example counts in the loss


def combine(
  *,
  mixture: DataPolicy | None = None,
  selection: DataPolicy | None = None,
  ordering: Ordering | None = None,
  weighting: DataPolicy | None = None,
) -> Policies:
  """Puts policies into the slots of one run.

  p(example) = p(domain) p(example | domain): the proportions do not depend on the selection.
  Weights of several slots multiply.

  Args:
    mixture: decides the proportions of the domains, at step or round scope.
    selection: decides which examples are drawn. At round scope from the pool, at step scope
      from a candidate batch larger than the trained one.
    ordering: permutes the rows that a round draws from one domain.
    weighting: decides how much each example or token of a batch counts; step scope, because
      weights decided once a round belong to the rows that a selection names.

  Returns:
    The slots.

  Raises:
    ValueError: if a slot holds something else than it should, a scope does not fit its slot, or
      a policy's fields contradict each other; all problems are listed.

  Example:
    >>> from jdc import policies
    >>> chosen = policies.combine(
    ...   mixture=policies.mixture.odm(), weighting=policies.weighting.loss_reweighting()
    ... )
    >>> chosen.selection is None
    True
  """
  policies = Policies(mixture, selection, ordering, weighting)
  problems: list[str] = []
  for slot, value in policies._asdict().items():
    if value is None:
      continue
    problems += _ordering_problems(value) if slot == "ordering" else _problems(slot, value)
  checks.raise_all(problems)
  return policies


def _problems(slot: str, policy: Any) -> list[str]:
  """What is wrong with a policy in a slot."""
  if not isinstance(policy, DataPolicy):
    hint = "; call the factory" if callable(policy) else ""
    return [f"{slot} must be a DataPolicy or None, got {_describe(policy)}{hint}"]
  problems = []
  scopes = ("step",) if slot == "weighting" else get_args(Scope)
  if policy.scope not in scopes:
    accepted = " or ".join(repr(scope) for scope in scopes)
    problems.append(f"{slot}.scope must be {accepted}, got {policy.scope!r}")
  problems += [
    f"{slot}.{name} must be a function, got {_describe(getattr(policy, name))}"
    for name in ("init", "update")
    if not callable(getattr(policy, name))
  ]
  for name in ("observes", "observes_batch"):
    problems += _field_problems(f"{slot}.{name}", getattr(policy, name))
  given = [name for name in _ROUND_ONLY if getattr(policy, name) is not None]
  if policy.scope == "step" and given:
    problems.append(f"{slot} has step scope, but {given} belong to round scope")
  if policy.sweep_ids is not None and policy.score is None:
    problems.append(f"{slot}.sweep_ids names rows to sweep, but {slot}.score is None")
  if policy.observes_batch and policy.observe is None:
    problems.append(f"{slot}.observes_batch is given, but {slot}.observe is None")
  return problems


def _ordering_problems(ordering: Any) -> list[str]:
  if not isinstance(ordering, Ordering):
    hint = "; call the factory" if callable(ordering) else ""
    return [f"ordering must be an Ordering or None, got {_describe(ordering)}{hint}"]
  problems = ordering_score_problems("ordering.observes", ordering.observes)
  if not callable(ordering.order):
    problems.append(f"ordering.order must be a function, got {_describe(ordering.order)}")
  return problems


def ordering_score_problems(name: str, observes: Any) -> list[str]:
  """What is wrong with the statistics that an ordering observes: at most one is its score."""
  problems = _field_problems(name, observes)
  if not problems and len(observes) > 1:
    problems.append(f"{name} must hold at most one field, the score, got {sorted(observes)}")
  return problems


def _field_problems(name: str, observed: Any) -> list[str]:
  if not isinstance(observed, frozenset):
    return [f"{name} must be a frozenset of field names, got {_describe(observed)}"]
  unknown = sorted(map(str, observed - _FIELDS))
  if not unknown:
    return []
  return [f"{name} has unknown fields {unknown}; known: {sorted(_FIELDS)}"]


def _describe(value: Any) -> str:
  return f"{type(value).__name__} {value!r}"
