"""Random projections of gradients, generated from a counter and never stored."""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PROJECTIONS = ("count_sketch", "rademacher")

_WORD = 32  # signs in one draw of random bits
_BLOCK = 1 << 20  # entries of a projection's matrix, or of a gradient, at work at a time


def make_projection(kind: str, size: int, key: jax.Array) -> Callable[[Any], jax.Array]:
  r"""Returns `tree -> f32[b, R]`, a random linear map of b stacked trees, R = `size`.

  With g the P numbers of a leaf, each leaf with signs of its own, the sum over leaves of

    rademacher    y_j = sum_p s_pj g_p / sqrt(R),
    count_sketch  y_j = sum_p s_p g_p [h(p) = j],  h(p) = (p + o_{floor(p / R)}) mod R,

  s_pj and s_p independent and -1 or 1, o_r uniform in 0..R-1. For both, over keys,

    E <y, y'> = <g, g'>,   Var <y, y'> <= (|g|^2 |g'|^2 + <g, g'>^2) / R.

  The first costs P R products a tree, the second P. Of the first's matrix a block of rows
  exists at a time, of the second's one sign a number. Both are functions of the key and the
  path of each leaf: a leaf's part is the same whatever other leaves there are, on any mesh.

  Args:
    kind: one of `PROJECTIONS`.
    size: R >= 1; for "rademacher" a multiple of 32, the signs of one draw.
    key: of the draws, key[].

  Returns:
    A pure function of a tree with leaves [b, ...] of any floating type, for use inside jit;
    what is a row of 0 gives 0.

  Raises:
    ValueError: naming all of `features.projection` and `features.size` that are wrong.

  References:
    Achlioptas, "Database-friendly random projections: Johnson-Lindenstrauss with binary coins",
      2003, doi:10.1016/S0022-0000(03)00025-4.
    Charikar, Chen and Farach-Colton, "Finding frequent items in data streams", 2004,
      doi:10.1016/S0304-3975(03)00400-6; here the buckets of R numbers in a row are distinct and
      only their offset is drawn, which leaves the mean as it is and lowers the variance.

  Example:
    >>> project = make_projection("count_sketch", 4, jax.random.key(0))
    >>> y = project({"kernel": jnp.array([[3.0, 0.0, 0.0], [0.0, 0.0, -4.0]])})
    >>> jnp.linalg.norm(y, axis=1).tolist()
    [3.0, 4.0]
  """
  if problems := problems_of(kind, size):
    raise ValueError("; ".join(problems))
  of_block, length = _rademacher, max(1, _BLOCK // size)
  if kind == "count_sketch":
    of_block, length = _count_sketch, size * length

  def project(tree: Any) -> jax.Array:
    leaves = [(path, x.reshape(x.shape[0], -1)) for path, x in paths_and_leaves(tree)]
    counts = [-(-x_BxP.shape[1] // length) for _, x_BxP in leaves]
    # Python's own hash differs between processes.
    hashes = np.array([zlib.crc32(path.encode()) for path, _ in leaves], np.uint32)
    blocks = np.concatenate([np.arange(count) for count in counts])
    # All keys at once: each draw by itself takes as long to compile as a layer.
    keys = jax.vmap(lambda n, i: jax.random.fold_in(jax.random.fold_in(key, n), i))(
      np.repeat(hashes, counts), blocks
    )
    parts = zip(leaves, jnp.split(keys, np.cumsum(counts)[:-1]), strict=True)
    return functools.reduce(
      jnp.add, (_sum_blocks(of_block, keys, length, size, x_BxP) for (_, x_BxP), keys in parts)
    )

  return project


def problems_of(kind: Any, size: Any) -> list[str]:
  """Returns what is wrong with a projection of this kind and size."""
  problems = []
  if kind not in PROJECTIONS:
    accepted = " or ".join(map(repr, PROJECTIONS))
    problems.append(f"features.projection must be {accepted}, got {kind!r}")
  if not isinstance(size, int) or isinstance(size, bool) or size < 1:
    problems.append(f"features.size must be an integer of at least 1, got {size!r}")
  elif kind == "rademacher" and size % _WORD:
    problems.append(f"features.size must be a multiple of {_WORD} for 'rademacher', got {size}")
  return problems


def paths_and_leaves(tree: Any) -> list[tuple[str, Any]]:
  """Returns each leaf with its path, such as "layers/attention/query/lora_a"."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in flat]


def _rademacher(key: jax.Array, size: int, x_BxP: jax.Array) -> jax.Array:
  words = jax.random.bits(key, (x_BxP.shape[1], size // _WORD), jnp.uint32)
  product = jnp.matmul(x_BxP, _signs(words), precision=jax.lax.Precision.HIGHEST)
  return product / math.sqrt(size)


def _count_sketch(key: jax.Array, size: int, x_BxP: jax.Array) -> jax.Array:
  batch, count = x_BxP.shape
  num_rows, num_words = -(-count // size), -(-size // _WORD)
  words = jax.random.bits(key, (num_rows, num_words + 1), jnp.uint32)
  padded = jnp.pad(x_BxP, ((0, 0), (0, num_rows * size - count)))
  fold_BxFxR = padded.reshape(batch, num_rows, size) * _signs(words[:, 1:])[:, :size]
  # Offsets of their own keep equal columns of a matrix from sharing buckets in every row.
  offset_Fx1 = (words[:, :1] % size).astype(jnp.int32)
  source_FxR = (jnp.arange(size) - offset_Fx1) % size
  return jnp.sum(jnp.take_along_axis(fold_BxFxR, source_FxR[None], axis=2), axis=1)


def _sum_blocks(
  of_block: Callable[[jax.Array, int, jax.Array], jax.Array],
  keys: jax.Array,
  length: int,
  size: int,
  x_BxP: jax.Array,
) -> jax.Array:
  """Sums the parts of blocks of `length` numbers, the last one shorter, f32[b, R]."""
  num_whole, rest = divmod(x_BxP.shape[1], length)
  total_BxR = jnp.zeros((x_BxP.shape[0], size), jnp.float32)

  def add(total_BxR: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    index, key = block
    part = jax.lax.dynamic_slice_in_dim(x_BxP, index * length, length, axis=1)
    return total_BxR + of_block(key, size, part.astype(jnp.float32)), None

  if num_whole:
    total_BxR, _ = jax.lax.scan(add, total_BxR, (jnp.arange(num_whole), keys[:num_whole]))
  if rest:
    last = x_BxP[:, num_whole * length :].astype(jnp.float32)
    total_BxR += of_block(keys[num_whole], size, last)
  return total_BxR


def _signs(words_FxW: jax.Array) -> jax.Array:
  """-1.0 or 1.0 by each bit, f32[F, 32 W]."""
  bits = (words_FxW[:, :, None] >> jnp.arange(_WORD, dtype=jnp.uint32)) & 1
  return 1.0 - 2.0 * bits.reshape(len(words_FxW), -1).astype(jnp.float32)
