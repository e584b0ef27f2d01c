"""Wording of errors: what pydantic found wrong, names that were probably meant, all at once."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pydantic


def suggestion(name: str, known: Iterable[str]) -> str:
  """Returns `, did you mean 'x'?` and the known names.

  >>> suggestion("exact_dedupe", ["exact_dedup", "sample"])
  ", did you mean 'exact_dedup'? known: exact_dedup, sample"
  >>> suggestion("zzz", ["sample"])
  '; known: sample'
  """
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1)
  meant = f", did you mean {close[0]!r}?" if close else ";"
  return f"{meant} known: {', '.join(known)}"


@contextlib.contextmanager
def in_step(number: int, op: str) -> Iterator[None]:
  """Notes in errors which step of a plan raised them."""
  try:
    yield
  except Exception as error:
    error.add_note(f"in step {number} ({op})")
    raise


def of_validation(
  error: pydantic.ValidationError, where: str, model: type[pydantic.BaseModel]
) -> list[str]:
  """Returns one line for each thing that a value of `model` has wrong.

  Args:
    error: what pydantic raised.
    where: what the value is called in the plan, such as `step 3 (sample)`.
    model: the type that the value should have had.
  """
  lines = []
  for problem in error.errors(include_url=False):
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
      known = [*model.model_fields]
      lines.append(f"{where}: unknown parameter {place!r}{suggestion(place, known)}")
    elif problem["type"] == "missing":
      lines.append(f"{where}: {place} must be given")
    else:
      given = _short(problem["input"])
      lines.append(f"{where}: {place}={given}: {problem['msg']}")
  return list(dict.fromkeys(lines))


def _short(value: Any) -> str:
  shown = repr(value)
  return shown if len(shown) <= 80 else shown[:77] + "..."


def raise_all(problems: Iterable[str], what: str) -> None:
  """Raises one ValueError that lists all problems, if there are any."""
  listed = list(problems)
  if listed:
    raise ValueError(f"{what}: " + "\n  ".join(["", *listed] if len(listed) > 1 else listed))


def unknown_keys(given: Mapping[str, Any], known: Iterable[str], where: str) -> list[str]:
  """Returns a line for each key that is not known."""
  known = list(known)
  return [f"{where}: unknown {k!r}{suggestion(k, known)}" for k in given if k not in known]
