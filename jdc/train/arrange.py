"""The ordering slot: puts the rows that a round has drawn from a domain in order."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdc.data import loader
from jdc.data.batch import inputs_and_targets
from jdc.data.draw import Arrange
from jdc.models.base import LanguageModel
from jdc.policies.base import Ordering
from jdc.stats import pool as pool_lib
from jdc.train.observe import example_stats
from jdc.train.passes import Seen, make_forward
from jdc.train.state import TrainState


def make_arrange(
  ordering: Ordering | None,
  model: LanguageModel,
  pool: loader.Pool,
  batch_size: int,
  sharding: jax.NamedSharding,
  given_scores: np.ndarray | None,
  current: Callable[[], TrainState],
  spend: Callable[[int], None],
) -> Arrange | None:
  """Returns the function that orders rows of the pool by the ordering's score, if there is one.

  Args:
    ordering: maps scores to a permutation.
    model: computes the scores where they are a statistic.
    pool: the rows.
    batch_size: rows per forward pass.
    sharding: of batches.
    given_scores: f32[N], for an ordering that observes nothing.
    current: returns the state whose parameters score the rows.
    spend: is told how many rows were scored.
  """
  if ordering is None:
    return None
  order = jax.jit(ordering.order)
  everywhere = jax.NamedSharding(sharding.mesh, jax.P())  # every process reads the scores
  score_chunk = jax.jit(_scorer(ordering, model), out_shardings=everywhere)

  def arrange(ids: np.ndarray, stream: tuple[int, ...]) -> np.ndarray:
    if given_scores is not None:
      scores = given_scores[ids]
    else:
      state = current()
      swept = pool_lib.sweep(
        score_chunk,
        state.model_params,
        state.step,
        pool,
        ids.astype(np.int32),
        batch_size,
        sharding,
        name=None,
      )
      scores = swept.scores["ordering"]
      spend(len(ids))
    # Sizes are powers of two, so that few of them are compiled; padding sorts last.
    size = 1 << max(len(ids) - 1, 1).bit_length()
    padded = np.full(size, np.inf, np.float32)
    padded[: len(ids)] = np.where(scores == np.inf, np.nan, scores)  # no row is padding
    seed = int(np.random.SeedSequence(stream).generate_state(1)[0])
    positions = np.asarray(order(jnp.asarray(padded), jax.random.key(seed)))
    positions = positions[positions < len(ids)]
    if not np.array_equal(np.sort(positions), np.arange(len(ids))):
      raise ValueError(f"the ordering returned no permutation of {len(ids)} rows")
    return positions

  return arrange


def _scorer(ordering: Ordering, model: LanguageModel) -> Callable:
  forward = make_forward(model)

  def score_chunk(params: Any, step: jax.Array, batch: loader.Batch) -> dict[str, jax.Array]:
    inputs = inputs_and_targets(batch.tokens, batch.segments)
    token_loss = forward(params, inputs)
    seen = Seen(token_loss, {})
    stats = example_stats(batch, inputs, seen, ordering.observes, {"step": step})
    (name,) = ordering.observes
    return {"ordering": getattr(stats, name)}

  return score_chunk
