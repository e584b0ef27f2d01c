"""Rows are computed in as few microbatches as their size allows, with little padding."""

import itertools

import jax
import pytest

from jdc.stats.gradients import microbatches
from jdc.train import sharding


@pytest.mark.parametrize("shards", [None, 1, 2, 4, 8])
def test_microbatches_are_the_fewest_and_hold_the_fewest_rows(shards):
  batches = None
  if shards is not None:
    rest = jax.device_count() // shards
    batches = sharding.batch_sharding(sharding.make_mesh(data=shards, tensor=rest))
  for num_rows, size in itertools.product(range(1, 70), range(1, 20)):
    count, rows = microbatches(num_rows, size, batches)
    assert count == -(-num_rows // size)
    multiple = shards if shards and size % shards == 0 else 1
    allowed = [n for n in range(1, size + 1) if n % multiple == 0 and n * count >= num_rows]
    if shards is None or size % shards == 0:
      assert rows == min(allowed), (num_rows, size)
    assert rows in allowed, (num_rows, size)
