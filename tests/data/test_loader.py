"""The loader: rows of the tables on the right processes and devices, and its checkpoints."""

import grain
import jax
import numpy as np
import pytest

from jdc.data import draw, loader, plan
from jdc.data.plan import PlanSpec

LENGTH = 6


class Table:
  """Rows that tell their domain and number; remembers which were read."""

  def __init__(self, domain, num_rows):
    self.domain, self.num_rows, self.read = domain, num_rows, []

  def __len__(self):
    return self.num_rows

  def rows(self, ids):
    self.read += ids.tolist()
    tokens = 1000 * self.domain + 10 * ids[:, None] + np.arange(LENGTH + 1)
    return tokens.astype(np.int32), np.full_like(tokens, self.domain + 1, np.int32)


def make(
  sizes=(7, 12, 5), p_K=(0.3, 0.5, 0.2), batch_size=8, sharding=None, arrange=None, **spec
):
  pool = loader.Pool([Table(k, size) for k, size in enumerate(sizes)], LENGTH)
  names = tuple(f"domain{k}" for k in range(len(sizes)))
  fields = {"mixed": True, "ordered": arrange is not None} | spec
  spec = PlanSpec(names, tuple(sizes), batch_size, 5, **fields)
  return loader.Loader(pool, spec, np.log(np.float32(p_K)), sharding, arrange)


def expected_rows(pool, ids_B):
  """Tokens and segments of rows, read one by one."""
  tokens, segments = [], []
  for row in ids_B.tolist():
    domain = max(k for k in range(len(pool.tables)) if pool.starts_K[k] <= row)
    t, s = Table(domain, 0).rows(np.array([row - pool.starts_K[domain]]))
    tokens.append(t[0])
    segments.append(s[0])
  return np.stack(tokens), np.stack(segments)


def assert_batches_equal(left, right):
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("mixed", [True, False])
def test_batches_hold_the_rows_of_the_tables(mixed):
  dataset = make(mixed=mixed)
  state = plan.initial_state(dataset.spec, np.log(np.float32([0.3, 0.5, 0.2])))
  planner = draw.Plan(dataset.spec)
  for _, batch in zip(range(10), dataset, strict=False):
    rows, state = planner.draw(state)
    assert_batches_equal([getattr(batch, name) for name in rows._fields], list(rows))
    tokens, segments = expected_rows(dataset.pool, rows.example_id)
    np.testing.assert_array_equal(batch.tokens, tokens, strict=True)
    np.testing.assert_array_equal(batch.segments, segments, strict=True)


def test_padding_and_unwanted_rows_are_zero_and_not_read():
  pool = make().pool
  ids_B = np.array([8, -1, 0, 3], np.int32)
  tokens, segments = pool.rows(ids_B, np.array([True, True, False, True]))
  expected, expected_segments = expected_rows(pool, np.array([8, 3]))
  np.testing.assert_array_equal(tokens[[0, 3]], expected)
  np.testing.assert_array_equal(segments[[0, 3]], expected_segments)
  assert not tokens[[1, 2]].any()
  assert not segments[[1, 2]].any()
  assert [table.read for table in pool.tables] == [[3], [1], []]
  assert pool.domain(ids_B).tolist() == [1, 0, 0, 0]


class PartlyElsewhere:
  """A sharding over four devices of which this process has two."""

  is_fully_addressable = False

  def addressable_devices_indices_map(self, shape):
    quarter = shape[0] // 4
    return {d: (slice(d * quarter, (d + 1) * quarter),) for d in (1, 3)}


def test_a_process_reads_the_rows_of_its_own_devices(monkeypatch):
  monkeypatch.setattr(loader, "place", lambda tree, sharding: tree)
  dataset, alone = make(sharding=PartlyElsewhere()), make()
  mine = np.array([False, False, True, True, False, False, True, True])
  for _, batch, whole in zip(range(5), dataset, alone, strict=False):
    # The draw is global, what is read of it is not.
    np.testing.assert_array_equal(batch.example_id, whole.example_id)
    np.testing.assert_array_equal(batch.tokens[mine], whole.tokens[mine])
    np.testing.assert_array_equal(batch.segments[mine], whole.segments[mine])
    assert not batch.tokens[~mine].any()
  num_read = sum(len(table.read) for table in dataset.pool.tables)
  assert num_read == 5 * 4


@pytest.mark.parametrize("axes", [(8, 1), (2, 4), (1, 2)])
def test_placed_batches_equal_those_of_the_host(axes):
  devices = np.array(jax.devices()[: axes[0] * axes[1]]).reshape(axes)
  mesh = jax.sharding.Mesh(devices, ("data", "fsdp"))
  sharding = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
  for _, placed, host in zip(range(3), make(sharding=sharding), make(), strict=False):
    assert_batches_equal(placed, host)
    for leaf, same in zip(jax.tree.leaves(placed), jax.tree.leaves(host), strict=True):
      assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
      assert leaf.dtype == same.dtype


def test_placing_by_callback_puts_every_row_on_its_device():
  # As with several processes, each of which holds its own rows of the arrays.
  class Elsewhere(jax.NamedSharding):
    is_fully_addressable = False

  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
  batch = next(iter(make()))
  placed = loader.place(batch, Elsewhere(mesh, jax.P("data")))
  for leaf, host in zip(jax.tree.leaves(placed), jax.tree.leaves(batch), strict=True):
    assert leaf.shape == host.shape
    assert len(leaf.addressable_shards) == 4
    for i, shard in enumerate(leaf.addressable_shards):
      assert shard.device == jax.devices()[i]
      np.testing.assert_array_equal(shard.data, host[2 * i : 2 * i + 2], strict=True)


def test_tables_of_other_sizes_than_the_plan_are_an_error():
  dataset = make()
  other = loader.Pool([Table(0, 7), Table(1, 12), Table(2, 6)], LENGTH)
  with pytest.raises(ValueError, match=r"\(7, 12, 6\) rows, the plan expects \(7, 12, 5\)"):
    loader.Loader(other, dataset.spec, np.zeros(3))


def test_the_end_of_the_data_says_why():
  iterator = iter(make(max_epochs=(1.0, 1.0, 1.0)))
  for _ in range(3):
    next(iterator)
  with pytest.raises(StopIteration, match=r"max_epochs=\(1.0, 1.0, 1.0\) leaves no batch"):
    next(iterator)
  assert len(list(make(max_epochs=(1.0, 1.0, 1.0)))) == 3


# Resumption.


class Decided(grain.IterDataset):
  """The batches of a loader to which every batch decides the mixture of a later one."""

  def __iter__(self):
    return DecidedIterator(self._parent.__iter__())


class DecidedIterator(grain.DatasetIterator):
  def __next__(self):
    batch = next(self._parent)
    self._parent.push(np.float32(np.cos(batch.example_id[:3])))
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
  "pool": {"mixed": False},
  "mixed": {},
  "capped": {"max_epochs": (1.0, 1.5, np.inf)},
  "long lag": {"decision_lag": 3},
  "no lag": {"decision_lag": 0},
  "one": {"domain_draw": "one"},
  # Queues whose lengths change from step to step.
  "ordered": {"arrange": by_id, "steps_per_round": 3},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("decided", [False, True], ids=["held", "decided"])
def test_grain_finds_equal_output_after_a_checkpoint(name, decided):
  dataset = make(**VARIANTS[name])
  if decided:
    dataset = Decided(dataset)
  grain.experimental.assert_equal_output_after_checkpoint(AsDicts(dataset, 12))


def test_decisions_change_what_is_drawn():
  # Otherwise the variants above would test nothing new.
  held, decided = make(), Decided(make())
  domains = [
    [batch.domain.tolist() for _, batch in zip(range(8), dataset, strict=False)]
    for dataset in (held, decided)
  ]
  assert domains[0][:2] == domains[1][:2]  # with a lag of 1
  assert domains[0][2:] != domains[1][2:]
