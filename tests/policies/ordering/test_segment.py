"""Segment: which rows each part holds, and that each part is shuffled."""

import collections
from fractions import Fraction

import jax
import numpy as np
import pytest

from jdc.policies.ordering import segment

KEY = jax.random.key(0)
CASES = [
  (10, 10, "low", "high"), (25.5, 40, "low", "low"), (80, 60, "high", "low"),
  (50, 50, "high", "high"), (0, 100, "low", "high"), (30, 20, "high", "high"),
]  # fmt: skip


def sizes(n, first, last):
  first, last = Fraction(repr(float(first))), Fraction(repr(float(last)))
  whole = max(first + last, 100)
  num_first = round(n * first / whole)
  return num_first, n - num_first if whole == first + last else round(n * last / whole)


@pytest.mark.parametrize(("x", "y", "first_tail", "last_tail"), CASES)
def test_each_part_holds_its_rows(x, y, first_tail, last_tail, random_scores, by_rank):
  order = jax.jit(jax.vmap(segment(x, y, first_tail, last_tail).order))
  found = order(random_scores, jax.random.split(KEY, len(random_scores)))
  for score, rows in zip(random_scores, found.tolist(), strict=True):
    s, padding = by_rank(score, descending=False)
    n, (a, b) = len(s), sizes(len(s), x, y)
    first, between, last = rows[:a], rows[a : n - b], rows[n - b : n]
    low, high = {
      ("low", "high"): (first, last),
      ("high", "low"): (last, first),
      ("low", "low"): (first + last, []),
      ("high", "high"): ([], first + last),
    }[first_tail, last_tail]
    assert sorted(low) == sorted(s[: len(low)])
    assert sorted(high) == sorted(s[n - len(high) :])
    assert sorted(rows[:n]) == sorted(s)
    assert len(between) == n - a - b
    assert rows[n:] == padding


@pytest.mark.parametrize("last_tail", ["low", "high"])
def test_every_place_of_a_part_is_as_likely(last_tail):
  score = np.arange(8, dtype=np.float32)
  order = jax.jit(jax.vmap(segment(25, 25, "low", last_tail).order, in_axes=(None, 0)))
  rows = np.asarray(order(score, jax.random.split(KEY, 4000)))
  parts = {"high": [(0, 1), (2, 3, 4, 5), (6, 7)], "low": [(0, 1, 6, 7), (2, 3, 4, 5)]}
  held = {"high": [(0, 1), (2, 3, 4, 5), (6, 7)], "low": [(0, 1, 2, 3), (4, 5, 6, 7)]}
  for places, members in zip(parts[last_tail], held[last_tail], strict=True):
    counts = collections.Counter(
      (place, int(row)) for place in places for row in rows[:, place]
    )
    assert counts.keys() == {(place, row) for place in places for row in members}
    shares = np.array(list(counts.values())) / 4000
    np.testing.assert_allclose(shares, 1 / len(members), atol=0.04)


def test_rejects():
  with pytest.raises(
    ValueError, match=r"first_percent.*-1.*last_percent.*first_tail.*last_tail"
  ):
    segment(-1, 101, "middle", "")
  with pytest.raises(ValueError, match="last_percent must be from 0 to 100, got nan"):
    segment(last_percent=np.nan)
  with pytest.raises(ValueError, match="at most one field"):
    segment(observes=frozenset({"loss", "el2n"}))
