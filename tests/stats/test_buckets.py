"""Length buckets: agreement with a search of all cuts, and how much padding is left."""

import itertools
import math

import numpy as np
import pytest

from jdc.stats import buckets as buckets_lib

T, BATCH = 512, 8


def log_normal(count, sigma, seed=0):
  """Lengths of inputs of mean 170, at most 511."""
  rng = np.random.default_rng(seed)
  return np.clip(rng.lognormal(math.log(170) - sigma**2 / 2, sigma, count), 4, 511).astype(int)


def positions(chunks):
  return sum(len(chunk.place_B) * chunk.length for chunk in chunks)


def share_padding(chunks, lengths):
  return 1 - lengths.sum() / positions(chunks)


def shapes_of(chunks):
  return {(len(chunk.place_B), chunk.length) for chunk in chunks}


def assert_valid(chunks, lengths, batch_size, shards, sequence_length, max_shapes=16):
  places = np.concatenate([chunk.place_n for chunk in chunks])
  np.testing.assert_array_equal(np.sort(places), np.arange(len(lengths)))
  assert len(shapes_of(chunks)) <= max_shapes
  for chunk in chunks:
    rows = len(chunk.place_B)
    assert rows % shards == 0
    assert rows == shards or rows * chunk.length <= batch_size * sequence_length
    assert (chunk.place_B[: len(chunk.place_n)] >= 0).all()
    assert lengths[chunk.place_n].max() <= chunk.length <= sequence_length
    assert chunk.length % 8 == 0 or chunk.length == sequence_length
  longest = [chunk.length for chunk in chunks[:-1]]
  assert longest == sorted(longest, reverse=True)


def cost_of(bucket, batch_size, shards, sequence_length):
  """The positions of a bucket of rows, by the rule of the docstring."""
  length = min(sequence_length, 8 * max(1, math.ceil(max(bucket) / 8)))
  limit = max(shards, batch_size * sequence_length // length // shards * shards)
  num_chunks = math.ceil(len(bucket) / limit)
  rows = next(r for r in range(shards, limit + 1, shards) if r * num_chunks >= len(bucket))
  return num_chunks * rows * length


def best_cost(lengths, batch_size, shards, sequence_length, max_shapes, compilation):
  """Tries all cuts at multiples of the shards."""
  rows = sorted(lengths, reverse=True)
  inner = range(shards, len(rows), shards)
  best = []
  for count in range(max_shapes):
    costs = [
      sum(
        cost_of(rows[i:j], batch_size, shards, sequence_length)
        for i, j in itertools.pairwise([0, *cuts, len(rows)])
      )
      for cuts in itertools.combinations(inner, count)
    ]
    best += [min(costs)] if costs else []
  most = max(sum(lengths) / 0.92, min(best)) if sum(lengths) > compilation else math.inf
  allowed = [(cost + compilation * k, k) for k, cost in enumerate(best) if cost <= most]
  return best[min(allowed)[1]]


@pytest.mark.parametrize("seed", range(40))
def test_no_cuts_are_better(seed):
  rng = np.random.default_rng(seed)
  shards = int(rng.choice([1, 2, 4]))
  batch_size, sequence_length = shards * int(rng.integers(1, 5)), int(rng.choice([16, 40, 100]))
  lengths = rng.integers(0, sequence_length + 1, int(rng.integers(1, 12 * shards)))
  if shards == 1:
    lengths = lengths[:11]
  max_shapes = int(rng.integers(1, 5))
  arguments = (batch_size, shards, sequence_length, max_shapes)
  for compilation in (0, 20, 1000):
    chunks = buckets_lib.buckets(lengths, *arguments, compilation)
    assert_valid(chunks, lengths, *arguments)
    assert positions(chunks) == best_cost(lengths, *arguments, compilation)


def test_a_short_sweep_compiles_one_shape():
  chunks = buckets_lib.buckets(log_normal(100, 0.6), BATCH, 1, T)
  assert len(shapes_of(chunks)) == 1


@pytest.mark.parametrize("sigma", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("shards", [1, 8])
@pytest.mark.parametrize("count", [500, 7449])
def test_less_than_a_tenth_is_padding(count, shards, sigma):
  lengths = log_normal(count, sigma)
  chunks = buckets_lib.buckets(lengths, BATCH, shards, T)
  assert_valid(chunks, lengths, BATCH, shards, T)
  assert share_padding(chunks, lengths) < 0.1
  again = buckets_lib.buckets(lengths, BATCH, shards, T)
  assert [c.place_B.tolist() for c in again] == [c.place_B.tolist() for c in chunks]


def test_rows_of_documents_are_one_bucket():
  chunks = buckets_lib.buckets(np.full(64, T), BATCH, 8, T)
  assert [(len(c.place_B), c.length) for c in chunks] == [(BATCH, T)] * 8
  assert buckets_lib.buckets(np.zeros(0, int), BATCH, 8, T) == []


@pytest.mark.parametrize(("batch_size", "shards"), [(8, 1), (8, 8), (64, 8)])
def test_samples_share_shapes(batch_size, shards):
  pool, rng = log_normal(7449, 0.6), np.random.default_rng(1)
  shapes = buckets_lib.sample_shapes(pool, 2000, batch_size, shards, T)
  assert shapes == buckets_lib.sample_shapes(pool, 1100, batch_size, shards, T)
  assert len(shapes) <= 16
  for _ in range(5):
    lengths = rng.choice(pool, 2000, replace=False)
    chunks = buckets_lib.fill(lengths, shapes)
    assert_valid(chunks, lengths, batch_size, shards, T)
    assert shapes_of(chunks) <= set(shapes)
    assert share_padding(chunks, lengths) < 0.1


def test_a_few_rows_are_one_full_batch():
  pool = log_normal(100, 0.6)
  assert buckets_lib.sample_shapes(pool, 8, 8, 1, T) == ((8, T),)
  (chunk,) = buckets_lib.fill(pool[:3], [buckets_lib.Shape(8, T)])
  assert sorted(chunk.place_B.tolist()) == [-1] * 5 + [0, 1, 2]


def test_full_rows_have_one_shape_in_samples_of_any_size():
  for count in (1, 9, 100, 1000):
    assert buckets_lib.sample_shapes(np.full(1000, T), count, BATCH, 2, T) == ((BATCH, T),)


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match=r"max_shapes.*got 0; batch_size 6.*lengths.*0 to 600"):
    buckets_lib.buckets(np.array([0, 600]), 6, 4, T, max_shapes=0)
  with pytest.raises(ValueError, match="33 positions fits no shape"):
    buckets_lib.fill(np.array([33]), [buckets_lib.Shape(8, 32)])
