"""Policy gradients: equal to the explicit one over all responses; rows; log-probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.data.batch import inputs_and_targets
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.policies import ExampleStats, RunSpec, TargetStats
from jdc.policies.selection import nice
from jdc.policies.selection.coefficients import coefficients, importance_ratios
from jdc.stats.directions import Adam, Moments, adam_direction
from jdc.stats.gradients import Options, make_features
from jdc.stats.policy_gradient import (
  make_log_probabilities,
  make_policy_gradient,
  prompts_of,
  response_rows,
)
from jdc.stats.projection import make_projection
from jdc.stats.target_rows import TargetRows
from jdc.train import sharding

V, SIZE, LENGTH = 7, 64, 8
CONFIG = DecoderConfig(
  vocab_size=V, width=8, num_layers=1, num_heads=2, num_kv_heads=1, mlp_width=8
)
PROMPTS = [[1, 2, 3], [4, 1], [5]]
KEY = jax.random.key(3)
MODEL = decoder(CONFIG)


@functools.cache
def params():
  return jax.tree.map(lambda x: 2 * x, MODEL.init(jax.random.key(0)))


@functools.cache
def features(*wanted):
  adam = Adam(0.9, 0.99, 1e-3) if "update_direction" in wanted else None
  return make_features(
    MODEL, (params(), None), frozenset(wanted), Options(size=SIZE), KEY, adam
  )


@functools.cache
def passes(batch_size=4):
  gradient = make_policy_gradient(features("gradient"), len(PROMPTS), batch_size, None)
  return gradient, make_log_probabilities(MODEL, batch_size, None)


@jax.jit
def log_probabilities_of_tokens(params, tokens):
  """log p of every token after each prefix of one row, by whole logits."""
  ids, positions = tokens[None], jnp.arange(LENGTH)[None]
  logits = MODEL.logits(params, ids, positions, jnp.ones_like(ids))
  return jax.nn.log_softmax(logits[0].astype(jnp.float32))


@jax.jit
@jax.value_and_grad
def log_probability(params, tokens, counts):
  """log p of the tokens that count, and its gradient."""
  told = log_probabilities_of_tokens(params, tokens)[:-1]
  return jnp.sum(told[jnp.arange(LENGTH - 1), tokens[1:]] * counts[1:])


def of_response(prompt, response):
  ids = [*prompt, *response]
  counts = [0.0] * len(prompt) + [1.0] * len(response)
  pad = lambda x: jnp.array(x + [0] * (LENGTH - len(x)))
  return log_probability(params(), pad(ids), pad(counts))


@jax.jit
@jax.grad
def reward_gradient(params, tokens, last, reward_V):
  """Of the expected reward of one token after `last`."""
  return jnp.sum(jnp.exp(log_probabilities_of_tokens(params, tokens)[last]) * reward_V)


def projected(tree):
  stacked = jax.tree.map(lambda x: x[None], tree)
  return np.asarray(make_projection("count_sketch", SIZE, KEY)(stacked)[0], np.float64)


def assert_close(actual, expected):
  scale = np.linalg.norm(expected, axis=-1, keepdims=True).max()
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("baseline", [False, True])
def test_equals_the_explicit_policy_gradient_where_all_responses_are_enumerated(baseline):
  """Every response of one token once, with the ratio of p to 1 / V: -grad sum_y p(y) r(y)."""
  reward = np.random.default_rng(0).uniform(size=(len(PROMPTS), V)).astype(np.float32)

  gradient, log_probabilities = passes()
  rows = response_rows(PROMPTS, [[[y] for y in range(V)]] * len(PROMPTS), LENGTH)
  log_p = log_probabilities((params(), None), rows).reshape(reward.shape)
  np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, rtol=1e-5)
  ratios = importance_ratios(log_p, np.full_like(log_p, -np.log(V)))
  a = coefficients(reward, np.zeros(len(PROMPTS)), "dataflex", baseline, importance=ratios)
  assert np.all(a[:, -1] == 0)
  found = gradient((params(), None), rows, np.asarray(a[:, :-1]).reshape(-1))
  explicit = []
  for prompt, of_prompt in zip(PROMPTS, reward, strict=True):
    ids = jnp.array(prompt + [0] * (LENGTH - len(prompt)))
    explicit.append(projected(reward_gradient(params(), ids, len(prompt) - 1, of_prompt)))
  assert_close(found.gradient_MxR, -np.stack(explicit))
  assert found.num_rows == V * len(PROMPTS)


def test_sums_the_tokens_of_a_response_and_passes_over_those_without_a_coefficient():
  responses = [[[1, 2, 6], [3]], [[0, 0], [5, 4, 3, 2]], [[2], [2]]]
  a = np.array([0.5, -1.5, 0.0, 2.0, 0.0, 0.0], np.float32)

  told = [[of_response(x, y) for y in ys] for x, ys in zip(PROMPTS, responses, strict=True)]
  # NLL is the sum, so that its gradient is less that of log p.
  explicit = [
    -sum(float(a[2 * j + k]) * projected(told[j][k][1]) for k in range(2)) for j in range(3)
  ]
  rows = response_rows(PROMPTS, responses, LENGTH)
  for batch_size in (4, 2):
    found = passes(batch_size)[0]((params(), None), rows, a)
    assert_close(found.gradient_MxR, np.stack(explicit))
    assert found.num_rows == 3
  assert np.all(found.gradient_MxR[2] == 0)
  log_p = passes()[1]((params(), None), rows)
  expected = [float(value) for of_prompt in told for value, _ in of_prompt]
  np.testing.assert_allclose(log_p, expected, rtol=1e-5)


def test_the_same_on_eight_devices():
  responses = [[[1, 2, 6], [3]], [[0, 0], [5, 4, 3, 2]], [[2], [2]]]
  a = np.linspace(-1, 1, 6).astype(np.float32)
  rows = response_rows(PROMPTS, responses, LENGTH)
  expected = passes()[0]((params(), None), rows, a).gradient_MxR
  mesh = sharding.make_mesh(data=8)
  batches = sharding.batch_sharding(mesh)
  options = Options(size=SIZE)
  split = make_features(
    MODEL, (params(), None), frozenset({"gradient"}), options, KEY, None, batches
  )
  with jax.set_mesh(mesh):
    placed = jax.device_put(params(), jax.NamedSharding(mesh, jax.P()))
    found = make_policy_gradient(split, 3, 8, batches)((placed, None), rows, a)
    log_p = make_log_probabilities(MODEL, 8, batches)((placed, None), rows)
  assert_close(np.asarray(found.gradient_MxR), np.asarray(expected))
  np.testing.assert_allclose(log_p, passes()[1]((params(), None), rows), rtol=1e-5)


def test_nice_matches_adams_directions_with_the_policy_gradient():
  """The cosines of R Gamma(g_i) and R G_j, from trees; those of plain gradients differ."""
  adam, tree = Adam(0.9, 0.99, 1e-3), params()
  rng = np.random.default_rng(2)
  moments = Moments(
    jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), tree),
    jax.tree.map(lambda x: jnp.asarray(rng.uniform(size=x.shape), jnp.float32), tree),
    jnp.int32(4),
  )
  pool = [([1, 2], [3, 4]), ([5, 6, 1], [2]), ([2], [2, 2, 2]), ([0, 1], [6])]
  rows = response_rows([p for p, _ in pool], [[y] for _, y in pool], LENGTH)
  inputs = inputs_and_targets(jnp.asarray(rows.tokens), jnp.asarray(rows.segments))
  told = jax.jit(features("gradient", "update_direction").compute)(
    (tree, None), moments, inputs
  )
  responses = response_rows(PROMPTS, [[[6, 1]], [[3]], [[2, 4]]], LENGTH)
  a = np.array([1.0, 0.3, 0.7], np.float32)
  target = TargetStats(
    gradient=passes()[0]((tree, None), responses, a).gradient_MxR, task=jnp.array([0, 0, 1])
  )
  sizes = {"sweep_size": 4, "num_targets": 3, "num_tasks": 2, "feature_size": SIZE}
  spec = RunSpec(4, 1, ("web",), (4,), (1.0,), num_responses=1, **sizes)

  def logits(direction):
    policy = nice(direction)
    _, state = policy.init(spec, KEY)
    observed = {direction: told[direction], "target": target}
    stats = ExampleStats(
      example_id=jnp.arange(4),
      score=policy.score(ExampleStats(**observed), state),
      target=target,
      target_reward=jnp.ones((3, 1)),
    )
    return np.asarray(policy.update(stats, state)[0].logits)

  unit = lambda x: x / np.linalg.norm(x)
  of_mean = lambda x, y: jax.tree.map(lambda g: -g / len(y), of_response(x, y)[1])
  gradients = [of_mean(*each) for each in pool]
  gamma = [unit(projected(adam_direction("optimizer", adam, g, moments))) for g in gradients]
  plain = [unit(projected(g)) for g in gradients]
  goal = [unit(x) for x in np.asarray(target.gradient, np.float64)]
  for direction, found in (("update_direction", gamma), ("gradient", plain)):
    cosine = np.array([[x @ y for y in goal] for x in found])
    expected = np.maximum(cosine[:, :2].mean(axis=1), cosine[:, 2])
    np.testing.assert_allclose(logits(direction), expected, atol=1e-5)
  assert np.max(np.abs(logits("update_direction") - logits("gradient"))) > 0.1


def test_prompts_and_rows():
  tokens = np.array([[1, 2, 3, 4, 5, 6, 0], [1, 2, 3, 4, 5, 6, 7]])
  segments = np.array([[-1, 1, 1, -1, 1, 1, 0], [-1, -1, 1, 1, -1, -1, -1]])
  found = prompts_of(TargetRows(tokens, segments, np.zeros(2), np.zeros(2)))
  assert found.prompts == [[1, 2, 3, 4], [1, 2]]
  assert found.references == [[5, 6], [3, 4]]
  with pytest.raises(ValueError, match="without a prompt are the target rows 1"):
    prompts_of(TargetRows(tokens, np.array([segments[0], [1] * 7]), None, None))
  rows = response_rows([[1, 2], [3]], [[[4], [5, 6]], [[7, 7]]], 4)
  assert rows.tokens.tolist() == [[1, 2, 4, 0], [1, 2, 5, 6], [3, 7, 7, 0]]
  assert rows.segments.tolist() == [[-1, -1, 1, 0], [-1, -1, 1, 1], [-1, 1, 1, 0]]
  assert rows.prompt.tolist() == [0, 0, 1]
  with pytest.raises(ValueError, match="rows of 3 tokens; too long are 0"):
    response_rows([[1, 2], [3]], [[[4], [5, 6]], [[7, 7]]], 3)
