"""Tests of the classifier: features, the best weights, calibration, the report, its file."""

import gzip
import json
import math
import os
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep.quality import classifier, examples, logistic, measure
from jdc.prep.quality.features import Features, features, sums
from jdc.prep.sample_keys import hash64

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("JDC_TEST_DATA", ROOT / "../shared/data"))
FULL = (1 << 64) - 1
GOOD = ["theorem", "proof", "therefore", "energy", "history", "species"]
BAD = ["click", "buy", "cheap", "free", "casino", "login"]
COMMON = ["the", "of", "and", "a", "in", "to", "is", "for", "page", "new"]


def mix(x):
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & FULL
  x = (x ^ x >> 27) * 0x94D049BB133111EB & FULL
  return x ^ x >> 31


def word_hash(word):
  h = 0xCBF29CE484222325
  for char in word:
    h = (h ^ ord(char)) * 0x100000001B3 & FULL
  return mix(h)


def plain(words, buckets):
  hashes = [word_hash(word) for word in words]
  pairs = [
    mix(((a ^ 0xD6E8FEB86659FD93) * 0x9E3779B97F4A7C15 + b) & FULL)
    for a, b in zip(hashes[:-1], hashes[1:], strict=True)  # noqa: RUF007
  ]
  return [h % buckets for h in hashes + pairs]


def documents(count, seed, good, noise=0.0):
  rng, found = random.Random(seed), []
  for n in range(count):
    special = GOOD if good != (rng.random() < noise) else BAD
    words = [rng.choice(special if rng.random() < 0.2 else COMMON) for _ in range(30)]
    found.append(" ".join([*words, str(n)]))
  return found


def sides(count=1000, noise=0.15):
  good, bad = documents(count, 1, True, noise), documents(count, 2, False, noise)
  return classifier.Labelled([*good, *bad], np.repeat([True, False], count))


@settings(deadline=None)
@given(
  st.lists(
    st.lists(st.sampled_from(["a", "fig", "ripe", "好", "der"]), max_size=9), max_size=6
  ),
  st.sampled_from([2, 64, 1 << 20]),
)
def test_features_are_those_of_a_plain_program(texts, buckets):
  text = pa.array([" ".join(words) for words in texts], pa.string())
  found = features(text, buckets)
  expected = [plain(words, buckets) for words in texts]
  parts = np.split(found.bucket, found.starts[1:-1])[: len(texts)]
  assert [part.tolist() for part in parts] == expected
  weight = np.random.default_rng(0).standard_normal(buckets).astype(np.float32)
  z, count = sums(text, weight)
  assert count.tolist() == [len(part) for part in expected]
  exact = [sum(float(weight[f]) for f in part) / max(len(part), 1) ** 0.5 for part in expected]
  np.testing.assert_allclose(z, exact, atol=1e-12)


def test_case_and_punctuation_do_not_matter():
  found = features(pa.array(["Ripe figs!", "(ripe) FIGS", "..."]), 1 << 16)
  assert found.bucket[:3].tolist() == found.bucket[3:].tolist()
  assert found.starts.tolist() == [0, 3, 6, 6]


def newton(found, label, buckets, l2):
  """The best weights in float64."""
  n = len(label)
  x = np.zeros((n, buckets + 1))
  for i in range(n):
    for f in found.bucket[found.starts[i] : found.starts[i + 1]]:
      x[i, f] += 1 / math.sqrt(found.starts[i + 1] - found.starts[i])
  x[:, -1] = 1
  penalty, w = np.append(np.full(buckets, l2), 0.0), np.zeros(buckets + 1)
  for _ in range(50):
    p = 1 / (1 + np.exp(-x @ w))
    gradient = x.T @ (p - label) + penalty * w
    hessian = x.T @ (x * (p * (1 - p))[:, None]) + np.diag(penalty + 1e-12)
    w -= np.linalg.solve(hessian, gradient)
  assert np.max(np.abs(gradient)) < 1e-8
  return w[:-1], w[-1]


@pytest.mark.parametrize("l2", [0.3, 3.0])
def test_weights_are_the_best_ones_whatever_the_order(l2):
  held = sides(120)
  found = features(pa.array(held.texts), 256)
  weight, bias = newton(found, held.label, 256, l2)
  solved = logistic.fit(found, held.label, 256, l2=l2, tolerance=2e-6)
  np.testing.assert_allclose(solved.weight, weight, atol=2e-4)
  assert solved.bias == pytest.approx(bias, abs=1e-3)
  assert solved.gradient < 2e-6 / 240**0.5
  order = np.random.default_rng(0).permutation(240)
  moved = features(pa.array([held.texts[i] for i in order]), 256)
  again = logistic.fit(moved, held.label[order], 256, l2=l2, tolerance=2e-6)
  np.testing.assert_allclose(again.weight, solved.weight, atol=2e-4)


def test_buckets_that_no_document_has_weigh_nothing():
  found = Features(np.array([3, 5, 3], np.int32), np.array([0, 2, 3]))
  weight = logistic.fit(found, np.array([True, False]), 8).weight
  assert np.flatnonzero(weight).tolist() == [3, 5]


def test_platt_finds_the_likeliest_calibration():
  rng = np.random.default_rng(0)
  z = rng.standard_normal(500) * 3
  label = rng.random(500) < 1 / (1 + np.exp(-(0.7 * z - 0.4)))
  a, c = measure.platt(z, label)
  ones = label.sum()
  target = np.where(label, (ones + 1) / (ones + 2), 1 / (502 - ones))
  loss = lambda a, c: np.sum(np.logaddexp(0, a * z + c) - target * (a * z + c))
  for da, dc in [(1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3), (1e-3, -1e-3)]:
    assert loss(a + da, c + dc) > loss(a, c)
  # Where sides are apart, numbers stay finite.
  assert np.isfinite(
    measure.platt(np.array([-1.0, 1.0] * 20), np.array([False, True] * 20))
  ).all()


def test_measures_are_those_of_plain_programs():
  rng = np.random.default_rng(3)
  p = np.round(rng.random(200), 2)  # with ties
  label = rng.random(200) < p**2
  pairs = [(a > b) + (a == b) / 2 for a in p[label] for b in p[~label]]
  assert measure.auc(p, label) == pytest.approx(np.mean(pairs))
  error, bins = 0.0, 0
  for m in range(10):
    here = [i for i in range(200) if min(int(p[i] * 10), 9) == m]
    if here:
      bins += 1
      error += len(here) / 200 * abs(np.mean(p[here]) - np.mean(label[here]))
  found, table = measure.reliability(p, label)
  assert (found, len(table)) == (pytest.approx(error), bins)
  assert sum(row["documents"] for row in table) == 200
  row = measure.thresholds(p, label)[4]
  assert row["kept"] == pytest.approx(np.mean(p >= 0.5), abs=1e-4)
  assert row["precision"] == pytest.approx(np.mean(label[p >= 0.5]), abs=1e-4)
  yes = p >= 0.5
  chance = yes.mean() * label.mean() + (1 - yes.mean()) * (1 - label.mean())
  assert measure.kappa(yes, label) == pytest.approx(
    (np.mean(yes == label) - chance) / (1 - chance)
  )
  q = 0.998 * p + 0.001
  exact = -np.mean([math.log(a if y else 1 - a) for a, y in zip(q, label, strict=True)])
  assert measure.log_loss(q, label) == pytest.approx(exact)


@pytest.fixture(scope="module")
def made():
  return classifier.fit(sides(), buckets=1 << 12)


def test_what_is_made_tells_sides_apart_and_is_calibrated(made):
  fresh = [*documents(500, 7, True, 0.15), *documents(500, 8, False, 0.15)]
  label = np.repeat([True, False], 500)
  p = made.score(pa.array(fresh))
  assert measure.auc(p, label) > 0.8
  assert measure.reliability(p, label)[0] < 0.08
  about = made.about
  assert about["examples"]["positive"] == 1000
  assert sum(about["examples"][part] for part in ("train", "calibrate", "test")) == 2000
  assert about["test"]["auc"] - 10 * about["test"]["auc_standard_error"] > 0.3
  assert len(about["test"]["thresholds"]) == 9


def test_scores_are_the_calibrated_sums(made):
  text = pa.array(documents(20, 7, True))
  z = sums(text, made.weight)[0] + made.bias
  p = made._replace(slope=2.0, offset=-0.5).score(text)
  np.testing.assert_allclose(p, 1 / (1 + np.exp(0.5 - 2 * z)), rtol=1e-12)
  # Weights that are held too small are made up for.
  assert classifier.fit(sides(), buckets=1 << 12, l2=100).slope > 2


def test_calibration_and_report_are_of_documents_that_were_held_out():
  """Labels by chance: what was learnt by heart says nothing of other documents."""
  texts = documents(1000, 1, True)
  label = np.random.default_rng(0).random(1000) < 0.5
  found = classifier.fit(classifier.Labelled(texts, label), buckets=1 << 16, l2=0.01)
  number = np.array([hash64(text.encode(), 0) / 2**64 for text in texts])
  z = sums(pa.array(texts), found.weight)[0] + found.bias
  train, test = number >= 0.2, number < 0.1
  calibrate = ~train & ~test
  assert measure.auc(z[train], label[train]) > 0.99
  assert found[2:4] == pytest.approx(measure.platt(z[calibrate], label[calibrate]), abs=1e-5)
  p = found.probability(z[test])
  assert found.about["test"] == {
    **found.about["test"],
    "documents": np.sum(test),
    "auc": round(measure.auc(p, label[test]), 5),
    "expected_calibration_error": round(measure.reliability(p, label[test])[0], 5),
  }
  assert abs(found.about["test"]["auc"] - 0.5) < 0.25


def test_a_text_without_words_has_no_score(made):
  found = made.score(pa.array(["...", "theorem proof", ""]))
  assert np.isnan(found).tolist() == [True, False, True]
  assert found[1] > 0.5


def test_neither_order_nor_copies_of_examples_matter(made):
  held = sides()
  order = np.random.default_rng(1).permutation(2000)
  order = np.append(order, order[:50])
  moved = classifier.Labelled([held.texts[i] for i in order], held.label[order])
  again = classifier.fit(moved, buckets=1 << 12)
  assert again.about["examples"].pop("duplicates") == 50
  np.testing.assert_array_equal(again.weight, made.weight)
  assert again[1:4] == made[1:4]


def test_the_file_holds_all_of_it(made, tmp_path):
  path = tmp_path / "a.safetensors"
  path.write_bytes(classifier.to_bytes(made))
  found = classifier.load(path)
  np.testing.assert_array_equal(found.weight, made.weight)
  assert found[1:] == (*made[1:4], json.loads(json.dumps(made.about)))
  assert classifier.to_bytes(found) == path.read_bytes()
  for damaged in (
    path.read_bytes()[:-4],
    b"",
    b"{}",
    path.read_bytes().replace(b"quality/1", b"quality/2"),
  ):
    (tmp_path / "b.safetensors").write_bytes(damaged)
    classifier._load.cache_clear()
    with pytest.raises(ValueError, match=r"b\.safetensors: not a quality classifier"):
      classifier.load(tmp_path / "b.safetensors")


def test_too_few_examples_are_an_error_that_counts_them():
  texts = [f"fig {n % 40} plum" for n in range(100)]
  held = classifier.Labelled([*texts, "!", "?"], np.array([True] * 100 + [False] * 2))
  with pytest.raises(ValueError, match=r"40 positive examples.*0 negative examples"):
    classifier.fit(held, buckets=64)
  with pytest.raises(ValueError, match=r"power of two up to 2\^30, got 100"):
    classifier.fit(sides(), buckets=100)
  with pytest.raises(ValueError, match="l2 must be above 0, got 0"):
    classifier.fit(sides(), l2=0)


def write(path, records):
  with gzip.open(path, "wt") as file:
    file.writelines(json.dumps(record) + "\n" for record in records)
  return str(path)


def test_labels_of_a_dear_model_are_distilled(tmp_path):
  """Numbers from 0 to 5 that a model would give, of which some are off."""
  rng = random.Random(0)
  records = [
    {"text": t, "score": min(5, 3 + rng.random() * 2)} for t in documents(300, 1, True)
  ]
  records += [{"text": t, "score": rng.random() * 3.3} for t in documents(300, 2, False)]
  path = write(tmp_path / "labels.jsonl.gz", records)
  held = examples.of_labels([path], field="score", min_label=3)
  assert held.label.sum() == sum(record["score"] >= 3 for record in records)
  found = classifier.fit(held, buckets=1 << 12).about
  assert found["agreement"]["kappa"] > 0.6
  assert found["agreement"]["spearman"] > 0.5
  output = [{"text": r["text"], "fields": json.dumps({"score": r["score"]})} for r in records]
  same = examples.of_labels(
    [write(tmp_path / "out.jsonl.gz", output)], field="score", min_label=3
  )
  assert (same.texts, same.value.tolist()) == (held.texts, held.value.tolist())
  bad = [{"text": "a b"}, {"text": "c d", "score": "4"}, {"text": "e f", "score": True}]
  bad.append({"text": "g h", "score": 10**400})
  path = write(tmp_path / "bad.jsonl.gz", [*records, *bad])
  with pytest.raises(
    ValueError, match="'score' is no number in 4 records: 'a b', 'c d', 'e f', 'g h'"
  ):
    examples.of_labels([path], field="score", min_label=3)


def test_many_examples_are_a_sample_that_does_not_depend_on_files(tmp_path):
  good, bad = documents(600, 1, True), documents(600, 2, False)
  one = [write(tmp_path / "good.jsonl.gz", [{"text": t} for t in good])]
  two = [
    write(tmp_path / f"{n}.jsonl.gz", [{"text": t} for t in good[::-1][n::3]]) for n in range(3)
  ]
  other = [write(tmp_path / "bad.jsonl.gz", [{"text": t} for t in bad])]
  first, second = (examples.of_sides(p, other, most=120) for p in (one, two))
  assert first.texts == second.texts
  assert first.label.sum() == 120
  assert set(first.texts[:120]) < set(good)
  # Which are taken says nothing of the part that they fall into.
  about = classifier.fit(examples.of_sides(one, other, most=120), buckets=1 << 12).about
  assert about["examples"]["train"] > 160
  (tmp_path / "bad.jsonl").write_text('{"text": "a"}\nno JSON\n')
  with pytest.raises(ValueError, match=r"bad\.jsonl:2: invalid JSON.*must all be readable"):
    examples.of_sides([str(tmp_path / "bad.jsonl")], other)


def test_globs_mean_files_and_what_is_not_there_stays(tmp_path):
  for name in ("b.txt", "a.txt"):
    (tmp_path / name).touch()
  found = examples.expand(["*.txt", "a.txt", "c.txt"], tmp_path)
  assert [Path(path).name for path in found] == ["a.txt", "b.txt", "c.txt"]


def held_out(name, key=None):
  with gzip.open(DATA / name, "rt") as file:
    return [json.loads(line) for line in file]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data in {DATA}")
def test_web_and_wiki_are_told_apart():
  """On files of held-out documents: above 0.9, and 20 standard errors above chance."""
  paths = [[str(DATA / f"corpus/{name}.train.jsonl.gz")] for name in ("wiki", "web")]
  found = classifier.fit(examples.of_sides(*paths, most=700), buckets=1 << 18)
  texts = {
    n: [r["text"] for r in held_out(f"corpus/{n}.val.jsonl.gz")] for n in ("wiki", "web")
  }
  label = np.repeat([True, False], [len(texts["wiki"]), len(texts["web"])])
  p = found.score(pa.array([*texts["wiki"], *texts["web"]]))
  measured = measure.report(p, label)
  print(
    {name: measured[name] for name in measured if name not in ("reliability", "thresholds")}
  )
  assert measured["auc"] > 0.9
  assert measured["auc"] - 20 * measured["auc_standard_error"] > 0.5
  assert measured["expected_calibration_error"] < 0.1


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data in {DATA}")
def test_answers_that_are_noise_are_told_from_good_ones():
  """Sub-sources of instructions: gibberish, repeated and copied answers against the others."""
  rows = held_out("instruct/pool.jsonl.gz")
  text = [f"{row['instruction']} {row['input']}\n{row['output']}" for row in rows]
  noise = ("noise_gibberish", "noise_repeated", "noise_copied")
  chosen = [
    n for n, row in enumerate(rows)
    if row["source"] in noise or (row["source"] == "alpaca_en" and n % 2)
  ]  # fmt: skip
  label = np.array([rows[n]["source"] not in noise for n in chosen])
  held = classifier.Labelled([text[n] for n in chosen], label)
  found = classifier.fit(held, buckets=1 << 16).about["test"]
  print({name: found[name] for name in found if name not in ("reliability", "thresholds")})
  assert found["auc"] - 3 * found["auc_standard_error"] > 0.6
