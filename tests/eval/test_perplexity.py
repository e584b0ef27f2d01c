"""Tests of the evaluation of held-out loss: its sums, its padding, its meshes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.eval.perplexity import evaluate
from jdc.models.base import BATCH_AXES, MESH_AXES
from jdc.models.decoder import DecoderConfig, decoder

MODEL = decoder(
  DecoderConfig(
    vocab_size=32,
    width=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    mlp_width=24,
    initializer_scale=2.0,
  )
)
KEY = jax.random.key(0)
LOGITS = jax.jit(MODEL.logits)


class Rows:
  """Rows of random documents; a token of row r stands for r + 1 bytes."""

  def __init__(self, num_rows, seed, num_positions=11):
    rng = np.random.default_rng(seed)
    self.tokens = rng.integers(0, 32, (num_rows, num_positions + 1), dtype=np.int32)
    cut, end = rng.integers(2, 6, (num_rows, 1)), rng.integers(7, 13, (num_rows, 1))
    index = np.arange(num_positions + 1)
    self.segments = np.int32(np.where(index < end, 1 + (index >= cut), 0))
    same = (self.segments[:, 1:] == self.segments[:, :-1]) & (self.segments[:, 1:] > 0)
    self.num_bytes = np.int32((np.arange(num_rows) + 1) * same.sum(axis=1))

  def __len__(self):
    return len(self.tokens)

  def rows(self, ids):
    assert ids.dtype == np.int64
    return self.tokens[ids], self.segments[ids]


TABLES = {"code": Rows(7, seed=1), "prose": Rows(4, seed=2)}


def reference_sums(params, table, ids):
  """Nats, target tokens and bytes, one document and one token at a time, from the logits."""
  nats, num_tokens, num_bytes = 0.0, 0, 0
  for row in ids:
    for segment in (1, 2):
      tokens = table.tokens[row][table.segments[row] == segment]
      if len(tokens) < 2:
        continue
      positions = np.arange(11, dtype=np.int32)[None]
      padded = np.pad(tokens, (0, 12 - len(tokens)))[None, :-1]  # one shape, one compilation
      output = LOGITS(params, padded, positions, np.int32(positions < len(tokens) - 1))[0]
      for t, target in enumerate(tokens[1:]):
        z = np.float64(output[t])
        nats += np.log(np.exp(z).sum()) - z[target]
        num_tokens += 1
        num_bytes += row + 1
  return nats, num_tokens, num_bytes


def make_mesh(*shape):
  axis_types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  return jax.make_mesh(shape, MESH_AXES, axis_types=axis_types)


def test_agrees_with_a_loop_over_documents():
  params = MODEL.init(KEY)
  metrics = evaluate(MODEL.token_losses, params, TABLES, batch_size=3)
  sums = {
    name: reference_sums(params, table, range(len(table))) for name, table in TABLES.items()
  }
  expected = {}
  for name, (nats, num_tokens, num_bytes) in sums.items():
    expected[f"validation/{name}/loss"] = nats / num_tokens
    expected[f"validation/{name}/perplexity"] = np.exp(nats / num_tokens)
    expected[f"validation/{name}/bits_per_byte"] = nats / np.log(2) / num_bytes
    expected[f"validation/{name}/num_tokens"] = num_tokens
    expected[f"validation/{name}/num_rows"] = len(TABLES[name])
  nats, num_tokens, num_bytes = np.sum(list(sums.values()), axis=0)
  losses = [nats / num_tokens for nats, num_tokens, _ in sums.values()]
  bits = [nats / np.log(2) / num_bytes for nats, _, num_bytes in sums.values()]
  expected |= {
    "validation/macro_loss": np.mean(losses),
    "validation/micro_loss": nats / num_tokens,
    "validation/macro_bits_per_byte": np.mean(bits),
    "validation/micro_bits_per_byte": nats / np.log(2) / num_bytes,
    "validation/num_tokens": num_tokens,
    "validation/num_rows": 11,
  }
  assert metrics.keys() == expected.keys()
  for name, value in expected.items():
    assert metrics[name] == pytest.approx(value, rel=1e-5), name


def test_bits_per_byte_by_hand():
  class OneRow:
    num_bytes = np.array([6])

    def __len__(self):
      return 1

    def rows(self, ids):
      return np.zeros((len(ids), 4), np.int32), np.array([[1, 1, 1, 0]])[[0] * len(ids)]

  # Two targets at 3 ln 2 nats are 6 bits, over 6 bytes.
  three_bits = lambda params, tokens, *_: jnp.full(tokens.shape, 3 * jnp.log(2.0))
  metrics = evaluate(three_bits, {}, {"only": OneRow()}, batch_size=2)
  assert metrics["validation/only/num_tokens"] == 2
  assert metrics["validation/only/bits_per_byte"] == pytest.approx(1.0)
  assert metrics["validation/only/perplexity"] == pytest.approx(8.0)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 32])
def test_does_not_depend_on_the_batch_size(batch_size):
  params = MODEL.init(KEY)
  expected = evaluate(MODEL.token_losses, params, TABLES, batch_size=2)
  metrics = evaluate(MODEL.token_losses, params, TABLES, batch_size)
  assert metrics == pytest.approx(expected, rel=1e-6)


def test_sums_keep_small_losses_beside_large_ones():
  class Many:
    num_bytes = np.full(64, 1024)

    def __len__(self):
      return 64

    def rows(self, ids):
      tokens = np.repeat(ids[:, None], 1025, axis=1).astype(np.int32)
      return tokens, np.ones_like(tokens)

  # A float32 sum of 2^16 terms near 2^24 would drop every 1.
  losses = lambda params, tokens, *_: jnp.where(tokens == 0, 2.0**24, 1.0)
  metrics = evaluate(losses, {}, {"many": Many()}, batch_size=16)
  assert metrics["validation/many/loss"] == (2**24 * 1024 + 63 * 1024) / 2**16


def test_compiles_once_for_all_domains_and_calls():
  traces = []

  def token_losses(params, tokens, *rest):
    traces.append(tokens.shape)
    return MODEL.token_losses(params, tokens, *rest)

  params = MODEL.init(KEY)
  for _ in range(2):
    evaluate(token_losses, params, TABLES, batch_size=3)
  assert traces == [(3, 11)]


@pytest.mark.parametrize("shape", [(2, 2, 1, 2), (4, 1, 2, 1)])
def test_sharded_equals_unsharded(shape):
  params = MODEL.init(KEY)
  expected = evaluate(MODEL.token_losses, params, TABLES, batch_size=3)
  mesh = make_mesh(*shape)
  specs = MODEL.partition_specs(params)
  split = jax.device_put(params, jax.tree.map(lambda s: jax.NamedSharding(mesh, s), specs))
  metrics = evaluate(MODEL.token_losses, split, TABLES, batch_size=8, mesh=mesh)
  assert metrics == pytest.approx(expected, rel=1e-5)


def test_rows_are_split_over_the_mesh():
  shardings = []

  def token_losses(params, tokens, *_):
    jax.debug.inspect_array_sharding(tokens, callback=shardings.append)
    return jnp.zeros(tokens.shape)

  mesh = make_mesh(2, 2, 1, 2)
  params = jax.device_put({}, jax.NamedSharding(mesh, jax.P()))
  evaluate(token_losses, params, TABLES, batch_size=8, mesh=mesh)
  expected = jax.NamedSharding(mesh, jax.P(BATCH_AXES))
  assert all(sharding.is_equivalent_to(expected, 2) for sharding in shardings)
  assert shardings


@pytest.mark.parametrize(
  ("max_rows", "ids"), [(3, [0, 2, 4]), (1, [0]), (7, range(7)), (9, range(7))]
)
def test_max_rows_are_evenly_spaced(max_rows, ids):
  params = MODEL.init(KEY)
  tables = {"code": TABLES["code"]}
  metrics = evaluate(MODEL.token_losses, params, tables, batch_size=4, max_rows=max_rows)
  nats, num_tokens, num_bytes = reference_sums(params, TABLES["code"], ids)
  assert metrics["validation/code/num_rows"] == len(ids)
  assert metrics["validation/code/num_tokens"] == num_tokens
  assert metrics["validation/code/loss"] == pytest.approx(nats / num_tokens, rel=1e-5)
  expected = nats / np.log(2) / num_bytes
  assert metrics["validation/code/bits_per_byte"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_reported_with_its_domain(bad):
  params = MODEL.init(KEY)

  def token_losses(params, tokens, *rest):
    losses_BxT = MODEL.token_losses(params, tokens, *rest)
    marked_B = jnp.all(tokens == TABLES["code"].tokens[5, :-1], axis=1)
    return jnp.where(marked_B[:, None], bad, losses_BxT)

  metrics = evaluate(token_losses, params, TABLES, batch_size=4)
  for name in (
    "code/loss",
    "code/perplexity",
    "code/bits_per_byte",
    "macro_loss",
    "micro_loss",
  ):
    assert metrics[f"validation/{name}"] == pytest.approx(bad, nan_ok=True), name
  assert math.isfinite(metrics["validation/prose/loss"])


def test_a_loss_off_target_is_ignored():
  params = MODEL.init(KEY)

  def token_losses(params, tokens, targets, positions, segments):
    losses_BxT = MODEL.token_losses(params, tokens, targets, positions, segments)
    return jnp.where(segments == 0, jnp.nan, losses_BxT)

  expected = evaluate(MODEL.token_losses, params, TABLES, batch_size=4)
  assert evaluate(token_losses, params, TABLES, batch_size=4) == pytest.approx(expected)


def test_a_huge_loss_has_infinite_perplexity():
  huge = lambda params, tokens, *_: jnp.full(tokens.shape, 1e30)
  metrics = evaluate(huge, {}, TABLES, batch_size=4)
  assert metrics["validation/code/perplexity"] == math.inf
  assert math.isfinite(metrics["validation/code/loss"])


def test_names_all_bad_arguments():
  tables = {"full": Rows(2, 0), "void": Rows(0, 0), "bare": Rows(0, 0)}
  with pytest.raises(ValueError, match=r"empty tables: void, bare; .*batch_size.*; max_rows"):
    evaluate(MODEL.token_losses, {}, tables, batch_size=0, max_rows=0)
  with pytest.raises(ValueError, match="at least one domain"):
    evaluate(MODEL.token_losses, {}, {}, batch_size=1)
  with pytest.raises(
    ValueError, match="batch_size 6 must be a multiple of data x fsdp x expert = 4"
  ):
    evaluate(MODEL.token_losses, {}, TABLES, batch_size=6, mesh=make_mesh(2, 2, 1, 2))


def test_a_domain_without_targets_is_an_error():
  single = Rows(2, 0)
  single.segments = np.tile(np.arange(1, 13, dtype=np.int32), (2, 1))
  params = MODEL.init(KEY)
  with pytest.raises(ValueError, match="no target tokens or bytes in the rows of: single"):
    evaluate(MODEL.token_losses, params, TABLES | {"single": single}, batch_size=4)
