"""The loader where records are packed: what the rows hold, who reads them, checkpoints."""

import grain
import jax
import numpy as np
import pytest

from jdc.data import draw, loader, plan
from jdc.data.batch import inputs_and_targets
from jdc.data.chat import Example
from jdc.data.plan import PlanSpec
from jdc.data.records import RecordWriter

LENGTH, SIZES = 19, (20, 30, 10)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
  rng, tables = np.random.default_rng(0), []
  for k, size in enumerate(SIZES):
    with RecordWriter(tmp_path_factory.mktemp("records") / str(k), LENGTH, 300) as writer:
      for i in range(size):
        length = int(rng.integers(2, LENGTH - 4))
        counts = rng.random(length) < 0.5
        counts[0], counts[-1] = False, True
        ids = rng.integers(0, 300, length).astype(np.int32)
        writer.add(f"{k}:{i}", Example(ids, counts, counts.astype(np.int32)))
      tables.append(writer.finish())
  return tables


@pytest.fixture
def make(tables):
  def make(sharding=None, arrange=None, batch_size=8, **fields):
    spec = PlanSpec(
      ("a", "b", "c"), SIZES, batch_size, 5, mixed=True, ordered=arrange is not None,
      max_segments=4, row_tokens=LENGTH + 1, draw_size=12, **fields,
    )  # fmt: skip
    pool = loader.Pool(tables, LENGTH)
    return loader.Loader(pool, spec, np.log(np.float32([0.3, 0.5, 0.2])), sharding, arrange)

  return make


def record_of(tables, ids):
  """Tokens and counts of a record of the pool."""
  domain = int(np.searchsorted(np.cumsum(SIZES), ids, side="right"))
  tokens, counts = tables[domain].read([ids - sum(SIZES[:domain])])
  return domain, tokens[0], counts[0]


def test_rows_hold_the_records_one_after_the_other(make, tables):
  dataset = make()
  state = plan.initial_state(dataset.spec, np.log(np.float32([0.3, 0.5, 0.2])))
  planner = draw.Plan(dataset.spec, None, dataset.pool.lengths)
  for _, batch in zip(range(10), dataset, strict=False):
    rows, state = planner.draw(state)
    for name in rows._fields:
      np.testing.assert_array_equal(getattr(batch, name), getattr(rows, name))
    assert batch.max_segments == 4
    for row in range(8):
      end = 0
      for place, record in enumerate(batch.example_id[row]):
        if record < 0:
          continue
        domain, tokens, counts = record_of(tables, record)
        here = slice(end, end + len(tokens))
        np.testing.assert_array_equal(batch.tokens[row, here], tokens)
        sign = np.where(counts, 1, -1)
        np.testing.assert_array_equal(batch.segments[row, here], sign * (place + 1))
        assert batch.domain[row, place] == domain
        end += len(tokens)
      assert not batch.tokens[row, end:].any()
      assert not batch.segments[row, end:].any()


def test_the_tokens_that_count_are_those_of_the_records(make, tables):
  for _, batch in zip(range(10), make(), strict=False):
    inputs = inputs_and_targets(batch.tokens, batch.segments)
    for row in range(8):
      for place, record in enumerate(batch.example_id[row]):
        in_segment = inputs.segments[row] == place + 1
        found = inputs.targets[row][in_segment & inputs.mask[row]]
        expected = np.zeros(0)
        if record >= 0:
          _, tokens, counts = record_of(tables, record)
          expected = tokens[counts]
          np.testing.assert_array_equal(
            inputs.positions[row][in_segment], np.arange(in_segment.sum())
          )
        np.testing.assert_array_equal(found, expected)


def test_lengths_of_the_pool(make, tables):
  pool = make().pool
  ids = np.random.default_rng(1).permutation(sum(SIZES))
  expected = [len(record_of(tables, record)[1]) for record in ids.tolist()]
  assert pool.lengths(ids).tolist() == expected
  assert pool.lengths(np.zeros(0, np.int32)).tolist() == []


@pytest.mark.parametrize("axes", [(8, 1), (2, 4), (1, 2)])
def test_placed_batches_equal_those_of_the_host(make, axes):
  devices = np.array(jax.devices()[: axes[0] * axes[1]]).reshape(axes)
  mesh = jax.sharding.Mesh(devices, ("data", "fsdp"))
  sharding = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
  for _, placed, host in zip(range(3), make(sharding), make(), strict=False):
    for leaf, same in zip(jax.tree.leaves(placed), jax.tree.leaves(host), strict=True):
      np.testing.assert_array_equal(leaf, same)
      assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
      assert leaf.dtype == same.dtype


class PartlyElsewhere:
  """A sharding over four devices of which this process has two."""

  is_fully_addressable = False

  def addressable_devices_indices_map(self, shape):
    quarter = shape[0] // 4
    return {d: (slice(d * quarter, (d + 1) * quarter),) for d in (1, 3)}


def test_a_process_reads_the_rows_of_its_own_devices(make, monkeypatch):
  monkeypatch.setattr(loader, "place", lambda tree, sharding: tree)
  mine = np.array([False, False, True, True, False, False, True, True])
  for _, batch, whole in zip(range(5), make(PartlyElsewhere()), make(), strict=False):
    # The draw is global, what is read of it is not.
    np.testing.assert_array_equal(batch.example_id, whole.example_id)
    np.testing.assert_array_equal(batch.tokens[mine], whole.tokens[mine])
    np.testing.assert_array_equal(batch.segments[mine], whole.segments[mine])
    assert whole.tokens[~mine].any()
    assert not batch.tokens[~mine].any()


def test_the_last_rows_may_be_empty(make):
  batches = list(make(max_epochs=(1.0, 1.0, 1.0)))
  ids = np.concatenate([batch.example_id.ravel() for batch in batches])
  assert sorted(ids[ids >= 0].tolist()) == list(range(sum(SIZES)))
  empty = (batches[-1].example_id < 0).all(axis=1)
  assert not batches[-1].tokens[empty].any()
  iterator = iter(make(max_epochs=(1.0, 1.0, 1.0)))
  for _ in batches:
    next(iterator)
  with pytest.raises(StopIteration, match="leaves no draw of 12 records"):
    next(iterator)


# Resumption.


class Decided(grain.IterDataset):
  """The batches of a loader to which every batch decides the mixture of a later one."""

  def __iter__(self):
    return DecidedIterator(self._parent.__iter__())


class DecidedIterator(grain.DatasetIterator):
  def __next__(self):
    batch = next(self._parent)
    self._parent.push(np.float32(np.cos(batch.example_id[:3, 0])))
    return batch

  def get_state(self):
    return self._parent.get_state()

  def set_state(self, state):
    self._parent.set_state(state)


class AsDicts(grain.experimental.LimitIterDataset):
  """The first batches, in a form that Grain compares by value."""

  def __iter__(self):
    return AsDictsIterator(super().__iter__())


class AsDictsIterator(grain.DatasetIterator):
  def __next__(self):
    return vars(next(self._parent))

  def get_state(self):
    return self._parent.get_state()

  def set_state(self, state):
    self._parent.set_state(state)


def by_id(ids, stream):
  return np.argsort(ids % 5, kind="stable")


VARIANTS = {
  "mixed": {},
  "capped": {"max_epochs": (1.0, 1.5, np.inf)},
  "long lag": {"decision_lag": 3},
  "ordered": {"arrange": by_id, "steps_per_round": 3},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("decided", [False, True], ids=["held", "decided"])
def test_grain_finds_equal_output_after_a_checkpoint(make, name, decided):
  dataset = make(**VARIANTS[name])
  if decided:
    dataset = Decided(dataset)
  grain.experimental.assert_equal_output_after_checkpoint(AsDicts(dataset, 8))
