"""Digests: every bit, place, shape, dtype and path counts, and no sharding does."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.stats import digest as digest_lib
from jdc.stats.digest import digest

DTYPES = (
  "bool", "int8", "uint16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
  "float8_e4m3fn", "int4", "complex64",
)  # fmt: skip


def with_bit(array, bit):
  changed = array.copy()
  changed.reshape(-1).view(np.uint8)[bit // 8] ^= 1 << bit % 8
  return changed


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_counts(dtype):
  dtype = jnp.dtype(dtype)
  array = np.zeros((2, 3), dtype)
  used = {"bool": 1, "int4": 4}.get(dtype.name, 8 * dtype.itemsize)
  bits = [b for b in range(8 * array.nbytes) if b % (8 * dtype.itemsize) < used]
  variants = [array, *(with_bit(array, bit) for bit in bits)]
  digests = [digest(x) for x in variants]
  assert len(set(digests)) == len(digests)
  assert all(len(d) == 32 for d in digests)
  if dtype.itemsize < 8:
    assert digest(jnp.asarray(variants[-1])) == digests[-1]


def test_nan_and_zero_are_told_by_their_bits():
  quiet = np.array([0x7FC00000, 0x7FC00001, 0, 0x80000000], np.uint32).view(np.float32)
  digests = {digest(jnp.asarray(quiet[i : i + 1])) for i in range(4)}
  assert len(digests) == 4


def test_every_swap_counts():
  array = np.arange(16, dtype=np.float32).reshape(2, 8)
  seen = {digest(array)}
  pairs = list(itertools.combinations(range(16), 2))
  for i, j in pairs:
    swapped = array.copy()
    swapped.flat[[i, j]] = swapped.flat[[j, i]]
    seen.add(digest(swapped))
  assert len(seen) == len(pairs) + 1


def test_shapes_dtypes_and_paths_count():
  x, y = np.zeros(6, np.float32), np.ones(6, np.float32)
  trees = [
    {"a": x, "b": y},
    {"a": y, "b": x},
    {"a": x, "c": y},
    {"a": x.reshape(2, 3), "b": y},
    {"a": x.view(np.int32), "b": y},
    {"a": x, "b": y, "c": None},
    {"a": x, "b": y, "c": np.zeros(0, np.float32)},
    [x, y],
    {},
  ]
  assert len({digest(tree) for tree in trees}) == len(trees)
  assert digest(trees[0]) == digest({"b": y.copy(), "a": x.copy()})


def test_typed_keys():
  keys = [jax.random.key(0), jax.random.key(1), jax.random.key(0, impl="rbg")]
  assert len({digest(key) for key in keys}) == 3
  assert digest(jax.random.key(0)) == digest(keys[0]) != digest(jax.random.key_data(keys[0]))


@pytest.mark.parametrize(
  ("kind", "shape", "spec"),
  [
    ("Auto", (1, 1), jax.P()),
    ("Auto", (2, 1), jax.P("a")),
    ("Auto", (4, 2), jax.P("a", "b")),
    ("Auto", (4, 2), jax.P(None, ("a", "b"))),
    ("Explicit", (4, 2), jax.P("a", "b")),
  ],
)
def test_the_sharding_does_not_count(kind, shape, spec):
  x = np.random.default_rng(0).normal(size=(4, 8, 16)).astype(np.float32)
  kinds = (getattr(jax.sharding.AxisType, kind),) * 2
  devices = jax.devices()[: shape[0] * shape[1]]
  mesh = jax.make_mesh(shape, ("a", "b"), axis_types=kinds, devices=devices)
  assert digest(jax.device_put(x, jax.NamedSharding(mesh, spec))) == digest(x)


@pytest.mark.parametrize("indexed", [1 << 32, 100, 12, 4])
def test_places_of_large_arrays_differ(indexed, monkeypatch):
  monkeypatch.setattr(digest_lib, "_INDEXED", indexed)
  p, q = digest_lib._places((6, 5, 4, 3))
  pairs = np.stack([np.broadcast_to(x, (6, 5, 4, 3)).ravel() for x in (p, q)])
  assert len(np.unique(pairs, axis=1).T) == 360
