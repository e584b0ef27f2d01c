"""EL2N and GraNd: means over rounds, what is not finite, and what they find."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, every
from jdc.policies.selection import el2n, grand

N, C = 20, 14
SPEC = RunSpec(N, 1, ("web",), (N,), (1.0,), sweep_size=C)
KEY = jax.random.key(0)
BOTH = pytest.mark.parametrize(
  ("factory", "field"), [(el2n, "el2n"), (grand, "gradient_norm")], ids=["el2n", "grand"]
)


@functools.cache
def jitted(factory, checkpoints):
  policy = factory(checkpoints)
  return policy, jax.jit(policy.update)


def decide(factory, field, norm, ids, age, state, checkpoints="mean"):
  """One round: a sweep in two chunks, and the decision."""
  policy, update = jitted(factory, checkpoints)
  halves = np.split(np.float32(norm), [len(norm) // 2])
  scores = [policy.score(ExampleStats(**{field: jnp.asarray(x)}), state) for x in halves]
  swept = ExampleStats(
    example_id=jnp.asarray(ids), score=jnp.concatenate(scores), score_age=jnp.asarray(age)
  )
  return update(swept, state)


def sample(rng, kept=0.0):
  """Norms of a round, with values that are not finite, padding and scores of earlier rounds."""
  norm = rng.gamma(2.0, 10.0 ** rng.integers(-3, 4), C)
  norm[rng.random(C) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
  norm[rng.random(C) < 0.1] = 0
  ids = np.where(rng.random(C) < 0.1, -1, rng.permutation(N)[:C])
  return np.float32(norm), ids, np.where(rng.random(C) < kept, 7, 0)


def expected_of(rounds, checkpoints):
  """The docstring's rule in float64, from all rounds."""
  norm, ids, _ = rounds[-1]
  logits = np.full(C, -np.inf)
  for place in np.flatnonzero((ids >= 0) & np.isfinite(norm)):
    row, told = ids[place], [np.float64(norm[place])]
    if checkpoints == "mean":
      told = [
        np.float64(x[i])
        for x, rows, age in rounds
        for i in np.flatnonzero((rows == row) & (age == 0) & np.isfinite(x))
      ]
    if told:
      logits[place] = np.mean(told)
  return logits


@BOTH
@pytest.mark.parametrize("checkpoints", ["current", "mean"])
def test_agrees_with_the_rule(factory, field, checkpoints):
  for seed in range(15):
    rng, rounds = np.random.default_rng(seed), []
    state = jitted(factory, checkpoints)[0].init(SPEC, KEY)[1]
    for _ in range(8):
      rounds.append(sample(rng, kept=0.2 * (checkpoints == "mean")))
      decision, state = decide(factory, field, *rounds[-1], state, checkpoints)
      expected = expected_of(rounds, checkpoints)
      np.testing.assert_allclose(decision.logits, expected, rtol=1e-5)
      _, ids, _ = rounds[-1]
      assert decision.metrics == {
        "num_eligible": np.sum(np.isfinite(expected)),
        "num_nonfinite": np.sum((ids >= 0) & ~np.isfinite(expected)),
      }


@BOTH
def test_a_score_kept_from_an_earlier_round_counts_once(factory, field):
  state, ids = factory().init(SPEC, KEY)[1], np.arange(C)
  for norm, age in ((1.0, 0), (1.0, 5), (4.0, 0)):
    told = np.full(C, norm), ids, np.full(C, age)
    decision, state = decide(factory, field, *told, state)
  np.testing.assert_allclose(decision.logits, 2.5)


@BOTH
def test_large_norms_do_not_overflow_the_mean(factory, field):
  state, ids = factory().init(SPEC, KEY)[1], np.arange(C)
  for _ in range(5):
    decision, state = decide(factory, field, np.full(C, 3e38), ids, 0 * ids, state)
  np.testing.assert_allclose(decision.logits, 3e38, rtol=1e-5)


@BOTH
def test_stays_what_it_is_between_updates(factory, field):
  policy = every(2, factory())
  decision, state = policy.init(SPEC, KEY)
  seen = []
  for norm in (3.0, 99.0, 5.0):
    swept = ExampleStats(
      example_id=jnp.arange(C), score=jnp.full(C, norm), score_age=jnp.zeros(C, jnp.int32)
    )
    decision, state = policy.update(swept, state)
    seen.append(float(decision.logits[0]))
  assert seen == [3, 3, 4]


def regression(seed, num_steps):
  """Logistic regression of two classes, of which some rows lie at the border."""
  rng = np.random.default_rng(seed)
  side = np.where(np.arange(N) % 2, 1.0, -1.0)
  distance = np.where(np.arange(N) < 6, 0.1, 2.0)  # the first rows are hard
  x = np.stack([side * distance, np.ones(N)], axis=1) + 0.01 * rng.normal(size=(N, 2))
  theta, told = np.zeros(2), {"el2n": [], "gradient_norm": []}
  for _ in range(num_steps):
    p = 1 / (1 + np.exp(-x @ theta))
    error = p - (side > 0)
    told["el2n"].append(np.sqrt(2) * np.abs(error))
    told["gradient_norm"].append(np.abs(error) / distance)  # of features of length 1 / distance
    theta = theta - 0.5 * x.T @ error / N
  return told


@BOTH
def test_finds_the_rows_that_stay_hard(factory, field):
  spec = SPEC._replace(sweep_size=N)
  for seed in range(3):
    state = factory().init(spec, KEY)[1]
    for norm in regression(seed, num_steps=10)[field]:
      decision, state = decide(factory, field, norm, np.arange(N), np.zeros(N, int), state)
    assert set(np.argsort(-np.asarray(decision.logits))[:6]) == set(range(6))


@BOTH
def test_rejects(factory, field):
  with pytest.raises(ValueError, match=r"^checkpoints must be in .*'mean'\), got 'all'"):
    factory("all")
  name = factory.__name__
  with pytest.raises(ValueError, match=f"^{name} needs sweep_size > 0, got 0"):
    factory().init(RunSpec(9, 1, ("web",), (9,), (1.0,)), KEY)
  assert factory().observes == {field, "example_id", "score_age"}
  assert factory("current").observes == {field, "example_id"}
