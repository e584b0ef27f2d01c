"""What every ordering promises: a permutation, padding last, the same however it is run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ordering
from jdc.policies.ordering import ranking

KEY = jax.random.key(3)
ORDERINGS = {
  "sorting": ordering.sorting(),
  "sorting descending": ordering.sorting(descending=True),
  "folding": ordering.folding(),
  "zigzag": ordering.zigzag(4, descending=True),
  "segment": ordering.segment(),
  "segment of one tail": ordering.segment(30, 25, "high", "high"),
  "segment of all": ordering.segment(70, 60, "high", "low"),
  "stair": ordering.stair(4, 0.1, 3),
  "saw": ordering.saw(3, 0.16, 2, descending=True),
  "window_shuffle": ordering.window_shuffle(6, ordering.sorting()),
  "window_shuffle of a segment": ordering.window_shuffle(5, ordering.segment(30, 40)),
}


@pytest.fixture(params=ORDERINGS.values(), ids=list(ORDERINGS))
def order(request):
  return request.param.order


def test_every_ordering_is_here():
  assert {name.split()[0] for name in ORDERINGS} == set(ordering.__all__)


def test_is_a_permutation_with_padding_last(order, random_scores):
  rows = jax.jit(jax.vmap(order, in_axes=(0, None)))(random_scores, KEY)
  assert rows.dtype == jnp.int32
  expected = np.broadcast_to(np.arange(random_scores.shape[1]), random_scores.shape)
  np.testing.assert_array_equal(np.sort(rows, axis=1), expected)
  for score, found in zip(random_scores, np.asarray(rows), strict=True):
    n = np.sum(score != np.inf)
    np.testing.assert_array_equal(found[n:], np.flatnonzero(score == np.inf))
    if n == 33:  # the same without padding, and without vmap
      real = np.flatnonzero(score != np.inf)
      alone = np.asarray(jax.jit(order)(score[real], KEY))
      np.testing.assert_array_equal(real[alone], found[:n])


def test_orders_a_single_row(order):
  assert jax.jit(order)(jnp.ones(1), KEY).tolist() == [0]


def test_scores_of_a_narrower_type_are_those_of_float32():
  assert ordering.sorting().order(jnp.bfloat16([2, 1, 3]), KEY).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
  ("numerator", "denominator"), [(1, 2), (3, 7), (1, 1), (0, 5), (9, 10)]
)
def test_shares_are_exact(numerator, denominator):
  counts = [*range(40), 2**24 + 1, 10**8 + 5, 2**31 - 1]
  found = jax.jit(jax.vmap(lambda n: ranking.rounded(n, numerator, denominator)))(
    jnp.array(counts, jnp.int32)
  )
  assert found.tolist() == [_rounded(n, numerator, denominator) for n in counts]


def test_shares_are_exact_up_to_the_largest_denominator():
  share = ranking.as_fraction(0.123456789)
  count = 2**31 - 1
  found = ranking.rounded(jnp.int32(count), share.numerator, share.denominator)
  assert int(found) == _rounded(count, share.numerator, share.denominator)
  assert share.denominator <= 2**28
  assert float(share) == pytest.approx(0.123456789, abs=1e-14)
  assert ranking.as_fraction(0.1).denominator == 10


def _rounded(count, numerator, denominator):
  whole, rest = divmod(count * numerator, denominator)
  return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1))
