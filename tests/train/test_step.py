"""The jitted step: its loss and gradient, accumulation, selection, skipped steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdc import policies
from jdc.data.loader import Batch
from jdc.models.base import LanguageModel
from jdc.policies import DataPolicy, Decision, RunSpec, mixture, weighting
from jdc.train import sharding
from jdc.train import state as state_lib
from jdc.train.step import StepOptions, make_train_step

B, T, V, K = 8, 6, 11, 3
SPEC = RunSpec(
  num_examples=30,
  num_domains=K,
  domain_names=("a", "b", "c"),
  domain_sizes=(10, 10, 10),
  proportions=(0.2, 0.3, 0.5),
  batch_size=B,
  num_steps=100,
)


def bigram_losses(params, tokens, targets, positions, segments):
  """A bigram model: the loss of each target given its token."""
  del positions, segments
  log_p = jax.nn.log_softmax(params["table"][tokens])
  return -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0] * params["scale"]


MODEL = LanguageModel(
  init=lambda key: {"table": jax.random.normal(key, (V, V)), "scale": jnp.ones(())},
  hidden=None,
  token_losses=bigram_losses,
  logits=None,
  partition_specs=lambda params: jax.tree.map(lambda _: jax.P(), params),
  vocab_size=V,
)


def make_batch(seed=0, rows=B):
  rng = np.random.default_rng(seed)
  segments = np.sort(rng.integers(0, 3, (rows, T + 1)))[:, ::-1]  # 0 pads at the end
  return Batch(
    tokens=rng.integers(0, V, (rows, T + 1)).astype(np.int32),
    segments=segments.astype(np.int32),
    example_id=np.arange(rows, dtype=np.int32),
    domain=rng.integers(0, K, rows).astype(np.int32),
    sampling_probability=np.full(rows, 0.1, np.float32),
    domain_probability=np.full(rows, 0.3, np.float32),
    weight=np.ones(rows, np.float32),
  )


def run_step(chosen=None, options=None, batch=None, learning_rate=1.0, **mesh_sizes):
  """One step of SGD; the change of the parameters is the negative gradient."""
  chosen, options = chosen or policies.combine(), options or StepOptions()
  optimizer = optax.sgd(learning_rate)
  mesh = sharding.make_mesh(**(mesh_sizes or {"data": 8}))
  with jax.set_mesh(mesh):
    _, states = state_lib.init_policies(chosen, SPEC, 0)
    state = state_lib.init(state_lib.Start(MODEL), optimizer, states, mesh, 0)
    placed = jax.device_put(batch or make_batch(), sharding.batch_sharding(mesh))
    step = make_train_step(
      MODEL, optimizer, optax.constant_schedule(learning_rate), chosen, options
    )
    return state, *jax.jit(step)(state, placed)


def float64_loss_and_gradient(params, batch, average="token", weights=None):
  """The design's loss of the bigram table, one token at a time."""
  table = np.asarray(params["table"], np.float64)
  counts = [
    sum(batch.segments[i, t + 1] == batch.segments[i, t] != 0 for t in range(T))
    for i in range(len(batch.tokens))
  ]
  total = sum(counts) if average == "token" else sum(n > 0 for n in counts)
  loss, gradient = 0.0, np.zeros_like(table)
  for i, count in enumerate(counts):
    for t in range(T):
      if batch.segments[i, t + 1] == batch.segments[i, t] != 0:
        row, target = batch.tokens[i, t], batch.tokens[i, t + 1]
        p = np.exp(table[row] - table[row].max())
        p /= p.sum()
        w = 1.0 if weights is None else float(weights[i])
        w /= total * (1 if average == "token" else count)
        loss -= w * np.log(p[target])
        gradient[row] += w * (p - np.eye(V)[target])
  return loss, gradient


def given_weights(values, pointwise=False):
  """A step-scope weighting that returns given numbers by example id."""
  values = jnp.asarray(values, jnp.float32)

  def update(stats, state):
    return Decision(weights=values[stats.example_id]), state

  return DataPolicy(
    lambda spec, key: (Decision(weights=jnp.ones(spec.batch_size)), ()),
    update,
    frozenset({"example_id"}),
    "step",
    pointwise,
  )


def gradient_of(before, after):
  return np.asarray(before.params["table"]) - np.asarray(after.params["table"])


@pytest.mark.parametrize("average", ["token", "example"])
@pytest.mark.parametrize("accumulation_steps", [1, 2, 4])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pointwise", [False, True])
def test_loss_and_gradient_follow_the_design(average, accumulation_steps, weighted, pointwise):
  weights = np.linspace(0, 3, B) if weighted else None
  chosen, slots = policies.combine(), frozenset()
  if weighted:
    chosen = policies.combine(weighting=given_weights(weights, pointwise))
    slots = frozenset({"weighting"})
  options = StepOptions(
    loss_average=average, accumulation_steps=accumulation_steps, weighted_slots=slots
  )
  before, after, output = run_step(chosen, options, data=2, fsdp=1, tensor=4)
  loss, gradient = float64_loss_and_gradient(before.params, make_batch(), average, weights)
  np.testing.assert_allclose(output.loss, loss, rtol=1e-5)
  np.testing.assert_allclose(gradient_of(before, after), gradient, atol=1e-5)


def test_weights_of_one_give_exactly_the_unweighted_gradient():
  plain = run_step()[1]
  weighted = run_step(
    policies.combine(weighting=given_weights(np.ones(B))),
    StepOptions(weighted_slots=frozenset({"weighting"})),
  )[1]
  assert (plain.params["table"] == weighted.params["table"]).all()


def test_row_weights_of_a_round_multiply_those_of_the_step():
  rounds, steps = np.linspace(1, 2, B), np.linspace(3, 0, B)
  batch = dataclasses.replace(make_batch(), weight=rounds.astype(np.float32))
  before, after, output = run_step(
    policies.combine(weighting=given_weights(steps)),
    StepOptions(row_weights=True, weighted_slots=frozenset({"weighting"})),
    batch,
  )
  _, gradient = float64_loss_and_gradient(before.params, batch, weights=rounds * steps)
  np.testing.assert_allclose(gradient_of(before, after), gradient, atol=1e-5)
  np.testing.assert_allclose(output.weight_B, rounds * steps, rtol=1e-6)


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_decisions_are_global(accumulation_steps):
  """1 and 8 devices, 1 and 4 microbatches: the same statistics, the same decision."""
  chosen = policies.combine(
    mixture=mixture.odm(warmup_steps=0),
    weighting=weighting.loss_reweighting(burn_in_steps=0),
  )
  options = StepOptions(weighted_slots=frozenset({"weighting"}))
  whole = run_step(chosen, options, data=1, fsdp=1, tensor=8)[2]
  options = dataclasses.replace(options, accumulation_steps=accumulation_steps)
  parts = run_step(chosen, options, data=2, fsdp=1, tensor=4)[2]
  np.testing.assert_allclose(parts.mixture_logits, whole.mixture_logits, rtol=1e-5)
  np.testing.assert_allclose(parts.weight_B, whole.weight_B, rtol=1e-5)
  np.testing.assert_array_equal(parts.example_id, whole.example_id)


def choose_by_id(logits):
  """A step-scope selection that returns given logits by example id."""
  logits = jnp.asarray(logits, jnp.float32)
  return DataPolicy(
    lambda spec, key: (Decision(logits=jnp.zeros(spec.num_candidates)), ()),
    lambda stats, state: (Decision(logits=logits[stats.example_id]), state),
    frozenset({"example_id"}),
    "step",
  )


@pytest.mark.parametrize("draw", ["top_k", "gumbel_top_k", "multinomial"])
def test_step_scope_selection_trains_what_it_keeps(draw):
  logits = np.full(16, -np.inf)
  logits[[3, 5, 6, 7, 9, 10, 12, 15]] = np.arange(8)
  batch = make_batch(rows=16)
  before, after, output = run_step(
    policies.combine(selection=choose_by_id(logits)),
    StepOptions(num_kept=8, candidate_draw=draw),
    batch,
  )
  ids = np.asarray(output.example_id)
  assert set(ids) <= set(np.flatnonzero(np.isfinite(logits)))
  if draw == "top_k":
    assert ids.tolist() == [15, 12, 10, 9, 7, 6, 5, 3]
  elif draw == "gumbel_top_k":
    assert len(set(ids)) == 8
  kept = jax.tree.map(lambda x: x[ids], batch)
  loss, gradient = float64_loss_and_gradient(before.params, kept)
  np.testing.assert_allclose(output.loss, loss, rtol=1e-5)
  np.testing.assert_allclose(gradient_of(before, after), gradient, atol=1e-5)


def test_a_kept_row_that_may_not_be_drawn_counts_no_token():
  logits = np.full(16, -np.inf)
  logits[:5] = 0.0
  _, _, output = run_step(
    policies.combine(selection=choose_by_id(logits)),
    StepOptions(num_kept=8),
    make_batch(rows=16),
  )
  assert np.asarray(output.example_id).tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
  assert np.asarray(output.num_tokens_B)[5:].tolist() == [0, 0, 0]


def test_weights_of_a_mixture_reach_the_kept_candidates():
  values = np.linspace(0, 2, 16)
  batch = make_batch(rows=16)

  def init(spec, key):
    return Decision(logits=jnp.zeros(K), weights=jnp.ones(spec.num_candidates)), ()

  def update(stats, state):
    weights = jnp.asarray(values, jnp.float32)[stats.example_id]
    return Decision(logits=jnp.zeros(K), weights=weights), state

  chosen = policies.combine(
    mixture=DataPolicy(init, update, frozenset({"example_id"}), "step"),
    selection=choose_by_id(np.arange(16)),
  )
  before, after, output = run_step(chosen, StepOptions(num_kept=8, row_weights=True), batch)
  ids = np.asarray(output.example_id)
  kept = jax.tree.map(lambda x: x[ids], batch)
  _, gradient = float64_loss_and_gradient(before.params, kept, weights=values[ids])
  np.testing.assert_allclose(gradient_of(before, after), gradient, atol=1e-5)


@pytest.mark.parametrize("chosen", [mixture.random(), mixture.doge()], ids=["random", "doge"])
def test_a_choice_among_candidates_leaves_a_mixture_of_round_scope_alone(chosen):
  """It is updated at the starts of rounds, and a step has not what it observes."""
  chosen = policies.combine(mixture=chosen, selection=choose_by_id(np.arange(16)))
  before, after, output = run_step(chosen, StepOptions(num_kept=8), make_batch(rows=16))
  jax.tree.map(np.testing.assert_array_equal, *map(raw_policies, (after, before)))
  assert output.mixture_logits is None


def raw_policies(state):
  """Arrays of the policies, keys as integers."""
  is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, state.policies)


def test_a_step_without_a_finite_loss_changes_nothing_but_the_policies():
  chosen = policies.combine(mixture=mixture.odm(warmup_steps=0))
  optimizer = optax.adam(1.0)
  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh):
    _, states = state_lib.init_policies(chosen, SPEC, 0)
    state = state_lib.init(state_lib.Start(MODEL), optimizer, states, mesh, 0)
    step = jax.jit(
      make_train_step(MODEL, optimizer, optax.constant_schedule(1.0), chosen, StepOptions())
    )
    batch = jax.device_put(make_batch(), sharding.batch_sharding(mesh))
    good, _ = step(state, batch)
    broken = good._replace(params=good.params | {"scale": jnp.float32(jnp.nan)})
    after, output = step(broken, batch)
  assert output.skipped
  assert (after.step, after.skipped, after.skipped_in_row) == (2, 1, 1)
  np.testing.assert_array_equal(after.params["table"], broken.params["table"])
  jax.tree.map(np.testing.assert_array_equal, after.opt_state, broken.opt_state)
  assert np.isfinite(np.asarray(after.policies["mixture"][0])).all()


def test_a_selection_that_keeps_nothing_makes_no_update():
  chosen = policies.combine(selection=choose_by_id(np.full(16, -np.inf)))
  before, after, output = run_step(chosen, StepOptions(num_kept=8), make_batch(rows=16))
  assert output.skipped
  assert (after.step, after.skipped, after.skipped_in_row) == (1, 1, 1)
  assert np.asarray(output.num_tokens_B).sum() == 0
  jax.tree.map(np.testing.assert_array_equal, after.params, before.params)


def test_weights_of_zero_make_no_update():
  zero = DataPolicy(
    lambda spec, key: (Decision(weights=jnp.ones(spec.batch_size)), ()),
    lambda stats, state: (Decision(weights=jnp.zeros_like(stats.loss)), state),
    frozenset({"loss"}),
    "step",
  )
  options = StepOptions(weighted_slots=frozenset({"weighting"}))
  before, after, output = run_step(policies.combine(weighting=zero), options, make_batch())
  assert output.skipped
  assert after.skipped_in_row == 1
  jax.tree.map(np.testing.assert_array_equal, after.params, before.params)


def test_learning_rate_counts_the_updates_that_were_made():
  schedule = optax.linear_schedule(1.0, 0.0, 10)
  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh):
    state = state_lib.init(state_lib.Start(MODEL), optax.sgd(schedule), {}, mesh, 0)
    state = state._replace(step=jnp.int32(5), skipped=jnp.int32(2))
    step = make_train_step(
      MODEL, optax.sgd(schedule), schedule, policies.combine(), StepOptions()
    )
    batch = jax.device_put(make_batch(), sharding.batch_sharding(mesh))
    _, output = jax.jit(step)(state, batch)
  assert output.learning_rate == pytest.approx(0.7)


def noisy_losses(params, tokens, targets, positions, segments, key=None):
  """Losses that are the noise of training themselves, one number for each position."""
  del tokens, positions, segments
  noise = 0.0 if key is None else jax.random.uniform(key, targets.shape)
  return noise + 0.0 * jnp.sum(params["table"])


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_noise_of_training_differs_by_step_and_by_microbatch(accumulation_steps):
  model = MODEL._replace(token_losses=noisy_losses, dropout=True)
  optimizer, rate = optax.sgd(1.0), optax.constant_schedule(1.0)
  options = StepOptions(accumulation_steps=accumulation_steps)
  mesh = sharding.make_mesh(data=2, fsdp=1, tensor=4)
  with jax.set_mesh(mesh):
    state = state_lib.init(state_lib.Start(model), optimizer, {}, mesh, 0)
    step = jax.jit(make_train_step(model, optimizer, rate, policies.combine(), options))
    batch = jax.device_put(make_batch(), sharding.batch_sharding(mesh))
    second, output = step(state, batch)
    _, again = step(state, batch)
    _, later = step(second, batch)
  losses = np.asarray(output.loss_B)
  np.testing.assert_array_equal(losses, again.loss_B)
  drawn = np.concatenate([losses, later.loss_B])
  drawn = drawn[drawn > 0]
  assert len(drawn) > B
  assert len(set(drawn.tolist())) == len(drawn)
