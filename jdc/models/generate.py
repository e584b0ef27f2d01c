"""Generation: batches of prompts in buckets of lengths, one compiled loop with a cache."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.models.base import BATCH_AXES, Cache, LanguageModel, Params
from jdc.models.batching import (
  batch_problems,
  batches_by_length,
  listed,
  on_mesh,
  padded,
  place_rows,
)
from jdc.models.partition import constrain
from jdc.models.sampling import Sampling, choose, sampling_problems

CHECK_EVERY = 32  # tokens between two looks of `stop` at what has been generated


class Completion(NamedTuple):
  """What a model wrote after a prompt."""

  ids: list[int]  # where a stop id ended it, this is the last
  log_probabilities: list[float]  # nats, of each id under the model itself
  stopped: Literal["stop", "length"]


def generate(
  model: LanguageModel,
  params: Params,
  prompts: Sequence[Sequence[int]],
  *,
  max_new_tokens: int,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  stop_ids: Sequence[int] = (),
  stop: Callable[[list[int]], bool] | None = None,
  seed: int = 0,
  batch_size: int = 8,
  mesh: jax.sharding.Mesh | None = None,
  buckets: Sequence[int] | None = None,
  context_length: int = 0,
  draws: Sequence[int] | None = None,
) -> list[Completion]:
  r"""Continues prompts, greedily or with random draws.

  With z the logits after the prompt and the tokens so far, the next token is argmax z where
  the temperature t is 0, else a draw from softmax(z / t) over the tokens that are among the
  `top_k` likeliest and then in the smallest set of likeliest tokens that holds `top_p` of what
  remains. The log-probability that is returned is log softmax(z), whatever the draw was from.

  Prompts of similar length form a batch, padded on the left to a common bucket; all the
  batches of a bucket share one compilation. A draw is keyed by (seed, index of the prompt,
  index of the token), so that results do not depend on batches, buckets or devices beyond the
  rounding of the model; a number of its own in the place of a prompt's index makes them
  independent of the other prompts, too.

  Args:
    model: offers `empty_cache` and `extend`.
    params: its parameters, on the mesh where there is one.
    prompts: ids, at least one each.
    max_new_tokens: the most tokens of a completion.
    temperature: t >= 0.
    top_k: 0 keeps all. Tokens as likely as the last one kept are kept too.
    top_p: in (0, 1]; 1 keeps all. Ties as for `top_k`.
    stop_ids: tokens that end a completion.
    stop: says whether the tokens so far are enough, such as for a stop string; once true it
      has to remain so. The shortest completion for which it is true is returned. It is called
      on the host, after every 32 tokens.
    seed: of the draws.
    batch_size: prompts in one call, over all devices; the last batch is padded.
    mesh: splits the prompts over its axes `data`, `fsdp` and `expert`. Every process makes the
      same call and gets all completions.
    buckets: lengths in tokens to which prompts are padded; `None` for the powers of two from
      32 up.
    context_length: the most positions of a prompt and its completion; 0 for any number.
    draws: a number in [0, 2^31) for each prompt, which keys its draws; `None` for its index.

  Returns:
    The completions, in the order of the prompts.

  Raises:
    ValueError: naming every argument and every prompt that is not accepted, before anything is
      compiled.

  References:
    Fan, Lewis and Dauphin, "Hierarchical Neural Story Generation", 2018, arXiv:1805.04833, for
      top-k; Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019,
      arXiv:1904.09751, for top-p.
  """
  sampling = Sampling(temperature, top_k, top_p)
  problems = [
    *sampling_problems(sampling),
    *_problems(model, prompts, max_new_tokens, stop_ids, seed, context_length),
    *_draw_problems(draws, len(prompts)),
    *batch_problems(batch_size, mesh, buckets, max(map(len, prompts), default=0)),
  ]
  if problems:
    raise ValueError("; ".join(problems))
  if max_new_tokens == 0:
    return [Completion([], [], "length") for _ in prompts]
  programs = _programs(model, sampling, max_new_tokens, tuple(sorted({*stop_ids})), mesh)
  completions: dict[int, Completion] = {}
  for indices, bucket in batches_by_length(list(map(len, prompts)), batch_size, buckets):
    tokens, valid = padded([prompts[i] for i in indices], bucket, batch_size, left=True)
    keyed = indices if draws is None else [draws[i] for i in indices]
    index_B = np.pad(np.array(keyed, np.int32), (0, batch_size - len(indices)))
    rows = [place_rows(array, mesh) for array in (tokens, valid, index_B)]
    done = _run(programs, params, rows, np.uint32(seed), max_new_tokens, stop)
    completions |= dict(zip(indices, done[: len(indices)], strict=True))
  return [completions[i] for i in range(len(prompts))]


def _problems(
  model: LanguageModel,
  prompts: Sequence[Sequence[int]],
  max_new_tokens: int,
  stop_ids: Sequence[int],
  seed: int,
  context_length: int,
) -> Iterator[str]:
  if model.empty_cache is None or model.extend is None:
    yield "model must offer empty_cache and extend, got None"
  if max_new_tokens < 0:
    yield f"max_new_tokens must be at least 0, got {max_new_tokens}"
  if not 0 <= seed < 1 << 32:
    yield f"seed must be in [0, 2^32), got {seed}"
  if context_length < 0:
    yield f"context_length must be 0 (any) or positive, got {context_length}"
  if bad := [i for i in stop_ids if not 0 <= i < model.vocab_size]:
    yield f"stop_ids must be in [0, {model.vocab_size}), got {bad}"
  if bad := [i for i, prompt in enumerate(prompts) if not len(prompt)]:
    yield f"prompts must have at least one token; empty: {listed(bad)}"
  outside = lambda prompt: (
    len(prompt) and not 0 <= min(prompt) <= max(prompt) < model.vocab_size
  )
  if bad := [i for i, prompt in enumerate(prompts) if outside(prompt)]:
    yield f"ids must be in [0, {model.vocab_size}), which they are not in prompts {listed(bad)}"
  room = context_length - max_new_tokens
  if context_length and (bad := [i for i, prompt in enumerate(prompts) if len(prompt) > room]):
    found = listed([f"{i} of {len(prompts[i])} ids" for i in bad])
    yield (
      f"a prompt and max_new_tokens {max_new_tokens} together must fit the context of "
      f"{context_length} positions; too long are prompts {found}"
    )


def _draw_problems(draws: Sequence[int] | None, num_prompts: int) -> Iterator[str]:
  if draws is None:
    return
  if len(draws) != num_prompts:
    yield f"draws must have a number for each of {num_prompts} prompts, got {len(draws)}"
  if bad := [number for number in draws if not 0 <= number < 1 << 31]:
    yield f"draws must be in [0, 2^31), got {listed(bad)}"


class _State(NamedTuple):
  """What the loop carries; N is the most tokens of a completion."""

  cache: Cache
  ids_BxN: jax.Array  # i32
  log_probability_BxN: jax.Array  # f32
  length_B: jax.Array  # i32, tokens generated
  position_B: jax.Array  # i32, of the last token that was generated
  index_B: jax.Array  # i32, of the prompt, or its number in `draws`
  stopped_B: jax.Array  # bool
  num_steps: jax.Array  # i32[], tokens generated for rows that did not stop


class _Programs(NamedTuple):
  """Compiled once for each bucket."""

  # (params, tokens, valid, index, seed) -> state after one token
  start: Callable[..., _State]
  # (params, state, stopped, seed, count) -> state after `count` tokens; the state is donated
  go_on: Callable[..., _State]


@functools.lru_cache(maxsize=16)
def _programs(
  model: LanguageModel,
  sampling: Sampling,
  max_new_tokens: int,
  stop_ids: tuple[int, ...],
  mesh: jax.sharding.Mesh | None,
) -> _Programs:
  assert model.empty_cache is not None  # `_problems` has looked
  assert model.extend is not None
  empty_cache, extend = model.empty_cache, model.extend

  def append(state: _State, logits_BxV: jax.Array, seed: jax.Array) -> _State:
    """Adds a token to the rows that have not stopped."""
    at = state.num_steps
    key_B = _keys(seed, state.index_B, at)
    id_B, log_probability_B = choose(logits_BxV, sampling, key_B)
    is_stop_B = jnp.isin(id_B, jnp.array(stop_ids, jnp.int32))
    return state._replace(
      ids_BxN=state.ids_BxN.at[:, at].set(id_B),
      log_probability_BxN=state.log_probability_BxN.at[:, at].set(log_probability_B),
      length_B=state.length_B + ~state.stopped_B,
      position_B=state.position_B + 1,
      stopped_B=state.stopped_B | is_stop_B,
      num_steps=at + 1,
    )

  def start(
    params: Params, tokens: jax.Array, valid: jax.Array, index_B: jax.Array, seed: jax.Array
  ) -> _State:
    batch_size, bucket = tokens.shape
    positions = jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)
    cache = empty_cache(batch_size, bucket + max_new_tokens - 1)
    logits_BxV, cache = extend(params, tokens, positions, valid, cache)
    state = _State(
      cache=cache,
      ids_BxN=jnp.zeros((batch_size, max_new_tokens), jnp.int32),
      log_probability_BxN=jnp.zeros((batch_size, max_new_tokens), jnp.float32),
      length_B=jnp.zeros(batch_size, jnp.int32),
      position_B=positions[:, -1],
      index_B=index_B,
      stopped_B=~valid[:, -1],  # a row without a prompt
      num_steps=jnp.int32(0),
    )
    return _laid_out(append(state, logits_BxV, seed))

  def go_on(
    params: Params, state: _State, stopped_B: jax.Array, seed: jax.Array, count: jax.Array
  ) -> _State:
    def unfinished(state: _State) -> jax.Array:
      return (state.num_steps < count) & ~jnp.all(state.stopped_B)

    def one_token(state: _State) -> _State:
      tokens_Bx1 = jax.lax.dynamic_slice_in_dim(state.ids_BxN, state.num_steps - 1, 1, axis=1)
      position_Bx1, valid_Bx1 = state.position_B[:, None], ~state.stopped_B[:, None]
      logits_BxV, cache = extend(params, tokens_Bx1, position_Bx1, valid_Bx1, state.cache)
      return append(state._replace(cache=cache), logits_BxV, seed)

    state = state._replace(stopped_B=state.stopped_B | stopped_B)
    return _laid_out(jax.lax.while_loop(unfinished, one_token, state))

  return _Programs(
    on_mesh(mesh, jax.jit(start)), on_mesh(mesh, jax.jit(go_on, donate_argnums=1))
  )


def _keys(seed: jax.Array, index_B: jax.Array, count: jax.Array) -> jax.Array:
  """Keys of the draws of token `count` of each prompt."""
  key = jax.random.key(seed)
  fold = lambda index: jax.random.fold_in(jax.random.fold_in(key, index), count)
  return jax.vmap(fold)(index_B)


def _laid_out(state: _State) -> _State:
  """The same state in one layout: a donated one is used again, and the host reads the rest."""
  split = (None, BATCH_AXES, None, "tensor", None)
  cache = Cache(
    keys=constrain(state.cache.keys, *split),
    values=constrain(state.cache.values, *split),
    positions=constrain(state.cache.positions, BATCH_AXES, None),
    valid=constrain(state.cache.valid, BATCH_AXES, None),
    length=state.cache.length,
  )
  read = [constrain(x, *[None] * x.ndim) for x in state[1:]]
  return _State(cache, *read)


def _run(
  programs: _Programs,
  params: Params,
  rows: Sequence[jax.Array],
  seed: np.uint32,
  max_new_tokens: int,
  stop: Callable[[list[int]], bool] | None,
) -> list[Completion]:
  """Generates for one batch; rows of padding come out empty."""
  state = programs.start(params, *rows, seed)
  cut: dict[int, int] = {}  # rows that `stop` ended, and after how many tokens
  count = 0
  while True:
    seen = count
    count, stopped_B = int(state.num_steps), np.array(state.stopped_B)
    if stop is not None:
      cut |= _stops(stop, state, seen)
      stopped_B[list(cut)] = True
    if stopped_B.all() or count == max_new_tokens:
      break
    until = max_new_tokens if stop is None else min(max_new_tokens, count + CHECK_EVERY)
    state = programs.go_on(params, state, stopped_B, seed, np.int32(until))
  ids, log_probabilities, lengths = jax.device_get(state[1:4])
  return [
    Completion(
      ids[i, : cut.get(i, length)].tolist(),
      log_probabilities[i, : cut.get(i, length)].tolist(),
      "stop" if stopped_B[i] else "length",
    )
    for i, length in enumerate(lengths)
  ]


def _stops(stop: Callable[[list[int]], bool], state: _State, seen: int) -> dict[int, int]:
  """Returns after how many tokens rows are enough, of those that grew beyond `seen` tokens."""
  ids_BxN, length_B = (x.tolist() for x in jax.device_get((state.ids_BxN, state.length_B)))
  found = {}
  for i, (ids, length) in enumerate(zip(ids_BxN, length_B, strict=True)):
    if length > seen and stop(ids[:length]):
      found[i] = next(n for n in range(seen + 1, length + 1) if stop(ids[:n]))
  return found
