"""`every` and `schedule`: when a policy acts, and what it then sees."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc import policies
from jdc.policies import DataPolicy, Decision, ExampleStats, RunSpec, mixture, selection
from jdc.policies.weighting import loss_reweighting

SPEC = RunSpec(
  90, 2, ("a", "b"), (50, 40), (0.5, 0.5), batch_size=4, sweep_size=5, sequence_length=3
)
KEY = jax.random.key(0)


class SumState(NamedTuple):
  total: jax.Array
  observed: jax.Array


def summing(scope="step", **fields):
  """Decides by the sum of all losses it was updated on."""

  def init(spec, key):
    zero = jnp.float32(0)
    return Decision(logits=jnp.zeros(2), metrics={"num_rows": jnp.int32(0)}), SumState(
      zero, zero
    )

  def update(stats, state):
    total = state.total + jnp.sum(stats.loss)
    rate = 0.0 if stats.learning_rate is None else stats.learning_rate
    metrics = {"num_rows": jnp.int32(stats.loss.size)}
    decision = Decision(logits=jnp.stack([total, jnp.float32(rate)]), metrics=metrics)
    return decision, state._replace(total=total)

  observes = frozenset({"loss", "learning_rate"} if scope == "step" else {"loss"})
  return DataPolicy(init, update, observes, scope, **fields)


def batch(number):
  loss = jnp.float32(np.arange(4) + 10 * number)
  return ExampleStats(loss=loss, learning_rate=jnp.float32(number))


def test_every_updates_on_the_batches_since_the_last_update():
  policy = policies.every(3, summing())
  decision, state = policy.init(SPEC, KEY)
  update, seen = jax.jit(policy.update), []
  for number in range(7):
    decision, state = update(batch(number), state)
    seen.append((decision.logits.tolist(), int(decision.metrics["num_rows"])))
  sums = [float(np.sum(batch(number).loss)) for number in range(7)]
  held = ([0.0, 0.0], 0)
  first, second = sum(sums[:3]), sum(sums[:6])
  expected = [held] * 2 + [([first, 2.0], 12)] * 3 + [([second, 5.0], 12)] * 2
  assert seen == expected


def test_every_equals_the_policy_on_concatenated_batches():
  odm = mixture.odm(warmup_steps=0)
  spaced, spec = policies.every(2, odm), SPEC._replace(batch_size=8)
  rng, (_, outer), (_, inner) = (
    np.random.default_rng(0),
    spaced.init(spec, KEY),
    odm.init(spec, KEY),
  )
  for _ in range(3):
    pair = [
      ExampleStats(
        domain=jnp.asarray(rng.integers(0, 2, 8)),
        loss=jnp.float32(rng.gamma(3.0, 1.0, 8)),
        num_tokens=jnp.asarray(rng.integers(0, 9, 8)),
        domain_probability=jnp.float32(rng.uniform(0.2, 0.8, 8)),
      )
      for _ in range(2)
    ]
    for stats in pair:
      decision, outer = spaced.update(stats, outer)
    together = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *pair)
    expected, inner = odm.update(together, inner)
    np.testing.assert_allclose(decision.logits, expected.logits, rtol=1e-6)


def test_every_round_sweeps_first_and_then_each_nth():
  policy = policies.every(
    3,
    summing(
      "round",
      score=lambda stats, state: stats.loss + state.total,
      sweep_ids=lambda state: jnp.arange(5),
      observe=lambda stats, state: state._replace(observed=state.observed + 1),
    ),
  )
  _, state = policy.init(SPEC, KEY)
  totals, due = [], []
  for number in range(5):
    due.append(bool(policies.sweep_due(state)))
    expected = [0, 1, 2, 3, 4] if due[-1] else [-1] * 5
    assert policy.sweep_ids(state).tolist() == expected
    _, state = policy.update(batch(number), state)
    state = policy.observe(batch(number), state)
    totals.append(float(state.inner.total))
  assert due == [True, False, False, True, False]
  assert totals == [6.0, 6.0, 6.0, 6.0 + 126.0, 132.0]
  assert state.inner.observed == 5
  assert policy.score(batch(0), state).tolist() == [132.0, 133.0, 134.0, 135.0]


def test_sweep_due_looks_through_combinators():
  policy = policies.after(1, policies.temperature(2.0, policies.every(2, selection.loss())))
  _, state = policy.init(SPEC, KEY)
  assert policies.sweep_due(state)
  stats = ExampleStats(example_id=jnp.arange(5), score=jnp.arange(5.0))
  _, state = policy.update(stats, state)
  assert not policies.sweep_due(state)


@pytest.mark.parametrize(
  ("policy", "spec", "message"),
  [
    (loss_reweighting(burn_in_steps=0), SPEC, r"cannot hold \['weights'\]"),
    (selection.random()._replace(scope="step"), SPEC, r"logits of shape \(90,\)"),
    (mixture.odm(), SPEC._replace(batch_size=0), r"needs \['batch_size'\]"),
  ],
)
def test_every_rejects_what_it_cannot_hold(policy, spec, message):
  with pytest.raises(ValueError, match=message):
    policies.every(2, policy).init(spec, KEY)


def test_every_rejects_arguments_and_shapes():
  with pytest.raises(ValueError, match="steps"):
    policies.every(0, summing())
  packed = summing()._replace(observes=frozenset({"token_segment"}))
  with pytest.raises(ValueError, match="token_segment"):
    policies.every(2, packed)
  policy = policies.every(2, summing())
  _, state = policy.init(SPEC, KEY)
  with pytest.raises(ValueError, match=r"loss of shape \(4,\), got \(3,\)"):
    policy.update(ExampleStats(loss=jnp.zeros(3), learning_rate=jnp.float32(0)), state)


def test_schedule_hands_over():
  policy = policies.schedule(
    [(0, mixture.static((1, 3))), (2, summing()), (4, mixture.static())]
  )
  decision, state = policy.init(SPEC, KEY)
  seen, stages = [], []
  for number in range(6):
    decision, state = jax.jit(policy.update)(batch(number), state)
    seen.append(decision.logits.tolist())
    stages.append((int(decision.metrics["stage"]), int(decision.metrics["num_rows"])))
  quarter, half = np.log([0.25, 0.75]).astype(np.float32), np.log([0.5, 0.5]).astype(np.float32)
  assert stages == [(0, 0), (0, 0), (1, 4), (1, 4), (2, 4), (2, 4)]
  expected = [quarter, quarter, [86.0, 2.0], [86.0 + 126.0, 3.0], half, half]
  np.testing.assert_allclose(seen, expected, rtol=1e-6)


def test_schedule_scores_by_the_stage_in_force():
  spec = SPEC._replace(sweep_size=90)
  policy = policies.schedule([(0, selection.random(0.5)), (1, selection.loss())])
  _, state = policy.init(spec, KEY)
  swept = ExampleStats(example_id=jnp.arange(90), loss=jnp.arange(90.0))
  assert policy.score(swept, state).tolist() == [0.0] * 90
  decision, state = policy.update(
    ExampleStats(score=swept.loss, example_id=swept.example_id), state
  )
  assert np.sum(np.isfinite(decision.logits)) == 45
  assert policy.score(swept, state).tolist() == swept.loss.tolist()


def test_no_sweep_is_due_for_a_stage_that_observes_nothing():
  stages = [(0, selection.random()), (2, selection.loss()), (3, selection.random(0.5))]
  policy = policies.after(1, policies.schedule(stages))
  _, state = policy.init(SPEC._replace(sweep_size=90), KEY)
  stats, due = ExampleStats(example_id=jnp.arange(90), score=jnp.arange(90.0)), []
  for _ in range(5):
    due.append(bool(policies.sweep_due(state)))
    _, state = jax.jit(policy.update)(stats, state)
  assert due == [False, False, True, False, False]
  # One that does not score may observe something else, as the gradients of the domains.
  doge = mixture.doge()
  spec = SPEC._replace(num_targets=4, probe_size=2)
  _, state = policies.schedule([(0, doge)]).init(spec, KEY)
  assert policies.sweep_due(state)


@pytest.mark.parametrize(
  ("stages", "message"),
  [
    ([], "non-empty"),
    ([(0, mixture.odm)], "must hold policies"),
    ([(1, mixture.odm())], "begin at 0"),
    ([(0, mixture.odm()), (0, mixture.static())], "increase"),
    ([(0, mixture.odm()), (2.5, mixture.static())], "whole numbers"),
    ([(0, mixture.odm()), (5, selection.loss())], "one scope"),
  ],
)
def test_schedule_rejects(stages, message):
  with pytest.raises(ValueError, match=message):
    policies.schedule(stages)


def test_schedule_rejects_stages_that_decide_different_things():
  policy = policies.schedule([(0, mixture.odm()), (5, loss_reweighting(burn_in_steps=0))])
  with pytest.raises(ValueError, match=r"shape of logits.*shape of weights"):
    policy.init(SPEC, KEY)
