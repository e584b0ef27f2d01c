"""A policy that has more statistics computed than it reads itself."""

from collections.abc import Sequence

from jdc.policies import checks
from jdc.policies.base import DataPolicy, ExampleStats, PolicyState


def observing(fields: Sequence[str], policy: DataPolicy) -> DataPolicy:
  """Has statistics of every training batch computed beside those that the policy reads.

  It decides as before. What is computed goes where a run records it: `target_alignment` into
  its table of examples (`jdc.train.example_table`).

  Args:
    fields: of `ExampleStats`, such as `target_alignment`.
    policy: the policy.

  Returns:
    The policy, which observes these fields too.

  Raises:
    ValueError: if no field is named.

  Example:
    >>> from jdc import policies
    >>> policy = observing(["target_alignment"], policies.mixture.by_size())
    >>> sorted(policy.observes)
    ['target_alignment']
  """
  names = frozenset(fields)
  checks.require((bool(names), f"fields must name at least one statistic, got {fields!r}"))
  if policy.scope == "step":
    return policy._replace(observes=policy.observes | names)
  return policy._replace(
    observe=policy.observe or _pass_by, observes_batch=policy.observes_batch | names
  )


def _pass_by(stats: ExampleStats, state: PolicyState) -> PolicyState:
  del stats
  return state
