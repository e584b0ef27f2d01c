"""Packed rows: statistics, loss and gradient are those of the same records one a row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdc import policies
from jdc.data.batch import inputs_and_targets
from jdc.data.loader import Batch
from jdc.models.base import LanguageModel
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.policies import DataPolicy, Decision, RunSpec, mixture, weighting
from jdc.train import observe, passes, sharding
from jdc.train import state as state_lib
from jdc.train.step import StepOptions, make_train_step

V, T, S, K, ROWS, NUM_RECORDS = 50, 47, 5, 3, 8, 24
SMALL = {
  "vocab_size": V,
  "width": 16,
  "num_layers": 2,
  "num_heads": 4,
  "num_kv_heads": 2,
  "mlp_width": 24,
  "initializer_scale": 4.0,  # so that losses differ
}
CONFIGS = {
  "global": DecoderConfig(**SMALL),
  "sliding window": DecoderConfig(**SMALL, sliding_window=4),
  "local and global": DecoderConfig(
    **SMALL, sliding_window=3, layer_types=("local", "global"), qk_norm="head"
  ),
  "experts": DecoderConfig(**SMALL, num_experts=4, experts_per_token=2),
  "qwen2": DecoderConfig(**SMALL, family="qwen2", attention_bias=True, tie_embeddings=True),
}


def records():
  """Tokens and what counts, of 24 records of 3 to 9 tokens."""
  rng = np.random.default_rng(0)
  for _ in range(NUM_RECORDS):
    length = int(rng.integers(3, 10))
    counts = rng.random(length) < 0.6
    counts[0], counts[-1] = False, True
    yield rng.integers(0, V, length), counts


def described(ids, shape):
  """What a batch says of the examples, for ids in any arrangement."""
  ids = np.full(shape, -1, np.int32) if ids is None else ids
  real = ids >= 0
  return {
    "example_id": ids,
    "domain": np.where(real, ids % K, 0).astype(np.int32),
    "sampling_probability": np.where(real, 0.01 + 0.02 * ids, 1).astype(np.float32),
    "domain_probability": np.where(real, 0.1 + 0.2 * (ids % K), 1).astype(np.float32),
    "weight": np.where(real, 0.5 + 0.1 * ids, 1).astype(np.float32),
  }


@functools.cache
def packed_batch():
  """Rows of three to five records, one of two, and one without any."""
  sizes, shape = (4, 5, 3, 4, 2, 0, 3, 3), (ROWS, T + 1)
  tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  ids, stream = np.full((ROWS, S), -1, np.int32), enumerate(records())
  for row, size in enumerate(sizes):
    end = 0
    for place in range(size):
      record, (toks, counts) = next(stream)
      here = slice(end, end + len(toks))
      tokens[row, here] = toks
      segments[row, here] = np.where(counts, place + 1, -place - 1)
      ids[row, place] = record
      end += len(toks)
  return Batch(tokens, segments, **described(ids, ids.shape))


@functools.cache
def unpacked_batch():
  shape = (NUM_RECORDS, T + 1)
  tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  for row, (toks, counts) in enumerate(records()):
    tokens[row, : len(toks)] = toks
    segments[row, : len(toks)] = np.where(counts, 1, -1)
  return Batch(tokens, segments, **described(np.arange(NUM_RECORDS, dtype=np.int32), None))


@functools.cache
def statistics(name, packed):
  """All statistics of a step, by the model of a config."""
  model, batch = decoder(CONFIGS[name]), packed_batch() if packed else unpacked_batch()
  scalars = {"step": jnp.int32(0), "learning_rate": jnp.float32(0)}

  def compute(params, batch):
    inputs = inputs_and_targets(batch.tokens, batch.segments)
    seen = passes.Seen(passes.make_forward(model)(params, inputs), {})
    return observe.example_stats(batch, inputs, seen, observe.PLAIN | scalars.keys(), scalars)

  mesh = sharding.make_mesh(data=8)
  with jax.set_mesh(mesh):
    placed = jax.device_put(batch, sharding.batch_sharding(mesh))
    return jax.device_get(jax.jit(compute)(model.init(jax.random.key(1)), placed))


def by_id(stats, values):
  """The entries of the examples that are there, in the order of their ids."""
  order = np.argsort(stats.example_id)
  return np.asarray(values)[order[stats.example_id[order] >= 0]]


@pytest.mark.parametrize("name", CONFIGS)
def test_statistics_are_those_of_unpacked_rows(name):
  packed, alone = statistics(name, True), statistics(name, False)
  assert packed.loss.shape == packed.example_id.shape == (ROWS * S,)
  for field in ("example_id", "domain", "num_tokens", "sampling_probability"):
    values = (by_id(s, getattr(s, field)) for s in (packed, alone))
    np.testing.assert_array_equal(*values)
  np.testing.assert_array_equal(
    by_id(packed, packed.domain_probability), by_id(alone, alone.domain_probability)
  )
  losses = by_id(alone, alone.loss)
  assert np.ptp(losses) > 0.5
  np.testing.assert_allclose(by_id(packed, packed.loss), losses, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_token_losses_are_those_of_unpacked_rows(name):
  packed, alone = statistics(name, True), statistics(name, False)
  for record in range(NUM_RECORDS):
    (place,) = np.flatnonzero(packed.example_id == record)
    here = (packed.token_segment == place) & (packed.token_mask > 0)
    expected = alone.token_loss[record][alone.token_mask[record] > 0]
    np.testing.assert_allclose(packed.token_loss[here], expected, atol=2e-5, rtol=0)


def test_padding_has_no_tokens_and_no_loss():
  stats = statistics("global", True)
  padding = stats.example_id < 0
  assert padding.sum() == ROWS * S - NUM_RECORDS
  assert not stats.num_tokens[padding].any()
  assert not stats.loss[padding].any()
  assert not stats.domain[padding].any()


def test_prompts_never_count():
  stats = statistics("global", True)
  expected = [int(counts[1:].sum()) for _, counts in records()]
  assert by_id(stats, stats.num_tokens).tolist() == expected
  assert stats.token_mask.sum() == sum(expected)
  # A target is predicted from its own record: no record is asked for the first token of the
  # next one.
  batch = packed_batch()
  counted = stats.token_mask > 0
  here, target = batch.segments[:, :-1][counted], batch.segments[:, 1:][counted]
  assert (target > 0).all()
  np.testing.assert_array_equal(np.abs(here), target)


@pytest.mark.parametrize("packed", [True, False])
def test_token_segments_index_the_statistics(packed):
  """In float64, an example's mean loss is that of the positions that name it."""
  stats, batch = statistics("global", packed), packed_batch() if packed else unpacked_batch()
  np.testing.assert_array_equal(stats.token_segment >= 0, batch.segments[:, :-1] != 0)
  real = (stats.token_segment >= 0) & (stats.token_mask > 0)
  place = stats.token_segment[real]
  size = len(stats.example_id)
  count = np.bincount(place, minlength=size)
  total = np.bincount(place, stats.token_loss[real].astype(np.float64), minlength=size)
  np.testing.assert_array_equal(count, stats.num_tokens)
  np.testing.assert_allclose(stats.loss, total / np.maximum(count, 1), rtol=1e-6)


# The step.

SPEC = RunSpec(
  num_examples=NUM_RECORDS,
  num_domains=K,
  domain_names=("a", "b", "c"),
  domain_sizes=(8, 8, 8),
  proportions=(0.2, 0.3, 0.5),
  sequence_length=T,
  num_steps=100,
)


def bigram_losses(params, tokens, targets, positions, segments):
  """A bigram model: the loss of each target given its token."""
  del positions, segments
  log_p = jax.nn.log_softmax(params["table"][tokens])
  return -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]


BIGRAM = LanguageModel(
  init=lambda key: {"table": 2 * jax.random.normal(key, (V, V))},
  hidden=None,
  token_losses=bigram_losses,
  logits=None,
  partition_specs=lambda params: jax.tree.map(lambda _: jax.P(), params),
  vocab_size=V,
)


@functools.cache
def run_step(
  model=BIGRAM, packed=True, weighting_=None, average="token", row_weights=False,
  accumulation_steps=1, axes=(8, 1, 1), odm=False,
):  # fmt: skip
  """One step of SGD; the change of the parameters is the gradient."""
  batch, optimizer = packed_batch() if packed else unpacked_batch(), optax.sgd(1.0)
  slots = {} if weighting_ is None else {"weighting": weighting_}
  if odm:
    slots["mixture"] = mixture.odm(warmup_steps=0)
  chosen = policies.combine(**slots)
  options = StepOptions(
    loss_average=average,
    row_weights=row_weights,
    accumulation_steps=accumulation_steps,
    weighted_slots=frozenset({"weighting"} & slots.keys()),
  )
  mesh = sharding.make_mesh(**dict(zip(("data", "fsdp", "tensor"), axes, strict=True)))
  with jax.set_mesh(mesh):
    spec = SPEC._replace(batch_size=batch.example_id.size)
    _, states = state_lib.init_policies(chosen, spec, 0)
    state = state_lib.init(state_lib.Start(model), optimizer, states, mesh, 0)
    placed = jax.device_put(batch, sharding.batch_sharding(mesh))
    step = make_train_step(model, optimizer, optax.constant_schedule(1.0), chosen, options)
    after, output = jax.jit(step)(state, placed)
  before, after, output = jax.device_get((state.params, after.params, output))
  return before, jax.tree.map(np.subtract, before, after), output


@pytest.mark.parametrize("name", ["sliding window", "experts", "qwen2"])
def test_loss_and_gradient_are_those_of_unpacked_rows(name):
  model = decoder(CONFIGS[name])
  _, packed, out = run_step(model)
  _, alone, expected = run_step(model, packed=False)
  assert out.loss == pytest.approx(float(expected.loss), rel=1e-5)
  assert optax.tree.norm(alone) > 0.1
  for left, right in zip(jax.tree.leaves(packed), jax.tree.leaves(alone), strict=True):
    np.testing.assert_allclose(left, right, atol=1e-5)
  np.testing.assert_allclose(
    by_id(out, out.loss_B), by_id(expected, expected.loss_B), atol=1e-5
  )
  assert out.weight_B is None
  assert expected.share_filled is None
  assert out.share_filled == pytest.approx(np.mean(packed_batch().segments != 0))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def loss_weights(pointwise=True, of_tokens=False):
  """Weights that depend on the loss of the example, or on that of the token."""

  def init(spec, key):
    if of_tokens:
      return Decision(token_weights=jnp.ones((ROWS, T))), ()
    return Decision(weights=jnp.ones(spec.batch_size)), ()

  def update(stats, state):
    if of_tokens:
      return Decision(token_weights=0.1 + jax.nn.sigmoid(stats.token_loss - 4.0)), state
    return Decision(weights=0.2 + jax.nn.sigmoid(stats.loss - 4.0)), state

  observed = "token_loss" if of_tokens else "loss"
  return DataPolicy(init, update, frozenset({observed}), "step", pointwise)


WEIGHTINGS = {
  "none": None,
  "pointwise": loss_weights(),
  "whole batch": loss_weights(pointwise=False),
  "tokens": loss_weights(of_tokens=True),
  "tokens of the whole batch": loss_weights(pointwise=False, of_tokens=True),
}


def float64_loss_and_gradient(table, weights, average, row_weights):
  """The design's loss of the bigram table, one token of one record at a time."""
  table = table.astype(np.float64)
  tokens = sum(int(counts.sum()) for _, counts in records())
  loss, gradient = 0.0, np.zeros_like(table)
  for record, (ids, counts) in enumerate(records()):
    log_p = [table[i] - np.log(np.exp(table[i]).sum()) for i in ids[:-1]]
    losses = [-p[target] for p, target in zip(log_p, ids[1:], strict=True)]
    mean = np.mean([x for x, counted in zip(losses, counts[1:], strict=True) if counted])
    for t in np.flatnonzero(counts[1:]):
      w = 1.0 / tokens if average == "token" else 1.0 / counts.sum() / NUM_RECORDS
      if row_weights:
        w *= 0.5 + 0.1 * record
      if weights in ("pointwise", "whole batch"):
        w *= 0.2 + sigmoid(mean - 4.0)
      elif weights != "none":
        w *= 0.1 + sigmoid(losses[t] - 4.0)
      loss += w * losses[t]
      gradient[ids[t]] += w * (np.exp(log_p[t]) - np.eye(V)[ids[t + 1]])
  return loss, gradient


CASES = [
  (weights, average, steps, (i + j + k) % 2 == 1)
  for i, weights in enumerate(WEIGHTINGS)
  for j, average in enumerate(("token", "example"))
  for k, steps in enumerate((1, 2))
]


@pytest.mark.parametrize(("weights", "average", "steps", "row_weights"), CASES)
def test_weighted_loss_and_gradient_follow_the_design(weights, average, steps, row_weights):
  before, gradient, out = run_step(
    weighting_=WEIGHTINGS[weights],
    average=average,
    row_weights=row_weights,
    accumulation_steps=steps,
    axes=(2, 2, 2),
  )
  expected = float64_loss_and_gradient(before["table"], weights, average, row_weights)
  assert out.loss == pytest.approx(expected[0], rel=1e-5)
  np.testing.assert_allclose(gradient["table"], expected[1], atol=1e-5)


def test_devices_do_not_change_the_gradient():
  fields = {"weighting_": WEIGHTINGS["whole batch"], "average": "example", "row_weights": True}
  _, whole, told = run_step(**fields)
  for axes, steps in (((2, 2, 2), 2), ((1, 2, 4), 4), ((1, 1, 8), 8)):
    _, parts, out = run_step(**fields, accumulation_steps=steps, axes=axes)
    np.testing.assert_allclose(parts["table"], whole["table"], atol=1e-5)
    np.testing.assert_array_equal(out.example_id, told.example_id)
    np.testing.assert_allclose(out.weight_B, told.weight_B, atol=1e-5)


def test_decisions_of_policies_are_those_of_unpacked_rows():
  """Padding does not enter what a mixture learns, nor what weights are normalised by."""
  fields = {"odm": True, "weighting_": weighting.loss_reweighting(burn_in_steps=0)}
  _, packed, out = run_step(**fields)
  _, alone, expected = run_step(packed=False, **fields)
  assert expected.metrics["mixture"]
  for left, right in zip(*map(jax.tree.leaves, (out.metrics, expected.metrics)), strict=True):
    np.testing.assert_allclose(left, right, atol=1e-5)
  weights = by_id(expected, expected.weight_B)
  assert np.ptp(weights) > 0.1
  np.testing.assert_allclose(by_id(out, out.weight_B), weights, atol=1e-5)
  np.testing.assert_allclose(packed["table"], alone["table"], atol=1e-5)


def test_a_step_without_any_record_changes_nothing():
  ids = np.full((ROWS, S), -1, np.int32)
  empty = dataclasses.replace(
    packed_batch(), segments=np.zeros((ROWS, T + 1), np.int32), **described(ids, ids.shape)
  )
  optimizer, mesh = optax.sgd(1.0), sharding.make_mesh()
  with jax.set_mesh(mesh):
    state = state_lib.init(state_lib.Start(BIGRAM), optimizer, {}, mesh, 0)
    step = make_train_step(
      BIGRAM, optimizer, optax.constant_schedule(1.0), policies.combine(), StepOptions()
    )
    placed = jax.device_put(empty, sharding.batch_sharding(mesh))
    after, output = jax.jit(step)(state, placed)
  assert output.loss == 0
  assert output.skipped
  np.testing.assert_array_equal(after.params["table"], state.params["table"])
