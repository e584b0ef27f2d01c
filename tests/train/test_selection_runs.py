"""Every selection runs a whole training job, and resumes bitwise in the middle of a round."""

import dataclasses
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdc import metrics, policies
from jdc.data.batch import inputs_and_targets
from jdc.data.loader import Pool
from jdc.models.decoder import DecoderConfig, decoder
from jdc.policies import mixture, selection, weighting
from jdc.stats.directions import Adam, moments_of
from jdc.train import checkpoint, loop, sources
from jdc.train import features as features_lib
from jdc.train.config import (
  CheckpointConfig,
  FeaturesConfig,
  MeshConfig,
  ProbeConfig,
  ResponsesConfig,
  TargetConfig,
)
from jdc.train.passes import REFERENCE
from jdc.train.state import Params, Reference, Start, saved_part

SAVED, NUM_STEPS = 5, 9
ADAM = Adam(b1=0.9, b2=0.999, epsilon=1e-8)
RESPONSES = ResponsesConfig(count=2, max_new_tokens=4, coefficients="dataflex")
IN_STEP = {"num_candidates": 16}
DRAWN = {"draw": "top_k", "top_k_fraction": 0.5}
# Arguments of the factories, and what the plan of their run needs.
CASES = {
  "cluster_less": ({"clusters": 4, "count": 2}, DRAWN),
  "coincide": ({"count": 20, "clusters": 4}, {"draw": "top_k"}),
  "delta_loss": ({}, {"draw": "gumbel_top_k"}),
  "el2n": ({}, DRAWN | {"sweep_rows": 24, "max_age": 2}),
  "from_file": ({"path": ""}, DRAWN),
  "grand": ({}, DRAWN | {"sweep_rows": 24}),
  "greats": ({"products": "update_direction"}, IN_STEP),
  "icons": ({"share": 0.5}, DRAWN | {"sweep_rows": 24}),
  "in_run_shapley": ({"order": "second"}, {"draw": "gumbel_top_k"}),
  "infobatch": ({}, {"draw": "top_k"}),
  "less": ({"checkpoints": "sum"}, DRAWN | {"sweep_rows": 24, "max_age": 2}),
  "loss": ({}, {"draw": "multinomial", "sweep_rows": 24}),
  "mates": ({}, {"draw": "gumbel_top_k", "probe": ProbeConfig(rows=2)}),
  "near": ({"count": 20}, {"draw": "top_k"}),
  "nice": ({}, DRAWN | {"sweep_rows": 24}),
  "random": ({"fraction": 0.5}, {"draw": "gumbel_top_k"}),
  "rho_loss": ({}, IN_STEP),
  "uds": ({"capacity": 20}, IN_STEP),
  "tsds": ({}, {"draw": "gumbel_top_k", "sweep_rows": 24}),
  "zeroth_order": (
    {},
    DRAWN
    | {
      "features": FeaturesConfig(provider="directional", size=16, microbatch_size=8),
      "sweep_rows": 24,
    },
  ),
}
# Rows passed forward and backward in the runs of `CASES`, besides those that train: of N pool
# rows or W swept ones in each of R rounds, of K target rows at each refresh, of C candidates in
# each of S steps with A target rows, and of probes, each before all target rows.
N, W, R, K, S, B, C, A = 302, 24, 5, 18, NUM_STEPS, 8, 16, 4
PROBES, REPRESENTATIVES = 2 * 2 * 3, 4 * 2
COSTS = {
  "cluster_less": (N + R * (REPRESENTATIVES + 2 * K), R * (REPRESENTATIVES + K)),
  "coincide": (N, 0),
  "delta_loss": (R * N, 0),
  "el2n": (R * W, 0),
  "from_file": (0, 0),
  "grand": (R * W, R * W),
  "greats": (S * (C + C + A) + 2 * K, S * (C + A)),
  "icons": (R * (W + 2 * K), R * (W + K)),
  "in_run_shapley": (S * (3 * B + 2 * A), S * (7 * B + 4 * A)),
  "infobatch": (0, 0),
  "less": (R * (W + 2 * K), R * (W + K)),
  "loss": (R * W, 0),
  "mates": (R * (N + PROBES * (1 + K)), R * PROBES),
  "near": (R * (N + K), 0),
  "random": (0, 0),
  "rho_loss": (S * 2 * C, 0),
  "tsds": (R * (W + K), 0),
  "uds": (S * C, 0),
  "zeroth_order": (R * ((2 * 16 + 16) * (W + K) + K), 0),
}


@pytest.fixture(scope="module")
def build(small_run, small_model, rewarded):
  """Returns `build(selection, plan, **others)`, a short run with a target set."""

  def load(mesh):
    return jax.device_put(small_model.init(jax.random.key(9)), jax.NamedSharding(mesh, jax.P()))

  def build(chosen, plan, **fields):
    if chosen.selection.observes & REFERENCE:
      fields["reference"] = Reference(small_model, load, "reference")
    if "target_reward" in chosen.selection.observes:
      fields |= rewarded
    settings = {
      "num_steps": NUM_STEPS,
      "steps_per_round": 2,
      "features": FeaturesConfig(size=32),
      "target": TargetConfig(rows=6, every_steps=5, alignment_rows=4),
      "checkpoint": CheckpointConfig(every_steps=SAVED),
      "adam": ADAM,
    }
    run = small_run(chosen, **settings | plan | fields)
    return run._replace(config=dataclasses.replace(run.config, responses=RESPONSES))

  return build


def make(name, build, folder):
  arguments, plan = CASES[name]
  if name == "from_file":
    any_run = build(policies.combine(selection=selection.random()), {"draw": "gumbel_top_k"})
    size = sum(len(domain.train) for domain in any_run.domains.values())
    path = folder / "scores.npz"
    np.savez(path, example_id=np.arange(size), score=np.linspace(0, 1, size))
    arguments = {"path": str(path)}
  return getattr(selection, name)(**arguments), plan


def test_no_selection_is_missing():
  assert set(CASES) == set(selection.__all__)


@pytest.mark.parametrize("name", CASES)
def test_resumes_bitwise_in_the_middle_of_a_round(build, assert_same, tmp_path, name):
  chosen, plan = make(name, build, tmp_path)
  run = build(policies.combine(selection=chosen), plan)
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  expected = loop.fit(run, str(whole))
  assert expected.stopped == "finished"
  assert int(expected.state.skipped) == 0
  assert math.isfinite(expected.after["validation/macro_loss"])
  if name in COSTS:  # not of answers, whose number is up to the model that writes them
    last = metrics.read_metrics(whole)[-1]
    spent = last["cost/extra_forward_rows"], last["cost/extra_backward_rows"]
    assert spent == COSTS[name]

  # As if it had been killed in its last step: the files are longer than the checkpoint.
  shutil.copytree(whole, parts)
  shutil.rmtree(parts / "checkpoints" / str(NUM_STEPS))
  found = loop.fit(run, str(parts))
  assert_same(found.state, expected.state)
  assert_same(found.plan, expected.plan)
  for file in ("metrics.jsonl", "example_ids.i32"):
    assert (parts / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize("products", ["ghost", "gradient"])
def test_greats_in_a_decoder(build, tmp_path, products):
  """Products by taps and by features, sharded over devices in both ways."""
  config = DecoderConfig(
    vocab_size=258, width=16, num_layers=2, num_heads=2, num_kv_heads=2, mlp_width=32
  )
  chosen = policies.combine(selection=selection.greats(products=products))
  run = build(
    chosen, IN_STEP, model=decoder(config), num_steps=3,
    mesh=MeshConfig(data=2, fsdp=2, tensor=2),
    features=FeaturesConfig(provider="kron", size=14 * 9),
  )  # fmt: skip
  result = loop.fit(run, str(tmp_path))
  assert result.stopped == "finished"
  lines = metrics.read_metrics(tmp_path)
  assert lines[-1]["cost/extra_backward_rows"] > 0
  assert [x["policy/selection/num_eligible"] for x in lines if "train/loss" in x] == [16]


def test_less_sees_the_parameters_and_moments_at_the_start_of_the_round(build, tmp_path):
  rate = optax.constant_schedule(1e-2)
  optimizer = optax.adam(rate, b1=ADAM.b1, b2=ADAM.b2, eps=ADAM.epsilon)
  run = build(
    policies.combine(selection=selection.less()), DRAWN, optimizer=optimizer, num_steps=3,
    checkpoint=CheckpointConfig(every_steps=1, keep=3),
  )  # fmt: skip
  for progress in loop.steps(run, str(tmp_path)):
    last = progress.state
    if progress.step == 2:  # the second round begins
      begun = jax.device_get(last)
  start = Start(run.model)
  features = features_lib.of_run(run.config, start, run.policies, ADAM, None)
  pool = Pool([domain.train for domain in run.domains.values()], 32)
  targets = sources.target_rows(run.config, run.policies, run.domains, None)

  def inputs(tokens, segments):
    return inputs_and_targets(jnp.asarray(tokens), jnp.asarray(segments))

  ids = np.arange(len(pool))
  params, moments = Params(begun.params, None), moments_of(begun.opt_state)
  told = features.round.compute(params, moments, inputs(*pool.rows(ids, ids >= 0)))
  wanted = features.target.compute(params, None, inputs(targets.tokens, targets.segments))
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  cosine = unit(np.float64(told["update_direction"])) @ unit(np.float64(wanted["gradient"])).T
  by_task = [cosine[:, targets.task == task].mean(axis=1) for task in range(3)]
  saved = checkpoint.Checkpoints(str(tmp_path / "checkpoints"), 3)
  try:
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    logits_N = saved.restore(jax.tree.map(shape, saved_part(last))).arrays["logits_N"]
  finally:
    saved.close()
  np.testing.assert_allclose(logits_N, np.max(by_task, axis=0), atol=2e-5)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_values_by_a_gradient_of_low_rank(build, assert_same, tmp_path, accumulation_steps):
  """Of the last refresh, which is resumed; its share is in the log."""
  config = DecoderConfig(
    vocab_size=258, width=16, num_layers=2, num_heads=2, num_kv_heads=2, mlp_width=32
  )
  chosen = policies.combine(selection=selection.in_run_shapley())
  run = build(
    chosen,
    {"draw": "gumbel_top_k"},
    model=decoder(config),
    target=TargetConfig(rows=6, every_steps=3, alignment="low_rank", alignment_rank=2),
    accumulation_steps=accumulation_steps,
    batch_size=8 * accumulation_steps,
  )
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  expected = loop.fit(run, str(whole))
  logged = metrics.read_metrics(whole)
  shares = {
    m["step"]: m["target/gradient_share"] for m in logged if "target/gradient_share" in m
  }
  assert sorted(shares) == [1, 4, 7]
  assert all(0.1 < share < 1 for share in shares.values())
  assert np.any(np.asarray(expected.state.policies["selection"].value_N))
  shutil.copytree(whole, parts)
  shutil.rmtree(parts / "checkpoints" / str(NUM_STEPS))
  assert_same(loop.fit(run, str(parts)).state, expected.state)
  assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_gradient_of_full_rank_that_is_never_old_gives_the_values_of_linear_maps(
  build, tmp_path
):
  config = DecoderConfig(
    vocab_size=258, width=16, num_layers=2, num_heads=2, num_kv_heads=2, mlp_width=32
  )
  chosen = policies.combine(selection=selection.in_run_shapley())
  found = {}
  for alignment in ("linear_maps", "low_rank"):
    run = build(
      chosen,
      {"draw": "gumbel_top_k", "steps_per_round": 100},
      model=decoder(config),
      target=TargetConfig(
        rows=6, every_steps=1, alignment=alignment, alignment_rank=64, alignment_rows=1000
      ),
    )
    state = loop.fit(run, str(tmp_path / alignment)).state
    found[alignment] = np.asarray(state.policies["selection"].value_N)
  expected = found["linear_maps"]
  scale = np.abs(expected).max()
  assert scale > 0
  np.testing.assert_allclose(found["low_rank"], expected, rtol=0, atol=1e-5 * scale)
  num_targets = len(sources.target_rows(run.config, chosen, run.domains, None).task)
  last = metrics.read_metrics(tmp_path / "low_rank")[-1]
  for way in ("forward", "backward"):
    assert last[f"cost/extra_{way}_rows"] == NUM_STEPS * num_targets


def test_less_composes_with_mixture_and_weighting(build, tmp_path):
  chosen = policies.combine(
    mixture=mixture.odm(warmup_steps=1),
    selection=selection.less(),
    weighting=weighting.loss_reweighting(burn_in_steps=2),
  )
  run = build(chosen, DRAWN)
  result = loop.fit(run, str(tmp_path))
  names = set().union(*metrics.read_metrics(tmp_path))
  for slot in ("mixture", "selection", "weighting"):
    assert any(name.startswith(f"policy/{slot}") for name in names)
  assert result.spec.feature_size == 32
