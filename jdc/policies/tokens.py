"""Token statistics by example, in plain rows and in packed ones.

Statistics of tokens are f32[rows, T]. Without `token_segment` a row is one example. With it, a
row holds S = B / rows examples, B being the length of `num_tokens`: those of row r have the
places r S to r S + S - 1, and `token_segment` holds the place of each token's example.
"""

import jax
import jax.numpy as jnp

from jdc.policies.base import ExampleStats


def target_tokens(stats: ExampleStats) -> jax.Array:
  """Returns where tokens count in the loss, bool[rows, T]; reads `token_mask`."""
  return stats.token_mask > 0


def example_sums(values: jax.Array, stats: ExampleStats) -> jax.Array:
  """Returns the sum over the target tokens of each example, 0 without any.

  Args:
    values: [rows, T], one number for each token; where no target token is, it may be anything.
    stats: holds `token_mask`, `num_tokens` and, where rows are packed, `token_segment`.

  Returns:
    f32[B].

  Raises:
    ValueError: if the examples are not as many in each row.

  Example:
    >>> stats = ExampleStats(
    ...   token_mask=jnp.array([[1, 1, 1, 0]]),
    ...   token_segment=jnp.array([[0, 0, 1, -1]]),
    ...   num_tokens=jnp.array([2, 1, 0]),
    ... )
    >>> example_sums(jnp.array([[1.0, 2.0, 5.0, jnp.nan]]), stats).tolist()
    [3.0, 5.0, 0.0]
  """
  values_RxT = jnp.where(target_tokens(stats), values, 0).astype(jnp.float32)
  num_rows, num_segments = values_RxT.shape[0], _examples_per_row(stats)
  if stats.token_segment is None:
    return jnp.sum(values_RxT, axis=1)
  place_RxS = jnp.arange(num_rows * num_segments).reshape(num_rows, num_segments)
  # A masked reduction and no scatter: the same order of summation on every run and device.
  is_in_RxTxS = stats.token_segment[:, :, None] == place_RxS[:, None, :]
  sums_RxS = jnp.sum(jnp.where(is_in_RxTxS, values_RxT[:, :, None], 0.0), axis=1)
  return sums_RxS.reshape(-1)


def example_means(values: jax.Array, stats: ExampleStats) -> jax.Array:
  """Returns the mean over the target tokens of each example, 0 without any.

  Not finite where the value of one of its target tokens is not.

  Args:
    values: [rows, T], one number for each token.
    stats: as for `example_sums`.

  Returns:
    f32[B], in the unit of `values`.

  Example:
    >>> stats = ExampleStats(token_mask=jnp.array([[1, 1, 0]]), num_tokens=jnp.array([2]))
    >>> example_means(jnp.array([[1.0, 2.0, 9.0]]), stats).tolist()
    [1.5]
  """
  counts_B = example_sums(jnp.ones(values.shape, jnp.float32), stats)
  counts_RxT = spread(jnp.maximum(counts_B, 1.0), stats, padding=1.0)
  # Shares first: a sum of large values would overflow.
  return example_sums(values.astype(jnp.float32) / counts_RxT, stats)


def spread(values: jax.Array, stats: ExampleStats, padding: float = 0.0) -> jax.Array:
  """Returns, for each token, the number of its example.

  Args:
    values: [B], one number for each example.
    stats: as for `example_sums`.
    padding: the number of positions that belong to no example.

  Returns:
    [rows, T], in the type of `values`.

  Example:
    >>> stats = ExampleStats(
    ...   token_mask=jnp.array([[1, 0, 1, 0]]),
    ...   token_segment=jnp.array([[0, 0, 1, -1]]),
    ...   num_tokens=jnp.array([1, 1]),
    ... )
    >>> spread(jnp.array([3.0, 4.0]), stats).tolist()
    [[3.0, 3.0, 4.0, 0.0]]
  """
  _examples_per_row(stats)
  if stats.token_segment is None:
    return jnp.broadcast_to(values[:, None], stats.token_mask.shape)
  place_RxT = stats.token_segment
  return jnp.where(place_RxT >= 0, values[jnp.maximum(place_RxT, 0)], padding)


def _examples_per_row(stats: ExampleStats) -> int:
  (num_examples,), num_rows = stats.num_tokens.shape, stats.token_mask.shape[0]
  if stats.token_segment is None and num_examples != num_rows:
    raise ValueError(
      f"without token_segment, num_tokens must have one entry for each of the {num_rows} rows "
      f"of token_mask, got {num_examples}"
    )
  if num_examples % num_rows:
    raise ValueError(
      f"num_tokens must have a multiple of the {num_rows} rows of token_mask, got "
      f"{num_examples}"
    )
  return num_examples // num_rows
