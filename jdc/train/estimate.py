"""What a run will need, told without allocating any of it."""

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jdc.models.base import BATCH_AXES, MESH_AXES
from jdc.models.decoder_config import DecoderConfig
from jdc.train import model_parts, sharding, state
from jdc.train.config import TrainConfig
from jdc.train.optimizer import make_optimizer

NUM_DEVICES = (8, 16, 64)
_GIB = 1 << 30


def report(config: TrainConfig, *, compiles: bool = False) -> str:
  """Returns sizes, memory by number of devices, and FLOPs of a run.

  Memory is that of the arrays which live through a step: parameters, optimizer state and one
  gradient, as they are split over the mesh, and the layer inputs that the backward pass reads;
  what a layer needs besides is known after compilation only.

  Args:
    config: of the run; nothing is read but the model's `config.json`.
    compiles: also compiles the training step, for the devices that there are.

  Raises:
    ValueError: as for the run itself.
  """
  config, start = model_parts.build(config, reads_weights=False)
  decoder = config.model
  assert decoder is not None
  optimizer, _ = make_optimizer(config.optimizer, config.num_steps)
  shapes = jax.eval_shape(start.model.init, jax.random.key(0))
  abstract = state.abstract(start, optimizer, {}, _abstract_mesh(1, config))
  num_params, num_trained = _count(shapes), _count(abstract.params)
  flops = flops_per_step(decoder, num_params, num_trained, config)
  lines = [
    f"parameters: {num_params:,}, trained {num_trained:,} "
    f"({100 * num_trained / num_params:.2f} %), a token uses {active_params(decoder):,}",
    f"tokens a step: {config.batch_size * config.sequence_length:,}",
    f"FLOPs a step: {flops:.4g}, of matrix products, {flops / 1e12:.2f} TFLOP",
    "GiB a device, by number of devices:",
    f"  devices  {'mesh':<35} parameters  optimizer  gradient  layer inputs    all",
    *(_memory_line(num_devices, config, start, optimizer) for num_devices in NUM_DEVICES),
  ]
  if compiles:
    lines += _compiled(config, start, optimizer)
  return "\n".join(lines)


def active_params(config: DecoderConfig) -> int:
  """Returns the parameters of the matrices that one token is multiplied with."""
  heads = (config.num_heads + config.num_kv_heads) * 2 * config.features_per_head
  experts = max(config.experts_per_token, 1)
  mlp = 3 * config.width * config.mlp_width * experts + config.width * config.num_experts
  per_layer = config.width * heads + mlp
  return config.num_layers * per_layer + config.vocab_size * config.width


def forward_flops_per_row(decoder: DecoderConfig, sequence_length: int) -> float:
  """Returns the FLOPs of the matrix products of one row's forward pass; a backward's are twice.

  As in `flops_per_step`.
  """
  per_token = 2.0 * active_params(decoder) + _attention(decoder, sequence_length)
  return sequence_length * per_token


def flops_per_step(
  decoder: DecoderConfig, num_params: int, num_trained: int, config: TrainConfig
) -> float:
  r"""Returns the FLOPs of the matrix products of one step, without recomputation.

    per token: 2 N forward, 2 N for the gradient of activations, 2 N_trained for that of
    parameters, and 4 L A S forward and twice that backward for attention

  with N the parameters that a token uses, A the features of all heads, and S the positions that
  a token sees on average, which a causal mask halves.
  """
  tokens = config.batch_size * config.sequence_length
  used = active_params(decoder)
  trained = used * num_trained / num_params if num_trained < num_params else used
  attention = 3.0 * _attention(decoder, config.sequence_length)
  return tokens * (4.0 * used + 2.0 * trained + attention)


def _attention(decoder: DecoderConfig, length: int) -> float:
  """FLOPs of a token's forward pass through the attention of all layers."""
  seen = [
    _mean_seen(length, decoder.sliding_window if local else None)
    for local in decoder.local_layers
  ]
  return 4.0 * decoder.num_heads * decoder.features_per_head * sum(seen)


def _mean_seen(length: int, window: int | None) -> float:
  window = length if window is None else min(window, length)
  return (window * (window + 1) / 2 + (length - window) * window) / length


def _memory_line(num_devices: int, config: TrainConfig, start: Any, optimizer: Any) -> str:
  decoder = config.model
  assert decoder is not None
  try:
    mesh = _abstract_mesh(num_devices, config)
    assert start.model.check_partition is not None
    start.model.check_partition(dict(mesh.shape))
  except ValueError as error:
    return f"  {num_devices:7}  {error}"
  arrays = state.abstract(start, optimizer, {}, mesh)
  parts = [
    _bytes(arrays.params) + _bytes(arrays.frozen),
    _bytes(arrays.opt_state),
    _bytes(arrays.params, "float32" if config.accumulation_steps > 1 else None),
    _layer_input_bytes(decoder, config, mesh),
  ]
  shown = ", ".join(f"{axis}={mesh.shape[axis]}" for axis in MESH_AXES)
  a, b, c, d, total = (f"{x / _GIB:.2f}" for x in (*parts, sum(parts)))
  return f"  {num_devices:7}  {shown:<35} {a:>10} {b:>10} {c:>9} {d:>13} {total:>6}"


def _layer_input_bytes(decoder: DecoderConfig, config: TrainConfig, mesh: Any) -> int:
  rows = config.batch_size // config.accumulation_steps
  rows = -(-rows // math.prod(mesh.shape[axis] for axis in BATCH_AXES))  # one at least
  size = np.dtype(jax.numpy.dtype(decoder.dtype)).itemsize
  return rows * config.sequence_length * decoder.width * decoder.num_layers * size


def _abstract_mesh(num_devices: int, config: TrainConfig) -> Any:
  """The mesh of a config on so many devices; without a -1 in it, what is left goes to fsdp."""
  sizes = {axis: getattr(config.mesh, axis) for axis in MESH_AXES}
  if num_devices == 1:
    sizes = dict.fromkeys(sizes, 1)
  elif -1 not in sizes.values() or sizes["fsdp"] == 1:
    sizes |= {"data": 1, "fsdp": -1}
  free = [axis for axis, size in sizes.items() if size == -1]
  for axis in free:
    sizes[axis] = num_devices // math.prod(size for size in sizes.values() if size != -1)
  if math.prod(sizes.values()) != num_devices:
    raise ValueError(f"the mesh {sizes} does not cover {num_devices} devices")
  auto = (jax.sharding.AxisType.Auto,) * len(sizes)
  return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=auto)


def _bytes(tree: Any, dtype: str | None = None) -> int:
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(dtype or x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )


def _count(tree: Any) -> int:
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _compiled(config: TrainConfig, start: Any, optimizer: Any) -> Iterator[str]:
  from jdc.data.loader import Batch
  from jdc.policies import combine
  from jdc.train.step import StepOptions, make_train_step

  mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
  rows = sharding.batch_sharding(mesh)
  size = (config.batch_size, config.sequence_length + 1)

  def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

  whole, one, real = (
    array(size, np.int32),
    array(size[:1], np.int32),
    array(size[:1], np.float32),
  )
  batch = Batch(whole, whole, one, one, real, real, real)
  options = StepOptions(config.loss_average, config.accumulation_steps)  # type: ignore[arg-type]
  _, rate = make_optimizer(config.optimizer, config.num_steps)
  step = make_train_step(start.model, optimizer, rate, combine(), options)
  with jax.set_mesh(mesh):
    abstract = state.abstract(start, optimizer, {}, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    outputs = (shardings, sharding.replicated(mesh))
    started = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0, out_shardings=outputs).lower(abstract, batch)
    compiled = lowered.compile()
  memory: Any = compiled.memory_analysis()
  yield (
    f"compiled without policies for {mesh.size} {mesh.devices.flat[0].platform} devices in "
    f"{time.perf_counter() - started:.1f} s; a device needs "
    f"{memory.argument_size_in_bytes / _GIB:.2f} GiB for the state and a batch, and "
    f"{memory.temp_size_in_bytes / _GIB:.2f} GiB besides"
  )
