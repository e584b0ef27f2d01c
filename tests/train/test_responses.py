"""Responses in a run: drawn from the model as it is, rewarded, made the target's gradient."""

import dataclasses

import jax
import numpy as np
import pytest

from jdc import policies
from jdc.models.decoder import decoder
from jdc.policies import DataPolicy, selection
from jdc.policies.selection.coefficients import coefficients
from jdc.stats.directions import Adam
from jdc.stats.policy_gradient import (
  make_log_probabilities,
  make_policy_gradient,
  prompts_of,
  response_rows,
)
from jdc.train import features as features_lib
from jdc.train import loop, offline, setup, sharding, sources, state
from jdc.train.config import FeaturesConfig, ResponsesConfig, TargetConfig
from jdc.train.responses import Responses
from jdc.train.state import Reference, Start

GIVEN = ResponsesConfig(count=3, max_new_tokens=5, coefficients="dataflex", batch_size=8)
OFFICIAL = dataclasses.replace(GIVEN, coefficients="official")


def harsh(prompt, response, reference):
  """The share of ASCII letters; short right answers have more than drawn ones, others less."""
  del prompt
  if response == reference:
    return 0.9 if len(response) == 1 else 0.3
  return sum(letter.isascii() for letter in response) / max(len(response), 1)


@pytest.fixture(scope="module")
def build(small_run, rewarded):
  """Returns `build(policies, responses, **parts)`, a short run with questions as targets."""

  def build(chosen=None, given=GIVEN, **fields):
    chosen = chosen or policies.combine(selection=selection.nice())
    settings = {
      "num_steps": 3, "steps_per_round": 2, "sweep_rows": 24, "draw": "top_k",
      "top_k_fraction": 0.5, "features": FeaturesConfig(size=32),
      "target": TargetConfig(rows=6, every_steps=50), "adam": Adam(0.9, 0.999, 1e-8),
    }  # fmt: skip
    run = small_run(chosen, **settings | rewarded | fields)
    return run._replace(config=dataclasses.replace(run.config, responses=given))

  return build


@pytest.fixture(scope="module")
def drawing(build):
  """Returns `drawing(responses, frozen)`, what draws responses in a run before it starts."""

  def parts(given, frozen=None):
    run = build(given=given)
    run = run._replace(responses=run.responses._replace(reward=harsh, frozen=frozen))
    mesh = sharding.make_mesh(**dataclasses.asdict(run.config.mesh))
    batches, start = sharding.batch_sharding(mesh), Start(run.model)
    targets = sources.target_rows(run.config, run.policies, run.domains, run.tasks)
    features = features_lib.of_run(run.config, start, run.policies, run.adam, batches)
    sizes = setup.sizes_of(run.model, run.domains, targets, run.tasks)
    sizes = sizes._replace(feature_size=32, num_responses=3)
    spec = setup.run_spec(run.config, run.domains, run.policies, sizes)
    _, states = state.init_policies(run.policies, spec, 0)
    with jax.set_mesh(mesh):
      begun = state.init(start, run.optimizer, states, mesh, 0)
      begun = begun._replace(fixed=sources.fixed_parts(None, targets, mesh))
      refresh = sources.make_refresh(
        run.config, run.model, run.policies, targets, spec, batches, features.target,
        run.responses,
      )  # fmt: skip
    return run, mesh, targets, features.target, begun, refresh

  return parts


def reference_gradient(run, mesh, targets, features, begun, drawn, frozen):
  given = run.config.responses
  prompts, answers = prompts_of(targets)
  text = lambda ids: run.responses.decode([i for i in ids if i not in run.responses.stop_ids])
  rewards = np.array([
    [harsh("", text(y.ids), text(answer)) for y in ys]
    for ys, answer in zip(drawn.completions, answers, strict=True)
  ])  # fmt: skip
  right = np.array([harsh("", text(answer), text(answer)) for answer in answers])
  batches = sharding.batch_sharding(mesh)
  ids = [[y.ids for y in ys] for ys in drawn.completions]
  rows = response_rows(prompts, ids, targets.tokens.shape[1])
  ratios = None
  if frozen:
    log_p = make_log_probabilities(run.model, 8, batches)(begun.parts, rows)
    log_q = [[sum(y.log_probabilities) for y in ys] for ys in drawn.completions]
    log_ratios = log_p.reshape(rewards.shape) - np.array(log_q)
    ratios = np.minimum(np.exp(log_ratios), given.largest_ratio or np.inf)
  rule = given.coefficients
  a = coefficients(rewards, right, rule, given.baseline, given.best, importance=ratios)
  every = [[*ys, answer] for ys, answer in zip(ids, answers, strict=True)]
  rows = response_rows(prompts, every, targets.tokens.shape[1])
  passed = make_policy_gradient(features, len(prompts), 8, batches)(
    begun.parts, rows, np.asarray(a).reshape(-1)
  )
  return rewards, a, passed.gradient_MxR


@pytest.mark.parametrize(
  ("given", "frozen"),
  [
    (GIVEN, False),
    (GIVEN, True),
    (dataclasses.replace(GIVEN, baseline=True, largest_ratio=0.8), True),
    (OFFICIAL, False),
    (dataclasses.replace(OFFICIAL, baseline=True, best=2), False),
  ],
)
def test_the_targets_gradient_is_that_of_the_rewards_of_what_was_drawn(
  drawing, model_config, given, frozen
):
  writer = decoder(model_config)

  def load(mesh):
    return jax.device_put(writer.init(jax.random.key(5)), jax.NamedSharding(mesh, jax.P()))

  other = Reference(writer, load, "other") if frozen else None
  run, mesh, targets, features, begun, refresh = drawing(given, other)
  with jax.set_mesh(mesh):
    told, cost = refresh(begun)
    found, _, drawn = refresh.rewarded.compute(begun, told.target)
    parts = (run, mesh, targets, features, begun, drawn, frozen)
    rewards, a, expected = reference_gradient(*parts)
    _, _, other_drawn = refresh.rewarded.compute(
      begun._replace(step=begun.step + 1), told.target
    )
  np.testing.assert_allclose(found.reward, rewards, rtol=1e-6)
  np.testing.assert_array_equal(told.target.stats.gradient, found.stats.gradient)  # same draws
  np.testing.assert_allclose(found.stats.gradient, expected, rtol=0, atol=1e-5)
  assert other_drawn.completions != drawn.completions  # of another step
  assert np.any(np.asarray(expected) != 0)
  if given.coefficients == "official":  # right answers take the place of some, not of all
    assert 0 < np.sum(np.asarray(a)[:, -1] > 0) < len(targets.task)
  rows = len(targets.task) * 3
  passed = int(np.sum(np.asarray(a) != 0))
  assert cost == (len(targets.task) + rows * (1 + frozen) + passed, passed)
  shapes = jax.eval_shape(lambda x: x, told.target)
  abstract = refresh.shapes(jax.eval_shape(lambda x: x, begun.parts))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
    lambda x: (x.shape, x.dtype), abstract
  )


def test_scores_of_a_pool_by_rewards_without_training(build, tmp_path):
  found = offline.score(build(), str(tmp_path))
  assert np.isfinite(found.columns["score"]).sum() == 24
  assert 0 < found.metrics["mean_reward"] < 1
  assert found.cost.backward > 0


def made_reward(limit):
  def reward(prompt, response, reference):
    return float(len(response) > limit)

  return reward


def test_a_reward_is_known_by_its_text_and_by_what_it_holds():
  def reward(prompt, response, reference):
    return 1.0

  def described(function):
    return Responses(function, str, ()).describe()

  first = described(reward)

  def reward(prompt, response, reference):
    return 0.5

  changed = {name for name, x in described(reward).items() if x != first[name]}
  assert changed == {"responses.reward_text"}
  assert described(made_reward(1)) == described(made_reward(1)) != described(made_reward(2))
  assert described(max)["responses.reward"] == "builtins.max"


def test_a_reward_that_fails_stops_the_run_with_the_prompt(build, tmp_path):
  def strict(prompt, response, reference):
    if prompt == "say fig:" and response != reference:
      raise KeyError("no")
    return 1.0

  run = build()
  run = run._replace(responses=run.responses._replace(reward=strict))
  with pytest.raises(ValueError, match=r"reward of prompt 3 with the response .* KeyError"):
    loop.fit(run, str(tmp_path))


def test_refuses_what_cannot_work_together(build, small_model, tmp_path):
  def problem(run):
    with pytest.raises(ValueError) as found:
      loop.fit(run, str(tmp_path))
    return str(found.value)

  assert "set config.responses.reward" in problem(build(responses=None))
  less = policies.combine(selection=selection.less())
  assert "no policy observes target_reward" in problem(build(less))
  assert "without a prompt are the target rows" in problem(build(tasks=None))
  long = dataclasses.replace(GIVEN, max_new_tokens=30, top_p=0.0)
  message = problem(build(given=long))
  assert "responses.max_new_tokens=30 must fit a row of 33 tokens" in message
  assert "top_p" in message
  assert "offers empty_cache and extend" in problem(build(model=small_model))
  run = build(given=dataclasses.replace(GIVEN, temperature=0.5))
  writer = Reference(run.model, None, "other")
  off_policy = run._replace(responses=run.responses._replace(frozen=writer))
  assert "at responses.temperature=1" in problem(off_policy)
  other = DataPolicy(
    lambda *_: None, lambda *_: None, frozenset({"gradient", "target"}), "step"
  )
  both = policies.combine(selection=selection.nice(), weighting=other)
  assert "they cannot be in one run" in problem(build(both))
