"""The device mesh, and where parameters, optimizer state and batches lie on it."""

import math
from typing import Any

import jax
import optax

from jdc.models.base import BATCH_AXES, MESH_AXES


def make_mesh(
  *, data: int = -1, fsdp: int = 1, expert: int = 1, tensor: int = 1
) -> jax.sharding.Mesh:
  """Returns a mesh over all devices; one of the sizes may be -1 and takes what is left.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices.
  """
  sizes, count = [data, fsdp, expert, tensor], jax.device_count()
  shown = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise ValueError(f"mesh sizes must be positive, with at most one -1, got {shown}")
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(1, count // -math.prod(sizes))
  if math.prod(sizes) != count:
    raise ValueError(f"the mesh {shown} does not cover the {count} devices")
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=auto)


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
  """Returns the sharding of arrays whose first axis is the batch."""
  return jax.NamedSharding(mesh, jax.P(BATCH_AXES))


def check_batch(mesh: jax.sharding.Mesh, **sizes: int) -> None:
  """Raises a ValueError that names every size that the batch axes do not divide."""
  shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  wrong = [f"{name}={size}" for name, size in sizes.items() if size % shards]
  if wrong:
    raise ValueError(
      f"{', '.join(wrong)} must be divisible by {' * '.join(BATCH_AXES)} = {shards} of the mesh"
    )


def replicated(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
  """Returns the sharding of arrays that every device holds whole."""
  return jax.NamedSharding(mesh, jax.P())


def optimizer_shardings(
  optimizer: optax.GradientTransformation,
  params: Any,
  param_shardings: Any,
  mesh: jax.sharding.Mesh,
) -> Any:
  """Returns shardings of the optimizer state: moments lie where their parameters lie."""
  state = jax.eval_shape(optimizer.init, params)
  return optax.tree.map_params(
    optimizer,
    lambda _, sharding: sharding,
    state,
    param_shardings,
    transform_non_params=lambda _: replicated(mesh),
  )
