"""A digest of arrays that is computed where they lie."""

import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_INDEXED = 1 << 32  # elements that an index of 32 bits tells apart


def digest(tree: Any) -> str:
  """Returns a digest of 128 bits of all bits of a pytree of arrays.

  The bits of leaf element i are words w_i of 32 bits. Two mixed words are bijective in w_i,

    a_i = mix(w_i + p_i),   b_i = mix'(w_i ^ q_i),

  p_i and q_i being mixed from i. Four sums mod 2^32 over the leaf, of a, b and two products of
  them, do not depend on the order in which devices add. They are hashed with the leaf's path,
  shape and dtype. The result tells any two trees apart that were not made to collide; it does
  not depend on the devices or on how the arrays are sharded.

  Args:
    tree: leaves are arrays of any dtype, typed keys of random numbers, or `None`. Arrays of
      NumPy have the digest of those of JAX with the same dtype.

  Returns:
    32 hexadecimal digits.

  Example:
    >>> digest({"a": np.float32([1, 2])}) == digest({"a": jnp.array([1.0, 2.0])})
    True
    >>> digest({"a": np.float32([1, 2])}) == digest({"a": np.float32([2, 1])})
    False
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
  facts, sums = [], []
  for path, leaf in leaves:
    dtype = "None" if leaf is None else str(_dtype(leaf))
    facts.append([jax.tree_util.keystr(path), dtype, list(np.shape(leaf))])
    if leaf is not None:
      sums.append(_leaf_sums(leaf))
  found = [sums_4.tolist() for sums_4 in jax.device_get(sums)]
  content = json.dumps([facts, found]).encode()
  return hashlib.blake2b(content, digest_size=16).hexdigest()


def _dtype(leaf: Any) -> Any:
  return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _leaf_sums(leaf: Any) -> jax.Array:
  if not isinstance(leaf, jax.Array):
    leaf = np.asarray(leaf)
    if leaf.dtype.itemsize >= 8:  # JAX would narrow them
      leaf = np.ascontiguousarray(leaf)[..., None].view(np.uint32)
    return _sums(None)(leaf)
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  sharding = leaf.sharding
  mesh = sharding.mesh if isinstance(sharding, jax.NamedSharding) else None
  return _sums(mesh)(leaf)


@functools.lru_cache(maxsize=16)
def _sums(mesh: Any) -> Any:
  # Every process reads the result.
  everywhere = None if mesh is None else jax.NamedSharding(mesh, jax.P())
  return jax.jit(_element_sums, out_shardings=everywhere)


def _element_sums(leaf: jax.Array) -> jax.Array:
  """The four sums u32[4] of one leaf."""
  word = _words(leaf)
  p, q = _places(word.shape)
  a, b = _mix(word + p), _mix((word ^ q) * jnp.uint32(0x85EBCA77))
  c, d = a * (b | 1), (a ^ (b >> 15)) * (p | 1)
  # In one pass, which computes the words once.
  zeros = (jnp.uint32(0),) * 4
  sums = jax.lax.reduce((a, b, c, d), zeros, _add, tuple(range(word.ndim)))
  return jnp.stack(sums)


def _add(x: tuple[jax.Array, ...], y: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
  return tuple(a + b for a, b in zip(x, y, strict=True))


def _words(leaf: jax.Array) -> jax.Array:
  """The bits of each element as u32; those of 64 bits have one more axis."""
  if leaf.dtype == jnp.bool_:
    return leaf.astype(jnp.uint32)
  if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
    leaf = jnp.stack([leaf.real, leaf.imag], axis=-1)
  bits = jax.dtypes.itemsize_bits(leaf.dtype)
  if bits >= 32:
    return jax.lax.bitcast_convert_type(leaf, jnp.uint32)
  return jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)


def _places(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """Two numbers u32 mixed from the index of each element."""
  low = high = jnp.zeros((), jnp.uint32)
  size = stride = 1
  for axis in reversed(range(len(shape))):
    place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    size *= shape[axis]
    if size <= _INDEXED:
      low, stride = low + place * jnp.uint32(stride & 0xFFFFFFFF), size
    else:
      high = high + place * jnp.uint32(size // shape[axis] // stride & 0xFFFFFFFF)
  p = _mix(low ^ _mix(high + jnp.uint32(0x9E3779B9)))
  q = _mix(low * jnp.uint32(0x9E3779B1) + _mix(high ^ jnp.uint32(0xC2B2AE3D)))
  return p, q


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of 32 bits in which each bit depends on all."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
