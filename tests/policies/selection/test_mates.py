"""MATES: the ridge in float64, the sign, the probes that count, the edges, the behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, sampling
from jdc.policies.selection import mates, ridge

C, D, P = 40, 6, 16
SIZES = {"sweep_size": C, "embedding_size": D, "num_targets": 3, "probe_size": P // 2}
SPEC = RunSpec(C, 1, ("web",), (C,), (1.0,), **SIZES)
KEY = jax.random.key(0)
fit = jax.jit(ridge.fit, static_argnames="strength")


def solve(x, y, strength):
  """The normal equations in float64, and what they predict."""
  mean, centre = x.mean(axis=0), y.mean()
  x, y = x - mean, y - centre
  penalty = strength * np.trace(x @ x.T) / len(x)
  beta = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
  return (lambda new: (new - mean) @ beta + centre), penalty


def left_out(x, y, penalty):
  """The error of the models fitted without each row, and what rounding of 1 makes of it."""
  centred = x - x.mean(axis=0)
  gram = centred @ centred.T
  hat = np.diag(gram @ np.linalg.inv(gram + penalty * np.eye(len(x)))) + 1 / len(x)
  errors = []
  for i in range(len(x)):
    rest, target = np.delete(x, i, 0), np.delete(y, i)
    mean, centre = rest.mean(axis=0), target.mean()
    rest, target = rest - mean, target - centre
    beta = np.linalg.solve(rest.T @ rest + penalty * np.eye(x.shape[1]), rest.T @ target)
    errors.append(y[i] - (x[i] - mean) @ beta - centre)
  return np.sqrt(np.mean(np.square(errors))), 1 / np.min(1 - hat)


def draw(seed, num=P, width=D):
  rng = np.random.default_rng(seed)
  x = np.float32(rng.normal(size=(num, width)) * rng.gamma(1.0, 1.0, width) + rng.normal())
  y = x @ rng.normal(size=width) + rng.normal(size=num) * 10 ** rng.uniform(-2, 1)
  usable = rng.random(num) < 0.8
  return x, np.float32(y), usable


@pytest.mark.parametrize("width", [D, 30], ids=["tall", "wide"])
@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_the_ridge_solves_the_normal_equations(width, strength):
  for seed in range(10):
    x, y, usable = draw(seed, width=width)
    spoilt = np.where(usable[:, None], x, np.nan)
    model = fit(spoilt, y, usable, strength=strength)
    x64, y64 = np.float64(x), np.float64(y)
    predict, penalty = solve(x64[usable], y64[usable], strength)
    scale = np.max(np.abs(y64))
    np.testing.assert_allclose(ridge.predict(model, x), predict(x64), atol=1e-5 * scale)
    error, amplified = left_out(x64[usable], y64[usable], penalty)
    np.testing.assert_allclose(model.error, error, atol=1e-5 * scale * amplified)


def test_leave_one_out_chooses_the_strength():
  chosen = set()
  for seed in range(20):
    x, y, usable = draw(seed, width=12)
    model = fit(x, y, usable)
    x64, y64 = np.float64(x)[usable], np.float64(y)[usable]
    tried = [left_out(x64, y64, solve(x64, y64, s)[1]) for s in ridge.STRENGTHS]
    errors, amplified = zip(*tried, strict=True)
    best, second = np.sort(errors)[:2]
    if second - best > 1e-4 * np.max(np.abs(y64)):
      np.testing.assert_allclose(model.strength, ridge.STRENGTHS[np.argmin(errors)], rtol=1e-6)
      chosen.add(float(model.strength))
    tolerance = 1e-5 * np.max(np.abs(y64)) * np.max(amplified)
    np.testing.assert_allclose(model.error, best, atol=tolerance)
  assert len(chosen) > 3


def swept(embedding, probe_id, label, ids=None):
  return ExampleStats(
    example_id=jnp.arange(len(embedding)) if ids is None else jnp.asarray(ids),
    score=jnp.float32(embedding),
    probe_id=jnp.asarray(probe_id, jnp.int32),
    probe_label=jnp.float32(label),
  )


def test_agrees_with_the_equation():
  policy = mates(0.25, strength=0.1)
  _, state = policy.init(SPEC, KEY)
  update = jax.jit(policy.update)
  for seed in range(15):
    rng = np.random.default_rng(seed)
    embedding = np.float32(rng.normal(size=(C, D)))
    embedding[rng.random(C) < 0.1, 1] = np.nan
    ids = rng.permutation(2 * C)[:C]
    ids[rng.random(C) < 0.1] = -1
    probe_id = rng.permutation(2 * C)[:P]  # of which about a half were swept
    label = np.float32(3 + rng.normal(size=P))
    label[rng.random(P) < 0.1] = np.inf
    decision, _ = update(swept(embedding, probe_id, label, ids), state)
    place = {row: i for i, row in enumerate(ids) if row >= 0}
    finite = np.all(np.isfinite(embedding), axis=1) & (ids >= 0)
    used = [
      (embedding[place[p]], y)
      for p, y in zip(probe_id, label, strict=True)
      if p in place and finite[place[p]] and np.isfinite(y)
    ]
    x, y = (np.float64([pair[k] for pair in used]) for k in (0, 1))
    predict, _ = solve(x, y, 0.1)
    expected = np.where(finite, -predict(np.float64(embedding)) / 0.25, -np.inf)
    np.testing.assert_allclose(decision.logits, expected, atol=1e-5 * 4 / 0.25)
    assert decision.metrics["num_probes"] == len(used)
    assert decision.metrics["num_eligible"] == finite.sum()
    assert decision.metrics["num_nonfinite"] == np.sum((ids >= 0) & ~finite)


def test_draws_what_lowers_the_loss_of_the_target():
  """Labels fall along one direction: rows far along it are what is drawn."""
  rng = np.random.default_rng(0)
  embedding = rng.normal(size=(400, D))
  label = 3 - 2 * embedding[:, 0]
  probe_id = rng.permutation(400)[:32]
  policy = mates()
  _, state = policy.init(SPEC._replace(num_examples=400, sweep_size=400), KEY)
  noisy = label[probe_id] + 0.3 * rng.normal(size=32)
  decision, _ = policy.update(swept(embedding, probe_id, noisy), state)
  assert decision.metrics["relative_error"] < 0.4
  drawn, _ = sampling.gumbel_top_k(KEY, decision.logits, 40)
  assert np.mean(label[drawn]) < np.mean(label) - 2
  np.testing.assert_allclose(
    -0.5 * np.asarray(decision.logits), label, atol=1.0
  )  # f / T with T = 1/2: the sign and the scale


def test_edges():
  policy = mates()
  first, state = policy.init(SPEC, KEY)
  assert first.logits.tolist() == [0.0] * C
  embedding = np.ones((C, D))
  constant, _ = policy.update(swept(embedding, range(P), [2.0] * P), state)
  assert constant.logits.tolist() == [-4.0] * C
  assert constant.metrics["relative_error"] == 1
  one, _ = policy.update(swept(embedding, [3] + [-1] * (P - 1), [2.0] * P), state)
  assert one.logits.tolist() == [-4.0] * C
  assert one.metrics["num_probes"] == 1
  none, _ = policy.update(swept(embedding, range(P), [np.nan] * P), state)
  assert none.logits.tolist() == [-np.inf] * C
  assert not any(np.isnan(x) for x in none.metrics.values())


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"temperature": 0.0}, "temperature must be in"),
    ({"strength": -1.0}, "strength must be None or positive"),
    ({"temperature": np.nan, "max_candidates": 0}, "temperature .*; max_candidates must be"),
  ],
)
def test_rejects(arguments, message):
  with pytest.raises(ValueError, match=message):
    mates(**arguments)


def test_rejects_a_run_that_does_not_fit():
  spec = SPEC._replace(num_targets=0, embedding_size=0)
  with pytest.raises(ValueError, match=r"embedding_size.*num_targets.*max_candidates 5"):
    mates(max_candidates=5).init(spec, KEY)
