"""The tensors that a decoder is written as, gathered from its devices one at a time."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.models.base import Params
from jdc.models.decoder_config import DecoderConfig
from jdc.models.hf.files import SINGLE
from jdc.models.hf.names import default_layout, flatten, leaves

NAMES = {"float32": "F32", "bfloat16": "BF16"}  # of the types that are written


class Piece(NamedTuple):
  """One tensor of the files, and where it is among the parameters."""

  name: str
  path: tuple[str, ...]  # of the parameter
  place: tuple[int, ...]  # in its stacked axes
  transposed: bool
  dtype: str
  shape: tuple[int, ...]

  @property
  def num_bytes(self) -> int:
    """Bytes of the tensor."""
    return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


def pieces_of(config: DecoderConfig, params: Params, dtype: str | None) -> list[Piece]:
  """All tensors, layer after layer."""
  pieces, given = [], flatten(params)
  for path, leaf in leaves(config, default_layout(config)).items():
    array = given[path]
    for place in itertools.product(*map(range, array.shape[: leaf.stacked])):
      kind, shape = dtype or str(array.dtype), leaf.shape(array.shape)
      pieces.append(Piece(leaf.name(*place), path, place, leaf.transposed, kind, shape))
  return sorted(pieces, key=lambda piece: piece.place[:1])


def divided(pieces: list[Piece], max_shard_bytes: int) -> dict[str, list[Piece]]:
  """The tensors of each file, by its name."""
  groups: list[list[Piece]] = [[]]
  size = 0
  for piece in pieces:
    if groups[-1] and size + piece.num_bytes > max_shard_bytes:
      groups.append([])
      size = 0
    groups[-1].append(piece)
    size += piece.num_bytes
  if len(groups) == 1:
    return {SINGLE: groups[0]}
  count = len(groups)
  return {f"model-{i:05}-of-{count:05}.safetensors": g for i, g in enumerate(groups, 1)}


def gathered(pieces: list[Piece], params: Params) -> Iterator[np.ndarray]:
  """Each tensor on the host, one after the other."""
  given = flatten(params)
  for piece in pieces:
    array = given[piece.path]
    if not isinstance(array, jax.Array):
      yield np.asarray(_tensor(array, piece.place, piece.transposed, piece.dtype))
      continue
    sharding = array.sharding
    if isinstance(sharding, jax.NamedSharding):
      sharding = jax.NamedSharding(sharding.mesh, jax.P())
    whole = _on_every_device(sharding)(array, piece.place, piece.transposed, piece.dtype)
    yield np.asarray(whole.addressable_data(0))


@functools.cache
def _on_every_device(sharding: jax.sharding.Sharding) -> Callable[..., jax.Array]:
  return jax.jit(_tensor, static_argnums=(2, 3), out_shardings=sharding)


def _tensor(
  array: jax.Array, place: tuple[int, ...], transposed: bool, dtype: str
) -> jax.Array:
  for i in place:
    array = array[i]
  return (array.T if transposed else array).astype(jnp.dtype(dtype))
