"""Validation of factory arguments: every offender in one message."""

import math
from collections.abc import Iterable


def require(*claims: tuple[bool, str]) -> None:
  """Raises a ValueError that lists the message of every claim that does not hold."""
  raise_all(message for holds, message in claims if not holds)


def raise_all(problems: Iterable[str]) -> None:
  """Raises one ValueError that lists all problems, if there are any."""
  found = list(problems)
  if found:
    raise ValueError("; ".join(found))


def is_count(value: object, minimum: int = 0) -> bool:
  """Whether `value` is a whole number, not a bool, of at least `minimum`."""
  return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def is_number(value: object) -> bool:
  """Whether `value` is a real number that is not NaN; infinities are numbers."""
  return (
    isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
  )


def is_finite(value: object) -> bool:
  """Whether `value` is a finite real number."""
  return is_number(value) and math.isfinite(value)  # type: ignore[arg-type]
