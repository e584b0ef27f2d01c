"""What a goal demands of the output, whoever plans: its words, and published defaults.

| asked for | expected |
|---|---|
| keep at least, at most x % | `kept_rate` in these bounds |
| nothing of the kind | `kept_rate` >= 0.1: RefinedWeb kept 11.67 % of its documents |
| a budget, and nothing of the kind | no `kept_rate`: how much is kept is the budget's |
| no duplicates | no exact ones; of near ones 1 % in a sample; planted copies collapse |
| no personal data | none that `mask_pii` finds; planted pieces are masked |
| languages | 99 % are identified as one of them |
| no faults of encoding, no HTML | none; at most 0.1 % with tags, as prose may name some |
| clean | planted junk goes, planted clean text stays |
| anything | at most 30 % by one rule; a second run changes nothing; records are whole |

RefinedWeb: Penedo et al., 2023, arXiv:2306.01116. 30 % is what a rule of C4 alone takes of the
tokens of Common Crawl, which FineWeb found too much (Penedo et al., 2024, arXiv:2406.17557).
"""

import math

from jdc.prep import canaries, expect
from jdc.prep.agent.goal import Goal
from jdc.prep.canary_texts import CLEAN
from jdc.prep.spec import Expectation

KEPT = 0.1
RULE_SHARE = 0.3
PII = ("email", "ip", "phone", "card", "iban", "ssn", "street", "name")


def pii_kinds(goal: Goal) -> tuple[str, ...]:
  """Returns the kinds of personal data that a goal wants masked, those to be kept left out."""
  kinds = PII if goal.find("pii") else tuple(k for k in PII if goal.find(f"pii_{k}"))
  return tuple(k for k in kinds if not goal.refuses(f"pii_{k}"))


def rule_share(goal: Goal) -> float:
  """Returns the largest share of the documents that one rule may drop by itself."""
  asked = goal.find("rule_share")
  return asked.args["most"] if asked else RULE_SHARE


def word_bounds(goal: Goal) -> tuple[float, float]:
  """Returns the least and the most words that a goal allows."""
  held = {k: v for wish in goal.all("word_count") for k, v in wish.args.items()}
  return held.get("min", 0), held.get("max", math.inf)


def asked_rules(goal: Goal) -> tuple[str, ...]:
  """Returns the rules whose thresholds a goal states, which nothing loosens."""
  return ("word_count",) if goal.all("word_count") else ()


def planted(goal: Goal) -> list[canaries.Canary]:
  """Returns the canaries for a goal."""
  kinds = [f"pii_{kind}" for kind in pii_kinds(goal)]
  return canaries.plant(goal.languages, kinds, word_bounds(goal))


def expectations(goal: Goal) -> dict[str, Expectation]:
  """Returns what a plan for a goal must achieve.

  >>> from jdc.prep.agent import goal
  >>> found = expectations(goal.read("no duplicates, keep at least 30 %"))
  >>> found["kept_rate"].min, found["near_dup_rate_after"].max
  (0.3, 0.01)
  """
  kept = {k: v for wish in goal.all("kept_rate") for k, v in wish.args.items()}
  found: dict[str, Expectation] = {}
  if kept or not goal.find("budget"):
    found["kept_rate"] = Expectation(min=kept.get("min", KEPT), max=kept.get("max"))
  kinds = {canary.kind for canary in planted(goal)}
  near, exact = goal.find("dedup", "near_dedup"), goal.find("dedup", "exact_dedup")
  if near or exact:
    found["exact_dup_rate_after"] = Expectation(max=0)
    if "exact" in kinds:
      found["canary_exact_collapsed"] = Expectation(min=1)
  if near:
    found["near_dup_rate_after"] = Expectation(max=0.01)
    if "near" in kinds:
      found["canary_near_collapsed"] = Expectation(min=1)
  for kind in pii_kinds(goal):
    found[f"pii_{kind}_per_million"] = Expectation(max=0)
  if "pii" in kinds:
    found["canary_pii_masked"] = Expectation(min=1)
  if goal.languages:
    found[expect.language_name(goal.languages)] = Expectation(min=0.99)
  if goal.find("encoding"):
    found["encoding_fault_rate_after"] = Expectation(max=0)
  if goal.find("html"):
    found["html_rate_after"] = Expectation(max=0.001)
  if goal.find("clean", "recipe"):
    found["canary_junk_dropped"] = Expectation(min=1)
  if "clean" in kinds:
    found["canary_clean_kept"] = Expectation(min=1)
  found["most_dropped_by_a_rule"] = Expectation(max=rule_share(goal))
  found["changed_again_rate"] = Expectation(max=0)
  found["schema_faults"] = Expectation(max=0)
  return found


def without_canaries(goal: Goal) -> list[str]:
  """Returns the languages asked for in which there is no passage to plant."""
  return [code for code in goal.languages if code not in CLEAN]
