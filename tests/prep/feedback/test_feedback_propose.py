"""What is proposed rests on evidence, is bounded, and is what the next run does."""

import hashlib
import json

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("numba")

from jdc.prep import runner  # noqa: E402
from jdc.prep.feedback import command, lists, report, texts  # noqa: E402
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
  found = json.loads(plan.with_name("next.report.json").read_text())
  assert found == written.report


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


def changed(run, name, change):
  """Writes a column of a table anew."""
  path = run / "examples.parquet"
  table = pq.read_table(path)
  place = table.schema.get_field_index(name)
  values = pa.array(change(table.column(name).to_pylist()), table.schema.field(name).type)
  pq.write_table(table.set_column(place, table.schema.field(name), values), path)


def test_a_table_of_documents_that_are_not_in_the_data_is_refused(prepared, make_table, view):
  plan, data, _ = prepared
  run = make_table(data, told_of(view))
  stranger = "f" * 32
  changed(run, "doc_id", lambda ids: [stranger if n == 0 else doc for n, doc in enumerate(ids)])
  with pytest.raises(ValueError, match=f"lacks 1 documents of the table, such as {stranger}"):
    command.feedback(run, data, plan, plan.with_name("next.toml"), Limits())
  assert not plan.with_name("next.toml").exists()


def test_another_plan_than_that_of_the_data_is_refused(prepared, make_table, view):
  plan, data, _ = prepared
  run = make_table(data, told_of(view))
  other = plan.with_name("other.toml")
  other.write_text(PLAN.replace("[output]", '[[step]]\nop = "word_count"\n[output]'))
  with pytest.raises(ValueError, match=r"other.toml: is not the plan of .*: step differ"):
    command.feedback(run, data, other, plan.with_name("next.toml"), Limits())
  # Words and expectations may change.
  other.write_text(PLAN.replace("jdc_pipeline = 1", 'jdc_pipeline = 1\ngoal = "text"'))
  command.feedback(run, data, other, plan.with_name("next.toml"), Limits())


def test_a_table_without_columns_is_refused(prepared, make_table, view):
  plan, data, _ = prepared
  run = make_table(data, told_of(view))
  path = run / "examples.parquet"
  pq.write_table(pq.read_table(path).drop_columns(["loss_excess", "tokens"]), path)
  with pytest.raises(ValueError, match=r"lacks the columns tokens, loss_excess"):
    command.feedback(run, data, plan, plan.with_name("next.toml"), Limits())


def test_losses_that_are_not_finite_are_told_and_judge_nothing(prepared, make_table, view):
  plan, data, _ = prepared
  run = make_table(data, told_of(view), name="whole")
  lost = make_table(data, told_of(view), name="lost")
  before = command.feedback(run, data, plan, plan.with_name("next.toml"), Limits()).report
  assert before["documents_nonfinite"] == 0
  rows = pq.read_table(lost / "examples.parquet").column("domain").to_pylist()
  bad = [name == "bad" for name in rows]

  def without_bad(values):
    return [np.nan if b else x for b, x in zip(bad, values, strict=True)]

  for name in ("loss_first", "loss_last", "loss_excess", "influence"):
    changed(lost, name, without_bad)
  changed(lost, "num_nonfinite", lambda old: [int(b) for b in bad])
  after = command.feedback(lost, data, plan, plan.with_name("next.toml"), Limits()).report
  assert after["documents_nonfinite"] == after["domains"]["bad"]["documents"]
  assert "harmful" in before["drops"]
  assert "harmful" not in after["drops"]
  assert after["domains"]["bad"]["factor"] == 1
  assert f"{after['documents_nonfinite']} documents were in rows" in report.to_text(after)


def test_high_losses_that_do_not_fall_are_shown_and_not_acted_on(prepared, make_table, view):
  plan, data, _ = prepared
  chosen = {}

  def told(doc_id, domain, place, rng):
    step = int(rng.integers(150, 900))
    first = float(rng.normal(2.5, 0.05))
    if domain == "good" and (kind := chosen.setdefault(doc_id, len(chosen))) < 3:
      # High throughout, high and learnt, high and seen once.
      return view(step, 4.0, (4.1, 2.0, None)[kind])
    return view(step, first, first - 0.3)

  run = make_table(data, told)
  found = command.feedback(run, data, plan, plan.with_name("next.toml"), Limits()).report
  look = found["to_look_at"]
  assert look["documents"] == 1
  (example,) = look["examples"]
  assert example["doc_id"] == next(iter(chosen))
  assert example["text"]
  assert found["drops"] == {}
  assert example["doc_id"] in report.to_text(found)
