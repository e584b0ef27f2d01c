"""What a plan expects of a run, checked against what the run measured."""

import re
from collections.abc import Iterable, Mapping
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
  "pii_ssn_per_million",
  "pii_street_per_million",
  "pii_name_per_million",
)
# Of a trial with planted texts and of a second run on its own output: by `plan` and `verify`,
# not by runs.
VERIFIED = (
  "canary_clean_kept",
  "canary_junk_dropped",
  "canary_exact_collapsed",
  "canary_near_collapsed",
  "canary_pii_masked",
  "most_dropped_by_a_rule",
  "changed_again_rate",
  "schema_faults",
  "failed_cases",
)
_LANGUAGES = re.compile(r"language_([a-z]{2,3}(?:_[a-z]{2,3})*)_rate_after")


def language_name(codes: Iterable[str]) -> str:
  """Returns what the share of documents in some languages is called.

  >>> language_name(["en", "de"])
  'language_de_en_rate_after'
  """
  return f"language_{'_'.join(sorted(codes))}_rate_after"


def check_names(plan: PlanSpec) -> None:
  """Raises a ValueError that lists expectations of what nothing measures."""
  known = (*COUNTED, *SAMPLED, *VERIFIED)
  problems.raise_all(
    [
      f"expect: nothing measures {name!r}{problems.suggestion(name, known)}"
      for name in plan.expect
      if name not in known and not _LANGUAGES.fullmatch(name)
    ],
    "plan",
  )


def needs_sample(names: Iterable[str]) -> bool:
  """Whether some of the expected quantities are measured on samples."""
  return any(name in SAMPLED or _LANGUAGES.fullmatch(name) for name in names)


def of_run(expected: Mapping[str, Expectation]) -> dict[str, Expectation]:
  """Returns what is expected of a run, not of a trial."""
  return {name: held for name, held in expected.items() if name not in VERIFIED}


def sampled(after: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
  """Returns what `profile.measure` of the output says of expected quantities.

  Args:
    after: the measures.
    names: of expectations; of languages those that are asked for are added up.
  """
  found = {}
  for name in SAMPLED:
    held = after.get(name.removesuffix("_after"))
    if held is not None:
      found[name] = held
  shares = after.get("languages")
  for name in names:
    match = _LANGUAGES.fullmatch(name)
    if match and shares is not None:
      found[name] = min(1.0, sum(shares.get(code, 0.0) for code in match[1].split("_")))
  return found


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
