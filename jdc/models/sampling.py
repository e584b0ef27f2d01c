"""How the next token is chosen from its logits."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
  """What the choice depends on; all of it is fixed when the choice is compiled."""

  temperature: float  # 0: the likeliest token
  top_k: int  # 0: all tokens
  top_p: float  # 1: all tokens


def choose(
  logits_BxV: jax.Array, sampling: Sampling, key_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Chooses a token for each row.

  Args:
    logits_BxV: f32.
    sampling: greedy, or what the draw is from.
    key_B: of the draws, one a row.

  Returns:
    Tokens i32[B], and their log-probabilities f32[B] under softmax(logits), in nats.

  Example:
    >>> logits = jnp.log(jnp.array([[0.1, 0.6, 0.3]]))
    >>> token, log_probability = choose(logits, Sampling(0.0, 0, 1.0), jax.random.key(0)[None])
    >>> token.tolist(), round(float(jnp.exp(log_probability)[0]), 3)
    ([1], 0.6)
  """
  if sampling.temperature == 0:
    token_B = jnp.argmax(logits_BxV, axis=-1)
  else:
    kept_BxV = kept_logits(logits_BxV / sampling.temperature, sampling.top_k, sampling.top_p)
    token_B = jax.vmap(jax.random.categorical)(key_B, kept_BxV)
  token_B = token_B.astype(jnp.int32)
  # A sum over a comparison, and not a gather: it stays local to the shards of the vocabulary.
  chosen_BxV = token_B[:, None] == jnp.arange(logits_BxV.shape[-1], dtype=jnp.int32)
  logit_B = jnp.sum(jnp.where(chosen_BxV, logits_BxV, 0.0), axis=-1)
  return token_B, logit_B - jax.nn.logsumexp(logits_BxV, axis=-1)


def kept_logits(logits_BxV: jax.Array, top_k: int, top_p: float) -> jax.Array:
  r"""Sets the logits of tokens that are not drawn to -inf.

  Kept are tokens whose logit is at least the k-th largest; of these, with p their
  probabilities, those with sum_{likelier tokens} p < top_p, and all that are as likely as the
  last of them.

  Example:
    >>> logits = jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4]]))
    >>> jnp.isfinite(kept_logits(logits, top_k=3, top_p=0.5)).tolist()
    [[False, False, True, True]]
  """
  vocab_size = logits_BxV.shape[-1]
  top_k = min(top_k, vocab_size) or vocab_size
  if top_k == vocab_size and top_p == 1:
    return logits_BxV
  sorted_BxK = jax.lax.top_k(logits_BxV, top_k)[0]
  smallest_Bx1 = sorted_BxK[:, -1:]
  if top_p < 1:
    kept_BxV = jnp.where(logits_BxV >= smallest_Bx1, logits_BxV, -jnp.inf)
    total_Bx1 = jax.nn.logsumexp(kept_BxV, axis=-1, keepdims=True)
    probability_BxK = jnp.exp(sorted_BxK - total_Bx1)
    likelier_BxK = jnp.cumsum(probability_BxK, axis=-1) - probability_BxK
    nucleus_BxK = jnp.where(likelier_BxK < top_p, sorted_BxK, jnp.inf)
    smallest_Bx1 = jnp.min(nucleus_BxK, axis=-1, keepdims=True)
  return jnp.where(logits_BxV >= smallest_Bx1, logits_BxV, -jnp.inf)


def sampling_problems(sampling: Sampling) -> Iterator[str]:
  """Yields one sentence for each field that is not accepted."""
  temperature, top_k, top_p = sampling
  if not 0 <= temperature < math.inf:
    yield f"temperature must be 0 (greedy) or positive and finite, got {temperature}"
  if not (isinstance(top_k, int) and top_k >= 0):
    yield f"top_k must be 0 (all tokens) or a number of tokens, got {top_k!r}"
  if not 0 < top_p <= 1:
    yield f"top_p must be in (0, 1], got {top_p}"
