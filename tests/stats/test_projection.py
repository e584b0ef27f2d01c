"""Projections: against their matrices, unbiased with the known variance, block by block."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.stats import projection

PATHS = ("layers/gate/kernel", "output/bias")


def tree_of(rows_BxP):
  """Two leaves, 3 x 4 numbers of layers in the first."""
  first, second = rows_BxP[:, :12], rows_BxP[:, 12:]
  return {
    "layers": {"gate": {"kernel": first.reshape(-1, 3, 2, 2)}},
    "output": {"bias": second},
  }


def project(kind, size, key, tree):
  return np.asarray(jax.jit(projection.make_projection(kind, size, key))(tree))


def signs_of(key, shape):
  """-1 or 1 by the bits of each word, the lowest first."""
  words = np.asarray(jax.random.bits(key, (shape[0], -(-shape[1] // 32)), jnp.uint32))
  bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
  return 1.0 - 2.0 * bits[:, : shape[1]]


@pytest.mark.parametrize(("block", "size"), [(32 * 7, 32), (1 << 20, 96)])
def test_rademacher_is_its_matrix(monkeypatch, block, size):
  monkeypatch.setattr(projection, "_BLOCK", block)
  key, rows = jax.random.key(3), np.random.default_rng(0).normal(size=(4, 29))
  parts, length = [], max(1, block // size)
  for path, count in zip(PATHS, (12, 17), strict=True):
    leaf_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    for i, start in enumerate(range(0, count, length)):
      shape = (min(length, count - start), size)
      parts.append(signs_of(jax.random.fold_in(leaf_key, i), shape))
  matrix_PxR = np.concatenate(parts) / np.sqrt(size)
  found = project("rademacher", size, key, tree_of(np.float32(rows)))
  scale = np.linalg.norm(rows, axis=1).max()
  np.testing.assert_allclose(found, rows @ matrix_PxR, rtol=0, atol=1e-6 * scale)
  assert abs(matrix_PxR.mean()) < 4 / np.sqrt(matrix_PxR.size * size)


@pytest.mark.parametrize(("block", "size"), [(16, 5), (16, 8), (1 << 20, 1), (1 << 20, 33)])
def test_count_sketch_adds_signed_numbers_into_buckets(monkeypatch, block, size):
  monkeypatch.setattr(projection, "_BLOCK", block)
  key = jax.random.key(4)
  rows = np.random.default_rng(1).normal(size=(3, 29))
  both = np.float32(np.concatenate([np.eye(29), rows]))
  found = project("count_sketch", size, key, tree_of(both))
  matrix_PxR = found[:29]
  assert (np.sum(matrix_PxR != 0, axis=1) == 1).all()
  assert {*np.unique(matrix_PxR)} <= {-1.0, 0.0, 1.0}
  # The R numbers of a row of the fold are in R buckets.
  bucket_P = np.argmax(matrix_PxR != 0, axis=1)
  for start, count in ((0, 12), (12, 17)):
    for first in range(start, start + count, size):
      row = bucket_P[first : min(first + size, start + count)]
      assert len({*row}) == len(row)
  scale = np.linalg.norm(rows, axis=1).max()
  np.testing.assert_allclose(found[29:], rows @ matrix_PxR, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("kind", projection.PROJECTIONS)
def test_inner_products_are_unbiased(kind):
  """Their mean and their variance over 4,000 keys are the known ones."""
  size, num_keys = 32, 4000
  rng = np.random.default_rng(2)
  g, h = rng.normal(size=(2, 29)) + 0.4
  pair = tree_of(jnp.float32(np.stack([g, h])))

  def product(key):
    y, z = projection.make_projection(kind, size, key)(pair)
    return y @ z

  found = np.asarray(jax.jit(jax.vmap(product))(jax.random.split(jax.random.key(5), num_keys)))
  true, squares = g @ h, (g @ g) * (h @ h)
  bound = (squares + true**2) / size
  assert abs(found.mean() - true) < 4 * np.sqrt(bound / num_keys)
  # Without the pairs that never meet: a number with itself, or all of a row of the fold.
  if kind == "rademacher":
    variance = bound - 2 * np.sum(g**2 * h**2) / size
  else:
    rows = [slice(0, 12), slice(12, 29)]
    apart = sum((g[r] @ g[r]) * (h[r] @ h[r]) + (g[r] @ h[r]) ** 2 for r in rows)
    variance = bound - apart / size
  # The variance of a variance over keys is about 2 / keys of its square, for near normal sums.
  assert abs(found.var() / variance - 1) < 6 * np.sqrt(3 / num_keys)


@pytest.mark.parametrize("kind", projection.PROJECTIONS)
def test_leaves_do_not_depend_on_each_other(kind):
  key, whole = jax.random.key(6), tree_of(np.random.default_rng(3).normal(size=(2, 29)))
  parts = [project(kind, 64, key, {name: whole[name]}) for name in whole]
  found = project(kind, 64, key, whole)
  np.testing.assert_allclose(found, parts[0] + parts[1], rtol=0, atol=1e-5)
  renamed = project(kind, 64, key, {"layers": {"up": whole["layers"]["gate"]}})
  assert not np.allclose(renamed, parts[0], atol=0.1)
  assert not np.allclose(project(kind, 64, jax.random.key(7), whole), found, atol=0.1)


def test_equal_columns_do_not_always_share_buckets():
  """A matrix of R columns has each of them in one bucket, but for the offsets."""
  unit = np.eye(64, dtype=np.float32).reshape(64, 8, 8)
  matrix_PxR = project("count_sketch", 8, jax.random.key(8), {"kernel": unit})
  bucket = np.argmax(matrix_PxR != 0, axis=1).reshape(8, 8)
  assert len({*bucket[:, 0]}) > 3


@pytest.mark.parametrize("kind", projection.PROJECTIONS)
def test_gradients_of_any_type_are_summed_in_float32(kind):
  rows = jnp.asarray(np.random.default_rng(4).normal(size=(2, 29)), jnp.bfloat16)
  found, exact, zero = (
    project(kind, 32, jax.random.key(9), tree_of(x)) for x in (rows, np.float32(rows), 0 * rows)
  )
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, exact)
  np.testing.assert_array_equal(zero, 0)


def test_no_matrix_of_a_projection_exists():
  """A million numbers to 1,024 features: 4 GiB if they did."""
  tree = {"kernel": jax.ShapeDtypeStruct((2, 1_000_000), jnp.float32)}
  for kind in projection.PROJECTIONS:
    one = projection.make_projection(kind, 1024, jax.random.key(0))
    held = jax.jit(one).lower(tree).compile().memory_analysis().temp_size_in_bytes
    assert held < 80 << 20, kind


@pytest.mark.parametrize(
  ("kind", "size", "message"),
  [
    ("rademacher", 48, "features.size must be a multiple of 32 for 'rademacher', got 48"),
    ("sketch", 0, r"features.projection.*'count_sketch'.*'sketch'; features.size.*least 1.*0"),
    ("count_sketch", 2.0, r"features.size must be an integer of at least 1, got 2.0"),
  ],
)
def test_wrong_options_are_named(kind, size, message):
  with pytest.raises(ValueError, match=message):
    projection.make_projection(kind, size, jax.random.key(0))
