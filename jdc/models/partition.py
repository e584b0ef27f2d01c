"""How a decoder is split over a mesh: fully sharded parameters, tensor-parallel layers.

The residual width of every parameter is split over `fsdp`. Over `tensor` go, as in Megatron-LM
(Shoeybi et al., 2019, arXiv:1909.08053), the outputs of the maps into heads and hidden units,
the inputs of the maps back, and the vocabulary. Over `expert` go, as in GShard (Lepikhin et
al., 2020, arXiv:2006.16668), the experts of a mixture. Batches are split over all but `tensor`.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax

from jdc.models.base import MESH_AXES, Params
from jdc.models.decoder_config import DecoderConfig

# The spec of a kernel or a norm without leading axes, which are the layers and, of a mixture,
# the experts; by its module's name.
_SPECS = {
  "embedding": jax.P("tensor", "fsdp"),
  "query": jax.P("fsdp", "tensor"),
  "key": jax.P("fsdp", "tensor"),
  "value": jax.P("fsdp", "tensor"),
  "attention_output": jax.P("tensor", "fsdp"),
  "gate": jax.P("fsdp", "tensor"),
  "up": jax.P("fsdp", "tensor"),
  "down": jax.P("tensor", "fsdp"),
  "attention_norm": jax.P("fsdp"),
  "mlp_norm": jax.P("fsdp"),
  "final_norm": jax.P("fsdp"),
  "post_attention_norm": jax.P("fsdp"),
  "post_mlp_norm": jax.P("fsdp"),
  "query_norm": jax.P(None),
  "key_norm": jax.P(None),
  "router": jax.P("fsdp", None),
  "output": jax.P("fsdp", "tensor"),
}


def partition_specs(shapes: Params) -> Any:
  """The partition of each parameter of a decoder.

  Args:
    shapes: the decoder's parameters, or their shapes from `jax.eval_shape(init, key)`.

  Returns:
    The same tree with `jax.P` as leaves, over the axes `fsdp`, `expert` and `tensor`.

  Raises:
    ValueError: if a parameter has no rule.
  """
  return jax.tree_util.tree_map_with_path(_spec, shapes)


def _spec(path: tuple[Any, ...], leaf: Any) -> jax.P:
  names = [entry.key for entry in path]
  if names[-2] not in _SPECS:
    raise ValueError(f"no partition rule for the parameter {'/'.join(names)}")
  axes = tuple(_SPECS[names[-2]])
  if names[-1] == "bias":
    axes = axes[1:]
  elif names[-1] == "lora_a":  # [in, rank]; the rank is small and not split
    axes = (axes[0], None)
  elif names[-1] == "lora_b":  # [rank, out]
    axes = (None, axes[1])
  leading = (None, "expert")[: leaf.ndim - len(axes)]
  return jax.P(*leading, *axes)


def check_partition(config: DecoderConfig, mesh_shape: Mapping[str, int]) -> None:
  """Checks that a decoder divides over a mesh.

  Args:
    config: the decoder.
    mesh_shape: devices along each axis, as in `dict(mesh.shape)`.

  Raises:
    ValueError: naming every axis that is absent, every field that is not a multiple of the axis
      it is split over, and `expert` where a dense model has nothing to split.

  Example:
    >>> config = DecoderConfig(
    ...   vocab_size=256, width=64, num_layers=2, num_heads=4, num_kv_heads=1, mlp_width=192
    ... )
    >>> check_partition(config, {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2})
    Traceback (most recent call last):
    ValueError: the model does not divide over the mesh: num_kv_heads 1 is not a multiple of
    tensor 2
  """
  absent = [axis for axis in MESH_AXES if axis not in mesh_shape]
  if absent:
    raise ValueError(
      f"the mesh needs the axes {', '.join(MESH_AXES)}; absent: {', '.join(absent)}"
    )
  split = {
    "width": "fsdp",
    "num_heads": "tensor",
    "num_kv_heads": "tensor",
    "mlp_width": "tensor",
    "vocab_size": "tensor",
    "num_experts": "expert",
  }
  problems = [
    f"{field} {getattr(config, field)} is not a multiple of {axis} {mesh_shape[axis]}"
    for field, axis in split.items()
    if getattr(config, field) % mesh_shape[axis]
  ]
  if not config.num_experts and mesh_shape["expert"] > 1:
    size = mesh_shape["expert"]
    problems.append(f"num_experts 0, a dense model, has nothing to split over expert {size}")
  if problems:
    raise ValueError("the model does not divide over the mesh: " + "; ".join(problems))


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
  """Tells the compiler how an activation is split, one entry of `axes` per dimension.

  It is a hint. It does nothing without a mesh, on axes that the mesh does not leave to the
  compiler, and for dimensions that do not divide, such as the single row under a vmap that
  takes per-example gradients.
  """
  mesh = jax.sharding.get_abstract_mesh()
  spec = []
  for size, entry in zip(x.shape, axes, strict=True):
    names = (entry,) if isinstance(entry, str) else entry or ()
    if not set(names) <= set(mesh.auto_axes):
      return x
    if size % math.prod(mesh.shape[name] for name in names):
      return x
    spec.append(entry)
  return x if mesh.empty else jax.lax.with_sharding_constraint(x, jax.P(*spec))
