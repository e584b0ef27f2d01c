"""Tests of plans: as TOML and as Python, what their hash covers, all errors at once."""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep import InputSpec, PlanSpec, check, ops, predicates, step, toml_text
from jdc.prep.catalog import explain, listing

TOML = """
jdc_pipeline = 1
goal = "clean text"
[input]
paths = ["raw/*.jsonl.gz"]
[[step]]
op = "exact_dedup"
why = "profile: exact_dup_rate=0.101"
[[step]]
op = "filter"
rules = { word_count = {min=40}, dup_ngram = "gopher", fineweb_lines = {} }
[[step]]
op = "minhash_dedup"
bands = 14
rows = 8
[output]
shard_mb = 64
[expect]
kept_rate = [0.4, 0.9]
near_dup_rate_after = { max = 0.01 }
[provenance]
planner = "rules/1"
"""
ROOT = Path(".")


def problems(toml):
  with pytest.raises(ValueError) as raised:
    check.resolve(PlanSpec.from_toml(toml), ROOT)
  return str(raised.value)


def test_numbers_are_finite():
  inputs = 'jdc_pipeline = 1\n[input]\npaths = ["raw/*.jsonl"]\n'
  steps = (
    '[[step]]\nop = "signal_range"\nsignal = "n_words"\nmin = nan\n'
    '[[step]]\nop = "sample"\nmax_tokens = 5\ntemperature = inf\n'
  )
  told = problems(inputs + steps)
  assert "step 1 (signal_range): min=nan" in told
  assert "step 2 (sample): temperature=inf" in told
  for expected in ("[nan, 1.0]", "{ max = -inf }"):
    told = problems(f"{inputs}[expect]\nkept_rate = {expected}\n")
    assert "expect.kept_rate" in told
    assert "finite" in told


def test_toml_and_python_write_the_same_plan():
  read = PlanSpec.from_toml(TOML)
  made = PlanSpec(
    goal="clean text",
    input=InputSpec(paths=("raw/*.jsonl.gz",)),
    step=(
      step("exact_dedup", why="profile: exact_dup_rate=0.101"),
      step(
        "filter", rules={"word_count": {"min": 40}, "dup_ngram": "gopher", "fineweb_lines": {}}
      ),
      step("minhash_dedup", bands=14, rows=8),
    ),
    output={"shard_mb": 64},
    expect={"kept_rate": [0.4, 0.9], "near_dup_rate_after": {"max": 0.01}},
    provenance={"planner": "rules/1"},
  )
  assert read == made
  assert PlanSpec.from_toml(made.to_toml()) == made
  assert check.plan_hash(read, ROOT) == check.plan_hash(made, ROOT)


@pytest.mark.parametrize(
  ("before", "after", "same"),
  [
    ('goal = "clean text"', 'goal = "other"', True),
    ('why = "profile: exact_dup_rate=0.101"', "", True),
    ("kept_rate = [0.4, 0.9]", "", True),
    ('planner = "rules/1"', "", True),
    ("bands = 14", "", True),  # the default
    ("bands = 14", "bands = 13", False),
    ("min=40", "min=41", False),
    ("shard_mb = 64", "shard_mb = 65", False),
    ("raw/*.jsonl.gz", "raw/a*.jsonl.gz", False),
    ('op = "exact_dedup"', 'op = "exact_dedup"\nnormalize = false', False),
  ],
)
def test_the_hash_covers_what_changes_the_output(before, after, same):
  assert TOML.count(before) == 1
  hashes = [
    check.plan_hash(PlanSpec.from_toml(text), ROOT)
    for text in (TOML, TOML.replace(before, after))
  ]
  assert (hashes[0] == hashes[1]) is same


def test_the_order_of_steps_changes_the_hash_but_not_that_of_rules():
  plan = PlanSpec.from_toml(TOML)
  turned = plan.model_copy(update={"step": plan.step[::-1]})
  assert check.plan_hash(plan, ROOT) != check.plan_hash(turned, ROOT)


def test_all_errors_come_at_once():
  text = problems(
    TOML.replace("exact_dedup", "exact_dedupe")
    .replace("bands = 14", 'bands = "14"\nband = 3')
    .replace("min=40", "min=-1")
    .replace("shard_mb", "shard_bm")
    .replace('goal = "clean text"', 'goaal = "x"')
  )
  for expected in (
    "step 1: unknown operator 'exact_dedupe', did you mean 'exact_dedup'?",
    "step 3 (minhash_dedup): bands='14': Input should be a valid integer",
    "step 3 (minhash_dedup): unknown parameter 'band', did you mean 'bands'?",
    "step 2 (filter): rules=",
    "word_count.min",
    "output: unknown parameter 'shard_bm', did you mean 'shard_mb'?",
    "top level: unknown 'goaal', did you mean 'goal'?",
  ):
    assert expected in text, text


@pytest.mark.parametrize(
  ("toml", "expected"),
  [
    ("jdc_pipeline = 1", "input: paths must be given"),
    ("jdc_pipeline = 2\n[input]\npaths=['a']", "jdc_pipeline=2: must be 1"),
    ("[input]\npaths=['a']", "jdc_pipeline=None: must be 1"),
    ("jdc_pipeline = 1\n[input]\npaths=[]", "paths"),
    ("jdc_pipeline = 1\n[input]\npaths=['a']\ntask_mb=65", "less than or equal to 64"),
    ("jdc_pipeline = 1\n[input]\npaths=['a']\ntask_mb=0", "greater than 0"),
    ("jdc_pipeline = 1\n[input]\npaths=['a']\ndomain='a/b'", "domain='a/b'"),
    ("jdc_pipeline = 1\n[input]\npaths=['a']\n[[step]]\nwhy='x'", "step 1: op must be given"),
    ("jdc_pipeline = 1\n[input]\npaths=['a']\n[[step]]\nop='signals'", "only measures"),
    ("jdc_pipeline = 1\n[input]\npaths=['a']\n[[step]]\nop='word_count'\nmin=5\nmax=4", "min"),
    ("jdc_pipeline = 1\nstep = 3\n[input]\npaths=['a']", "must be an array of tables"),
    ("jdc_pipeline = 1\n[input\n", "not TOML"),
  ],
)
def test_what_is_wrong_is_named(toml, expected):
  assert expected in problems(toml)


@pytest.mark.parametrize(("minhash", "wrong"), [(0, True), (1, False)])
def test_ranges_end_where_they_say(minhash, wrong):
  text = TOML.replace("bands = 14", f"bands = {minhash}")
  if wrong:
    assert "bands=0: Input should be greater than or equal to 1" in problems(text)
  else:
    check.resolve(PlanSpec.from_toml(text), ROOT)


def test_a_file_that_a_step_names_must_be_there(tmp_path):
  plan = PlanSpec(input=InputSpec(paths=("a",)), step=(step("decontaminate", against=["x"]),))
  with pytest.raises(ValueError, match=r"step 1 \(decontaminate\): .*x: no such file"):
    check.resolve(plan, tmp_path)


def test_help_is_made_of_the_catalogue():
  text = listing(ops.OPERATORS)
  for operator in ops.OPERATORS.values():
    assert operator.name in text
    assert operator.summary, operator.name
    shown = explain(operator)
    for name in operator.params.model_fields:
      assert f"  {name}: " in shown


VALUES = st.recursive(
  st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
  max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_toml_text_reads_back(value):
  assert tomllib.loads(toml_text.dumps(value)) == value


def test_parameters_are_not_converted():
  for given_value, wrong in ((1, False), (1.0, True), ("1", True), (True, True)):
    text = TOML.replace("bands = 14", f"bands = {json.dumps(given_value)}")
    if wrong:
      assert "step 3 (minhash_dedup): bands=" in problems(text)
    else:
      check.resolve(PlanSpec.from_toml(text), ROOT)


def test_an_expectation_that_nothing_can_meet_is_refused():
  wrong = {"jdc_pipeline": 1, "input": {"paths": ["a"]}, "expect": {"kept_rate": [1, 0]}}
  with pytest.raises(ValueError, match=r"expect.kept_rate: .*min must be at most max"):
    PlanSpec.from_dict(wrong)


def test_rules_and_groups_are_explained_by_what_they_say():
  assert len({ops.OPERATORS[rule].summary for rule in predicates.RULES}) == len(
    predicates.RULES
  )
  assert "eight stop words" in explain(ops.OPERATORS["stop_words"])
  for group, rules in predicates.GROUPS.items():
    assert group in explain(ops.OPERATORS["filter"])
    shown = predicates.explain_group(group)
    assert all(f"{rule} " in shown and ops.OPERATORS[rule].summary in shown for rule in rules)
