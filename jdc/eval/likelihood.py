"""Log-likelihoods of continuations of prompts, in batches of few shapes."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.models.base import LanguageModel, Params
from jdc.models.batching import (
  batch_problems,
  batches_by_length,
  listed,
  on_mesh,
  padded,
  place_rows,
)


class Request(NamedTuple):
  """A prompt and what may follow it, as ids."""

  context: tuple[int, ...]  # at least one
  continuation: tuple[int, ...]  # at least one


class Likelihood(NamedTuple):
  """How likely a continuation is."""

  log_probability: float  # nats, summed over the continuation's tokens
  is_greedy: bool | None  # whether each token is the likeliest one; `None`: not asked for


def log_likelihoods(
  model: LanguageModel,
  params: Params,
  requests: Sequence[Request],
  *,
  batch_size: int = 8,
  mesh: jax.sharding.Mesh | None = None,
  buckets: Sequence[int] | None = None,
  context_length: int = 0,
  greedy: bool = False,
) -> list[Likelihood]:
  r"""Computes log p(continuation | context) = sum_t log p(y_t | context, y_1 .. y_{t-1}).

  Contexts whose continuations all are single tokens, such as the letters of options, are read
  once for all of them and need the logits of one position only; other requests take a row each.
  Log-probabilities of single tokens are float32, their sums float64.

  Args:
    model: with `extend` and `empty_cache` for the first kind; without, all are of the second.
    params: its parameters, on the mesh where there is one.
    requests: what to score.
    batch_size: rows in one call, over all devices.
    mesh: splits the rows over its axes `data`, `fsdp` and `expert`; every process makes the
      same call.
    buckets: lengths to which rows are padded; `None` for the powers of two from 32 up.
    context_length: the most positions of a request; 0 for any number.
    greedy: also find whether the continuation is the greedy one; for continuations of several
      tokens this needs the logits of all positions, f32[B, T, V].

  Returns:
    The likelihoods, in the order of the requests.

  Raises:
    ValueError: naming every argument and every request that is not accepted, before anything is
      compiled.
  """
  problems = [
    *_problems(model, requests, context_length),
    *batch_problems(batch_size, mesh, buckets, max(map(_length, requests), default=0)),
  ]
  if problems:
    raise ValueError("; ".join(problems))
  of_context: dict[tuple[int, ...], list[int]] = {}
  for i, request in enumerate(requests):
    of_context.setdefault(tuple(request.context), []).append(i)
  single = [group for group in of_context.values() if _all_single(requests, group)]
  if model.extend is None or model.empty_cache is None:
    single = []
  found: dict[int, Likelihood] = {}
  found |= _score_tokens(model, params, requests, single, batch_size, mesh, buckets)
  rest = [i for i in range(len(requests)) if i not in found]
  found |= _score_rows(model, params, requests, rest, batch_size, mesh, buckets, greedy)
  plain = [found[i] for i in range(len(requests))]
  return plain if greedy else [likelihood._replace(is_greedy=None) for likelihood in plain]


def _problems(
  model: LanguageModel, requests: Sequence[Request], context_length: int
) -> Iterator[str]:
  if bad := [i for i, r in enumerate(requests) if not len(r.context)]:
    yield f"contexts must have at least one token; empty in requests {listed(bad)}"
  if bad := [i for i, r in enumerate(requests) if not len(r.continuation)]:
    yield f"continuations must have at least one token; empty in requests {listed(bad)}"

  def outside(request: Request) -> bool:
    ids = (*request.context, *request.continuation)
    return bool(ids) and not 0 <= min(ids) <= max(ids) < model.vocab_size

  if bad := [i for i, r in enumerate(requests) if outside(r)]:
    yield f"ids must be in [0, {model.vocab_size}); they are not in requests {listed(bad)}"
  if context_length < 0:
    yield f"context_length must be 0 (any) or positive, got {context_length}"
  names = [f"request {i}" for i in range(len(requests))]
  if problem := too_long(requests, names, context_length):
    yield problem


def too_long(requests: Sequence[Request], names: Sequence[str], context_length: int) -> str:
  """Says which requests do not fit a context, "" where all do; 0 positions: any number."""
  long = {
    name: _length(request)
    for name, request in zip(names, requests, strict=True)
    if 0 < context_length < _length(request)
  }
  if not long:
    return ""
  found = listed([f"{name} ({length} positions)" for name, length in long.items()])
  return f"the context has {context_length} positions; too long: {found}"


def _length(request: Request) -> int:
  """Positions of a row: the last token is a target only."""
  return max(1, len(request.context) + len(request.continuation) - 1)


def _all_single(requests: Sequence[Request], group: list[int]) -> bool:
  return all(len(requests[i].continuation) == 1 for i in group)


def _score_tokens(
  model: LanguageModel,
  params: Params,
  requests: Sequence[Request],
  groups: list[list[int]],
  batch_size: int,
  mesh: jax.sharding.Mesh | None,
  buckets: Sequence[int] | None,
) -> dict[int, Likelihood]:
  """Scores groups of single tokens that follow the same context."""
  if not groups:
    return {}
  next_token = _next_token(model, mesh)
  widest = max(map(len, groups))
  contexts = [requests[group[0]].context for group in groups]
  found = {}
  for rows, bucket in batches_by_length(list(map(len, contexts)), batch_size, buckets):
    tokens, valid = padded([contexts[row] for row in rows], bucket, batch_size, left=True)
    asked_BxO = np.zeros((batch_size, widest), np.int32)
    for b, row in enumerate(rows):
      for o, i in enumerate(groups[row]):
        asked_BxO[b, o] = requests[i].continuation[0]
    arrays = [place_rows(array, mesh) for array in (tokens, valid, asked_BxO)]
    log_BxO, best_B = jax.device_get(next_token(params, *arrays))
    for b, row in enumerate(rows):
      for o, i in enumerate(groups[row]):
        found[i] = Likelihood(float(log_BxO[b, o]), bool(best_B[b] == asked_BxO[b, o]))
  return found


@functools.lru_cache(maxsize=8)
def _next_token(
  model: LanguageModel, mesh: jax.sharding.Mesh | None
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """A jitted function: log-probabilities of the tokens asked for, and the likeliest token."""
  assert model.empty_cache is not None  # the caller has looked
  assert model.extend is not None
  empty_cache, extend = model.empty_cache, model.extend

  def next_token(
    params: Params, tokens: jax.Array, valid: jax.Array, asked_BxO: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    positions = jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)
    logits_BxV, _ = extend(params, tokens, positions, valid, empty_cache(*tokens.shape))
    asked_logit_BxO = jnp.take_along_axis(logits_BxV, asked_BxO, axis=-1)
    total_Bx1 = jax.nn.logsumexp(logits_BxV, axis=-1, keepdims=True)
    return asked_logit_BxO - total_Bx1, jnp.argmax(logits_BxV, axis=-1)

  return on_mesh(mesh, jax.jit(next_token, out_shardings=_replicated(mesh)))


def _score_rows(
  model: LanguageModel,
  params: Params,
  requests: Sequence[Request],
  chosen: list[int],
  batch_size: int,
  mesh: jax.sharding.Mesh | None,
  buckets: Sequence[int] | None,
  greedy: bool,
) -> dict[int, Likelihood]:
  """Scores requests in a row each."""
  row_losses = _row_losses(model, mesh, greedy)
  found = {}
  lengths = [_length(requests[i]) for i in chosen]
  for rows, bucket in batches_by_length(lengths, batch_size, buckets):
    ids = [(*requests[chosen[r]].context, *requests[chosen[r]].continuation) for r in rows]
    tokens, valid = padded([row[:-1] for row in ids], bucket, batch_size, left=False)
    targets, _ = padded([row[1:] for row in ids], bucket, batch_size, left=False)
    arrays = [place_rows(array, mesh) for array in (tokens, targets, valid.astype(np.int32))]
    losses_BxT, hits_BxT = jax.device_get(row_losses(params, *arrays))
    for b, row in enumerate(rows):
      request = requests[chosen[row]]
      span = slice(len(request.context) - 1, len(ids[b]) - 1)
      log_probability = -float(np.sum(losses_BxT[b, span], dtype=np.float64))
      found[chosen[row]] = Likelihood(log_probability, bool(hits_BxT[b, span].all()))
  return found


@functools.lru_cache(maxsize=8)
def _row_losses(
  model: LanguageModel, mesh: jax.sharding.Mesh | None, greedy: bool
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """A jitted function: losses of the targets, and whether each is the likeliest token."""

  def row_losses(
    params: Params, tokens: jax.Array, targets: jax.Array, segments: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    if not greedy:
      losses_BxT = model.token_losses(params, tokens, targets, positions, segments)
      return losses_BxT, jnp.zeros(tokens.shape, bool)
    logits_BxTxV = model.logits(params, tokens, positions, segments)
    chosen_BxT = jnp.take_along_axis(logits_BxTxV, targets[..., None], axis=-1)[..., 0]
    losses_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1) - chosen_BxT
    return losses_BxT, jnp.argmax(logits_BxTxV, axis=-1) == targets

  return on_mesh(mesh, jax.jit(row_losses, out_shardings=_replicated(mesh)))


def _replicated(mesh: jax.sharding.Mesh | None) -> jax.NamedSharding | None:
  return None if mesh is None else jax.NamedSharding(mesh, jax.P())
