"""Tests of the hashes of code: nothing that runs is missed, what says nothing is left out."""

import gc
import importlib.metadata
import json
import sys
import types
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jdc.prep import batches, code_hash, globals_, ops, plan_step

QUESTION = "How many red figs are there in the basket under the old tree?"
GIVEN = {
  "blocklist_hits": {"path": "words.txt"},
  "blocklist": {"path": "words.txt"},
  "url_blocklist_hits": {"path": "words.txt"},
  "url_blocklist": {"path": "words.txt"},
  "contamination": {"against": ["exam.jsonl"]},
  "decontaminate": {"against": ["exam.jsonl"]},
  "filter": {"rules": {"gopher": {}, "fineweb": {}, "compression_ratio": {}}},
  "rename": {"mapping": {"id": "number"}},
  "select": {"fields": ["id"]},
  "mix": {"max_epochs": 2.0},
  "derive": {"fields": {"label": "{id}"}},
}


def small_batch():
  texts = [
    f"{QUESTION} I see {n} figs.\nMail a@b.example. 价格是一百元。 [1]" for n in range(4)
  ]
  fields = {"id": 1, "url": "https://a.example/", "instruction": "Add", "output": "It is 3."}
  fields["messages"] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes"},
  ]
  columns = {
    "doc_id": pa.array([bytes([n]) * 16 for n in range(4)], pa.binary(batches.ID_BYTES)),
    "source": pa.array(["a"] * 4),
    "offset": pa.array(range(4), pa.int64()),
    "domain": pa.array(["data"] * 4),
    "text": pa.array([*texts[:3], texts[2]]),
    "fields": pa.array([json.dumps(fields)] * 4),
  }
  return pa.RecordBatch.from_arrays(list(columns.values()), schema=batches.SCHEMA)


def carry_out(step):
  """Does all that a run does with an operator."""
  batch, operator = small_batch(), step.operator
  if operator.kind in ("map", "signals"):
    operator.function(batch, step.values)
  elif operator.kind in ("predicate", "filter"):
    found = {}
    for measure in plan_step.measures(step):
      found |= measure.operator.function(batch, measure.values)
    operator.function(
      {k: pa.array(v) if k == "lang" else v for k, v in found.items()}, step.values
    )
  else:
    op = operator.function(step.values)
    table = op.join([op.keys(batch)])
    ids = [np.frombuffer(b"".join(batch.column("doc_id").to_pylist()), np.uint8).reshape(4, 16)]
    fetch = lambda rows: iter([batch.column("text").take(pa.array(rows))])
    decision = op.decide([table], globals_.Context(ids, fetch, Path(step.root)))
    if decision.resource is not None:
      op.apply(batch, decision.resource)


def modules_that_run(step):
  found = set()

  def look(frame, event, _):
    if event == "call" and frame.f_code.co_name != "<module>":
      found.add(frame.f_globals.get("__name__", ""))

  carry_out(step)  # what is imported by then is not run again below
  gc.collect()  # generators of other tests would be closed below
  sys.setprofile(look)
  try:
    carry_out(step)
  finally:
    sys.setprofile(None)
  return {name for name in found if name.startswith("jdc.")}


def measured(name):
  """Operators that need no file that is made for a run, no model and no service."""
  operator = ops.OPERATORS[name]
  given = GIVEN.get(name, {})
  if not operator.function.__module__.startswith("jdc.prep.ops.") or operator.check(given, ""):
    return False
  uses = operator.uses(operator.make_params(given)) if operator.uses else ()
  held = [operator, *(ops.OPERATORS[used] for used, _ in uses)]
  return operator.kind != "model" and not any(o.prepare for o in held)


@pytest.mark.parametrize("name", [name for name in ops.OPERATORS if measured(name)])
def test_no_operator_misses_a_module_that_runs(tmp_path, name):
  (tmp_path / "words.txt").write_text("rotten\n")
  (tmp_path / "exam.jsonl").write_text(json.dumps({"id": "q", "question": QUESTION}) + "\n")
  step = plan_step.make_step(1, name, GIVEN.get(name, {}), str(tmp_path))
  code = code_hash.of_objects([step.operator.function, step.operator.params])
  parts = {part.rpartition(".")[0] for part in code.parts}
  counted = {*code.modules, *parts, *code_hash.FRAME}
  for measure in plan_step.measures(step):  # counts by itself
    held = code_hash.of_objects([measure.operator.function, measure.operator.params])
    counted |= {*held.modules}
  ran = modules_that_run(step)
  assert ran
  assert ran <= counted


@pytest.mark.parametrize(
  ("root", "needed"),
  [
    ("jdc.prep.sinks.tokens", ["tokenize", "byte_level", "token_index", "token_manifest"]),
    ("jdc.prep.sinks.documents", ["formats"]),
  ],
)
def test_what_writes_counts_down_to_the_data_package(root, needed):
  found = code_hash.of_modules([root])
  assert {f"jdc.data.{name}" for name in needed} <= set(found.modules)
  assert {"numpy", "pyarrow"} <= found.packages


@pytest.fixture
def fake(tmp_path, monkeypatch):
  """Makes modules of jdc of some texts; returns the hash of a function of one."""

  def hash_of(**texts):
    for name, text in texts.items():
      module = types.ModuleType(f"jdc.prep.{name}")
      module.__file__ = str(tmp_path / f"{name}.py")
      Path(module.__file__).write_text(text)
      monkeypatch.setitem(sys.modules, module.__name__, module)
    code_hash._parsed.cache_clear()
    thing = types.SimpleNamespace(__module__="jdc.prep.fake_op", __qualname__="work")
    return code_hash.of_objects([thing]).hash

  yield hash_of
  code_hash._parsed.cache_clear()


OP = (
  "import zlib\nLIMIT = 3\ndef work(x):\n  from jdc.prep import fake_lib\n  return _help(x)\n"
)
OP += "def _help(x):\n  return x + LIMIT\ndef other(x):\n  return x\n"
LIB = "from jdc.prep.fake_deep import f\n"
DEEP = "def f(x):\n  return x\n"


def test_what_counts_and_what_does_not(fake, monkeypatch):
  texts = {"fake_op": OP, "fake_lib": LIB, "fake_deep": DEEP}
  before = fake(**texts)
  docs = DEEP.replace("(x):\n", '(x):\n  """What it does."""\n  # A reason.\n')
  same = [{"fake_deep": docs}, {"fake_op": OP.replace("return x\n", "return 2 * x\n")}]
  for change in same:
    assert fake(**(texts | change)) == before
  others = [
    {"fake_deep": DEEP.replace("return x", "return -x")},
    {"fake_op": OP.replace("LIMIT = 3", "LIMIT = 4")},
    {"fake_op": OP.replace("x + LIMIT", "x - LIMIT")},
    {"fake_lib": LIB + "f = None\n"},
    {"fake_lib": LIB + "import numpy\n"},
    {
      "fake_lib": LIB
      + "from jdc.data.formats import import_extra\nimport_extra('numpy', 'x')\n"
    },
    {"fake_lib": LIB + "import zlib\n"},
  ]
  hashes = [fake(**(texts | change)) for change in others]
  assert len({before, *hashes}) == len(others) + 1
  monkeypatch.setattr(unicodedata, "unidata_version", "99.0.0")
  assert fake(**texts) != before


def test_other_versions_of_packages_count(fake, monkeypatch):
  texts = {"fake_op": OP, "fake_lib": LIB + "import numpy\n", "fake_deep": DEEP}
  before = fake(**texts)
  monkeypatch.setattr(importlib.metadata, "version", lambda name: "0")
  monkeypatch.setattr(code_hash, "_version", code_hash._version.__wrapped__)  # asks again
  assert fake(**texts) != before
