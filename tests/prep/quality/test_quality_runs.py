"""Tests of plans that score, compare and draw documents: any workers, kills, what is reused."""

import json
import multiprocessing
import random
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from jdc.prep import InputSpec, OutputSpec, PlanSpec, language_model, manifest, runner, step
from jdc.prep.quality import classifier

GOOD = ["theorem", "proof", "therefore", "energy", "history", "species"]
BAD = ["click", "buy", "cheap", "free", "casino", "login"]
COMMON = ["the", "of", "and", "a", "in", "to", "is", "for", "page", "new"]
EXAMPLES = {"positive": ["good.jsonl"], "negative": ["bad*.jsonl"], "buckets": 1 << 12}


def documents(count, seed, words):
  rng = random.Random(seed)
  return [
    " ".join(
      [*(rng.choice(words if rng.random() < 0.2 else COMMON) for _ in range(30)), str(n)]
    )
    for n in range(count)
  ]


def write(path, texts, **more):
  path.parent.mkdir(exist_ok=True)
  rows = [{"text": text, **{k: v[n] for k, v in more.items()}} for n, text in enumerate(texts)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Documents of two domains, of which some are near others, and examples of both kinds."""
  folder = tmp_path_factory.mktemp("corpus")
  good, bad = documents(150, 1, GOOD), documents(150, 2, BAD)
  near = [f"{text} extra" for text in good[:30]]
  for domain in ("web", "code"):
    some = [*good[:75], *bad[:75], *near[:15]]
    good, bad, near = good[75:], bad[75:], near[15:]
    order = np.random.default_rng(0).permutation(len(some))
    numbers = np.random.default_rng(1).standard_normal((len(some), 3)).tolist()
    texts = [some[i] for i in order]
    write(folder / "raw" / f"{domain}.jsonl", [*texts, "..."], v=[*numbers, [0, 0, 0]])
  write(folder / "good.jsonl", documents(200, 3, GOOD))
  write(folder / "bad.jsonl", documents(200, 4, BAD))
  return folder


STEPS = (
  step("semantic_dedup", eps=0.2, dimension=64, k=5),
  step("dsir_weight", target=["good.jsonl"]),
  step("semantic_clusters", k=3, dimension=64),
  step("quality_classifier", **EXAMPLES, min_score=0.05),
  step("quality_percentile", **EXAMPLES, low=20, by_domain=True),
  step("dsir_sample", target=["good.jsonl"], fraction=0.8),
)


def make_plan(steps=STEPS):
  paths = {"web": ("raw/web.jsonl",), "code": ("raw/code.jsonl",)}
  return PlanSpec(
    input=InputSpec(paths=paths, task_mb=0.02), step=steps, output=OutputSpec(shard_mb=0.02)
  )


def run(plan, folder, root, **options):
  job = runner.Run(plan, folder, root=root, **{"report": False, **options})
  return job.execute(), job


def tree(folder, name):
  return {p.name: p.read_bytes() for p in sorted((folder / name).rglob("*")) if p.is_file()}


def rows_of(folder, name="data"):
  paths = sorted((folder / name).rglob("*.parquet"))
  return [row for path in paths for row in pq.read_table(path).to_pylist()]


def counts_of(made, name):
  return next(stage["counts"] for stage in made["stages"] if stage["name"] == name)


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole") / "out"
  return folder, run(make_plan(), folder, root)[0]


def test_each_step_leaves_out_what_it_should(whole):
  folder, made = whole
  dropped = made["accounts"]["dropped"]
  assert made["accounts"]["read"] == 332
  assert 25 <= dropped["semantic_dedup"] <= 30
  assert dropped["quality_classifier.no_words"] == 2
  assert dropped["quality_classifier"] > 80
  left = 332 - sum(
    dropped[name] for name in dropped if "quality_p" not in name and "dsir" not in name
  )
  assert abs(dropped["quality_percentile.low"] - 0.2 * left) <= 2
  kept = rows_of(folder)
  assert len(kept) == round(0.8 * (left - dropped["quality_percentile.low"]))
  share = np.mean([any(word in row["text"] for word in GOOD) for row in kept])
  assert share > 0.95
  fields = [json.loads(row["fields"]) for row in kept]
  assert {record["cluster"] for record in fields} <= {0, 1, 2}
  assert np.mean([record["dsir_log_weight"] for record in fields]) > 0
  gone = [row for row in rows_of(folder, "dropped") if row["reason"] == "semantic_dedup"]
  assert all(row["similarity"] > 0.8 and row["duplicate_of"] for row in gone)


def test_the_classifier_and_its_report_stay_with_the_run(whole):
  folder, made = whole
  (file,) = (folder / "models").iterdir()
  found = counts_of(made, "04-quality/prepare")
  assert found == json.loads(json.dumps(classifier.load(file).about))
  assert found["test"]["auc"] > 0.9
  bounds = counts_of(made, "05-quality_percentile/decide")["bounds"]
  assert set(bounds) == {"web", "code"}


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_makes_the_same(root, whole, tmp_path, workers):
  made, _ = run(make_plan(), tmp_path / "out", root, workers=workers)
  assert made["output_hash"] == whole[1]["output_hash"]
  assert made["accounts"] == whole[1]["accounts"]
  for name in ("data", "dropped", "models"):
    assert tree(tmp_path / "out", name) == tree(whole[0], name)


def test_a_run_that_is_killed_goes_on_and_makes_the_same(root, whole, tmp_path):
  folder, log = tmp_path / "out", tmp_path / "out" / "commits.jsonl"
  total = (whole[0] / "commits.jsonl").read_bytes().count(b"\n")
  context = multiprocessing.get_context("spawn")
  for share in (0.3, 0.7):
    process = context.Process(
      target=runner.run, args=(make_plan(), folder), kwargs={"root": root, "report": False}
    )
    process.start()
    while process.is_alive() and not (
      log.exists() and log.read_bytes().count(b"\n") > share * total
    ):
      time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode != 0
    assert not manifest.is_complete(folder)
  made, job = run(make_plan(), folder, root)
  assert job.done < 0.5 * total
  assert made["output_hash"] == whole[1]["output_hash"]
  assert tree(folder, "models") == tree(whole[0], "models")


def test_another_threshold_scores_nothing_again(root, tmp_path):
  quality = (step("quality_classifier", **EXAMPLES),)
  _, first = run(make_plan(quality), tmp_path / "out", root)
  changed = (step("quality_classifier", **EXAMPLES, min_score=0.9),)
  made, job = run(make_plan(changed), tmp_path / "out", root)
  names = {record["name"] for record in first.records}
  assert {"01-quality", "01-text"} <= names
  texts = sum(record["link_kind"] in ("text", "prepare") for record in job.records)
  assert job.reused >= texts
  assert made["accounts"]["dropped"]["quality_classifier"] > 150
  # The same file in another plan, which is told no examples.
  (file,) = (tmp_path / "out" / "models").iterdir()
  given = (step("quality_classifier", model=str(file), min_score=0.9),)
  again, _ = run(make_plan(given), tmp_path / "given", root)
  assert again["output_hash"] == made["output_hash"]
  assert tree(tmp_path / "given", "models") == tree(tmp_path / "out", "models")


def test_another_eps_embeds_nothing_again(root, tmp_path):
  plans = [
    make_plan((step("semantic_dedup", embed="field:v", eps=e, k=2),)) for e in (0.01, 0.3)
  ]
  few, _ = run(plans[0], tmp_path / "out", root)
  many, job = run(plans[1], tmp_path / "out", root)
  removed = [counts_of(made, "01-semantic_dedup/decide")["removed"] for made in (few, many)]
  assert removed[0] < removed[1]
  assert job.reused > sum(record["link_kind"] == "keys" for record in job.records)
  assert counts_of(many, "01-semantic_dedup/decide")["without_embedding"] == 2


def test_numbers_that_are_not_finite_stop_the_run_and_name_the_documents(tmp_path):
  write(tmp_path / "raw" / "web.jsonl", ["a", "b", "c"], v=[[1, 0], [1e39, 1], [0, 1]])
  plan = PlanSpec(
    input=InputSpec(paths=("raw/*.jsonl",)), step=(step("semantic_dedup", embed="field:v"),)
  )
  with pytest.raises(
    ValueError, match=r"of 1 documents have numbers that are not finite: [0-9a-f]{32}"
  ):
    run(plan, tmp_path / "out", tmp_path)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (step("quality_classifier"), "one of these must be given: model; positive and negative"),
    (step("quality_classifier", positive=["good.jsonl"]), "one of these must be given"),
    (step("quality_classifier", **{**EXAMPLES, "negative": ["no*.jsonl"]}), "no such file"),
    (step("quality_classifier", **EXAMPLES, labels=["good.jsonl"]), "one of these must be"),
    (step("quality_percentile", **EXAMPLES, low=50, high=50), "low must be below high"),
    (step("perplexity", model="jdc:none", max=3), "no such file"),
    (step("semantic_dedup", embed="jdc:none"), "no such file"),
    (step("semantic_dedup", embed="bag"), "must be hash-bow, jdc:FOLDER"),
    (step("dsir_sample", target=["no.jsonl"]), "no such file"),
  ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_runs(root, tmp_path, given, message):
  with pytest.raises(ValueError, match=message):
    runner.Run(make_plan((given,)), tmp_path / "out", root=root)
  assert not (tmp_path / "out").exists()


def test_a_checkpoint_scores_once_for_a_rule_and_percentiles(tmp_path, base_folder):
  texts = [" ".join(["fig", "plum", "red"][: 1 + n % 3] * (1 + n)) for n in range(30)]
  write(tmp_path / "raw" / "web.jsonl", [*texts, "", "fig"])
  spec = InputSpec(paths=("raw/*.jsonl",), task_mb=0.001)
  model = {"model": f"jdc:{base_folder}"}
  steps = (
    step("perplexity", **model, max=1e6),
    step("perplexity_percentile", **model, high=50),
  )
  made, _ = run(PlanSpec(input=spec, step=steps), tmp_path / "out", tmp_path)
  opened = language_model.open_model(model["model"])
  found = language_model.losses(opened, [*texts, "fig"])
  exact = np.exp(found.loss / np.maximum(found.num_tokens, 1))
  assert made["accounts"]["dropped"]["perplexity.undefined"] == 1
  order = np.argsort(exact, kind="stable")
  kept = {row["text"] for row in rows_of(tmp_path / "out")}
  assert kept == {[*texts, "fig"][n] for n in order[2:16]}
  bounds = counts_of(made, "02-perplexity_percentile/decide")["bounds"]["all"]
  np.testing.assert_allclose(bounds, exact[order[[2, 15]]], rtol=1e-5)
  changed = (step("perplexity", **model, max=exact.max() - 1), steps[1])
  _, job = run(PlanSpec(input=spec, step=changed), tmp_path / "out", tmp_path)
  texts_made = sum(record["link_kind"] == "text" for record in job.records)
  assert job.reused >= texts_made > 1
