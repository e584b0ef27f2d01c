"""What is proposed rests on evidence, is bounded, and is what the next run does."""

import hashlib
import json

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("numba")

from jdc.prep import runner  # noqa: E402
from jdc.prep.feedback import command, lists, texts  # noqa: E402
from jdc.prep.feedback.propose import Limits  # noqa: E402
from jdc.prep.spec import PlanSpec  # noqa: E402

PLAN = """
jdc_pipeline = 1

[input.paths]
good = ["raw/good.jsonl"]
bad = ["raw/bad.jsonl"]

[output]
format = "tokens"
tokens = { tokenizer = "bytes", seq_len = 256, format = "parquet", validation_fraction = 0.0 }
"""


@pytest.fixture
def prepared(tmp_path, make_texts):
  """A plan and its run, on a good domain with near duplicates and a bad one."""
  rng = np.random.default_rng(0)
  original = make_texts(rng, 1, 60)[0].split()
  copies = [" ".join([*original[:k], "extra", *original[k:]]) for k in range(0, 60, 5)]
  found = {"good": make_texts(rng, 70) + copies, "bad": make_texts(rng, 60)}
  (tmp_path / "raw").mkdir()
  for name, held in found.items():
    lines = "".join(json.dumps({"text": text}) + "\n" for text in held)
    (tmp_path / "raw" / f"{name}.jsonl").write_text(lines)
  plan = tmp_path / "pipeline.toml"
  plan.write_text(PLAN)
  runner.run(PlanSpec.read(plan), tmp_path / "out", root=tmp_path, report=False)
  return plan, tmp_path / "out" / "data", set(copies)


def test_changes_nothing_without_evidence(prepared, make_table, view):
  plan, data, _ = prepared
  run = make_table(
    data, lambda doc, domain, place, rng: view(int(rng.integers(100, 1000)), rng.normal(2, 0.1))
  )
  written = command.feedback(run, data, plan, plan.with_name("next.toml"), Limits())
  assert written.plan is None
  assert not plan.with_name("next.toml").exists()
  assert written.report["drops"] == {}
  report = json.loads(plan.with_name("next.report.json").read_text())
  assert report == written.report


def told_of(view, copies=(), texts_by_id=None):
  """A bad domain of negative influence that does not get better; copies known beforehand."""

  def told(doc_id, domain, place, rng):
    step = int(rng.integers(150, 1000))
    good = domain == "good"
    loss = rng.normal((3 - 0.3 * np.log(step)) if good else 2.5, 0.05)
    if texts_by_id and texts_by_id[doc_id] in copies:
      loss -= 1.0
    if not good and place % 10 == 0:
      return {"times_seen": 0}
    return view(
      step, float(loss), loss_excess=-0.5 if good else 0.5,
      influence=float(rng.normal(1.0 if good else -1.0, 0.3)), influence_std=0.3,
      influence_count=4,
    )  # fmt: skip

  return told


def judged(run):
  """The bad documents that the run has seen."""
  rows = pq.read_table(run / "examples.parquet").to_pylist()
  return len({r["doc_id"] for r in rows if r["domain"] == "bad" and r["times_seen"]})


def ids_of(data):
  found = {}
  for path in sorted(data.rglob("*.parquet")):
    for row in pq.read_table(path).to_pylist():
      found |= {doc.hex(): None for doc in row["doc_ids"]}
  return list(found)


def test_the_next_run_drops_what_harms_and_what_is_memorised(prepared, make_table, view):
  plan, data, copies = prepared
  by_id = texts.texts_of(data, ids_of(data))
  assert len(by_id) == 142
  run = make_table(data, told_of(view, copies, by_id))
  output = plan.with_name("next.toml")
  written = command.feedback(run, data, plan, output, Limits(max_drop=0.9))
  drops = written.report["drops"]
  assert drops["memorised"]["documents"] == len(copies) - 1
  # Those never seen are not judged.
  assert drops["harmful"]["by_domain"] == {"bad": judged(run)}
  assert 45 < judged(run) < 60
  listed = lists.read(plan.with_name("next.drop.tsv"))
  memorised = [doc for doc, why in listed.items() if why == "memorised"]
  assert {by_id[doc] for doc in memorised} < copies
  assert drops["memorised"]["examples"][0]["text"]

  made = runner.run(PlanSpec.read(output), plan.parent / "out2", root=plan.parent, report=False)
  dropped = made["accounts"]["dropped"]
  assert dropped["drop_documents.harmful"] == judged(run)
  assert dropped["drop_documents.memorised"] == len(copies) - 1
  shares = written.report["domains"]
  assert shares["bad"]["factor"] < 1 < shares["good"]["factor"] * 1.5
  assert shares["bad"]["share_after"] < 0.1 < shares["bad"]["share_before"]
  left = texts.texts_of(plan.parent / "out2" / "data", listed)
  assert left == {}


def test_drops_are_bounded_and_the_strongest_evidence_goes_first(prepared, make_table, view):
  plan, data, _ = prepared
  run = make_table(data, told_of(view))
  output = plan.with_name("next.toml")
  written = command.feedback(run, data, plan, output, Limits(max_drop=0.1))
  drop = written.report["drops"]["harmful"]
  assert 0.05 < drop["share_of_tokens_seen"] <= 0.1
  assert written.report["held_back"] == {"harmful": judged(run) - drop["documents"]}
  shown = [
    example["influence"] + 1.645 * example["influence_error"] for example in drop["examples"]
  ]
  assert shown == sorted(shown)
  assert shown[-1] < 0


def test_the_same_inputs_give_the_same_bytes(prepared, make_table, view):
  plan, data, _ = prepared
  run = make_table(data, told_of(view))
  names = ("next.toml", "next.drop.tsv", "next.report.json")
  digests = []
  for _ in range(2):
    command.feedback(run, data, plan, plan.with_name("next.toml"), Limits())
    digests.append(
      [hashlib.sha256(plan.with_name(name).read_bytes()).hexdigest() for name in names]
    )
  assert digests[0] == digests[1]
  made = PlanSpec.read(plan.with_name("next.toml"))
  told = made.provenance["feedback"]
  assert (
    told["table_sha256"] == hashlib.sha256((run / "examples.parquet").read_bytes()).hexdigest()
  )
  assert told["plan_sha256"] == hashlib.sha256(plan.read_bytes()).hexdigest()
  (step,) = [step for step in made.step if step.op == "drop_documents"]
  assert step.params["sha256"] == digests[0][1]


def test_a_later_version_keeps_the_earlier_list(prepared, make_table, view):
  plan, data, _ = prepared
  first = make_table(data, told_of(view))
  second_plan = plan.with_name("second.toml")
  command.feedback(first, data, plan, second_plan, Limits(max_drop=0.1))
  before = lists.read(plan.with_name("second.drop.tsv"))
  runner.run(PlanSpec.read(second_plan), plan.parent / "out2", root=plan.parent, report=False)
  data2 = plan.parent / "out2" / "data"
  run = make_table(data2, told_of(view), name="run2")
  third = plan.with_name("third.toml")
  command.feedback(run, data2, second_plan, third, Limits(max_drop=0.1))
  after = lists.read(plan.with_name("third.drop.tsv"))
  assert before.items() < after.items()
  ops = [step.op for step in PlanSpec.read(third).step]
  assert ops == ["drop_documents", "mix"]


def test_what_does_not_belong_together_is_an_error(
  prepared, make_table, make_shards, view, tmp_path
):
  plan, data, _ = prepared
  run = make_table(data, told_of(view))
  other = make_shards({"good": ["some other text"]}, name="other")
  with pytest.raises(ValueError, match="it is of other data"):
    command.feedback(run, other, plan, plan.with_name("next.toml"), Limits())
  (tmp_path / "elsewhere").mkdir()
  with pytest.raises(ValueError, match="must lie in the folder of"):
    command.feedback(run, data, plan, tmp_path / "elsewhere" / "next.toml", Limits())
  with pytest.raises(ValueError, match="max_drop must be in"):
    Limits(max_drop=1.0)
