"""What a plan expects of a run, checked against what the run measured."""

from collections.abc import Mapping
from typing import Any

from jdc.prep import problems
from jdc.prep.spec import Expectation, PlanSpec

# Exact, of the whole run.
COUNTED = (
  "kept_rate",
  "quarantined_rate",
  "exact_dup_rate",
  "near_dup_rate",
  "rows",
  "text_bytes",
)
# Of samples of the input and, with `_after`, of the output; PII is that of the output.
SAMPLED = (
  "exact_dup_rate_after",
  "near_dup_rate_after",
  "html_rate_after",
  "encoding_fault_rate_after",
  "pii_email_per_million",
  "pii_ip_per_million",
  "pii_phone_per_million",
  "pii_card_per_million",
  "pii_iban_per_million",
)


def check_names(plan: PlanSpec) -> None:
  """Raises a ValueError that lists expectations of what nothing measures."""
  known = (*COUNTED, *SAMPLED)
  problems.raise_all(
    [
      f"expect: nothing measures {name!r}{problems.suggestion(name, known)}"
      for name in plan.expect
      if name not in known
    ],
    "plan",
  )


def counted(accounts: Mapping[str, Any], text_bytes: int) -> dict[str, float]:
  """Returns the quantities that are known of all documents."""
  read = max(accounts["read"], 1)
  dropped = accounts["dropped"]
  return {
    "kept_rate": accounts["kept"] / read,
    "quarantined_rate": sum(accounts["quarantined"].values()) / read,
    "exact_dup_rate": dropped.get("exact_dedup", 0) / read,
    "near_dup_rate": dropped.get("minhash_dedup", 0) / read,
    "rows": accounts["kept"],
    "text_bytes": text_bytes,
  }


def judge(
  expected: Mapping[str, Expectation], measured: Mapping[str, float]
) -> list[dict[str, Any]]:
  """Returns for each expectation its range, the value, and whether it holds.

  What could not be measured does not hold.

  >>> judge({"rows": Expectation(min=5)}, {"rows": 4})
  [{'name': 'rows', 'min': 5.0, 'max': None, 'value': 4, 'holds': False}]
  """
  found = []
  for name, bounds in expected.items():
    value = measured.get(name)
    holds = value is not None and bounds.holds(value)
    found.append({"name": name, **bounds.model_dump(), "value": value, "holds": holds})
  return found
