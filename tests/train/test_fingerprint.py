"""Tests of the fingerprint of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.models.base import MESH_AXES
from jdc.train.checkpoint import fingerprint

X = np.random.default_rng(0).normal(size=(16, 8, 4)).astype(np.float32)


def params(x):
  return {"layer": {"kernel": jnp.asarray(x)}, "norm": jnp.ones(3)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_does_not_depend_on_the_devices(dtype):
  mesh = jax.make_mesh((2, 2, 1, 2), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
  x = jnp.asarray(X * 100).astype(dtype)
  split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("fsdp", ("data", "tensor"))))
  assert fingerprint({"x": split}) == fingerprint({"x": x})


def test_tells_apart():
  flipped = X.copy()
  flipped[3, 2, 1] = np.nextafter(flipped[3, 2, 1], 9)  # the last bit
  swapped = X.copy()
  swapped[0, 0, [0, 1]] = X[0, 0, [1, 0]]
  others = [
    params(X),
    params(flipped),
    params(swapped),
    params(X.reshape(8, 16, 4)),
    params(X.view(np.int32)),
    params(-X),
    {"layer": {"bias": jnp.asarray(X)}, "norm": jnp.ones(3)},
    {"layer": {"kernel": jnp.asarray(X)}, "norm": jnp.zeros(3)},
  ]
  assert len({fingerprint(other) for other in others}) == len(others)
  assert fingerprint(params(X)) == fingerprint(params(X.copy()))


def test_many_single_changes_are_all_seen():
  """1,000 arrays that differ from zeros in one bit of one element have 1,001 fingerprints."""
  found = {fingerprint({"x": jnp.zeros(50, jnp.int32)})}
  for i in range(50):
    for bit in range(20):
      x = np.zeros(50, np.int32)
      x[i] = 1 << bit
      found.add(fingerprint({"x": jnp.asarray(x)}))
  assert len(found) == 1001
