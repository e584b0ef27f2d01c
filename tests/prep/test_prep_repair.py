"""Thresholds are loosened no further than is needed, against a search over all values."""

import json

import numpy as np
import pyarrow as pa
import pytest

from jdc.prep import canaries, knobs, plan_step, repair, step
from jdc.prep.canaries import Canary
from jdc.prep.predicates import RULES
from jdc.prep.spec import Expectation, InputSpec, PlanSpec
from jdc.prep.verify import Sample, Verifier


def table(texts):
  size = len(texts)
  return pa.table({"source": ["a"] * size, "text": texts, "fields": ["{}"] * size})


def verified(folder, texts, *steps, expect, planted=()):
  plan = PlanSpec(input=InputSpec(paths=("x",)), step=steps, expect=expect)
  sample = Sample(table(texts), np.ones(len(texts)), tuple(planted))
  verifier = Verifier(sample, folder, folder)
  return plan, verifier, verifier.verify(plan, twice=False)


TEXTS = [" ".join(f"w{n}x{k}" for k in range(n + 1)) for n in range(100)]  # 1 to 100 words


@pytest.mark.parametrize("wanted", [0.3, 0.55, 0.9])
def test_the_threshold_is_the_strictest_that_keeps_enough(tmp_path, wanted):
  expect = {"kept_rate": Expectation(min=wanted)}
  plan, verifier, found = verified(tmp_path, TEXTS, step("word_count", min=80), expect=expect)
  assert found.measured["kept_rate"] == pytest.approx(0.21)
  loose, changes = repair.loosen(plan, found, verifier.sample)
  # By search: of all thresholds the largest with which enough is kept.
  best = max(m for m in range(81) if np.mean([n + 1 >= m for n in range(100)]) >= wanted)
  assert loose.step[0].params == {"min": best}
  assert changes[0].after == best
  again = verifier.verify(loose, twice=False)
  assert again.measured["kept_rate"] >= wanted
  assert again.outcome.texts_made == 0
  assert loose.step[0].why == f"repair: word_count.min 80 -> {best} (kept_rate >= {wanted:.3g})"


def test_the_rule_with_the_most_marginal_documents_is_loosened_first(tmp_path):
  """The longest are dropped by one rule, the shortest by another, some by both."""
  steps = (
    step("word_count", min=31, max=1000),
    step("mean_word_length", max=4.0),
  )
  expect = {"kept_rate": Expectation(min=0.5)}
  plan, verifier, found = verified(tmp_path, TEXTS, *steps, expect=expect)
  names = [name for held in found.outcome.measured for name in held.reasons]
  assert names == ["word_count", "mean_word_length"]
  only = {name: found.rules[name]["only"] for name in names}
  _, changes = repair.loosen(plan, found, verifier.sample)
  assert changes[0].reason == max(only, key=only.get) == "mean_word_length"
  assert changes[0].parameter == "mean_word_length.max"


def test_junk_that_is_planted_bounds_how_far_a_rule_is_loosened(tmp_path):
  expect = {"kept_rate": Expectation(min=1.0)}
  planted = [Canary("junk", "short", " ".join(["word"] * 30))]
  plan, verifier, found = verified(
    tmp_path, TEXTS, step("word_count", min=80), expect=expect, planted=planted
  )
  loose, _ = repair.loosen(plan, found, verifier.sample)
  assert loose.step[0].params == {"min": 31}
  assert verifier.verify(loose, twice=False).canaries["junk_dropped"]["right"] == 1


def test_a_rule_that_takes_too_much_is_capped_and_clean_texts_stay(tmp_path):
  expect = {"most_dropped_by_a_rule": Expectation(max=0.3)}
  plan, verifier, found = verified(
    tmp_path / "a", TEXTS, step("word_count", min=80), expect=expect
  )
  capped, _ = repair.loosen(plan, found, verifier.sample)
  assert capped.step[0].params == {"min": 31}
  planted = [Canary("clean", "en", " ".join(["word"] * 60))]
  plan, verifier, found = verified(
    tmp_path / "b", TEXTS, step("word_count", min=80), planted=planted,
    expect={"canary_clean_kept": Expectation(min=1)},
  )  # fmt: skip
  kept, _ = repair.loosen(plan, found, verifier.sample)
  assert kept.step[0].params == {"min": 60}


def test_what_the_goal_states_is_not_loosened(tmp_path):
  expect = {"kept_rate": Expectation(min=0.9)}
  plan, verifier, found = verified(tmp_path, TEXTS, step("word_count", min=80), expect=expect)
  stated = plan.model_copy(update={"provenance": {"asked": ["word_count"]}})
  same, changes = repair.loosen(stated, found, verifier.sample)
  assert not changes
  assert same == stated


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_knob_moves_the_bound_that_it_says(name):
  made = plan_step.make_step(1, name, {}, "/")
  rule = RULES[name]()
  held = {bound.reason: bound for bound in rule.bounds()}
  for knob in knobs.knobs(made):
    before = held[knob.reason]
    looser = not knob.value if isinstance(knob.value, bool) else knob.value * 1.5 + 1
    if knob.side == "min":
      looser = knob.value * 0.5
    looser = int(looser) if isinstance(knob.value, int) and looser is not False else looser
    try:
      after = type(rule)(**{**rule.model_dump(), knob.parameter: looser}).bounds()
    except ValueError:  # a share above 1
      looser = 1.0
      after = type(rule)(**{**rule.model_dump(), knob.parameter: looser}).bounds()
    moved = {bound.reason: bound for bound in after}.get(knob.reason)
    if looser is False:
      assert moved is None
    elif knob.side == "min":
      assert moved.min < before.min
    else:
      assert moved.max > before.max
  adjustable = [f for f, v in rule.model_dump().items() if not isinstance(v, str)]
  assert {k.parameter for k in knobs.knobs(made)} == set(adjustable)


@pytest.mark.parametrize("value", [0.1234567, 12.345678, 3, 0.0])
def test_rounding_never_makes_a_rule_stricter(value):
  for side in ("min", "max"):
    knob = knobs.Knob(1, "r", "p", "r", "s", side, type(value)(5))
    found = knobs.rounded(knob, value)
    assert found <= value if side == "min" else found >= value
    assert found == pytest.approx(value, rel=1e-3)


def test_groups_in_a_filter_are_taken_apart_and_keep_their_parameters():
  given = {"word_count": {"min": 7}, "gopher": {"top_ngram": {"top2": 0.3}}}
  plan = PlanSpec(input=InputSpec(paths=("x",)), step=(step("filter", rules=given),))
  made = plan_step.make_step(1, "filter", plan.step[0].params, "/")
  knob = next(k for k in knobs.knobs(made) if k.reason == "alpha_words")
  turned = knobs.turned(plan, knob, 0.5, "why")
  rules = turned.step[0].params["rules"]
  assert rules["alpha_words"] == {"min": 0.5}
  assert rules["word_count"] == {"min": 7}
  assert rules["top_ngram"] == {"top2": 0.3}
  after = plan_step.make_step(1, "filter", turned.step[0].params, "/")
  others = lambda step: {b for b in step.values.bounds if b.reason != "alpha_words"}
  assert others(after) == others(made)


@pytest.mark.parametrize("languages", [(), ("en",), ("zh",), ("de",), ("fr", "en")])
def test_canaries_are_the_same_every_time_and_differ_from_each_other(languages):
  one, two = (canaries.plant(languages) for _ in range(2))
  assert one == two
  good = [c for c in one if c.kind in ("clean", "pii")]
  words = [set(c.text.split()) if " " in c.text else set(c.text) for c in good]
  for i, a in enumerate(words):
    for b in words[:i]:
      assert len(a & b) / len(a | b) < 0.5  # no near duplicates
  for canary in one:
    assert all(secret in canary.text for secret in canary.secrets)
  json.dumps([c._asdict() for c in one])


def test_near_canaries_are_near_by_exact_jaccard():
  shingles = lambda t: set(zip(*[t.casefold().split()[n:] for n in range(5)], strict=False))
  for text in {c.text for c in canaries.plant(("en",)) if c.kind == "clean"}:
    for copy in canaries.edited(text):
      a, b = shingles(text), shingles(copy)
      assert 0.8 < len(a & b) / len(a | b) < 1
