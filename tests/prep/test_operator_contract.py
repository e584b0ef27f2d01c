"""All operators keep the contract, and operators that break it are told so."""

import numpy as np
import pyarrow as pa
import pytest

from jdc.prep import catalog, check, operator_contract, ops, runner
from jdc.prep.batches import replace_text
from jdc.prep.catalog import Params
from jdc.prep.spec import PlanSpec

CASES = [{"text": "a spam b", "drops": True}, {"text": "ham", "drops": False}]
GIVEN = {
  "select": {"fields": ["id"]},
  "rename": {"mapping": {"id": "key"}},
  "filter": {"rules": {"word_count": {}}},
  "signal_range": {"signal": "n_words", "min": 2},
  "pattern_hits": {"pattern": "spam|ham"},
  "drop_matching": {"pattern": "spam", "cases": CASES},
  "replace_matching": {
    "pattern": "o+",
    "replacement": "0",
    "cases": [{"text": "foo", "result": "f0"}, {"text": "bar", "result": "bar"}],
  },
}
FIELDS = {
  "messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
}
TESTED = [n for n, o in ops.OPERATORS.items() if n in GIVEN or not o.check({}, "")]
OWN = '''
"""Operators of a user."""

import numpy as np

from jdc.prep.batches import replace_text
from jdc.prep.catalog import Operator, Params

import pyarrow.compute as pc


class Loud(Params):
  most: float = 0.5


def capitals(batch, params):
  """Measures the share of capitals."""
  texts = batch.column("text").to_pylist()
  return {"capitals": np.array([sum(c.isupper() for c in t) / max(len(t), 1) for t in texts])}


def loud(found, params):
  """Drops texts that are mostly capitals."""
  return {"loud": np.asarray(found["capitals"]) > params.most}


def lower(batch, params):
  """Makes letters small."""
  return replace_text(batch, pc.utf8_lower(batch.column("text")))


OPERATORS = (
  Operator("capitals", "signals", capitals, Params, provides=("capitals",)),
  Operator("loud", "predicate", loud, Loud, uses=lambda p: (("capitals", {}),)),
  Operator("lower", "map", lower, Params, provides=("text",)),
)
'''


@pytest.mark.parametrize("name", TESTED)
def test_a_built_in_operator_keeps_the_contract(name):
  operator = ops.OPERATORS[name]
  assert operator_contract.problems(operator, GIVEN.get(name), fields=FIELDS) == []


def test_most_of_the_catalogue_is_tested():
  assert len(TESTED) > 30


class Word(Params):
  word: str = "x"


def counted(batch, params):
  """Writes the number of the batch's rows into each text."""
  return replace_text(batch, pa.array([str(batch.num_rows)] * batch.num_rows))


def short(batch, params):
  """Measures some documents."""
  return {"n": np.zeros(3)}


def undecided(found, params):
  """Decides by numbers."""
  return {"n": np.zeros(9)}


@pytest.mark.parametrize(
  ("operator", "told"),
  [
    (catalog.Operator("counted", "map", counted, Word), "divided into batches"),
    (catalog.Operator("short", "signals", short, Word, provides=("n",)), "3 values for"),
    (
      catalog.Operator("named", "signals", short, Word, provides=("m",)),
      "says that it provides",
    ),
    (
      catalog.Operator("undecided", "predicate", undecided, Word, uses=lambda p: ()),
      "must be bool[9]",
    ),
    (catalog.Operator("mute", "map", lambda b, p: b, Word), "no docstring"),
  ],
)
def test_an_operator_that_breaks_the_contract_is_told_so(operator, told):
  found = operator_contract.problems(operator)
  assert found
  assert told in found[0]


def test_operators_of_a_file_run_in_a_plan_and_in_worker_processes(tmp_path):
  (tmp_path / "own.py").write_text(OWN)
  (tmp_path / "a.jsonl").write_text('{"text": "BUY NOW"}\n{"text": "A Quiet text"}\n')
  for operator in catalog.load(tmp_path / "own.py").values():
    assert operator_contract.problems(operator) == []
  plan = PlanSpec.from_toml(
    'jdc_pipeline = 1\n[input]\npaths = ["a.jsonl"]\n[[step]]\nop = "own.py:loud"\n'
    '[[step]]\nop = "own.py:lower"\n[output]\nformat = "jsonl"\n'
  )
  made = [
    runner.run(plan, tmp_path / str(n), root=tmp_path, workers=n, report=False) for n in (1, 2)
  ]
  assert made[0]["accounts"]["dropped"] == {"loud": 1}
  assert made[0]["output_hash"] == made[1]["output_hash"]
  again = runner.Run(plan, tmp_path / "1", root=tmp_path, report=False)
  again.execute()
  assert again.done == 0
  (tmp_path / "own.py").write_text(OWN.replace("utf8_lower", "utf8_upper"))
  changed = runner.Run(plan, tmp_path / "1", root=tmp_path, report=False)
  changed.execute()
  assert changed.done > 0


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ("OPERATORS = 3", "OPERATORS must be a tuple"),
    ("import no_such_module", "ModuleNotFoundError"),
    (OWN, "no operator 'louder', did you mean 'loud'"),
  ],
)
def test_a_file_that_does_not_have_the_operator_is_told(tmp_path, text, told):
  (tmp_path / "own.py").write_text(text)
  (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
  plan = PlanSpec.from_toml(
    'jdc_pipeline = 1\n[input]\npaths = ["a.jsonl"]\n[[step]]\nop = "own.py:louder"\n'
  )
  with pytest.raises(ValueError, match=told):
    check.resolve(plan, tmp_path)


def test_an_operator_that_raises_is_told_so():
  def fails(batch, params):
    """Fails."""
    raise KeyError("oops")

  made = catalog.op("fails", "map", Params)(fails)
  assert operator_contract.problems(made) == ["raises KeyError: 'oops'"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_tells_the_step_that_raised_it(tmp_path, workers):
  given = 'jdc_pipeline = 1\n[input]\npaths = ["a.jsonl"]\n[[step]]\nop = "fix_unicode"\n'
  plan = PlanSpec.from_toml(given + '[[step]]\nop = "own.py:lower"\n')
  (tmp_path / "own.py").write_text(OWN.replace("pc.utf8_lower", "pc.no_such_function"))
  (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
  with pytest.raises(AttributeError) as found:
    runner.run(plan, tmp_path / "out", root=tmp_path, workers=workers, report=False)
  assert found.value.__notes__[0] == "in step 2 (lower)"
