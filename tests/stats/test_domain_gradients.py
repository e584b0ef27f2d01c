"""Gradients of domains: which rows are probed, and products that equal those of `jax.grad`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.data import loader
from jdc.data.batch import inputs_and_targets
from jdc.models import subsets
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.lora import LoraConfig
from jdc.stats import probes
from jdc.stats.domain_gradients import make_domain_products
from jdc.stats.target_rows import TargetRows
from jdc.train import sharding

K, ROWS, T, V, M = 3, 2, 9, 24, 5
CONFIG = DecoderConfig(
  vocab_size=V, width=16, num_layers=2, num_heads=2, num_kv_heads=2, mlp_width=16
)
SIZES = (7, 4, 30)


class Rows:
  """Rows of up to two documents, drawn at random by their number."""

  def __init__(self, first, size):
    self.first, self.size = first, size

  def __len__(self):
    return self.size

  def rows(self, ids):
    found = [random_row(self.first + i) for i in ids]
    return np.stack([tokens for tokens, _ in found]), np.stack([s for _, s in found])


def random_row(number):
  rng = np.random.default_rng(number)
  segments = np.zeros(T + 1, np.int32)
  first, both = sorted(rng.integers(2, T + 2, 2))
  segments[:both], segments[:first] = 2, 1
  segments[: rng.integers(0, first)] = -1
  return rng.integers(0, V, T + 1).astype(np.int32), segments


@pytest.fixture(scope="module")
def pool():
  starts = np.cumsum([0, *SIZES])
  return loader.Pool([Rows(s, n) for s, n in zip(starts[:-1], SIZES, strict=True)], T)


def test_halves_are_disjoint_rows_of_their_domain():
  draws = [probes.probe_ids(SIZES, ROWS, 1, r) for r in range(50)]
  starts = np.cumsum([0, *SIZES])
  for ids in draws:
    assert ids.shape == (K, 2, ROWS)
    for k in range(K):
      assert len({*ids[k].ravel()}) == 2 * ROWS
      assert ((starts[k] <= ids[k]) & (ids[k] < starts[k + 1])).all()
  np.testing.assert_array_equal(draws[3], probes.probe_ids(SIZES, ROWS, 1, 3))
  assert (draws[3] != probes.probe_ids(SIZES, ROWS, 2, 3)).any()
  assert {*np.ravel(draws)} == {*range(sum(SIZES))}
  # Another domain does not change which rows are drawn of this one.
  np.testing.assert_array_equal(probes.probe_ids((7, 9), ROWS, 1, 3)[0], draws[3][0])


def test_too_few_rows_name_every_domain():
  probes.check_probes("abc", SIZES, 2)
  with pytest.raises(ValueError, match=r"8 rows of each domain; fewer have: a \(7\), b \(4\)$"):
    probes.check_probes("abc", SIZES, 4)
  with pytest.raises(ValueError, match="at least 1, got 0"):
    probes.check_probes("abc", SIZES, 0)


def test_halves_are_padded_to_the_shards(pool):
  batches = sharding.batch_sharding(sharding.make_mesh())
  ids = probes.probe_ids(SIZES, ROWS, 0, 0)
  found, plain = (probes.read_probes(pool, ids, s) for s in (batches, None))
  assert found.tokens.shape == (K, 2, 8, T + 1)
  assert not np.any(found.segments[:, :, ROWS:])
  for padded, alone in zip(found, plain, strict=True):
    np.testing.assert_array_equal(padded[:, :, :ROWS], alone)
  np.testing.assert_array_equal(plain.tokens[2, 1, 0], random_row(ids[2, 1, 0])[0])


@functools.cache
def case(name):
  """A model, its parameters in two parts, and which of the first are accepted."""
  lora = LoraConfig(rank=2) if name == "lora" else None
  model = decoder(CONFIG, loss_chunk=5, lora=lora)
  params = model.init(jax.random.key(1))
  if lora is not None:  # adapters start with one factor 0
    params = jax.tree.map(lambda x: x + 0.02, params)
    trained, frozen = subsets.split(params, subsets.matcher(["*/lora_*"]))
    return model, (trained, frozen), subsets.matcher(["*/lora_b"])
  return model, (params, None), subsets.matcher(["layers/*"]) if name == "part" else None


@functools.cache
def expected(name):
  """Products in float64 of the gradients of each half-batch, and of the target."""
  model, (trained, frozen), accepts = case(name)

  @jax.jit
  @jax.grad
  def gradient(trained, rows):
    full = trained if frozen is None else subsets.join(trained, frozen)
    losses = model.token_losses(full, *rows[:4])
    return jnp.sum(losses * rows.mask) / jnp.sum(rows.mask)

  def flat(numbers):
    rows = [random_row(i) for i in numbers]
    inputs = inputs_and_targets(*(np.stack(x) for x in zip(*rows, strict=True)))
    found = gradient(
      trained, jax.tree.map(lambda x: np.pad(x, ((0, M - len(x)), (0, 0))), inputs)
    )
    leaves = zip(subsets.paths(found), jax.tree.leaves(found), strict=True)
    kept = [np.asarray(x, np.float64) for path, x in leaves if accepts is None or accepts(path)]
    return np.concatenate([x.ravel() for x in kept])

  each = [[flat(half) for half in domain] for domain in probes.probe_ids(SIZES, ROWS, 0, 0)]
  product = np.einsum("kap,jbp->kajb", each, each)
  return product, np.einsum("kap,p->ka", each, flat(range(100, 100 + M))), product.max()


def check(name, found):
  product, alignment, scale = expected(name)
  np.testing.assert_allclose(found.domain_gradient_product, product, rtol=0, atol=1e-5 * scale)
  np.testing.assert_allclose(
    found.domain_target_alignment, alignment, rtol=0, atol=1e-5 * scale
  )


def target_rows():
  rows = [random_row(i) for i in range(100, 100 + M)]
  arrays = (np.stack(x) for x in zip(*rows, strict=True))
  return TargetRows(*arrays, np.zeros(M, np.int32), np.zeros(M, np.int32))


@pytest.mark.parametrize("name", ["whole", "part", "lora"])
def test_agrees_with_gradients_one_by_one(name, pool):
  model, params, accepts = case(name)
  read = probes.read_probes(pool, probes.probe_ids(SIZES, ROWS, 0, 0), None)
  found = make_domain_products(model, accepts)(params, read, target_rows())
  check(name, found)


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 4}])
def test_devices_do_not_matter(axes, pool):
  model, (params, _), _ = case("whole")
  mesh = sharding.make_mesh(**axes)
  batches = sharding.batch_sharding(mesh)
  placed = jax.tree.map(
    lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec)),
    params,
    model.partition_specs(params),
  )
  target = jax.device_put(target_rows(), sharding.replicated(mesh))
  products = make_domain_products(model, None, batches)
  with jax.set_mesh(mesh):
    for _ in range(2):
      read = probes.read_probes(pool, probes.probe_ids(SIZES, ROWS, 0, 0), batches)
      found = products((placed, None), read, target)
  check("whole", found)
  assert all(x.is_fully_replicated for x in found)
  assert products._cache_size() == 1


def test_without_target_rows_there_is_no_alignment(pool):
  model, params, accepts = case("lora")
  read = probes.read_probes(pool, probes.probe_ids(SIZES, ROWS, 0, 0), None)
  shapes = jax.eval_shape(make_domain_products(model, accepts), params, read)
  assert shapes.domain_gradient_product.shape == (K, 2, K, 2)
  assert shapes.domain_target_alignment is None
  with pytest.raises(ValueError, match=r"no trained parameter is accepted.*layers/.*lora_a"):
    make_domain_products(model, subsets.matcher(["output/kernel"]))(params, read)


def test_gradients_lie_where_their_parameters_lie():
  """What a device holds beyond the activations is its part of the stacked gradients."""
  config = DecoderConfig(
    vocab_size=64, width=512, num_layers=1, num_heads=2, num_kv_heads=2, mlp_width=512
  )
  model, num_domains = decoder(config), 8
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  mesh = sharding.make_mesh(data=1, fsdp=8)
  batches = sharding.batch_sharding(mesh)
  params = jax.tree.map(
    lambda x, spec: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec)
    ),
    shapes,
    model.partition_specs(shapes),
  )
  rows = jax.ShapeDtypeStruct(
    (num_domains, 2, 8, T + 1),
    jnp.int32,
    sharding=jax.NamedSharding(mesh, jax.P(None, None, *batches.spec)),
  )
  with jax.set_mesh(mesh):
    lowered = make_domain_products(model, None, batches).lower(
      (params, None), probes.Probes(rows, rows)
    )
  held = lowered.compile().memory_analysis().temp_size_in_bytes
  size = sum(x.size for x in jax.tree.leaves(shapes))
  stacked = 8 * num_domains * size
  assert stacked / 8 < held < stacked / 2
