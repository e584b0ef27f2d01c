"""Sorting: stable, a permutation, padding last."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies.ordering import sorting

KEY = jax.random.key(0)


@pytest.mark.parametrize("descending", [False, True])
def test_sorts_stably_with_nan_and_then_padding_last(descending):
  for seed in range(5):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 6, 40).astype(np.float32)
    score[rng.random(40) < 0.2] = np.nan
    score[rng.random(40) < 0.2] = np.inf
    score[rng.random(40) < 0.1] = -np.inf
    order = jax.jit(sorting(descending).order)(jnp.asarray(score), KEY)

    def rank(i, score=score):
      last = 1 if np.isnan(score[i]) else 2 if score[i] == np.inf else 0
      return (last, 0 if last else -score[i] if descending else score[i], i)

    assert order.tolist() == sorted(range(40), key=rank)
    assert order.dtype == jnp.int32


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ({"observes": {"loss"}}, "frozenset"),
    ({"observes": frozenset({"perplexity"})}, "unknown fields.*perplexity.*known"),
    ({"observes": frozenset({"loss", "el2n"})}, "at most one"),
    ({"descending": 1}, "descending"),
  ],
)
def test_rejects(argument, message):
  with pytest.raises(ValueError, match=message):
    sorting(**argument)
  assert sorting(observes=frozenset()).observes == frozenset()
