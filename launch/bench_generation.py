"""What generation does a second with a cache of keys and values, and by recomputation.

Both continue the same prompts greedily, in turns. Recomputation passes everything written so
far through the model for each token, in buffers that grow by 32 tokens, and takes the logits of
one position; the whole loop over a buffer is one program.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_setup import BATCH, LAYERS, VOCAB, WIDTH, make_model

from jdc.models.base import LanguageModel
from jdc.models.generate import generate

_PROMPT, _NEW, _GROWTH, _TIMES = 64, 128, 32, 5


def main() -> None:
  """Prints tokens a second of both, and their ratio."""
  model, num_rows = make_model(), BATCH.value
  params = jax.jit(model.init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, VOCAB.value, (num_rows, _PROMPT)).astype(np.int32)
  cached = functools.partial(_with_cache, model, params, prompts)
  plain = _recomputation(model, params, prompts)
  if not np.array_equal(cached(), plain()):  # and compiles both
    raise AssertionError("the cache and recomputation do not write the same tokens")
  pairs = np.array([[_seconds(cached), _seconds(plain)] for _ in range(_TIMES)])
  for name, seconds in zip(("cache", "recomputation"), np.median(pairs, axis=0), strict=True):
    print(f"{name:>14}: {num_rows * _NEW / seconds:8.0f} tokens/s")
  ratios = pairs[:, 1] / pairs[:, 0]
  print(
    f"{np.median(ratios):.1f}x (lowest {ratios.min():.1f}); {_TIMES} times {num_rows} prompts "
    f"of {_PROMPT} tokens, {_NEW} new ones, width {WIDTH.value}, {LAYERS.value} layers, "
    f"{VOCAB.value} tokens of vocabulary"
  )


def _with_cache(model: LanguageModel, params: Any, prompts: np.ndarray) -> np.ndarray:
  done = generate(model, params, prompts.tolist(), max_new_tokens=_NEW, batch_size=len(prompts))
  return np.array([completion.ids for completion in done])


def _recomputation(
  model: LanguageModel, params: Any, prompts: np.ndarray
) -> Callable[[], np.ndarray]:
  assert model.output_matrix is not None
  output_matrix = model.output_matrix

  @functools.partial(jax.jit, static_argnames="first")
  def go_on(params: Any, tokens: jax.Array, first: int) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    matrix_DxV = output_matrix(params)

    def write(at: jax.Array, tokens: jax.Array) -> jax.Array:
      hidden = model.hidden(params, tokens, positions, jnp.ones_like(tokens))
      last_BxD = jax.lax.dynamic_index_in_dim(hidden, at - 1, axis=1, keepdims=False)
      logits_BxV = jnp.dot(last_BxD, matrix_DxV, preferred_element_type=jnp.float32)
      return tokens.at[:, at].set(jnp.argmax(logits_BxV, axis=1).astype(jnp.int32))

    return jax.lax.fori_loop(first, tokens.shape[1], write, tokens)

  def run() -> np.ndarray:
    tokens = jnp.asarray(prompts)
    for first in range(_PROMPT, _PROMPT + _NEW, _GROWTH):
      tokens = go_on(params, jnp.pad(tokens, ((0, 0), (0, _GROWTH))), first)
    return np.asarray(tokens)[:, _PROMPT:]

  return run


def _seconds(function: Callable[[], np.ndarray]) -> float:
  begin = time.perf_counter()
  function()
  return time.perf_counter() - begin
