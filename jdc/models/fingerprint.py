"""A number that tells parameters apart, whatever the devices and files they come from."""

import hashlib
import json

import jax
import jax.numpy as jnp

from jdc.models.base import Params

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def fingerprint(params: Params) -> str:
  """Returns a hash of the names, types, shapes and values of parameters, 32 hex digits.

  Each array is hashed where it lies: every element's bits are mixed with its index, and the
  results added modulo 2^32, twice. The sum does not depend on how the array is split. It is no
  defence against an adversary.

  Args:
    params: a pytree of arrays of 1, 2 or 4 bytes an element.

  Example:
    >>> a = fingerprint({"kernel": jnp.arange(4.0)})
    >>> (
    ...   a == fingerprint({"kernel": jnp.arange(4.0)}),
    ...   a == fingerprint({"bias": jnp.arange(4.0)}),
    ... )
    (True, False)
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  sums = jax.device_get([_sums(leaf) for _, leaf in leaves])
  described = [
    [jax.tree_util.keystr(path), str(leaf.dtype), list(leaf.shape), *map(int, pair)]
    for (path, leaf), pair in zip(leaves, sums, strict=True)
  ]
  return hashlib.blake2b(json.dumps(described).encode(), digest_size=16).hexdigest()


@jax.jit
def _sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  bits = jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
  index = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
  mixed = _mix(bits ^ _mix(index + jnp.uint32(0x9E3779B9)))
  return jnp.sum(mixed, dtype=jnp.uint32), jnp.sum(_mix(mixed), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of 32-bit numbers that mixes all bits: the last step of MurmurHash3."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
