"""UDS: norm and distances, the buffer of what was selected, the edges, the behaviour."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.selection import uds

Q = 6
SPEC = RunSpec(
  90, 1, ("web",), (90,), (1.0,), batch_size=4, num_candidates=12, logit_projection_size=Q
)
KEY = jax.random.key(0)


def make_stats(norm, projection, tokens=None, ids=None):
  size = len(norm)
  return ExampleStats(
    example_id=jnp.arange(size) if ids is None else jnp.asarray(ids),
    num_tokens=jnp.ones(size, int) if tokens is None else jnp.asarray(tokens),
    logit_nuclear_norm=jnp.float32(norm),
    logit_projection=jnp.float32(projection),
  )


def draw(seed):
  rng = np.random.default_rng(seed)
  norm, projection = np.float32(rng.gamma(4.0, 9.0, 12)), np.float32(rng.normal(size=(12, Q)))
  norm[rng.random(12) < 0.1] = np.nan
  projection[rng.random(12) < 0.1, 2] = np.inf
  tokens, ids = rng.integers(0, 6, 12), np.where(rng.random(12) < 0.1, -1, np.arange(12))
  if seed % 7 == 6:
    tokens[2:] = 0  # fewer rows than are kept
  return norm, projection, tokens, ids


def expected_logits(stats, buffer, alpha):
  norm, projection, tokens, ids = stats
  norm, projection = np.float64(norm), np.float64(projection)
  distance = np.zeros(len(norm))
  for i, row in enumerate(projection):
    if buffer:
      distance[i] = np.mean([np.linalg.norm(row - other) for other in buffer])
  finite = np.isfinite(norm) & np.all(np.isfinite(projection), axis=1)
  valid = (tokens > 0) & (ids >= 0)
  return np.where(valid & finite, norm + alpha * distance, -np.inf), valid & ~finite


@pytest.mark.parametrize("alpha", [2.5e-3, 4.0, 0.0])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_agrees_with_the_equation_over_a_run(alpha):
  policy = uds(alpha, capacity=10)
  _, state = policy.init(SPEC, KEY)
  update, buffer = jax.jit(policy.update), []
  for seed in range(25):
    stats = draw(seed)
    decision, state = update(make_stats(*stats), state)
    expected, nonfinite = expected_logits(stats, buffer, alpha)
    np.testing.assert_allclose(decision.logits, expected, rtol=1e-5)
    assert decision.metrics["num_nonfinite"] == nonfinite.sum()
    assert decision.metrics["num_eligible"] == np.isfinite(expected).sum()
    assert decision.metrics["num_held"] == len(buffer)
    margins = -np.diff(-np.sort(-expected[np.isfinite(expected)]))
    assert np.all(margins > 1e-4)
    kept = [i for i in np.argsort(-expected, kind="stable")[:4] if np.isfinite(expected[i])]
    buffer = [*buffer, *stats[1][kept]][-10:]
    held = np.asarray(state.buffer_SxQ)[: len(buffer)]
    assert sorted(map(tuple, held)) == sorted(map(tuple, buffer))


def test_the_buffer_holds_what_top_k_keeps():
  policy = uds(capacity=9)
  _, state = policy.init(SPEC, KEY)
  for seed in range(20, 24):
    stats = make_stats(*draw(seed))
    stats = dataclasses.replace(stats, logit_nuclear_norm=jnp.float32([3, 1] * 6))  # ties
    place = int(state.place)
    decision, state = policy.update(stats, state)
    kept = jax.lax.top_k(decision.logits, 4)[1]
    for j, i in enumerate(kept[: int(jnp.sum(decision.logits > -jnp.inf))]):
      held = state.buffer_SxQ[(place + j) % 9]
      np.testing.assert_array_equal(held, stats.logit_projection[i])


def test_edges():
  policy = uds(alpha=1.0)
  first, state = policy.init(SPEC, KEY)
  assert first.logits.tolist() == [0.0] * 12
  projection = np.zeros((12, Q))
  projection[0], projection[1, 0], projection[2, 0] = 3e38, 3e38, np.nan
  decision, state = policy.update(make_stats(np.ones(12), projection), state)
  assert decision.logits.tolist() == [-np.inf] * 3 + [1.0] * 9
  assert decision.metrics["num_nonfinite"] == 3
  decision, state = policy.update(make_stats([np.inf] * 12, projection), state)
  assert decision.logits.tolist() == [-np.inf] * 12
  assert state.num_held == 4  # nothing was kept, so nothing came


def test_spreads_over_the_kinds_of_examples():
  """Of four kinds one has larger norms: without distances little else is kept."""
  rng = np.random.default_rng(0)
  centres = 10 * np.eye(Q)[:4]
  shares = {}
  for alpha in (0.0, 1.0):
    policy = uds(alpha, capacity=16)
    _, state = policy.init(SPEC, KEY)
    update, kept = jax.jit(policy.update), []
    for _ in range(40):
      kind = rng.permutation(12) % 4
      norm = 30 + 1.0 * (kind == 0) + 0.1 * rng.normal(size=12)
      projection = centres[kind] + 0.1 * rng.normal(size=(12, Q))
      decision, state = update(make_stats(norm, projection), state)
      kept += kind[jax.lax.top_k(decision.logits, 4)[1]].tolist()
    shares[alpha] = np.bincount(kept, minlength=4) / len(kept)
  assert shares[0.0][0] == 0.75  # all three of each batch
  assert np.all(np.abs(shares[1.0] - 0.25) < 0.12)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"alpha": -1.0}, "alpha must be"),
    ({"alpha": np.inf}, "alpha must be"),
    ({"capacity": 0}, "capacity must be"),
    ({"alpha": np.nan, "capacity": 2.0}, "alpha must be .*; capacity must be"),
  ],
)
def test_rejects(arguments, message):
  with pytest.raises(ValueError, match=message):
    uds(**arguments)


def test_rejects_a_run_that_does_not_fit():
  spec = SPEC._replace(num_candidates=3, logit_projection_size=0, candidate_draw="multinomial")
  message = "candidates, got .*capacity of at least .*output matrix, got .*'multinomial'"
  with pytest.raises(ValueError, match=message):
    uds(capacity=2).init(spec, KEY)
