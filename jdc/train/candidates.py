"""A step-scope selection: which of a batch of candidates are trained."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jdc.data.batch import inputs_and_targets
from jdc.data.loader import Batch
from jdc.policies import sampling
from jdc.policies.base import Decision
from jdc.train.gradients import splitter
from jdc.train.passes import Microbatch, Passes, Seen
from jdc.train.state import Fixed, Params, full_params

CandidateDraw = Literal["top_k", "gumbel_top_k", "multinomial"]


def select(
  passes: Passes,
  update: Callable,
  accumulation_steps: int,
  num_kept: int,
  draw: CandidateDraw,
  key: jax.Array,
  params: Params,
  fixed: Fixed,
  opt_state: Any,
  batch: Batch,
  context: dict[str, Any],
  states: dict[str, Any],
) -> tuple[Batch, dict[str, Decision], dict[str, Any]]:
  """Keeps `num_kept` of the candidates; mixture and selection observe all of them.

  A row that may not be drawn, but is needed to fill the batch, counts no token.

  Returns:
    The kept rows, the decisions, and the new states of the policies.
  """
  inputs = inputs_and_targets(batch.tokens, batch.segments)
  num_candidates = batch.tokens.shape[0]
  # Scored in microbatches of the trained size, which is known to fit.
  split, join = splitter(num_candidates // num_kept * accumulation_steps)

  shared = passes.share(params, fixed, opt_state, key)

  def observed(part: Microbatch) -> Seen:
    seen, _ = passes.look(full_params(params.trained, params.frozen), part, shared)
    return seen._replace(**passes.besides(params, fixed, part, shared))

  seen = join(jax.lax.map(observed, split(Microbatch(batch, inputs))))
  context = context | passes.together(params, fixed, inputs, key)
  decisions, states = update(
    batch, inputs, seen, context, states, {"mixture", "selection"}, observe=False
  )
  logits_C = decisions["selection"].logits
  kept_B = _draw(key, logits_C, num_kept, draw)
  usable_B = (kept_B >= 0) & jnp.isfinite(logits_C[kept_B])
  kept = jax.tree.map(lambda x: x[kept_B], batch)
  weight_B, probability_B = kept.weight, kept.sampling_probability
  for decision in decisions.values():
    if decision.weights is not None:
      weight_B = weight_B * decision.weights[kept_B]
  if draw != "top_k":
    probability_B *= jax.nn.softmax(logits_C)[kept_B] * num_candidates
  kept = dataclasses.replace(
    kept,
    segments=jnp.where(usable_B[:, None], kept.segments, 0),
    example_id=jnp.where(usable_B, kept.example_id, -1),
    domain=jnp.where(usable_B, kept.domain, 0),
    weight=weight_B,
    sampling_probability=jnp.where(usable_B, probability_B, 1.0),  # finite, as for padding
  )
  return kept, decisions, states


def _draw(key: jax.Array, logits_C: jax.Array, num_kept: int, draw: CandidateDraw) -> jax.Array:
  if draw == "top_k":
    return jax.lax.top_k(logits_C, num_kept)[1]
  if draw == "gumbel_top_k":
    return sampling.gumbel_top_k(key, logits_C, num_kept)[0]
  return sampling.multinomial(jax.random.uniform(key, (num_kept,)), logits_C)
