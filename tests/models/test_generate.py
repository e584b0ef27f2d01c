"""Tests of generation: what is chosen, when it stops, and that batches do not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.models import DecoderConfig
from jdc.models.base import MESH_AXES
from jdc.models.decoder import decoder
from jdc.models.generate import generate
from jdc.models.sampling import Sampling, choose, kept_logits

CONFIG = DecoderConfig(
  vocab_size=48,
  width=16,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  mlp_width=24,
  sliding_window=6,
  layer_types=("local", "global"),
  initializer_scale=4.0,
)
MODEL = decoder(CONFIG)
PARAMS = MODEL.init(jax.random.key(0))
LOGITS = jax.jit(MODEL.logits)
DRAWN = {"temperature": 1.0, "seed": 5}
PROMPTS = [np.random.default_rng(i).integers(0, 48, 1 + 5 * i % 11).tolist() for i in range(9)]


def next_logits(ids):
  """The logits after some tokens, from the forward pass of whole rows, float64."""
  index = np.arange(32, dtype=np.int32)[None]
  tokens = np.pad(np.array(ids, np.int32), (0, 32 - len(ids)))[None]
  return np.float64(LOGITS(PARAMS, tokens, index, np.int32(index < len(ids)))[0, len(ids) - 1])


def log_softmax(z):
  return z - z.max() - np.log(np.exp(z - z.max()).sum())


def greedy(prompt, count, stop_ids=()):
  """Completion of a prompt, one forward pass a token."""
  ids, log_probabilities = list(prompt), []
  while len(log_probabilities) < count:
    z = log_softmax(next_logits(ids))
    ids.append(int(z.argmax()))
    log_probabilities.append(z.max())
    if ids[-1] in stop_ids:
      break
  return ids[len(prompt) :], log_probabilities


@pytest.fixture(scope="module")
def greedy_completions():
  return generate(MODEL, PARAMS, PROMPTS, max_new_tokens=12, batch_size=4)


def test_greedy_agrees_with_a_forward_pass_for_every_token(greedy_completions):
  for prompt, completion in zip(PROMPTS, greedy_completions, strict=True):
    ids, log_probabilities = greedy(prompt, 12)
    assert completion.ids == ids
    np.testing.assert_allclose(completion.log_probabilities, log_probabilities, atol=1e-4)
    assert completion.stopped == "length"


def test_stops_after_a_stop_id(greedy_completions):
  stop_ids = (greedy_completions[0].ids[3], greedy_completions[1].ids[0])
  found = generate(MODEL, PARAMS, PROMPTS, max_new_tokens=12, batch_size=4, stop_ids=stop_ids)
  for prompt, completion in zip(PROMPTS, found, strict=True):
    ids, log_probabilities = greedy(prompt, 12, stop_ids)
    assert completion.ids == ids
    assert len(completion.log_probabilities) == len(log_probabilities)
    assert completion.stopped == ("stop" if ids[-1] in stop_ids else "length")
  assert len(found[1].ids) == 1
  assert {completion.stopped for completion in found} == {"stop", "length"}


def test_stops_where_the_host_says(greedy_completions):
  stop = lambda ids: sum(ids) > 25
  found = generate(MODEL, PARAMS, PROMPTS, max_new_tokens=12, batch_size=4, stop=stop)
  lengths = []
  for before, after in zip(greedy_completions, found, strict=True):
    n = next(n for n in range(1, 13) if stop(before.ids[:n]))
    assert after.ids == before.ids[:n]
    assert len(after.log_probabilities) == n
    assert after.stopped == "stop"
    lengths.append(n)
  assert {1, 2} <= {*lengths}  # at the first look, and right after it


def test_the_host_is_asked_again_later():
  # 1 token, then 32, then 32: the row has to stop in the last part.
  [found] = generate(
    MODEL, PARAMS, [[3]], max_new_tokens=80, batch_size=1, stop=lambda ids: len(ids) >= 50
  )
  [whole] = generate(MODEL, PARAMS, [[3]], max_new_tokens=80, batch_size=1)
  assert found.ids == whole.ids[:50]
  assert found.stopped == "stop"


@pytest.mark.parametrize("options", [{}, DRAWN | {"top_k": 9, "top_p": 0.9}])
def test_batches_buckets_and_devices_do_not_matter(options):
  mesh = jax.make_mesh((2, 2, 1, 2), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
  expected = generate(MODEL, PARAMS, PROMPTS, max_new_tokens=8, batch_size=9, **options)
  specs = MODEL.partition_specs(PARAMS)
  on_mesh = jax.device_put(
    PARAMS, jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
  )
  for other in [
    generate(MODEL, PARAMS, PROMPTS, max_new_tokens=8, batch_size=2, **options),
    generate(
      MODEL, PARAMS, PROMPTS, max_new_tokens=8, batch_size=4, buckets=(5, 16), **options
    ),
    generate(MODEL, on_mesh, PROMPTS, max_new_tokens=8, batch_size=4, mesh=mesh, **options),
  ]:
    for a, b in zip(expected, other, strict=True):
      assert a.ids == b.ids
      np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, atol=1e-4)


def test_draws_follow_the_seed_and_the_prompt():
  draw = lambda seed: generate(
    MODEL, PARAMS, [[3, 4]] * 4, max_new_tokens=8, batch_size=4, temperature=1.0, seed=seed
  )
  assert draw(0) == draw(0)
  assert draw(0) != draw(1)
  assert len({tuple(completion.ids) for completion in draw(0)}) > 1  # equal prompts
  for completion in draw(2):
    z = log_softmax(next_logits([3, 4]))
    assert completion.log_probabilities[0] == pytest.approx(z[completion.ids[0]], abs=1e-4)


def test_draws_of_their_own_do_not_depend_on_other_prompts():
  prompts = [[3, 4], [5], [6, 7, 8]]
  options = {"max_new_tokens": 8, "batch_size": 4, "temperature": 1.0}
  together = generate(MODEL, PARAMS, prompts, draws=[70, 2, 9], **options)
  turned = generate(MODEL, PARAMS, prompts[::-1], draws=[9, 2, 70], **options)
  assert [c.ids for c in turned[::-1]] == [c.ids for c in together]
  assert generate(MODEL, PARAMS, prompts[:1], draws=[71], **options)[0].ids != together[0].ids
  assert generate(MODEL, PARAMS, prompts, **options) == generate(
    MODEL, PARAMS, prompts, draws=range(3), **options
  )
  for draws, said in (([0, 1], "a number for each of 3"), ([0, 1 << 31, -1], "2147483648, -1")):
    with pytest.raises(ValueError, match=said):
      generate(MODEL, PARAMS, prompts, draws=draws, **options)


def test_every_token_is_a_draw_of_its_own():
  """A model that always has the same logits: 1,000 tokens have their probabilities."""
  z = np.array([0.0, 1.0, 2.0], np.float32)
  constant = MODEL._replace(
    vocab_size=3,
    extend=lambda params, tokens, positions, valid, cache: (
      jnp.tile(z, (len(tokens), 1)),
      cache,
    ),
  )
  found = generate(constant, {}, [[0]] * 20, max_new_tokens=50, temperature=1.0, batch_size=20)
  ids = np.array([completion.ids for completion in found])
  p = np.exp(z) / np.exp(z).sum()
  share = np.bincount(ids.ravel(), minlength=3) / ids.size
  np.testing.assert_allclose(share, p, atol=0.05)
  repeated = (ids[:, 1:] == ids[:, :-1]).mean()  # neighbours are independent
  assert repeated == pytest.approx((p**2).sum(), abs=0.06)


def test_draws_have_the_probabilities_of_softmax():
  """A chi-squared test of 40,000 draws at temperature 0.7 among the top tokens."""
  z = np.random.default_rng(3).normal(0, 1.5, 12).astype(np.float32)
  count = 40_000
  keys = jax.random.split(jax.random.key(1), count)
  sampling = Sampling(0.7, 6, 0.9)
  ids, log_probabilities = choose(jnp.tile(z, (count, 1)), sampling, keys)
  np.testing.assert_allclose(log_probabilities, log_softmax(np.float64(z))[ids], atol=1e-5)
  p = reference_kept(np.float64(z) / 0.7, 6, 0.9)
  observed = np.bincount(ids, minlength=12)
  assert observed[p == 0].sum() == 0
  expected = count * p[p > 0]
  statistic = ((observed[p > 0] - expected) ** 2 / expected).sum()
  assert statistic < 20  # 99.9 % quantile for up to 5 degrees of freedom: 20.5


def reference_kept(z, top_k, top_p):
  """Probabilities after both filters, one token at a time, from the likeliest."""
  order = np.argsort(-z)[: top_k or None]
  p = np.exp(z[order] - z.max()) / np.exp(z[order] - z.max()).sum()
  kept, total = [], 0.0
  for token, probability in zip(order, p, strict=True):
    if total >= top_p:
      break
    kept.append(token)
    total += probability
  result = np.zeros(len(z))
  result[kept] = np.exp(z[kept] - z.max())
  return result / result.sum()


@pytest.mark.parametrize("top_k", [0, 1, 3, 20, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.4, 1e-6])
def test_filters_agree_with_a_loop(top_k, top_p):
  z = np.random.default_rng(top_k).normal(0, 2, (5, 20)).astype(np.float32)
  found = jax.nn.softmax(kept_logits(jnp.asarray(z), top_k, top_p), axis=-1)
  expected = [reference_kept(np.float64(row), top_k, top_p) for row in z]
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_few_compilations():
  traced = []
  counting = MODEL._replace(
    extend=lambda *args: (traced.append(args[1].shape), MODEL.extend(*args))[1]
  )
  for lengths in ([1, 2, 3], [30, 31], [5, 7, 9, 11, 20]):
    generate(counting, PARAMS, [[1] * n for n in lengths], max_new_tokens=3, batch_size=2)
  assert set(traced) == {(2, 32), (2, 1)}


def test_no_new_tokens():
  assert generate(MODEL, PARAMS, [[1]], max_new_tokens=0)[0] == ([], [], "length")
  assert generate(MODEL, PARAMS, [], max_new_tokens=4) == []


def test_lists_every_problem_before_anything_is_compiled():
  model = MODEL._replace(extend=None)
  prompts = [[1], [], [48], [1] * 30, [-1, 3]]
  with pytest.raises(ValueError) as caught:
    generate(
      model,
      PARAMS,
      prompts,
      max_new_tokens=-1,
      temperature=-0.5,
      top_k=-1,
      top_p=0.0,
      stop_ids=(3, 99),
      seed=-1,
      batch_size=0,
      buckets=(8, 16),
      context_length=16,
    )
  for part in [
    "temperature must be 0 (greedy) or positive and finite, got -0.5",
    "top_k must be 0",
    "top_p must be in (0, 1], got 0.0",
    "extend",
    "max_new_tokens must be at least 0, got -1",
    "seed must be in",
    "[99]",
    "empty: 1",
    "prompts 2, 4",
    "3 of 30 ids",
    "batch_size",
    "buckets, 16",
  ]:
    assert part in str(caught.value)


def test_a_batch_that_does_not_divide_over_the_mesh_is_an_error():
  mesh = jax.make_mesh((8, 1, 1, 1), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
  with pytest.raises(ValueError, match="multiple of data x fsdp x expert = 8, got 4"):
    generate(MODEL, PARAMS, [[1]], max_new_tokens=1, batch_size=4, mesh=mesh)
