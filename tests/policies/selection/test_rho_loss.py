"""RHO-LOSS: the difference of losses, the edges, the behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, temperature
from jdc.policies.selection import rho_loss

SPEC = RunSpec(90, 1, ("web",), (90,), (1.0,), batch_size=3, num_candidates=24)
KEY = jax.random.key(0)


def decide(policy, loss, reference_loss, tokens=None, ids=None):
  size = len(loss)
  stats = ExampleStats(
    example_id=jnp.arange(size) if ids is None else jnp.asarray(ids),
    num_tokens=jnp.ones(size, int) if tokens is None else jnp.asarray(tokens),
    loss=jnp.float32(loss),
    reference_loss=jnp.float32(reference_loss),
  )
  return policy.update(stats, ())[0]


@pytest.mark.parametrize("tau", [1.0, 0.25, 30.0])
def test_agrees_with_the_equation(tau):
  for seed in range(20):
    rng = np.random.default_rng(seed)
    loss, reference_loss = np.float32(rng.gamma(4.0, 0.7, (2, 24)))
    tokens, ids = rng.integers(0, 4, 24), np.where(rng.random(24) < 0.2, -1, np.arange(24))
    loss[rng.random(24) < 0.2] = np.nan
    reference_loss[rng.random(24) < 0.2] = np.inf
    decision = decide(rho_loss(tau), loss, reference_loss, tokens, ids)
    expected = (np.float64(loss) - np.float64(reference_loss)) / tau
    valid, finite = (tokens > 0) & (ids >= 0), np.isfinite(expected)
    expected = np.where(valid & finite, expected, -np.inf)
    np.testing.assert_allclose(decision.logits, expected, rtol=1e-5, atol=1e-5 / tau)
    assert decision.metrics["num_nonfinite"] == np.sum(valid & ~finite)
    assert decision.metrics["num_eligible"] == np.sum(valid & finite)


def test_temperature_is_that_of_the_combinator():
  loss, reference_loss = np.random.default_rng(0).gamma(4.0, 0.7, (2, 24))
  own = decide(rho_loss(0.25), loss, reference_loss).logits
  combined = decide(temperature(0.25, rho_loss()), loss, reference_loss).logits
  np.testing.assert_allclose(jax.nn.softmax(own), jax.nn.softmax(combined), rtol=1e-5)
  plain = decide(rho_loss(), loss, reference_loss).logits
  np.testing.assert_allclose(plain, np.float32(loss) - np.float32(reference_loss))


def test_treats_each_row_by_itself():
  loss, reference_loss = np.random.default_rng(1).gamma(4.0, 0.7, (2, 24))
  loss[5] = np.nan
  whole = decide(rho_loss(0.3), loss, reference_loss).logits
  halves = [decide(rho_loss(0.3), loss[part], reference_loss[part]).logits
            for part in (slice(0, 12), slice(12, 24))]  # fmt: skip
  np.testing.assert_array_equal(whole, np.concatenate(halves))
  assert rho_loss().pointwise


def test_edges():
  decision = decide(rho_loss(0.5), [3e38, -3e38, 2.0], [-3e38, 3e38, 2.0])
  assert decision.logits.tolist() == [-np.inf, -np.inf, 0.0]
  assert decision.metrics == {"num_nonfinite": 2, "num_eligible": 1}
  nothing = decide(rho_loss(), [np.nan, 1.0, 1.0], [1.0, 1.0, 1.0], [2, 0, 2], [0, 1, -1])
  assert nothing.logits.tolist() == [-np.inf] * 3
  assert nothing.metrics == {"num_nonfinite": 1, "num_eligible": 0}
  ties = decide(rho_loss(), [2.0, 1.0, 3.0], [1.5, 0.5, 2.5])
  assert jax.lax.top_k(ties.logits, 2)[1].tolist() == [0, 1]
  before, _ = rho_loss().init(SPEC, KEY)
  assert before.logits.tolist() == [0.0] * 24


V = 16  # tokens; 0 to 4 have one known successor, 5 to 9 one that is new, the others any


def draw(seed, num_rows):
  """Rows of one kind each, 6 pairs of tokens: kinds i32[n], tokens and successors i32[n, 6]."""
  rng = np.random.default_rng(seed)
  kind = rng.permutation(num_rows) % 3
  token = kind[:, None] * 5 + rng.integers(0, 5, (num_rows, 6))
  return kind, token, np.where(token < 10, (7 * token + 3) % V, rng.integers(0, V, token.shape))


def learn(token, successor):
  """A bigram model with add-one smoothing."""
  count = np.ones((V, V))
  np.add.at(count, (token, successor), 1)
  return np.log(count / count.sum(axis=1, keepdims=True))


def test_keeps_what_is_new_and_can_be_learnt():
  """The model has seen known rows and noise, the reference much of all."""
  kind, *pairs = draw(0, 900)
  reference, model = learn(*pairs), learn(*(pair[kind != 1][:60] for pair in pairs))
  kept, highest = [], []
  for seed in range(1, 21):
    kind, *pairs = draw(seed, 24)
    loss, reference_loss = (-of[*pairs].mean(axis=1) for of in (model, reference))
    logits = decide(rho_loss(), loss, reference_loss).logits
    kept += kind[jax.lax.top_k(logits, 3)[1]].tolist()
    highest += kind[np.argsort(-loss)[:3]].tolist()
    boltzmann = np.asarray(jax.nn.softmax(decide(rho_loss(0.25), loss, reference_loss).logits))
    assert boltzmann[kind == 1].sum() > 0.95
  assert set(kept) == {1}
  assert np.mean(np.equal(highest, 1)) < 0.2  # by the loss alone it is noise


@pytest.mark.parametrize("tau", [0.0, -1.0, np.inf, np.nan, "cold"])
def test_rejects(tau):
  with pytest.raises(ValueError, match="temperature must be positive and finite"):
    rho_loss(tau)


def test_rejects_a_run_without_candidates():
  with pytest.raises(ValueError, match="num_candidates > 0, got 0"):
    rho_loss().init(SPEC._replace(num_candidates=0), KEY)
