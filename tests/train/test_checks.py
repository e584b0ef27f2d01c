"""Decisions that do not fit their slots, and resumes of another run, are named errors."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdc import policies
from jdc.policies import DataPolicy, Decision, RunSpec, mixture, selection
from jdc.train import checks

SPEC = RunSpec(
  num_examples=30, num_domains=3, domain_names=("a", "b", "c"), domain_sizes=(10,) * 3,
  proportions=(0.2, 0.3, 0.5),
)  # fmt: skip


def weighting_of(shape, field="weights"):
  decision = Decision(**{field: jnp.full(shape, 0.5)})
  return DataPolicy(
    lambda spec, key: (decision, ()),
    lambda stats, state: (decision, state),
    frozenset(),
    "step",
  )


@pytest.mark.parametrize(
  ("field", "shape", "message"),
  [
    ("weights", (1,), r"weights of shape \(1,\), not \(8,\)"),
    ("weights", (3,), r"weights of shape \(3,\), not \(8,\)"),
    ("token_weights", (8, 1), r"token_weights of shape \(8, 1\), not \(8, 32\)"),
  ],
)
def test_weights_of_another_shape_are_refused(fit, tmp_path, field, shape, message):
  with pytest.raises(ValueError, match=message):
    fit(tmp_path / "run", policies.combine(weighting=weighting_of(shape, field)))


@pytest.mark.parametrize(
  ("slot", "size", "fields"),
  [
    ("selection", 30, {"token_weights": (30, 4)}),
    ("mixture", 3, {"weights": (30,), "token_weights": (30, 4)}),
  ],
)
def test_weights_of_a_round_that_no_row_carries_are_refused(slot, size, fields):
  decided = {field: np.ones(shape, np.float32) for field, shape in fields.items()}
  decision = Decision(logits=np.zeros(size, np.float32), **decided)
  policy = weighting_of((1,))._replace(scope="round")
  spec = SPEC._replace(sweep_size=30, sequence_length=4)
  with pytest.raises(ValueError) as error:
    checks.check_decisions({slot: decision}, spec, policies.combine(**{slot: policy}))
  for field in fields:
    assert f"{field} of a round-scope {slot} do not reach the rows" in str(error.value)


@pytest.mark.parametrize(
  ("weights", "token_weights", "right"),
  [((40,), (8, 32), True), ((8,), (8, 32), False), ((40,), (40, 32), False)],
)
def test_weights_of_packed_rows_are_those_of_their_records(weights, token_weights, right):
  decision = Decision(weights=np.ones(weights), token_weights=np.ones(token_weights))
  spec = SPEC._replace(batch_size=8 * 5, sequence_length=32)
  arguments = ({"weighting": decision}, spec, policies.combine(weighting=weighting_of((1,))), 5)
  if right:
    return checks.check_decisions(*arguments)
  with pytest.raises(ValueError, match=r"not \(40,\)|not \(8, 32\)"):
    checks.check_decisions(*arguments)


@pytest.mark.parametrize("sweep_rows", [2, 10**6])
def test_a_sweep_holds_every_domain_and_no_more_than_the_pool(fit, tmp_path, sweep_rows):
  with pytest.raises(ValueError, match=r"plan.sweep_rows must be 0 .* or from 3"):
    fit(
      tmp_path / "run",
      policies.combine(selection=selection.loss()),
      draw="top_k",
      sweep_rows=sweep_rows,
    )


def test_a_resume_under_another_policy_or_optimizer_names_what_differs(fit, tmp_path):
  odm = policies.combine(mixture=mixture.odm(warmup_steps=1))
  fit(tmp_path / "run", odm, num_steps=3)
  other = policies.combine(mixture=mixture.odm(warmup_steps=1, smoothing=0.1))
  with pytest.raises(ValueError, match=r"another run.*smoothing: 0\.9 -> 0\.1"):
    fit(tmp_path / "run", other)
  with pytest.raises(ValueError, match=r"another run.*policies\.mixture"):
    fit(tmp_path / "run", policies.combine(mixture=mixture.static()))
  with pytest.raises(ValueError, match=r"another run.*state\.opt_state"):
    fit(tmp_path / "run", odm, optimizer=optax.sgd(1e-2))
  assert fit(tmp_path / "run", odm, num_steps=6).stopped == "finished"


def test_asked_shares_are_those_of_the_policy_when_a_domain_is_spent(fit, tmp_path):
  result = fit(
    tmp_path / "run",
    policies.combine(mixture=mixture.static((0.2, 0.3, 0.5))),
    max_epochs=(3.0, 3.0, 0.2),
  )
  rows = result.plan.seen_K.sum()
  np.testing.assert_allclose(result.plan.asked_K / rows, [0.2, 0.3, 0.5])
  assert result.plan.seen_K[2] < 0.3 * rows


def test_token_weights_of_a_mixture_beside_candidates_are_refused(fit, tmp_path):
  decision = Decision(logits=jnp.zeros(3), token_weights=jnp.ones((16, 32)))
  token_weighting = DataPolicy(
    lambda spec, key: (decision, ()),
    lambda stats, state: (decision, state),
    frozenset(),
    "step",
  )
  chosen = policies.combine(
    mixture=token_weighting,
    selection=DataPolicy(
      lambda spec, key: (Decision(logits=jnp.zeros(spec.num_candidates)), ()),
      lambda stats, state: (Decision(logits=-stats.loss), state),
      frozenset({"loss"}),
      "step",
    ),
  )
  with pytest.raises(ValueError, match="token weights of the mixture do not reach the rows"):
    fit(tmp_path / "run", chosen, num_candidates=16)
  plain = chosen._replace(mixture=mixture.odm(warmup_steps=1))
  assert fit(tmp_path / "run", plain, num_candidates=16).stopped == "finished"
