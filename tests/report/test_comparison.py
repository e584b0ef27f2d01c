"""The statistics of a comparison: intervals, order, runs that do not belong together."""

import math
from typing import Any

import numpy as np
import pytest

from jdc.report import comparison


def result(score: float, tokens: int = 100) -> dict[str, Any]:
  return {
    "bits_per_byte": score,
    "domains": {"a": score - 1, "b": score + 1},
    "train_tokens": tokens,
    "seconds": 2.0,
    "extra_forward": 0.5,
    "extra_backward": 0.25,
  }


@pytest.mark.parametrize(
  ("degrees", "quantile"), [(1, 12.706), (4, 2.776), (30, 2.042), (31, 2.0395), (60, 2.0003)]
)
def test_intervals_are_those_of_students_t(degrees, quantile):
  rng = np.random.default_rng(degrees)
  value, control = rng.normal(size=(2, degrees + 1))
  found = comparison.paired_interval(value, control)
  difference = value - control
  half = quantile * difference.std(ddof=1) / math.sqrt(len(difference))
  expected = (difference.mean(), difference.mean() - half, difference.mean() + half)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * half)


def test_pairs_are_of_the_same_seed():
  results = {
    "policy": {0: result(1.0), 2: result(3.0)},
    "control": {0: result(1.5), 1: result(9.0), 2: result(4.0)},
  }
  first, control = comparison.rows(results, ["control"])
  assert (first.name, first.seeds, control.name) == ("policy", (0, 2), "control")
  expected = comparison.paired_interval([1.0, 3.0], [1.5, 4.0])
  assert first.differences == {"control": expected}
  assert control.differences == {}
  assert (first.worst_domain, first.worst_bits_per_byte) == ("b", 3.0)


def test_a_score_that_is_not_finite_comes_last():
  results = {
    name: {0: result(score)}
    for name, score in (("a", 2.0), ("b", math.nan), ("c", 1.0), ("d", math.inf), ("e", 3.0))
  }
  found = comparison.rows(results, ["a"])
  assert [row.name for row in found[:3]] == ["c", "a", "e"]
  assert "nan" in comparison.markdown(found, ["a"])


def test_runs_on_other_tokens_are_refused():
  results = {"a": {0: result(1.0)}, "b": {0: result(1.0, tokens=99)}}
  with pytest.raises(ValueError, match=r"different numbers of tokens.*b, seed 0': 99"):
    comparison.rows(results, ["a"])
