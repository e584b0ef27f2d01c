"""Tests of filling rows: capacity, every record once, waiting, how full, how fast."""

import gzip
import json
import os
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jdc.data.chat import from_tokenizer
from jdc.data.conversations import read_conversations
from jdc.data.fill import fill, wanted_tokens
from jdc.data.tokenize import byte_tokenizer

ROOT = Path(__file__).parents[2]
POOL = Path(os.environ.get("JDC_TEST_DATA", ROOT / "../shared/data")) / "instruct/pool.jsonl.gz"
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 6))


def run(stream, num_rows, capacity, max_segments, wanted):
  """Steps until the stream is used up; yields (ids in the order of the queue, filled)."""
  queue, drawn = [], 0
  while queue or drawn < len(stream):
    carried = len(queue)
    while drawn < len(stream) and stream[queue].sum() < wanted:
      queue.append(drawn)
      drawn += 1
    filled = fill(stream[queue], num_rows, capacity, max_segments, carried)
    yield queue, filled
    queue = [i for i, row in zip(queue, filled.row, strict=True) if row < 0]


@given(st.data(), SIZES, st.integers(1, 200))
def test_every_record_once_and_soon(data, sizes, wanted):
  num_rows, capacity, max_segments = sizes
  lengths = data.draw(st.lists(st.integers(1, capacity), max_size=60))
  stream = np.array(lengths, np.int64)
  placed, before = [], {}
  for step, (queue, filled) in enumerate(run(stream, *sizes, wanted)):
    assert queue == sorted(queue)  # what is carried over keeps its order and heads the queue
    for place, record in enumerate(queue):
      before.setdefault(record, (step, place))
    real = filled.row >= 0
    np.testing.assert_array_equal(filled.segment >= 0, real)
    for row in range(num_rows):
      at = np.flatnonzero(filled.row == row)
      assert stream[queue][at].sum() <= capacity
      assert sorted(filled.segment[at]) == list(range(len(at)))
      assert len(at) <= max_segments
    assert filled.row.max(initial=-1) < num_rows
    assert real[: min(num_rows, len(queue))].all()
    for record in np.array(queue)[real].tolist():
      placed.append(record)
      came, place = before[record]
      assert step - came <= place // num_rows
  assert sorted(placed) == list(range(len(stream)))


@given(st.data(), st.integers(2, 40), st.integers(1, 8))
def test_one_row_is_filled_as_full_as_can_be(data, capacity, count):
  lengths = np.array(data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=count)))
  filled = fill(lengths, 1, capacity, 100, 0)
  sums = [
    lengths[0] + sum(subset)
    for k in range(len(lengths))
    for subset in combinations(lengths[1:].tolist(), k)
  ]
  assert lengths[filled.row == 0].sum() == max(total for total in sums if total <= capacity)


def test_older_records_first_where_it_makes_no_difference():
  assert fill(np.array([4, 6, 6, 3, 3]), 1, 10, 9).row.tolist() == [0, 0, -1, -1, -1]
  assert fill(np.array([4, 3, 3, 6]), 1, 10, 9).row.tolist() == [0, 0, 0, -1]


def test_few_segments_take_the_longest_that_fit():
  lengths = np.array([4, 1, 1, 1, 1, 1, 1, 5, 2])
  assert fill(lengths, 1, 10, 2).row.tolist() == [0, -1, -1, -1, -1, -1, -1, 0, -1]
  assert fill(lengths, 1, 10, 1).row.tolist() == [0] + [-1] * 8


@pytest.mark.parametrize("seed", range(20))
def test_few_segments_place_every_record_once(seed):
  stream = np.random.default_rng(seed).integers(1, 6, 200)
  placed = []
  for queue, filled in run(stream, 4, 40, 5, 300):
    real = filled.row >= 0
    placed += np.array(queue)[real].tolist()
    assert np.bincount(filled.row[real], stream[queue][real]).max() <= 40
    assert len({*zip(filled.row[real], filled.segment[real], strict=True)}) == real.sum()
  assert sorted(placed) == list(range(200))


def test_empty_queue_and_fewer_records_than_rows():
  assert fill(np.zeros(0, np.int64), 3, 10, 2).row.tolist() == []
  assert fill(np.array([2, 3]), 4, 10, 2).row.tolist() == [0, 1]


@pytest.mark.parametrize(
  ("lengths", "sizes", "wrong"),
  [
    ([3, 11], (2, 10, 4, 0), "lengths must be in .1, 10., got 3 to 11"),
    ([0, 3], (2, 10, 4, 0), "got 0 to 3"),
    ([3], (0, 10, 4, 0), "num_rows must be at least 1, got 0"),
    ([3], (1, 10, 0, 2), "max_segments must be at least 1, got 0; num_carried must be in"),
  ],
)
def test_refuses(lengths, sizes, wrong):
  with pytest.raises(ValueError, match=wrong):
    fill(np.array(lengths), *sizes)


@pytest.fixture(scope="module")
def pool_lengths():
  if not POOL.is_file():
    pytest.skip(f"no sample data at {POOL}; set JDC_TEST_DATA")
  chat = from_tokenizer(byte_tokenizer())
  found = read_conversations([POOL])
  return np.array([len(chat.encode(conversation.messages).ids) for conversation in found])


def test_bytes_of_the_pool_by_hand(pool_lengths):
  with gzip.open(POOL, "rt", encoding="utf-8") as file:
    records = [json.loads(line) for line in file]
  frame = len("User:\n\n\nAssistant:\n") + 2  # and BOS, EOS
  expected = [
    len(f"{r['instruction']}{r['output']}".encode())
    + (len(r["input"].encode()) + 1 if r["input"] else 0)
    + frame
    for r in records
  ]
  assert pool_lengths.tolist() == expected


@pytest.mark.parametrize("num_rows", [2, 8, 32])
@pytest.mark.parametrize("shrink", [1, 3])
def test_fills_the_pool(pool_lengths, num_rows, shrink):
  """Bytes, and a third of them as a subword tokenizer would make."""
  capacity = 1025
  lengths = -(-pool_lengths // shrink)
  lengths = lengths[lengths <= capacity]
  order = np.random.default_rng(0).permutation(len(lengths))
  stream = np.concatenate([lengths[order]] * 2)
  full, wait, first = [], 0, {}
  for step, (queue, filled) in enumerate(
    run(stream, num_rows, capacity, 8, wanted_tokens(num_rows, capacity))
  ):
    if step == 80 or len(stream) - queue[-1] < 2:
      break
    real = filled.row >= 0
    full.append(stream[queue][real].sum() / (num_rows * capacity))
    for record in queue:
      first.setdefault(record, step)
    wait = max(wait, *(step - first[record] for record in np.array(queue)[real].tolist()))
  assert np.mean(full) >= (0.95 if shrink == 1 else 0.99)
  assert wait <= 12 // num_rows * 2 + 4


def test_is_fast():
  rng = np.random.default_rng(0)
  lengths = rng.integers(20, 500, 220)
  seconds = []
  for _ in range(20):
    start = time.perf_counter()
    fill(lengths, 32, 1025, 16, 80)
    seconds.append(time.perf_counter() - start)
  assert min(seconds) < 1e-3
