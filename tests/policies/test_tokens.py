"""Token statistics by example: against loops over tokens, in plain and in packed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, tokens

ROWS, T, S = 3, 10, 4


def packed(seed):
  """Rows of up to S examples of random lengths with gaps in the mask, and what each is."""
  rng = np.random.default_rng(seed)
  segment = np.full((ROWS, T), -1)
  for row in range(ROWS):
    ends = np.sort(rng.integers(0, T + 1, rng.integers(0, S + 1)))
    for place, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=False)):
      segment[row, start:end] = row * S + place
  mask = (rng.random((ROWS, T)) < 0.7) & (segment >= 0)
  counts = np.array([np.sum(mask & (segment == i)) for i in range(ROWS * S)])
  stats = ExampleStats(
    token_mask=jnp.float32(mask),
    token_segment=jnp.int32(segment),
    num_tokens=jnp.int32(counts),
  )
  values = np.where(mask, rng.normal(size=(ROWS, T)), np.nan)
  return values, mask, segment, stats


def test_packed_rows_agree_with_a_loop():
  sums, means = jax.jit(tokens.example_sums), jax.jit(tokens.example_means)
  for seed in range(20):
    values, mask, segment, stats = packed(seed)
    of = [values[mask & (segment == i)] for i in range(ROWS * S)]
    expected = [x.sum() for x in of]
    np.testing.assert_allclose(sums(jnp.float32(values), stats), expected, rtol=1e-5, atol=1e-6)
    expected = [x.mean() if x.size else 0 for x in of]
    np.testing.assert_allclose(
      means(jnp.float32(values), stats), expected, rtol=1e-5, atol=1e-6
    )


def test_plain_rows_agree_with_rows_of_one_segment():
  rng = np.random.default_rng(0)
  mask = rng.random((ROWS, T)) < 0.6
  mask[1] = False
  values = jnp.float32(rng.normal(size=(ROWS, T)))
  plain = ExampleStats(token_mask=jnp.float32(mask), num_tokens=jnp.int32(mask.sum(1)))
  place = jnp.broadcast_to(jnp.arange(ROWS)[:, None], (ROWS, T))
  single = ExampleStats(**{**vars(plain), "token_segment": place})
  expected = [values[i][mask[i]].mean() if mask[i].any() else 0 for i in range(ROWS)]
  for stats in (plain, single):
    np.testing.assert_allclose(tokens.example_means(values, stats), expected, atol=1e-6)
    np.testing.assert_array_equal(
      tokens.spread(jnp.float32([5, 6, 7]), stats), np.full((ROWS, T), [[5], [6], [7]])
    )


def test_spread_is_the_number_of_each_tokens_example():
  for seed in range(5):
    _, _, segment, stats = packed(seed)
    of_example = np.arange(ROWS * S, dtype=np.float32) + 1
    expected = np.where(segment >= 0, segment + 1, 0)
    np.testing.assert_array_equal(tokens.spread(jnp.asarray(of_example), stats), expected)


def test_what_is_not_finite_stays_in_its_example():
  stats = ExampleStats(
    token_mask=jnp.float32([[1, 1, 1, 0]]),
    token_segment=jnp.int32([[0, 0, 1, 1]]),
    num_tokens=jnp.int32([2, 1]),
  )
  means = tokens.example_means(jnp.float32([[1, np.inf, 2, np.nan]]), stats)
  np.testing.assert_array_equal(means, [np.inf, 2])


def test_means_of_large_values_do_not_overflow():
  stats = ExampleStats(token_mask=jnp.ones((1, 4)), num_tokens=jnp.int32([4]))
  means = tokens.example_means(jnp.full((1, 4), 3e38, jnp.float32), stats)
  np.testing.assert_allclose(means, [3e38], rtol=1e-6)


def test_computes_in_float32():
  stats = ExampleStats(token_mask=jnp.ones((1, 3), jnp.bfloat16), num_tokens=jnp.int32([3]))
  values = jnp.asarray([[256, 1, 1]], jnp.bfloat16)
  assert tokens.example_sums(values, stats).dtype == jnp.float32
  np.testing.assert_array_equal(tokens.example_sums(values, stats), [258])


@pytest.mark.parametrize(
  ("examples", "segment", "message"),
  [
    (5, jnp.zeros((2, 3), jnp.int32), "a multiple of the 2 rows of token_mask, got 5"),
    (4, None, "without token_segment.*one entry for each of the 2 rows of token_mask, got 4"),
  ],
)
def test_refuses_rows_that_do_not_fit_the_examples(examples, segment, message):
  stats = ExampleStats(
    token_mask=jnp.ones((2, 3)),
    token_segment=segment,
    num_tokens=jnp.ones(examples, jnp.int32),
  )
  with pytest.raises(ValueError, match=message):
    tokens.example_sums(jnp.ones((2, 3)), stats)
