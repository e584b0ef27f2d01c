"""Projected policy gradients of target prompts: gradients of sampled responses, summed up."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.data.batch import RowInputs, inputs_and_targets
from jdc.models.base import LanguageModel
from jdc.models.batching import listed
from jdc.stats.gradients import Features, Params
from jdc.stats.losses import full_params, make_example_losses
from jdc.stats.target_rows import TargetRows


class Prompts(NamedTuple):
  """The prompts of a target set and their right answers, as ids."""

  prompts: list[list[int]]
  references: list[list[int]]


class ResponseRows(NamedTuple):
  """Prompts with a response each, as rows; P of them."""

  tokens: np.ndarray  # i32[P, T + 1]
  segments: np.ndarray  # i32[P, T + 1], as `batch.inputs_and_targets` reads them
  prompt: np.ndarray  # i32[P], the place of each one's prompt


def prompts_of(rows: TargetRows) -> Prompts:
  """Returns what stands before the last response of each row, and that response.

  Raises:
    ValueError: naming the rows that begin with what is to be predicted, as documents do.

  Example:
    >>> tokens, segments = np.array([[4, 5, 6, 7, 0]]), np.array([[-1, -1, 1, 1, 0]])
    >>> prompts_of(TargetRows(tokens, segments, np.zeros(1), np.zeros(1)))
    Prompts(prompts=[[4, 5]], references=[[6, 7]])
  """
  prompts, references, bad = [], [], []
  for i, (tokens, segments) in enumerate(
    zip(np.asarray(rows.tokens), np.asarray(rows.segments), strict=True)
  ):
    predicted = np.flatnonzero(segments > 0)
    end = int(predicted[-1]) + 1 if len(predicted) else 0
    read = np.flatnonzero(segments[:end] <= 0)
    start = int(read[-1]) + 1 if len(read) else 0
    if not start:
      bad.append(i)
    prompts.append(tokens[:start].tolist())
    references.append(tokens[start:end].tolist())
  if bad:
    raise ValueError(
      "responses are drawn after a prompt, which needs instruction data; without a prompt are "
      f"the target rows {listed(bad)}"
    )
  return Prompts(prompts, references)


def response_rows(
  prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]], length: int
) -> ResponseRows:
  """Returns rows of `length` ids, all responses to the first prompt first.

  Raises:
    ValueError: naming the prompts that do not fit a row with their responses.
  """
  pairs = [(j, y) for j, sampled in enumerate(responses) for y in sampled]
  if bad := sorted({j for j, y in pairs if len(prompts[j]) + len(y) > length}):
    raise ValueError(
      f"prompts and responses must fit rows of {length} tokens; too long are {listed(bad)}"
    )
  tokens = np.zeros((len(pairs), length), np.int32)
  segments = np.zeros((len(pairs), length), np.int32)
  for row, (j, y) in enumerate(pairs):
    start, end = len(prompts[j]), len(prompts[j]) + len(y)
    tokens[row, :start], tokens[row, start:end] = prompts[j], y
    segments[row, :start], segments[row, start:end] = -1, 1
  return ResponseRows(tokens, segments, np.array([j for j, _ in pairs], np.int32))


class Passed(NamedTuple):
  """Policy gradients, and what they took."""

  gradient_MxR: jax.Array  # f32
  num_rows: int  # whose gradients were computed


def make_policy_gradient(
  features: Features, num_prompts: int, batch_size: int, sharding: jax.NamedSharding | None
) -> Callable[[Params, ResponseRows, np.ndarray], Passed]:
  r"""Returns `(params, rows, coefficient f32[P]) -> Passed`, by the projection of `features`.

    R G_j = sum_{rows p of prompt j} a_p n_p R grad l_p,

  l_p the mean loss of the n_p tokens of a response, so that n_p l_p is the sum of NICE. Rows
  with a coefficient of 0 are not passed through the model.

  Args:
    features: of "gradient".
    num_prompts: M.
    batch_size: rows in one call, over all devices.
    sharding: of batches; `None` for one device.
  """

  def add(
    total_MxR: jax.Array,
    params: Params,
    rows: RowInputs,
    prompt_B: jax.Array,
    coefficient_B: jax.Array,
  ) -> jax.Array:
    gradient_BxR = features.compute(params, None, rows)["gradient"]
    # Not where both are large: an infinite coefficient of an empty row is 0 times infinity.
    scale_B = coefficient_B * jnp.sum(rows.mask, axis=1, dtype=jnp.float32)
    # A product, whose sums have one order on every run, where a scattered sum need not.
    of_prompt_MxB = jnp.arange(num_prompts)[:, None] == prompt_B
    finite_B = jnp.isfinite(scale_B) & jnp.all(jnp.isfinite(gradient_BxR), axis=1)
    part_MxR = jnp.matmul(
      jnp.where(of_prompt_MxB & finite_B, scale_B, 0.0),
      jnp.where(finite_B[:, None], gradient_BxR, 0.0),
      precision=jax.lax.Precision.HIGHEST,
    )
    # A response that is not finite spoils its own prompt, and no other.
    spoilt_M = jnp.any(of_prompt_MxB & ~finite_B, axis=1)
    return total_MxR + jnp.where(spoilt_M[:, None], jnp.nan, part_MxR)

  everywhere = None if sharding is None else jax.NamedSharding(sharding.mesh, jax.P())
  added = jax.jit(add) if everywhere is None else jax.jit(add, out_shardings=everywhere)

  def policy_gradient(params: Params, rows: ResponseRows, coefficient: np.ndarray) -> Passed:
    used = np.flatnonzero(np.asarray(coefficient) != 0)
    total = _placed(np.zeros((num_prompts, features.size), np.float32), everywhere)
    for inputs, ids, count in _batches(rows, used, batch_size, sharding):
      scale = np.where(np.arange(batch_size) < count, coefficient[ids], 0).astype(np.float32)
      given = (_placed(x, everywhere) for x in (rows.prompt[ids], scale))
      total = added(total, params, inputs, *given)
    return Passed(total, len(used))

  return policy_gradient


def make_log_probabilities(
  model: LanguageModel, batch_size: int, sharding: jax.NamedSharding | None
) -> Callable[[Params, ResponseRows], np.ndarray]:
  """Returns `(params, rows) -> f32[P]`, log p of each response after its prompt, in nats."""
  losses = make_example_losses(model)

  def log_probability(params: Params, rows: RowInputs) -> jax.Array:
    return -losses(full_params(params), rows) * jnp.sum(rows.mask, axis=1, dtype=jnp.float32)

  everywhere = None if sharding is None else jax.NamedSharding(sharding.mesh, jax.P())
  jitted = jax.jit(log_probability, out_shardings=everywhere)

  def log_probabilities(params: Params, rows: ResponseRows) -> np.ndarray:
    found = np.zeros(len(rows.prompt), np.float32)
    for inputs, ids, count in _batches(rows, np.arange(len(found)), batch_size, sharding):
      found[ids[:count]] = np.asarray(jitted(params, inputs))[:count]
    return found

  return log_probabilities


def _batches(
  rows: ResponseRows, chosen: np.ndarray, batch_size: int, sharding: jax.NamedSharding | None
) -> Iterator[tuple[RowInputs, np.ndarray, int]]:
  """Yields batches of the chosen rows, their places, and how many there are; then padding."""
  for start in range(0, len(chosen), batch_size):
    part = chosen[start : start + batch_size]
    ids = np.pad(part, (0, batch_size - len(part)))
    segments = np.where(np.arange(batch_size)[:, None] < len(part), rows.segments[ids], 0)
    inputs = inputs_and_targets(rows.tokens[ids], segments.astype(np.int32))
    yield RowInputs(*(_placed(x, sharding) for x in inputs)), ids, len(part)


def _placed(x: np.ndarray, sharding: jax.NamedSharding | None) -> jax.Array:
  if sharding is None:
    return jnp.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
