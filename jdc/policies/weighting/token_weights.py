"""The shape of token weights."""

from jdc.policies import checks
from jdc.policies.base import RunSpec


def token_rows(name: str, spec: RunSpec) -> tuple[int, int]:
  """Returns (rows, T), the shape of a batch's token statistics.

  Args:
    name: of the policy, for the message.
    spec: of the run.

  Raises:
    ValueError: if a size is missing.

  Example:
    >>> spec = RunSpec(9, 1, ("web",), (9,), (1.0,), 8, sequence_length=5, max_segments=4)
    >>> token_rows("focal", spec)
    (2, 5)
  """
  sizes = {"batch_size": spec.batch_size, "sequence_length": spec.sequence_length}
  missing = sorted(size for size, length in sizes.items() if not length > 0)
  checks.require(
    (not missing, f"{name} weighs tokens, which needs {missing} in the run's spec")
  )
  return spec.batch_size // max(spec.max_segments, 1), spec.sequence_length
