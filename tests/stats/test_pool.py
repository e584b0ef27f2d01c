"""Sweeps: which rows they visit, and that chunks give what each row gives by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.data import loader
from jdc.data.batch import inputs_and_targets
from jdc.models.base import MESH_AXES
from jdc.models.configs import DecoderConfig
from jdc.models.decoder import decoder
from jdc.stats import pool as pool_lib
from jdc.stats.buckets import buckets
from jdc.stats.features_table import FeaturesTable, FeaturesWriter
from jdc.stats.sweep_store import SweepStore
from jdc.train import sharding

SIZES = (50, 3, 200)


class Rows:
  """A table whose tokens tell the row."""

  def __init__(self, first, size):
    self.first, self.size = first, size

  def __len__(self):
    return self.size

  def rows(self, ids):
    tokens = np.repeat((self.first + np.asarray(ids))[:, None], 5, axis=1).astype(np.int32)
    return tokens, np.ones_like(tokens)


T = 24


class Records:
  """Random records of 2 to T + 1 tokens, some of which are only read."""

  def __init__(self, size, seed):
    rng = np.random.default_rng(seed)
    self.lengths = rng.integers(2, T + 2, size).astype(np.int32)
    self._tokens = rng.integers(0, 50, (size, T + 1)).astype(np.int32)
    self._signs = rng.choice([-1, 1], (size, T + 1)).astype(np.int32)

  def __len__(self):
    return len(self.lengths)

  def rows(self, ids):
    used = np.arange(T + 1) < self.lengths[ids][:, None]
    return self._tokens[ids] * used, self._signs[ids] * used


@pytest.fixture(scope="module")
def records():
  return loader.Pool([Records(40, seed=1), Records(30, seed=2)], T)


@pytest.fixture
def pool():
  starts = np.cumsum([0, *SIZES])
  return loader.Pool([Rows(s, n) for s, n in zip(starts[:-1], SIZES, strict=True)], 4)


def test_the_whole_pool_is_swept_by_default():
  for sweep_rows in (0, sum(SIZES), 10**6):
    ids = pool_lib.candidates(SIZES, sweep_rows, seed=0, round_=0)
    np.testing.assert_array_equal(ids, np.arange(sum(SIZES)))


def test_a_sample_has_a_row_of_every_domain_and_changes_with_the_round():
  starts = np.cumsum([0, *SIZES])
  samples = [pool_lib.candidates(SIZES, 20, seed=1, round_=r) for r in range(200)]
  for ids in samples:
    assert len(ids) == len(set(ids)) == 20
    assert (np.diff(ids) > 0).all()
    assert (np.histogram(ids, starts)[0] > 0).all()
  assert len({tuple(ids) for ids in samples}) == 200
  np.testing.assert_array_equal(samples[3], pool_lib.candidates(SIZES, 20, seed=1, round_=3))
  # Apart from one row of each domain the sample follows the sizes.
  counts = np.histogram(np.concatenate(samples), starts)[0] / 200
  expected = 1 + 17 * (np.asarray(SIZES) - 1) / (sum(SIZES) - 3)
  np.testing.assert_allclose(counts, expected, atol=0.4)


def test_a_sample_smaller_than_the_domains_is_refused():
  with pytest.raises(ValueError, match="sweep_rows=2 must be at least 3"):
    pool_lib.candidates(SIZES, 2, seed=0, round_=0)


@pytest.mark.parametrize("batch_size", [8, 16, 256])
def test_chunks_give_what_each_row_gives(pool, batch_size):
  batches = sharding.batch_sharding(sharding.make_mesh())
  score = jax.jit(
    lambda scale, offset, batch: {
      "a": scale * batch.tokens[:, 0] + offset,
      "b": batch.domain[:, None] * np.ones(3),
    }
  )
  ids = np.array([0, 7, 49, 50, 52, 53, 252, -1, 3, -1, 200], np.int32)
  found = pool_lib.sweep(score, 2.0, 0.5, pool, ids, batch_size, batches).scores
  real = ids >= 0
  np.testing.assert_allclose(found["a"][real], 2.0 * ids[real] + 0.5)
  expected = np.searchsorted([50, 53], ids[real], side="right")
  np.testing.assert_array_equal(found["b"][real], expected[:, None] * np.ones((1, 3)))
  assert score._cache_size() == 1


def on(count):
  axes = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  shape = (count, 1, 1, 1)
  mesh = jax.make_mesh(shape, MESH_AXES, axis_types=axes, devices=jax.devices()[:count])
  return sharding.batch_sharding(mesh)


def read(batch):
  """Statistics from which any token, position, segment or mask that is wrong is seen."""
  inputs = inputs_and_targets(batch.tokens, batch.segments)
  x = [inputs.tokens, inputs.targets, inputs.positions, inputs.mask * inputs.targets]
  place_T = jnp.arange(1, inputs.tokens.shape[1] + 1)
  sums = [jnp.sum((row + 1) * inputs.segments * place_T, axis=1) for row in x]
  return jnp.stack([*sums, batch.example_id, batch.domain], axis=1)


@pytest.fixture
def many_shapes(monkeypatch):
  """As if compilations took no time: otherwise a sweep this short has one shape."""
  monkeypatch.setattr(pool_lib, "buckets", functools.partial(buckets, compilation=0))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("sampled", [False, True])
def test_buckets_give_what_each_row_gives_at_full_length(
  records, devices, sampled, many_shapes
):
  batches = on(devices)
  ids = np.arange(len(records), dtype=np.int32)
  if sampled:
    ids = np.array([69, -1, 3, 40, 39, 12, -1, 7, 55, 61, 18, 44], np.int32)
  score = jax.jit(lambda params, context, batch: {"read": read(batch)})
  found = pool_lib.sweep(score, None, None, records, ids, 8, batches)
  real = ids >= 0
  whole = pool_lib.rows_batch(records, ids[real], on(1))
  assert whole.tokens.shape == (real.sum(), T + 1)
  np.testing.assert_array_equal(found.scores["read"][real], read(whole))
  assert (found.scores["read"][~real] == 0).all()
  assert found.num_rows == real.sum()
  assert found.num_computed == found.num_chunks
  used = records.input_lengths(ids[real]).sum()
  assert found.positions - found.padding == used
  assert found.share_padding == found.padding / found.positions
  assert sampled or found.share_padding < 0.3


def test_the_losses_of_a_model_are_those_of_single_rows(records, many_shapes):
  model = decoder(
    DecoderConfig(
      vocab_size=50, width=16, num_layers=2, num_heads=2, num_kv_heads=1, mlp_width=32
    )
  )
  params = model.init(jax.random.key(0))

  def loss(params, context, batch):
    tokens, targets, positions, segments, mask = inputs_and_targets(
      batch.tokens, batch.segments
    )
    losses = model.token_losses(params, tokens, targets, positions, segments)
    return {"loss": jnp.sum(losses * mask, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)}

  ids, compiled = np.arange(len(records), dtype=np.int32), jax.jit(loss)
  single = on(1)
  expected = [
    compiled(params, None, pool_lib.rows_batch(records, ids[i : i + 1], single))["loss"][0]
    for i in range(len(ids))
  ]
  found = pool_lib.sweep(jax.jit(loss), params, None, records, ids, 8, on(8)).scores["loss"]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_rounds_of_samples_compile_once(records):
  score = jax.jit(lambda params, context, batch: {"id": batch.example_id})
  batches, sizes = on(8), []
  for round_ in range(20):
    ids = pool_lib.candidates((40, 30), 33, 0, round_)
    found = pool_lib.sweep(score, None, None, records, ids, 8, batches)
    np.testing.assert_array_equal(found.scores["id"], ids)
    sizes.append(score._cache_size())
  assert sizes[-1] <= 16
  for ids in ([3], [5, -1, 6], np.arange(8)):
    pool_lib.sweep(score, None, None, records, np.array(ids), 8, batches)
  assert score._cache_size() <= sizes[-1] + 1  # one full batch


def test_where_no_row_is_real_nothing_is_computed(records):
  score = jax.jit(lambda params, context, batch: {"a": read(batch)[:, :2].astype(jnp.float32)})
  found = pool_lib.sweep(score, None, None, records, np.full(3, -1), 8, on(8))
  np.testing.assert_array_equal(found.scores["a"], np.zeros((3, 2), np.float32))
  assert found[1:6] == (0, 0, 0, 0, 0)
  assert found.share_padding == 0
  assert score._cache_size() == 0


def test_reference_losses_are_cut_with_the_rows(records):
  class Losses:
    def rows(self, ids, wanted):
      return ids[:, None] + np.arange(T, dtype=np.float32) / 100

  reference = loader.Pool(records.tables, T, Losses())
  ids = np.array([1, -1, 5, 3])
  length = int(records.input_lengths(ids[ids >= 0]).max())
  batch = pool_lib.rows_batch(reference, ids, on(1), length)
  assert batch.tokens.shape == batch.segments.shape == (4, length + 1)
  np.testing.assert_allclose(
    batch.reference_token_loss, ids[:, None] + np.arange(length) / 100, rtol=1e-6
  )
  with pytest.raises(ValueError, match=f"have more than {length - 1} inputs"):
    pool_lib.rows_batch(reference, ids, on(1), length - 1)


def test_a_chunk_is_written_before_the_next_is_begun(records, tmp_path, monkeypatch):
  events = []
  compiled = jax.jit(lambda params, context, batch: {"id": batch.example_id})
  read_rows, write = records.rows, SweepStore.write

  def noting(name, call):
    def noted(*arguments):
      events.append(name)
      return call(*arguments)

    return noted

  monkeypatch.setattr(records, "rows", noting("read", read_rows))
  monkeypatch.setattr(SweepStore, "write", noting("write", write))
  store, ids = SweepStore(tmp_path, "key"), np.arange(len(records), dtype=np.int32)
  score = noting("begin", compiled)
  found = pool_lib.sweep(score, None, None, records, ids, 8, on(8), store=store)
  middle = ["read", "write", "begin"] * (found.num_chunks - 1)
  assert events == ["read", "begin", *middle, "write"]
  events.clear()
  again = pool_lib.sweep(score, None, None, records, ids, 8, on(8), store=store)
  assert events == []
  assert again.num_computed == again.positions == 0
  np.testing.assert_array_equal(again.scores["id"], ids)


def test_chunks_in_a_store_are_known_by_their_rows(pool, tmp_path):
  score = jax.jit(lambda params, context, batch: {"id": batch.example_id})
  store = SweepStore(tmp_path, "key")
  for first in (0, 8):
    ids = np.arange(first, first + 8)
    found = pool_lib.sweep(score, None, None, pool, ids, 8, on(8), store=store)
    assert found.num_computed == found.num_chunks == 1
    np.testing.assert_array_equal(found.scores["id"], ids)


class Interrupted(Exception):
  """Ends a sweep as a kill would."""


def interrupted(compiled, chunks):
  """Computes so many chunks, then ends."""
  left = [chunks]

  def score(*arguments):
    if left[0] == 0:
      raise Interrupted
    left[0] -= 1
    return compiled(*arguments)

  return score


def kept_rows(params, context, batch):
  rows = read(batch).astype(jnp.float32) * params
  return {"first": rows[:, 0], "rows": rows, "signs": jnp.sign(rows[:, :2])}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_features_go_to_tables(records, tmp_path, dtype):
  compiled, key = jax.jit(kept_rows), {"state": 1}
  ids = np.arange(len(records), dtype=np.int32)[::-1][:50]
  arguments = (records, ids, 8, on(8))
  plain = pool_lib.sweep(compiled, 0.01, None, *arguments).scores

  def sweep(score, folder="table"):
    store = SweepStore(tmp_path / "store", key)
    writer = FeaturesWriter(tmp_path / folder, ["rows", "signs"], ids, key, dtype)
    return pool_lib.sweep(score, 0.01, None, *arguments, store=store, features=writer)

  with pytest.raises(Interrupted):
    sweep(interrupted(compiled, 3))
  with pytest.raises(ValueError, match="its sweep did not end"):
    FeaturesTable(tmp_path / "table")
  found = sweep(compiled)
  assert found.num_computed == found.num_chunks - 3
  assert found.scores.keys() == {"first"}
  np.testing.assert_array_equal(found.scores["first"], plain["first"])
  table = FeaturesTable(tmp_path / "table")
  assert (len(table), table.size("rows"), table.key) == (50, 6, key)
  assert table.names == ("rows", "signs")
  asked = np.array([69, 20, 33, 20])
  for name in table.names:
    np.testing.assert_array_equal(table.ids, ids)
    expected = plain[name].astype(dtype).astype(np.float32)[69 - asked]
    np.testing.assert_array_equal(table.rows(asked, name), expected)
  with pytest.raises(KeyError, match=r"2 examples were not swept: \[-1, 19\]"):
    table.rows(np.array([20, -1, 19]), "rows")
  with pytest.raises(ValueError, match="one of"):
    table.rows(asked)
  # A row that has changed, and a table that is gone, are computed again.
  changed = np.lib.format.open_memmap(tmp_path / "table/rows.npy", "r+")
  changed[7] += 1
  changed.flush()
  assert sweep(compiled).num_computed == 1
  np.testing.assert_array_equal(table.rows(ids, "rows"), plain["rows"].astype(dtype))
  assert sweep(compiled).num_computed == 0
  (tmp_path / "table/signs.npy").unlink()
  assert sweep(compiled).num_computed == found.num_chunks
  assert sweep(compiled, "elsewhere").num_computed == found.num_chunks


def test_tables_of_other_sweeps_are_refused(records, tmp_path):
  ids = np.arange(5)
  FeaturesWriter(tmp_path, ["rows"], ids, {"state": 1})
  others = [
    (["rows"], ids, {"state": 2}, "float32"),
    (["rows", "more"], ids, {"state": 1}, "float32"),
    (["rows"], ids + 1, {"state": 1}, "float32"),
    (["rows"], ids, {"state": 1}, "float16"),
  ]
  for other in others:
    with pytest.raises(ValueError, match="holds features of another sweep"):
      FeaturesWriter(tmp_path, *other)
  with pytest.raises(ValueError, match="at least one name, got none; dtype must be one of"):
    FeaturesWriter(tmp_path / "new", [], ids, {}, "int8")
  with pytest.raises(ValueError, match="not a folder of features"):
    FeaturesTable(tmp_path / "new")


def test_wrong_scores_are_refused(records, tmp_path):
  score = jax.jit(lambda params, context, batch: {"a": jnp.zeros(3), "b": jnp.zeros(())})
  ids = np.arange(len(records))
  features = FeaturesWriter(tmp_path, ["c"], ids, {})
  with pytest.raises(
    ValueError, match=r"a has shape \(3,\).*b has shape \(\).*no entries \['c'\]"
  ):
    pool_lib.sweep(score, None, None, records, ids, 8, on(8), features=features)
