"""Tests of semantic deduplication, beside brute force over all pairs."""

import gzip
import json
import os
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jdc.prep.semantic import dedup, hash_bow, vectors
from jdc.prep.semantic.greedy import SIZES, greedy

ROOT = Path(__file__).parents[3]
CORPUS = Path(os.environ.get("JDC_TEST_DATA", ROOT / "../shared/data")) / "corpus"
WORDS = [f"w{i}" for i in range(3000)]


def brute_force(x, order, eps):
  """Goes over rows in order, compares each with all that stay, in float64."""
  kept, near = {}, []
  held, rows = np.zeros((len(x), x.shape[1])), []
  for row in order:
    cosine = held[: len(rows)] @ x[row]
    if len(rows) and cosine.max() > 1 - eps:
      kept[row] = rows[int(cosine.argmax())]
      near.append(cosine.max())
      continue
    held[len(rows)] = x[row]
    rows.append(row)
  return kept, near


def random_ids(n, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, 16), dtype=np.uint8)


def by_id(ids):
  return sorted(range(len(ids)), key=lambda row: bytes(ids[row]))


def planted(n, width, copies, seed=0, noise=0.08):
  """Rows, of which some are near others."""
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((n, width))
  x[n - copies :] = x[rng.integers(n - copies, size=copies)]
  x[n - copies :] += noise * rng.standard_normal((copies, width))
  return rng.permutation(x).astype(np.float32)


def texts(count=5000, near=600, seed=0):
  """Documents, of which `near` are edits of others: words changed, dropped or moved."""
  rng = random.Random(seed)
  found = []
  for _ in range(count - near):
    topic = rng.randrange(0, 2900, 50)
    words = [WORDS[topic + min(int(rng.expovariate(0.05)), 99)] for _ in range(60)]
    found.append(" ".join(words))
  for _ in range(near):
    words = found[rng.randrange(count - near)].split()
    for _ in range(2):
      words[rng.randrange(len(words))] = rng.choice(WORDS)
    found.append(" ".join(words))
  rng.shuffle(found)
  return found


@pytest.fixture(scope="module")
def many():
  x = hash_bow.embed(pa.array(texts()), dimension=128)
  return x, random_ids(len(x))


def test_with_one_cluster_it_is_brute_force(many):
  x, ids = many
  kept, near = brute_force(vectors.unit(x).astype(np.float64), by_id(ids), 0.15)
  found, counts = dedup.decide([x[:1700], x[1700:]], [ids[:1700], ids[1700:]], eps=0.15, k=1)
  assert len(kept) > 500
  assert dict(zip(found.row.tolist(), found.kept.tolist(), strict=True)) == kept
  cosines = dict(zip(kept, near, strict=True))
  exact = [cosines[row] for row in found.row.tolist()]
  np.testing.assert_allclose(found.similarity, exact, atol=1e-5)
  assert counts.compared == 5000 * 4999 // 2


def test_with_clusters_it_is_brute_force_within_them(many):
  x, ids = many
  cluster, _ = dedup.clusters([x], [ids])
  found, counts = dedup.decide([x], [ids], eps=0.15)
  unit, order, kept = vectors.unit(x).astype(np.float64), np.array(by_id(ids)), {}
  for number in range(counts.clusters):
    kept |= brute_force(unit, order[cluster[order] == number].tolist(), 0.15)[0]
  assert counts.clusters == 71
  assert dict(zip(found.row.tolist(), found.kept.tolist(), strict=True)) == kept
  whole, _ = dedup.decide([x], [ids], eps=0.15, k=1)
  recall = len(np.intersect1d(found.row, whole.row)) / len(whole.row)
  print(f"recall of brute force: {recall:.3f} of {len(whole.row)}")
  assert recall > 0.95
  assert counts.compared < 0.05 * 5000 * 4999 / 2


def test_what_stays_does_not_depend_on_the_order_of_documents(many):
  x, ids = many
  found, counts = dedup.decide([x], [ids], eps=0.15)
  order = np.random.default_rng(1).permutation(len(x))
  parts = np.split(order, [1300, 1300, 4000])
  moved, others = dedup.decide([x[p] for p in parts], [ids[p] for p in parts], eps=0.15)
  assert {bytes(ids[row]) for row in found.row} == {bytes(ids[order[row]]) for row in moved.row}
  assert counts._replace(mean_cosine=0) == others._replace(mean_cosine=0)


def test_first_in_the_input_stays_where_ids_do_not_count():
  x = np.array([[1, 0], [1, 0.01], [0, 1]], np.float32)
  ids = np.array([[9], [1], [5]], np.uint8).repeat(16, axis=1)
  assert dedup.decide([x], [ids], k=1)[0].row.tolist() == [0]
  assert dedup.decide([x], [ids], k=1, by_id=False)[0].row.tolist() == [1]


def test_a_chain_keeps_what_is_not_near_anything_that_stays():
  angle = np.radians([0, 10, 20, 30])
  x = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
  ids = np.arange(4, dtype=np.uint8)[:, None].repeat(16, axis=1)
  found, _ = dedup.decide([x], [ids], eps=1 - np.cos(np.radians(11)), k=1)
  assert (found.row.tolist(), found.kept.tolist()) == ([1, 3], [0, 2])


@pytest.mark.parametrize("count", [1, 2, 129, SIZES[-1], 2 * SIZES[-1] + 5])
def test_blocks_are_no_matter(count):
  x = (
    vectors.unit(planted(count, 12, count // 3, seed=count)) if count > 3 else np.eye(3)[:count]
  )
  x = x.astype(np.float32)
  found = greedy(np.arange(count), lambda rows: x[rows], 0.9)
  kept, _ = brute_force(x.astype(np.float64), range(count), 0.1)
  assert found.kept.tolist() == [kept.get(row, row) for row in range(count)]


def test_documents_without_an_embedding_stay_and_are_counted():
  x = np.zeros((5, 4), np.float32)
  x[1:3] = 1
  found, counts = dedup.decide([x], [random_ids(5)], k=1)
  assert len(found.row) == 1
  assert counts.without_embedding == 3
  none, counts = dedup.decide([x[:0], x[3:]], [random_ids(0), random_ids(2)])
  assert (len(none.row), counts.without_embedding, counts.clusters) == (0, 2, 0)


def test_numbers_that_are_not_finite_are_an_error_with_ids():
  x, ids = planted(40, 4, 0), random_ids(40)
  x[3, 1], x[17, 0] = np.nan, np.inf
  with pytest.raises(ValueError, match=f"of 2 .*{bytes(ids[3]).hex()}, {bytes(ids[17]).hex()}"):
    dedup.decide([x[:10], x[10:]], [ids[:10], ids[10:]])


def test_scale_does_not_matter_even_where_squares_overflow():
  x, ids = planted(200, 8, 60), random_ids(200)
  found, _ = dedup.decide([x], [ids], k=3)
  scale = np.float32(10.0) ** np.random.default_rng(0).integers(-30, 30, (200, 1))
  scaled, _ = dedup.decide([x * scale.astype(np.float32)], [ids], k=3)
  assert len(found.row) > 30
  np.testing.assert_array_equal(found.row, scaled.row)


def test_what_does_not_fit_is_an_error():
  x, ids = planted(6, 4, 0), random_ids(6)
  with pytest.raises(ValueError, match="k=7, but only 6"):
    dedup.decide([x], [ids], k=7)
  with pytest.raises(ValueError, match="one width"):
    dedup.decide([x, x[:, :2]], [ids, ids])
  with pytest.raises(ValueError, match="same parts"):
    dedup.decide([x], [ids[:5]])
  with pytest.raises(ValueError, match=r"eps must be in \(0, 2\), got 0"):
    dedup.decide([x], [ids], eps=0)


@pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus in {CORPUS}")
def test_paraphrases_planted_in_real_text_are_found():
  """Sentences in another order, and every 40th word changed."""
  rng, rows = random.Random(0), []
  for name in ("web", "wiki"):
    with gzip.open(CORPUS / f"{name}.train.jsonl.gz", "rt") as file:
      rows += [json.loads(line)["text"][:1500] for line in list(file)[:600]]
  copies = {}
  for row in rng.sample(range(len(rows)), 150):
    sentences = rows[row].split(". ")
    rng.shuffle(sentences)
    words = ". ".join(sentences).split()
    for place in range(0, len(words), 40):
      words[place] = "otherwise"
    copies[len(rows)] = row
    rows.append(" ".join(words))
  x = hash_bow.embed(pa.array(rows))
  ids = np.zeros((len(rows), 16), np.uint8)
  ids[:, :2] = np.arange(len(rows), dtype=">u2").view(np.uint8).reshape(-1, 2)
  found, _ = dedup.decide([x], [ids], eps=0.15)
  pairs = dict(zip(found.row.tolist(), found.kept.tolist(), strict=True))
  hits = sum(pairs.get(row) == of for row, of in copies.items())
  print(f"{hits} of {len(copies)} found, {len(pairs) - hits} others of {len(rows)}")
  assert hits > 0.9 * len(copies)
  assert len(pairs) - hits < 0.03 * len(rows)
