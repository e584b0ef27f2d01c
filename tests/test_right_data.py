"""Right data found: its measures, the TF-IDF baseline, and the script on made-up data."""

import dataclasses
import gzip
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from jdc.data import tfidf
from jdc.metrics import read_decisions
from jdc.policies import selection
from jdc.recipes import right_data_methods, right_data_online
from jdc.recipes.right_data import Method, draw, spared, stage
from jdc.recipes.right_data_reward import word_f1
from jdc.report import right_data
from jdc.report import right_data_online as online_report
from jdc.report.right_data import Picked
from jdc.report.right_data_online import Chosen
from jdc.train import config as c
from jdc.train.cost import Cost

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": str(ROOT)}
RELEVANCE = {"sums": ["algebra"], "code": ["python", "rust"], "never_relevant": ["spam"]}
SOURCES = ["algebra", "spam", "python", "news", "rust", "algebra", "news", "spam"]


def picked(rows, target="sums", method="m", seed=0, **changes):
  costs = {"seconds": 1.0, "forward_rows": 0.0, "backward_rows": 0.0}
  return Picked(method, target, seed, tuple(rows), **costs | changes)


def test_shares_count_the_sources_of_each_task():
  found = right_data.shares([0, 1, 2, 4], SOURCES, RELEVANCE, "sums+code")
  assert found == (0.75, {"sums": 0.25, "code": 0.5}, 0.25)
  assert right_data.shares([3, 6], SOURCES, RELEVANCE, "code") == (0.0, {"code": 0.0}, 0.0)


def test_chance_is_the_share_in_the_pool():
  found = right_data.shares(range(8), SOURCES, RELEVANCE, "code")
  assert found == (0.25, {"code": 0.25}, 0.25)
  text = right_data.markdown([picked([0], "code")], SOURCES, RELEVANCE)
  assert text.splitlines()[-1].startswith("| chance | 0.250 | 0.250 |")


def test_no_row_has_no_share():
  found = right_data.shares([], SOURCES, RELEVANCE, "sums")
  assert math.isnan(found.relevant)
  assert math.isnan(found.noise)


def test_unknown_tasks_and_repeated_rows_are_refused():
  with pytest.raises(ValueError, match="no relevance of law, art; known: sums"):
    right_data.shares([0], SOURCES, RELEVANCE, "law+sums+art")
  with pytest.raises(ValueError, match="twice"):
    right_data.shares([0, 0], SOURCES, RELEVANCE, "sums")


def test_the_interval_is_student_s():
  from scipy import stats

  for count in (2, 3, 5):
    values = np.random.default_rng(count).random(count)
    found = right_data.interval(values.tolist())
    half = stats.t.ppf(0.975, count - 1) * stats.sem(values)
    np.testing.assert_allclose(found.mean, values.mean())
    np.testing.assert_allclose((found.low, found.high), values.mean() + np.array([-half, half]),
                               rtol=1e-3)  # fmt: skip
  alone = right_data.interval([0.5])
  assert alone.mean == 0.5
  assert math.isnan(alone.low)
  assert right_data.interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_the_table_sorts_methods_and_averages_seeds():
  found = [
    picked([1, 3], method="bad", seed=0, seconds=2.0),
    picked([0, 5], method="bad", seed=1, seconds=4.0, backward_rows=8.0),
    picked([0, 5], method="good", seed=0),
    picked([0, 2], "sums+code", method="good", seed=0),
  ]
  lines = right_data.tables(found, SOURCES, RELEVANCE)
  assert [line.method for line in lines["sums"]] == ["good", "bad"]
  bad = lines["sums"][1]
  assert (bad.num_seeds, bad.num_rows, bad.seconds, bad.backward_rows) == (2, 2, 3, 4)
  assert (bad.relevant.mean, bad.noise.mean) == (0.5, 0.25)
  assert lines["sums+code"][0].by_task["code"].mean == 0.5
  text = right_data.markdown(found, SOURCES, RELEVANCE)
  assert "Target sums and code:" in text
  assert "| method | relevant | to sums | to code | noise |" in text
  # Of one seed there is no interval; shares of 0 and 0.5 have one.
  assert "| good | 1.000 | 0.000 | 2 | 1 |" in text
  assert "| bad | 0.500 [-5.853, 6.853] | 0.250 [" in text
  content = json.loads(
    json.dumps(right_data.as_json(found, SOURCES, RELEVANCE), allow_nan=False)
  )
  assert content["sums"]["methods"][0]["relevant"] == {"mean": 1.0, "low": None, "high": None}
  assert content["sums"]["sources"][0]["rows"] == {"news": 1, "spam": 1}


def naive_likeness(pool, target):
  """Cosines of dictionaries, a word at a time."""
  words = lambda text: tfidf._WORD.findall(text.lower())
  holding = Counter(word for text in pool for word in set(words(text)))

  def vector(text):
    counts = Counter(word for word in words(text) if word in holding)
    found = {
      w: n * (1 + math.log((1 + len(pool)) / (1 + holding[w]))) for w, n in counts.items()
    }
    norm = math.sqrt(sum(x * x for x in found.values())) or 1.0
    return {word: x / norm for word, x in found.items()}

  centre = Counter()
  for text in target:
    for word, x in vector(text).items():
      centre[word] += x / len(target)
  norm = math.sqrt(sum(x * x for x in centre.values())) or 1.0
  return [sum(x * centre[word] for word, x in vector(text).items()) / norm for text in pool]


def test_tfidf_is_the_cosine_of_every_word():
  rng = np.random.default_rng(0)
  vocabulary = ["Fig", "fig", "x", "=", "1", "übung", "数据", "it's", "unheard"]
  texts = lambda count, size: [" ".join(rng.choice(vocabulary[:size], n)) for n in
                               rng.integers(1, 12, count)]  # fmt: skip
  for pool_size, target_size in ((1, 1), (20, 3), (50, 10)):
    pool = [*texts(pool_size, 8), ""]
    target = [*texts(target_size, 9), "unheard"]
    np.testing.assert_allclose(
      tfidf.likeness(pool, target), naive_likeness(pool, target), atol=1e-12
    )


def test_tfidf_without_words_is_zero():
  assert tfidf.likeness(["a", "", "b c"], ["unheard of", ""]).tolist() == [0, 0, 0]
  assert tfidf.likeness(["", ""], ["a"]).tolist() == [0, 0]
  with pytest.raises(ValueError, match="got 0 and 1"):
    tfidf.likeness([], ["a"])


def test_ties_go_to_the_first_row_and_rows_of_no_probability_are_left():
  logits, key = np.float32([0, 2, 1, 1, -np.inf, 1, np.nan]), jax.random.key(0)
  assert draw(logits, "top_k", 3, key).tolist() == [1, 2, 3]
  assert draw(logits, "top_k", 7, key).tolist() == [1, 2, 3, 5, 0]
  assert sorted(draw(logits, "gumbel_top_k", 7, key).tolist()) == [0, 1, 2, 3, 5]
  assert len({*draw(logits, "gumbel_top_k", 2, key).tolist()}) == 2


def test_methods_pick_for_tasks_or_for_all_of_them():
  assert Method().targets(["a", "b"]) == ["a", "b"]
  assert Method(tasks="all").targets(["a", "b"]) == ["a+b"]
  assert Method(tasks="any").targets(["a", "b"]) == ["a", "b", "a+b"]
  assert Method(tasks="any").targets(["a"]) == ["a"]


def write_records(path, records):
  with gzip.open(path, "wt", encoding="utf-8") as file:
    file.writelines(json.dumps(record) + "\n" for record in records)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Sixty records of three sources, and two tasks of eight records like one of them each."""
  rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")

  def record(source, number):
    words = {"fruit": ["fig", "plum"], "colour": ["red", "blue"], "noise": list("qwxz")}[source]
    text = " ".join(rng.choice(words, 6))
    return {"id": f"{source}-{number}", "source": source, "instruction": f"Say {text}.",
            "input": "", "output": text}  # fmt: skip

  pool = [record(source, n) for source in ("fruit", "colour", "noise") for n in range(20)]
  write_records(folder / "pool.jsonl.gz", pool)
  for task in ("fruit", "colour"):
    write_records(folder / f"target_{task}.dev.jsonl.gz", [record(task, n) for n in range(8)])
  relevance = {"fruit": ["fruit"], "colour": ["colour"], "never_relevant": ["noise"]}
  (folder / "relevance.json").write_text(json.dumps(relevance))
  return folder


def write_examples(folder, rows):
  """A table of examples as a run writes it, of lines in any order."""
  import pyarrow as pa

  folder.mkdir()
  pq.write_table(pa.Table.from_pylist(rows), folder / "examples.parquet")


def example(line, **known):
  none = {"step_first": None, "times_offered": 0, "times_selected": 0, "logit": None}
  return {"source": f"pool.train.jsonl:{line + 1}", "weight_sum": 0.0} | none | known


def test_a_run_s_table_tells_what_it_chose(tmp_path):
  rng = np.random.default_rng(0)
  lines = rng.permutation(60).tolist()
  offered, kept = set(lines[:32]), set(lines[5:20])
  rows = [
    example(x, times_offered=int(x in offered), times_selected=int(x in kept))
    for x in range(60)
  ]
  write_examples(tmp_path / "kept", rows)
  found = right_data_online.chosen(tmp_path / "kept", "kept", 4)
  assert found == (tuple(sorted(kept)), tuple(sorted(offered)))

  # Of the rows of steps 1 to 4: row 5 is seen after them, row 6 never, both are the highest.
  value = dict(zip(range(60), rng.permutation(60).astype(float).tolist(), strict=True))
  value |= {5: 99.0, 6: 98.0}
  first = {x: 1 + x % 4 for x in range(60)} | {5: 5, 6: None}
  for name, column in (("logit", "logit"), ("weight", "weight_sum")):
    rows = [example(x, step_first=first[x], **{column: value[x]}) for x in lines]
    write_examples(tmp_path / name, rows)
    best, of = right_data_online.chosen(tmp_path / name, name, 4)
    assert of == tuple(x for x in range(60) if x not in (5, 6))
    assert set(best) == set(sorted(of, key=lambda x: -value[x])[:6])

  rows = [
    example(x, step_first=first[x], times_offered=2, times_selected=2 - (x % 3 == 0))
    for x in lines
  ]
  write_examples(tmp_path / "pruned", rows)
  pruned, of = right_data_online.chosen(tmp_path / "pruned", "pruned", 4)
  assert pruned == tuple(x for x in of if x % 3 == 0)


def test_what_was_chosen_stands_beside_what_was_offered():
  def chosen(rows, offered, seed=0, target="sums"):
    return Chosen("m", "kept", target, seed, tuple(rows), tuple(offered), 8.0, 2.0 * seed)

  found = [chosen([0, 1], range(4)), chosen([0, 5], range(8), seed=1)]
  (line,) = online_report.tables(found, SOURCES, RELEVANCE)["sums"]
  assert (line.num_seeds, line.num_rows, line.num_offered) == (2, 2, 6)
  assert (line.relevant.mean, line.relevant_offered) == (0.75, 0.25)
  assert (line.noise.mean, line.noise_offered) == (0.25, 0.25)
  assert (line.forward_rows, line.backward_rows) == (8, 1)
  text = online_report.markdown(
    [*found, chosen([2], [2, 3], target="code")], SOURCES, RELEVANCE
  )
  assert text.startswith("Target sums:")
  assert (
    "| m | kept of candidates | 1 | 2 | 1.000 | 0.500 | 0.000 | 0.000 | 1 | 8 | 0 |" in text
  )
  content = json.loads(json.dumps(online_report.as_json(found, SOURCES, RELEVANCE)))
  assert content["sums"][1]["chosen_by_source"] == {"algebra": 2}
  with pytest.raises(ValueError, match="m, seed 0: rows were chosen that were not offered"):
    online_report.tables([chosen([7], [1, 2])], SOURCES, RELEVANCE)


def test_rows_offered_fill_steps(tmp_path):
  base = c.TrainConfig(batch_size=8)
  for name, offered, steps in (("uds", 64, 2), ("infobatch", 64, 9), ("in_run_shapley", 8, 2)):
    method = right_data_methods.online()[name]
    run = right_data_online.run_config(method, base, tmp_path, offered, tmp_path, tmp_path)
    assert run.num_steps == steps
  uds = right_data_methods.online()["uds"]
  for offered in (0, 8, 40):
    with pytest.raises(ValueError, match=f"multiple of 32, those of a step, got {offered}"):
      right_data_online.run_config(uds, base, tmp_path, offered, tmp_path, tmp_path)


@pytest.mark.slow
def test_the_script_finds_the_right_sources_and_repeats_nothing(data, tmp_path):
  def launch(*more):
    flags = ["--tiny", "--seeds=0", "--targets=fruit,colour", f"--workdir={tmp_path}/run"]
    command = [sys.executable, "launch/right_data.py", f"--data={data}", *flags, *more]
    return subprocess.run(
      command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True,
      timeout=600, check=False,
    )  # fmt: skip

  chosen = "--methods=tfidf,random,less_kron", "--online=greats", "--offered=32"
  done = launch(*chosen)
  assert done.returncode == 0, done.stderr
  content = json.loads((tmp_path / "run/right_data.json").read_text())
  assert content.keys() == {"fruit", "colour", "fruit+colour"}
  for target in ("fruit", "colour"):
    lines = {line["method"]: line for line in content[target]["methods"]}
    assert lines.keys() == {"tfidf", "random", "less_kron"}
    assert content[target]["chance"]["relevant"] == pytest.approx(1 / 3)
    assert {line["num_seeds"] for line in lines.values()} == {1}
    assert {line["num_rows"] for line in lines.values()} == {6}  # a tenth
    assert lines["tfidf"]["relevant"]["mean"] == 1.0
    assert lines["less_kron"]["relevant"]["mean"] >= 0.9
    assert lines["less_kron"]["backward_rows"] == 60 + 8
    assert lines["random"]["forward_rows"] == 0
  assert {line["method"] for line in content["fruit+colour"]["methods"]} == {"tfidf", "random"}
  # No selection could have read a source, or an id that tells it.
  staged = (tmp_path / "run/data/pool.train.jsonl").read_text().splitlines()
  assert len(staged) == 60
  assert all(json.loads(line).keys() == {"instruction", "input", "output"} for line in staged)

  # Of 32 candidates a step keeps the 8 that help its target; the log of what was trained, in
  # which a row is told by its words, has the same ones.
  words = {"fruit": {"fig", "plum"}, "colour": {"red", "blue"}}
  content = json.loads((tmp_path / "run/right_data_online.json").read_text())
  for task in ("fruit", "colour"):
    (greats,) = content[task]
    folder = tmp_path / f"run/seed-0/online/{task}/greats"
    table = pq.read_table(folder / "examples.parquet", columns=["example_id", "source"])
    line = {x["example_id"]: int(x["source"].split(":")[1]) - 1 for x in table.to_pylist()}
    trained = [line[row] for row in read_decisions(folder).ids_SxB.ravel().tolist()]
    assert sorted(greats["rows"]) == sorted(trained)
    assert (len(trained), len(greats["offered"])) == (8, 32)
    helps = [
      bool({*json.loads(staged[row])["output"].split()} & words[task]) for row in trained
    ]
    assert greats["chosen_shares"]["relevant"] == np.mean(helps) >= 0.9
    assert greats["offered_shares"]["relevant"] < 0.5

  # The run is one whose projections can be compared with exact gradients.
  output = tmp_path / "fidelity.json"
  flags = {
    "run": tmp_path / "run/seed-0", "targets": tmp_path / "run/targets/fruit+colour",
    "output": output, "rows": 30, "num_targets": 4, "draws": 2, "sizes": 4096,
    "signs": "", "ranks": 4, "directions": "",
  }  # fmt: skip
  done = subprocess.run(
    [sys.executable, "launch/fidelity.py", *(f"--{name}={x}" for name, x in flags.items())],
    cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=600,
    check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = json.loads(output.read_text())
  found = {(line["name"], line["size"]): np.mean(line["draws"]["products"]) for line in lines}
  assert found["count_sketch", 4096] > 0.95
  assert set(map(bool, np.isfinite(list(found.values())))) == {True}
  assert {len(line["draws"]["cosines"]) for line in lines} == {1, 2}
  assert f"| {np.mean(lines[0]['draws']['products']):.3f} |" in done.stdout

  # Once more: nothing is left to do. Another data set is refused.
  files = sorted((tmp_path / "run").glob("seed-*/picked/*/*.json"))
  assert len(files) == 2 * 2 + 1 + 1  # a random tenth is the same for all targets
  before = {path: path.stat().st_mtime_ns for path in files}
  removed = next(path for path in files if path.stem == "tfidf")
  removed.unlink()
  assert launch(chosen[0]).returncode == 0
  after = {path: path.stat().st_mtime_ns for path in files}
  assert [path for path in files if before[path] != after[path]] == [removed]
  with pytest.raises(ValueError, match="is of other data, choose another workdir"):
    stage(data, tmp_path / "run", ["fruit"], 30, 4096)
  with pytest.raises(ValueError, match=r"has no target_TASK\.dev\.jsonl\.gz for shape"):
    stage(data, tmp_path / "run", ["fruit", "shape"], 0, 4096)


def test_features_that_were_read_spare_their_own_passes():
  config = c.TrainConfig()
  assert spared(config, selection.tsds(), 5) == Cost(5, 0)
  assert spared(config, selection.less(), 5) == Cost(5, 5)
  along = c.FeaturesConfig(provider="directional", size=3, microbatch_size=2)
  config = dataclasses.replace(config, features=along)
  assert spared(config, selection.zeroth_order(), 5) == Cost(5 * (2 * 3 + 2), 0)


def test_the_reward_counts_common_words():
  rng = np.random.default_rng(0)
  for _ in range(50):
    said, right = (list(rng.choice(["a", "b", "7", "."], rng.integers(0, 9))) for _ in "ab")
    left, common = list(right), 0
    for word in said:
      if word in left:
        left.remove(word)
        common += 1
    total = len(said) + len(right)
    expected = 1.0 if not total else 2 * common / total
    assert word_f1("", " ".join(said), " ".join(right)) == pytest.approx(expected)
