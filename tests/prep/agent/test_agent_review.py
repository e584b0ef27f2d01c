"""What a user decides about a plan in the terminal."""

import json

import agent_corpus
import pytest

from jdc.prep.agent import review, rules, workflow
from jdc.prep.spec import PlanSpec

GOAL = "clean English text, no duplicates"


@pytest.fixture(scope="module")
def made(raw, tmp_path_factory):
  folder = tmp_path_factory.mktemp("review")
  spec = agent_corpus.spec(raw, folder)
  return workflow.plan(GOAL, spec, folder, rules.RulePlanner()), folder


def decide(made, *lines):
  """The plan after these lines, and what was said."""
  result, folder = made
  waiting, said = list(lines), []

  def ask(prompt):
    if not waiting:
      raise EOFError
    return waiting.pop(0)

  return review.review(result, folder, ask, said.append), said


def numbers(result):
  return {s.op: n for n, s in enumerate(result.plan.step, start=1)}


def test_steps_are_shown_with_what_they_drop_and_documents_on_either_side(made):
  result, _ = made
  same, said = decide(made, "accept", "done")
  text = "\n".join(said)
  for number, step in enumerate(result.plan.step, start=1):
    assert any(line.startswith(f"{number}. {step.op}: ") for line in said)
  shares = [v["first"] for k, v in result.verification.rules.items() if "." not in k]
  assert any(f"{share:.2%}" in text for share in shares)
  assert "the 20 worst that are kept:" in text
  assert "the 20 best that are dropped:" in text
  assert same.plan.step == result.plan.step
  assert same.plan.provenance["decisions"][0]["decision"] == "accept"


def test_the_worst_kept_are_nearest_to_a_bound(made):
  result, _ = made
  lines = review.ranked(result.verification, result.verifier, kept=True)
  assert 0 < len(lines) <= review.SHOWN
  gaps = [float(line.split("(")[1].split(")")[0]) for line in lines]
  assert gaps == sorted(gaps)
  dropped = review.ranked(result.verification, result.verifier, kept=False)
  reasons = {line.split(" ")[0] for line in dropped}
  assert reasons <= set(result.verification.rules)


def test_a_dropped_step_is_gone_and_the_plan_is_verified_anew(made):
  result, folder = made
  number = numbers(result)["exact_dedup"]
  changed, _ = decide(made, f"drop {number}", "done")
  assert "exact_dedup" not in numbers(changed)
  assert changed.verification.measured != result.verification.measured
  written = PlanSpec.read(folder / "pipeline.toml")
  assert written.step == changed.plan.step
  assert written.provenance["decisions"] == [
    {"decision": "drop", "step": f"{number} exact_dedup", "change": ""}
  ]
  report = json.loads((folder / "verification.json").read_text())
  assert report["measured"] == changed.verification.measured


def test_loosen_and_tighten_move_a_threshold_both_ways(made):
  result, _ = made
  number = numbers(result)["filter"]
  loose, _ = decide(made, f"loosen {number} word_count", "done")
  tight, _ = decide(made, f"tighten {number} word_count", "done")
  bound = lambda r: r.plan.step[number - 1].params["rules"]["word_count"]["min"]
  assert bound(loose) < 50 < bound(tight)
  broken = lambda r: r.verification.rules.get("word_count", {"all": 0.0})["all"]
  assert broken(loose) <= broken(result) <= broken(tight)
  assert broken(loose) < broken(tight)
  decision = tight.plan.provenance["decisions"][0]
  assert decision["decision"] == "tighten"
  assert decision["change"] == f"word_count.min: 50 -> {bound(tight)}"


@pytest.mark.parametrize(
  ("line", "told"),
  [
    ("", "nothing was said"),
    ("frobnicate 1", "not understood: frobnicate 1"),
    ("drop 99", "no step '99'"),
    ("drop x", "no step 'x'"),
    ("loosen 1 word_count", "has no threshold"),
    ("drop 'unclosed", "No closing quotation"),
  ],
)
def test_what_is_not_understood_changes_nothing_and_says_so(made, line, told):
  result, _ = made
  same, said = decide(made, line, "done")
  assert any(told in text for text in said)
  assert same.plan.step == result.plan.step
  assert same.plan.provenance["decisions"] == []


def test_a_rule_that_a_step_lacks_is_told_with_those_that_it_has(made):
  result, _ = made
  _, said = decide(made, f"loosen {numbers(result)['filter']} wordcount")
  assert any("has no rule 'wordcount', but " in text for text in said)
