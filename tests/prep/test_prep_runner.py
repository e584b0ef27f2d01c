"""Tests of runs: accounts, determinism, resuming, rebuilds, refusals, a full disk."""

import dataclasses
import gc
import gzip
import json
import multiprocessing
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jdc.prep import (
  InputSpec,
  OutputSpec,
  PlanSpec,
  commits,
  engine,
  manifest,
  runner,
  step,
  tasks,
)
from jdc.prep.engine import data_frame

ROOT = Path(__file__).parents[2]
DIRTY = Path(os.environ.get("JDC_TEST_DATA", ROOT / "../shared/data")) / "dirty"
WORDS = ["fig", "plum", "pear", "the", "and", "of", "grows", "in", "orchard", "ripe", "basket"]
STEPS = (
  step("filter", rules={"word_count": {"min": 6}, "mean_word_length": {}}),
  step("strip_citations"),
  step("exact_dedup"),
)


def corpus(folder, files=4, lines=100, seed=0):
  """Files of short documents: some too short, some twice, some lines that are no records."""
  rng = random.Random(seed)
  folder.mkdir()
  for number in range(files):
    rows = []
    for i in range(lines):
      text = " ".join(rng.choices(WORDS, k=rng.randint(2, 30)))
      rows.append(json.dumps({"id": f"{number}-{i}", "text": text + "[1]"}))
    rows += [rows[3], rows[5], "no JSON", '{"text": null}', "", '{"id": 7}']
    rng.shuffle(rows)
    (folder / f"part-{number}.jsonl").write_text("\n".join(rows) + "\n")
  return folder


def make_plan(steps=STEPS, pattern="raw/*.jsonl", task_mb=0.004, **output):
  return PlanSpec(
    input=InputSpec(paths=(pattern,), task_mb=task_mb),
    step=steps,
    output=OutputSpec(**{"shard_mb": 0.02, "row_group": 100, **output}),
  )


def run(plan, folder, root, **options):
  job = runner.Run(plan, folder, root=root, **{"report": False, **options})
  return job.execute(), job


def tree(folder, name="data"):
  paths = sorted((folder / name).rglob("*"))
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths if p.is_file()}


def rows_of(folder, name="data"):
  paths = sorted((folder / name).rglob("*.parquet"))
  return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk():
  """What is not on the disk yet survives a killed process, though not a power cut."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(os, "fsync", lambda handle: None)
    yield


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  return corpus(tmp_path_factory.mktemp("corpus") / "raw").parent


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
  """A run that nothing disturbed."""
  folder = tmp_path_factory.mktemp("whole") / "out"
  return folder, run(make_plan(), folder, raw)[0]


def test_every_record_is_accounted_for(raw, whole):
  folder, made = whole
  lines = [line for path in (raw / "raw").iterdir() for line in path.read_bytes().split(b"\n")]
  records = [line for line in lines if line.strip()]
  accounts = made["accounts"]
  assert accounts["read"] == len(records)
  assert accounts["blank_lines"] == 4
  assert accounts["quarantined"] == {
    "invalid JSON": 4, "field 'text' is null, not a string": 4, "no field 'text'; fields": 4,
  }  # fmt: skip
  dropped, kept = rows_of(folder, "dropped"), rows_of(folder)
  assert accounts["kept"] == len(kept)
  assert sum(accounts["dropped"].values()) == len(dropped)
  assert len(kept) + len(dropped) + 12 == len(records)
  ids = [row["doc_id"] for row in [*kept, *dropped]]
  assert len(set(ids)) == len(ids)


def test_documents_trace_back_to_bytes_of_their_file(raw, whole):
  for row in rows_of(whole[0]):
    data = (raw / row["source"]).read_bytes()
    record = json.loads(data[row["offset"] :].partition(b"\n")[0])
    assert record.pop("text").replace("[1]", "") == row["text"]
    assert json.loads(row["fields"]) == record


def test_what_is_kept_and_dropped_is_what_a_plain_program_says(raw, whole):
  seen, kept, reasons = {}, [], {}
  for path in sorted((raw / "raw").iterdir()):
    offset = 0
    for line in path.read_bytes().split(b"\n"):
      try:
        text = json.loads(line)["text"]
        words = text.split()
        if len(words) < 6:
          reasons[path.name, offset] = "word_count"
        elif not 3 <= np.mean([len(word) for word in words]) <= 10:
          reasons[path.name, offset] = "mean_word_length"
        else:
          seen.setdefault(text.replace("[1]", ""), []).append((path.name, offset))
      except (ValueError, KeyError, AttributeError):
        pass
      offset += len(line) + 1
  dropped = rows_of(whole[0], "dropped")
  found = {(Path(row["source"]).name, row["offset"]): row["reason"] for row in dropped}
  assert {k: v for k, v in found.items() if v != "exact_dedup"} == reasons
  kept = {row["text"]: row["doc_id"] for row in rows_of(whole[0])}
  assert set(kept) == set(seen)
  ids = {
    (Path(r["source"]).name, r["offset"]): r["doc_id"] for r in [*rows_of(whole[0]), *dropped]
  }
  for text, places in seen.items():
    assert kept[text] == min(ids[place] for place in places)
  for row in dropped:
    assert (row["duplicate_of"] is None) == (row["reason"] != "exact_dedup")
    assert row["duplicate_of"] in [None, *kept.values()]
    assert row["similar_to"] == row["duplicate_of"]
    assert row["reason"] == "exact_dedup" or row["n_nonsym"] < 6 or row["mean_len"] < 3


def test_quarantine_holds_the_raw_lines(raw, whole):
  held = [
    json.loads(line)
    for path in sorted((whole[0] / "quarantine").iterdir())
    for line in path.read_text().splitlines()
  ]
  assert len(held) == 12
  for bad in held:
    lines = (raw / bad["source"]).read_bytes().split(b"\n")
    assert lines[bad["line"] - 1].decode() == bad["raw"]
    assert (raw / bad["source"]).read_bytes()[bad["offset"] :].startswith(bad["raw"].encode())


@pytest.mark.parametrize("workers", [2, 4])
def test_the_same_bytes_for_any_number_of_workers(raw, whole, tmp_path, workers):
  made, _ = run(make_plan(), tmp_path / "out", raw, workers=workers)
  assert made["output_hash"] == whole[1]["output_hash"]
  for name in ("data", "dropped", "quarantine"):
    assert tree(tmp_path / "out", name) == tree(whole[0], name)


def test_the_same_documents_for_any_size_of_tasks(raw, whole, tmp_path):
  run(make_plan(task_mb=1.0), tmp_path / "out", raw)
  assert rows_of(tmp_path / "out") == rows_of(whole[0])


def test_no_file_is_larger_than_asked_for(whole):
  for file in whole[1]["output"]:
    assert file["text_bytes"] <= 0.02 * (1 << 20)
    assert Path(file["path"]).stem.endswith(file["sha256"][:8])
    assert (whole[0] / file["path"]).stat().st_size == file["size"]


def test_a_finished_run_has_nothing_to_do(raw, whole, tmp_path):
  shutil.copytree(whole[0], tmp_path / "out")
  made, job = run(make_plan(), tmp_path / "out", raw)
  assert job.done == 0
  assert made == whole[1]


def kinds_done(job, folder, before):
  lines = (folder / "commits.jsonl").read_text().splitlines()[before:]
  return [json.loads(line)["name"] for line in lines]


def test_another_threshold_reads_no_text_before_the_filter(raw, whole, tmp_path):
  folder = tmp_path / "out"
  shutil.copytree(whole[0], folder)
  before = len((folder / "commits.jsonl").read_text().splitlines())
  rules = {"word_count": {"min": 7}, "mean_word_length": {}}
  made, job = run(make_plan((step("filter", rules=rules), *STEPS[1:])), folder, raw)
  done = kinds_done(job, folder, before)
  assert "01-text" not in done
  assert "01-filter" in done
  fresh, _ = run(make_plan((step("filter", rules=rules), *STEPS[1:])), tmp_path / "new", raw)
  assert made["output_hash"] == fresh["output_hash"]
  assert tree(folder) == tree(tmp_path / "new")
  assert tree(folder, "dropped") == tree(tmp_path / "new", "dropped")
  assert sorted(os.listdir(folder / "work")) == sorted(os.listdir(tmp_path / "new" / "work"))


def test_a_threshold_that_drops_nobody_else_redoes_masks_only(raw, whole, tmp_path):
  folder = tmp_path / "out"
  shutil.copytree(whole[0], folder)
  before = len((folder / "commits.jsonl").read_text().splitlines())
  rules = {"word_count": {"min": 6, "max": 99_999}, "mean_word_length": {}}
  made, job = run(make_plan((step("filter", rules=rules), *STEPS[1:])), folder, raw)
  assert set(kinds_done(job, folder, before)) == {"01-filter"}
  assert made["output_hash"] == whole[1]["output_hash"]


def test_a_changed_file_redoes_its_own_shards(raw, whole, tmp_path):
  shutil.copytree(raw / "raw", tmp_path / "raw")
  folder = tmp_path / "out"
  run(make_plan(), folder, tmp_path)
  before = len((folder / "commits.jsonl").read_text().splitlines())
  path = tmp_path / "raw" / "part-3.jsonl"
  path.write_bytes(
    path.read_bytes() + b'{"text": "one more fig for the basket and the pear"}\n'
  )
  _, job = run(make_plan(), folder, tmp_path)
  done = kinds_done(job, folder, before)
  shards = len(list((folder / "work" / "01-text").glob("text-*")))
  assert 0 < done.count("01-text") <= shards // 4 + 1 < shards


def test_a_file_in_the_place_of_the_folder_is_named(raw, tmp_path):
  (tmp_path / "out").write_text("")
  for folder in (tmp_path / "out", tmp_path / "out" / "sub"):
    with pytest.raises(ValueError, match=r"out.*: is no folder"):
      run(make_plan(), folder, raw)


def test_a_file_that_changes_under_a_run_is_not_committed(raw, tmp_path, monkeypatch):
  shutil.copytree(raw / "raw", tmp_path / "raw")
  path = tmp_path / "raw" / "part-2.jsonl"
  index = tasks.IndexTask.run

  def late(task):
    found = index(task)
    if task.file.path == str(path):
      path.write_bytes(path.read_bytes().replace(b"plum", b"lime"))
      os.utime(path, ns=(1, found.mtime_ns + 1))
    return found

  with monkeypatch.context() as patch:
    patch.setattr(tasks.IndexTask, "run", late)
    with pytest.raises(
      ValueError, match=r"raw/part-2.jsonl: has changed while the run read it"
    ):
      run(make_plan(), tmp_path / "out", tmp_path)
  made, _ = run(make_plan(), tmp_path / "out", tmp_path)
  fresh, _ = run(make_plan(), tmp_path / "new", tmp_path)
  assert made["output_hash"] == fresh["output_hash"]
  assert any("lime" in row["text"] for row in rows_of(tmp_path / "out"))


@pytest.mark.parametrize(
  ("steps", "texts"),
  [
    (STEPS, 1),
    ((*STEPS[:2], step("filter", rules={"mean_word_length": {"max": 3.9}}), STEPS[2]), 2),
    ((STEPS[2], *STEPS[:2]), 2),
  ],
)
def test_maps_done_in_the_pass_before_change_nothing_else(raw, tmp_path, steps, texts):
  """Where dropped texts are kept, maps are done where they stand."""
  early, _ = run(make_plan(steps), tmp_path / "early", raw)
  there, _ = run(make_plan(steps), tmp_path / "there", raw, keep_dropped=True)
  assert early["output_hash"] == there["output_hash"]
  assert early["accounts"] == there["accounts"]
  assert len([*(tmp_path / "early" / "work").glob("*/text-00000-*")]) == texts
  assert len([*(tmp_path / "there" / "work").glob("*/text-00000-*")]) == 2


def test_dropped_texts_are_kept_on_request(raw, tmp_path):
  run(make_plan(), tmp_path / "out", raw, keep_dropped=True)
  for row in rows_of(tmp_path / "out", "dropped"):
    line = (raw / row["source"]).read_bytes()[row["offset"] :].partition(b"\n")[0]
    text = json.loads(line)["text"]
    assert row["text"] == (text if row["reason"] != "exact_dedup" else text.replace("[1]", ""))


def test_a_second_run_on_the_folder_is_refused(raw, whole, tmp_path):
  with (
    commits.lock(tmp_path),
    pytest.raises(ValueError, match=f"process {os.getpid()} runs in this folder"),
  ):
    run(make_plan(), tmp_path, raw)


def test_a_folder_with_other_files_is_refused(raw, tmp_path):
  (tmp_path / "thesis.tex").write_text("years of work")
  with pytest.raises(ValueError, match=r"holds files of something else \(thesis.tex\)"):
    run(make_plan(), tmp_path, raw)


def start(raw, folder, workers=1):
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["jdc.prep.runner", "jdc.prep.ops"])
  options = {"root": raw, "report": False, "workers": workers}
  process = context.Process(target=runner.run, args=(make_plan(), folder), kwargs=options)
  process.start()
  return process


@pytest.mark.parametrize(("kills", "workers"), [(4, 1), (20, 1), (4, 2)])
def test_killed_at_random_moments(raw, whole, tmp_path, kills, workers):
  folder, rng, log = tmp_path / "out", random.Random(kills), tmp_path / "out" / "commits.jsonl"
  total = (whole[0] / "commits.jsonl").read_bytes().count(b"\n")
  done = 0
  for _ in range(kills):
    process = start(raw, folder, workers)
    # Moments are counted in commits, so that they are spread over the run on any machine.
    target = done + rng.randint(0, total // kills)
    while process.is_alive() and not (log.exists() and log.read_bytes().count(b"\n") > target):
      time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.004))
    process.kill()
    process.join()
    assert process.exitcode != 0
    assert not manifest.is_complete(folder)
    now = log.read_bytes().count(b"\n")
    assert now >= done
    done = now
  made, _ = run(make_plan(), folder, raw)
  assert made["output_hash"] == whole[1]["output_hash"]
  for name in ("data", "dropped", "quarantine"):
    assert tree(folder, name) == tree(whole[0], name)
  keys = [json.loads(line)["key"] for line in log.read_text().splitlines()]
  assert len(set(keys)) == len(keys)  # nothing that was committed is done again


def test_a_line_that_a_kill_cut_off_counts_as_not_written(raw, whole, tmp_path):
  folder = tmp_path / "out"
  shutil.copytree(whole[0], folder)
  log = folder / "commits.jsonl"
  log.write_bytes(log.read_bytes()[:-20])
  made, job = run(make_plan(), folder, raw)
  assert job.done == 1
  assert made["output_hash"] == whole[1]["output_hash"]


def test_a_file_that_went_missing_is_made_again(raw, whole, tmp_path):
  folder = tmp_path / "out"
  shutil.copytree(whole[0], folder)
  min((folder / "data").rglob("*.parquet")).unlink()
  min((folder / "work" / "01-text").glob("text-*")).unlink()
  made, job = run(make_plan(), folder, raw)
  # The three links of the shard that one pass makes, and one file of the output.
  assert job.done == 4
  assert made["output_hash"] == whole[1]["output_hash"]


@pytest.mark.parametrize("name", ["data", "work/01-text", "work/03-exact_dedup"])
def test_a_file_with_other_bytes_is_made_again(raw, whole, tmp_path, name):
  folder = tmp_path / "out"
  shutil.copytree(whole[0], folder)
  damaged = min(path for path in (folder / name).rglob("*") if path.is_file())
  content = bytearray(damaged.read_bytes())
  content[len(content) // 2] ^= 1
  damaged.write_bytes(content)
  made, job = run(make_plan(), folder, raw)
  assert 0 < job.done < 10
  assert made["output_hash"] == whole[1]["output_hash"]
  assert tree(folder) == tree(whole[0])


LIMITED = """
import resource, sys
from jdc.prep import PlanSpec, runner
plan, folder, root, workers = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
if __name__ == "__main__":
  runner.run(PlanSpec.read(plan), folder, root=root, workers=int(workers), report=False)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_a_clear_error_and_spoils_nothing(raw, whole, tmp_path, workers):
  # No file may grow beyond a limit, as on a disk that is full.
  (tmp_path / "plan.toml").write_text(make_plan().to_toml())
  (tmp_path / "limited.py").write_text(LIMITED)
  arguments = [tmp_path / "limited.py", tmp_path / "plan.toml", tmp_path / "out", raw, workers]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, *map(str, arguments)],
    env=environment, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 1, done.stderr
  assert "File too large" in done.stderr
  expected = "nothing that was committed is lost: make room and run the same command again"
  assert expected in done.stderr
  assert not manifest.is_complete(tmp_path / "out")
  made, _ = run(make_plan(), tmp_path / "out", raw)
  assert made["output_hash"] == whole[1]["output_hash"]
  assert tree(tmp_path / "out") == tree(whole[0])


def test_unreadable_input_is_named_before_anything_runs(tmp_path):
  (tmp_path / "raw").mkdir()
  (tmp_path / "raw" / "a.jsonl").write_text('{"txt": "one"}\n')
  (tmp_path / "raw" / "b.jsonl").write_text('[{"text": "one"}]\n')
  with pytest.raises(ValueError) as raised:
    run(make_plan(), tmp_path / "out", tmp_path)
  assert "no field 'text' in its first records, did you mean 'txt'?" in str(raised.value)
  assert "raw/b.jsonl: one JSON array" in str(raised.value)
  assert not (tmp_path / "out").exists()
  with pytest.raises(ValueError, match=r"nothing/\*.jsonl: no such file"):
    run(make_plan(pattern="nothing/*.jsonl"), tmp_path / "out", tmp_path)


def test_bad_lines_stop_a_run_that_says_so(raw, tmp_path):
  spec = InputSpec(paths=("raw/*.jsonl",), on_bad_line="error")
  with pytest.raises(ValueError, match=r"raw/part-0.jsonl:\d+: .*on_bad_line"):
    run(PlanSpec(input=spec), tmp_path / "out", raw)


def test_expectations_are_judged(raw, tmp_path):
  plan = make_plan().model_copy(
    update={"expect": PlanSpec.from_dict({
      "jdc_pipeline": 1, "input": {"paths": ["a"]},
      "expect": {"kept_rate": [0.0, 0.1], "rows": {"min": 10}},
    }).expect}
  )  # fmt: skip
  made, _ = run(plan, tmp_path / "out", raw)
  assert [held["holds"] for held in made["expectations"]] == [False, True]
  wrong = {
    "jdc_pipeline": 1,
    "input": {"paths": ["raw/*.jsonl"]},
    "expect": {"keptrate": [0, 1]},
  }
  with pytest.raises(ValueError, match="nothing measures 'keptrate', did you mean 'kept_rate'"):
    run(PlanSpec.from_dict(wrong), tmp_path / "new", raw)


@pytest.mark.slow
def test_an_empty_output_is_no_crash(tmp_path):
  (tmp_path / "raw").mkdir()
  (tmp_path / "raw" / "a.jsonl").write_text('{"text": "one"}\n')
  (tmp_path / "raw" / "b.jsonl").write_text("\n")
  made, _ = run(make_plan(), tmp_path / "out", tmp_path, report=True)
  assert made["accounts"]["kept"] == 0
  assert made["accounts"]["dropped"] == {"word_count": 1}


def test_dropped_near_duplicates_name_the_one_they_are_similar_to(tmp_path):
  """In a chain, that is another one than the document kept."""
  words = [f"w{i}" for i in range(140)]
  texts = [" ".join(words[begin : begin + 100]) for begin in (0, 8, 16, 24)]
  (tmp_path / "chain.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
  dedup = step("minhash_dedup", min_jaccard=0.75, keep="first", bands=64, rows=2)
  plan = PlanSpec(input=InputSpec(paths=("chain.jsonl",)), step=(dedup,))
  run(plan, tmp_path / "out", tmp_path, keep_dropped=True)
  (kept,) = rows_of(tmp_path / "out")
  dropped = rows_of(tmp_path / "out", "dropped")
  sets = {
    row["doc_id"]: {tuple(row["text"].split()[i : i + 5]) for i in range(96)}
    for row in [kept, *dropped]
  }
  assert len(dropped) == 3
  assert {row["duplicate_of"] for row in dropped} == {kept["doc_id"]}
  assert any(row["similar_to"] != kept["doc_id"] for row in dropped)
  for row in dropped:
    one, other = sets[row["doc_id"]], sets[row["similar_to"]]
    assert row["similarity"] == len(one & other) / len(one | other) >= 0.75


def test_domains_are_folders(tmp_path):
  (tmp_path / "raw").mkdir()
  for name in "ab":
    lines = [json.dumps({"text": f"{name} {i}", "kind": "xy"[i % 2]}) for i in range(10)]
    (tmp_path / "raw" / f"{name}.jsonl").write_text(
      "\n".join([*lines, '{"text": "z", "kind": "/"}'])
    )
  spec = InputSpec(paths={"one": ("raw/a.jsonl",), "two": ("raw/b.jsonl",)})
  run(PlanSpec(input=spec), tmp_path / "named", tmp_path)
  assert sorted(os.listdir(tmp_path / "named" / "data")) == ["one", "two"]
  spec = InputSpec(paths=("raw/*.jsonl",), domain_column="kind")
  made, _ = run(PlanSpec(input=spec), tmp_path / "column", tmp_path)
  assert sorted(os.listdir(tmp_path / "column" / "data")) == ["x", "y"]
  assert sum(made["accounts"]["quarantined"].values()) == 2
  assert made["accounts"]["kept"] == 20


def test_lines_that_recur_everywhere_go(tmp_path):
  (tmp_path / "raw").mkdir()
  for name in "ab":
    texts = [f"Home\nabout\n{name} {i} figs\nlast" for i in range(5)]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "raw" / f"{name}.jsonl").write_text("\n".join(lines))
  plan = make_plan((step("dedup_lines", min_count=6), step("exact_dedup")))
  run(plan, tmp_path / "out", tmp_path)
  assert {row["text"] for row in rows_of(tmp_path / "out")} == {
    f"{name} {i} figs" for name in "ab" for i in range(5)
  }


# Daft leaves the output of the processes that it starts unclosed.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_daft_gives_the_same_bytes(raw, whole, tmp_path, workers):
  made, _ = run(make_plan(), tmp_path / "out", raw, engine_name="daft", workers=workers)
  gc.collect()  # here, and not in a later test
  assert made["output_hash"] == whole[1]["output_hash"]


def test_what_a_group_did_before_its_end_is_not_done_again(raw, whole, tmp_path, monkeypatch):
  shutil.copytree(raw / "raw", tmp_path / "raw")
  for path in (tmp_path / "raw").iterdir():
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
  plan = make_plan(pattern="raw/*.gz", task_mb=0.002)
  expected, job = run(plan, tmp_path / "whole", tmp_path)
  total = job.done

  class Dies:
    """An engine whose process ends in the third task of a group."""

    def run(self, groups):
      for number, group in enumerate(groups):
        if len(group) > 3:
          data_frame._Worker().work(pickle.dumps([*group[:2], object()]))
          raise KeyboardInterrupt
        yield from ((number, place, task.run()) for place, task in enumerate(group))

    def close(self):
      pass

  with monkeypatch.context() as patch:
    patch.setattr(runner.engine, "open_engine", lambda name, workers: Dies())
    with pytest.raises(KeyboardInterrupt):
      run(plan, tmp_path / "out", tmp_path)
  made, job = run(plan, tmp_path / "out", tmp_path)
  assert made["output_hash"] == expected["output_hash"]
  log = (tmp_path / "out" / "commits.jsonl").read_text()
  keys = [json.loads(line)["key"] for line in log.splitlines()]
  assert len(set(keys)) == len(keys)
  links = 3  # of the first pass, each with a commit
  assert job.done == total - 2 * links
  assert not (tmp_path / "out" / "work" / "left").exists()


class Odd(Exception):
  """An error that cannot be made again of its message."""

  def __init__(self, one, two):
    super().__init__(f"{one} and {two}")


@dataclasses.dataclass(frozen=True)
class OddTask:
  """Fails by an error that does not travel."""

  def run(self):
    raise Odd("this", "that")


def test_errors_reach_the_caller_from_any_process():
  kept = UnicodeDecodeError("utf-8", b"a", 0, 1, "odd")
  assert engine.portable(kept) is kept
  assert str(engine.portable(Odd("this", "that"))).startswith("Odd: this and that (")
  done, (error, trace) = pickle.loads(data_frame._Worker().work(pickle.dumps([OddTask()])))
  assert not done
  assert "Odd: this and that" in str(error)
  assert "raise Odd" in trace


@pytest.mark.slow
def test_a_ray_cluster_of_one_node_gives_the_same_bytes(raw, whole, tmp_path):
  pytest.importorskip("ray", reason="ray is not installed: pip install jdc[ray]")
  plan = make_plan(pattern=str(raw / "raw" / "*.jsonl"))
  local, _ = run(plan, tmp_path / "local", raw)
  (tmp_path / "plan.toml").write_text(plan.to_toml())
  arguments = ["run", tmp_path / "plan.toml", f"--output={tmp_path / 'out'}", "--noreport"]
  done = subprocess.run(
    [sys.executable, "launch/prep.py", *map(str, arguments), "--engine=ray", "--workers=2"],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  made = manifest.read(tmp_path / "out")
  assert made["engine"] == {"name": "ray", "workers": 2}
  assert made["output_hash"] == local["output_hash"]
  for name in ("data", "dropped", "quarantine"):
    assert tree(tmp_path / "out", name) == tree(tmp_path / "local", name)


@pytest.mark.skipif(not DIRTY.is_dir(), reason=f"no {DIRTY}; set JDC_TEST_DATA")
@pytest.mark.slow
def test_ten_operators_on_the_dirty_corpus(tmp_path):
  steps = (
    step("fix_unicode"),
    step("normalize_whitespace"),
    step("filter", rules={"gopher": {}, "fineweb": {}}),
    step("language"),
    step("mask_pii"),
    step("exact_dedup"),
    step("minhash_dedup"),
  )
  plan = make_plan(steps, pattern=str(DIRTY / "*.jsonl.gz"), task_mb=2.0, shard_mb=2.0)
  made, _ = run(plan, tmp_path / "out", tmp_path, report=True)
  lines = [
    line
    for path in sorted(DIRTY.glob("*.jsonl.gz"))
    for line in gzip.decompress(path.read_bytes()).split(b"\n")
  ]
  accounts = made["accounts"]
  assert accounts["read"] == sum(1 for line in lines if line.strip())
  kept, dropped = rows_of(tmp_path / "out"), rows_of(tmp_path / "out", "dropped")
  assert accounts["kept"] == len(kept) > 3000
  assert len({row["doc_id"] for row in [*kept, *dropped]}) == len(kept) + len(dropped)
  assert len(kept) + len(dropped) + sum(accounts["quarantined"].values()) == accounts["read"]
  assert not any("@example.com" in row["text"] for row in kept)
  report = (tmp_path / "out" / "report.html").read_text()
  assert report.count("<svg") == 2
  again, _ = run(plan, tmp_path / "two", tmp_path, workers=2)
  assert again["output_hash"] == made["output_hash"]
