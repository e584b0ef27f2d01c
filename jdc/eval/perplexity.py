"""Loss, perplexity and bits per byte of held-out text, by domain."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jdc.data.batch import inputs_and_targets
from jdc.models.base import BATCH_AXES, Params

TokenLosses = Callable[[Params, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


class Table(Protocol):
  """Packed rows of one domain, read by index."""

  @property
  def num_bytes(self) -> np.ndarray:
    """i32[R], UTF-8 bytes of each row's target tokens."""

  def __len__(self) -> int: ...

  def rows(self, ids: np.ndarray, /) -> tuple[np.ndarray, np.ndarray]:
    """Tokens i32[b, T + 1] and segments i32[b, T + 1] of the rows `ids` i64[b]."""


class _Totals(NamedTuple):
  """Sums over the evaluated rows of one domain."""

  loss: float  # nats
  num_tokens: int
  num_bytes: int
  num_rows: int


def evaluate(
  token_losses: TokenLosses,
  params: Params,
  tables: Mapping[str, Table],
  batch_size: int,
  mesh: jax.sharding.Mesh | None = None,
  max_rows: int | None = None,
) -> dict[str, float]:
  r"""Evaluates a language model on the rows of each domain.

  With l_t the loss of target token t of domain k, n_k the number of targets and b_k their
  UTF-8 bytes,

    loss_k = sum_t l_t / n_k,    perplexity_k = exp(loss_k),
    bits_per_byte_k = sum_t l_t / (b_k ln 2).

  A macro mean gives every domain the same weight, a micro mean every token (or byte). The
  float32 losses of the single tokens come to the host and are summed there in float64, so
  results do not depend on the batch size beyond the model's own rounding. A loss that is not
  finite makes its domain's numbers, and the means, NaN or infinite.

  On a mesh each process reads its own rows and gets the whole result; every process must make
  the same call. All domains share one compilation if their rows have the same length.

  Args:
    token_losses: `(params, tokens, targets, positions, segments) -> f32[B, T]` in nats, such
      as `LanguageModel.token_losses`; the same function in every call avoids recompilation.
    params: the model's parameters, on the mesh where there is one.
    tables: the rows of each domain.
    batch_size: rows in one call, over all devices; the last batch is filled with padding.
    mesh: splits the rows over its axes `data`, `fsdp` and `expert`.
    max_rows: the most rows of one domain; floor(i R / max_rows) for i < max_rows are taken,
      evenly spaced over its R rows. `None` takes all.

  Returns:
    For each domain k `validation/k/loss` (nats per target token), `/perplexity`,
    `/bits_per_byte`, `/num_tokens` (targets) and `/num_rows`; `validation/macro_loss`,
    `/micro_loss`, `/macro_bits_per_byte`, `/micro_bits_per_byte`, `/num_tokens` and
    `/num_rows` over all.

  Raises:
    ValueError: naming every argument that is out of range and every table that is empty, before
      anything is compiled; or a domain whose rows hold no target.
  """
  _check(tables, batch_size, mesh, max_rows)
  totals = {}
  for name, table in tables.items():
    num_rows = len(table) if max_rows is None else min(len(table), max_rows)
    ids = np.arange(num_rows, dtype=np.int64) * len(table) // num_rows
    totals[name] = _evaluate_rows(token_losses, params, table, ids, batch_size, mesh)
  without = [name for name, total in totals.items() if not total.num_tokens * total.num_bytes]
  if without:
    raise ValueError(f"no target tokens or bytes in the rows of: {', '.join(without)}")
  return _metrics(totals)


def _check(
  tables: Mapping[str, Table],
  batch_size: int,
  mesh: jax.sharding.Mesh | None,
  max_rows: int | None,
) -> None:
  problems = []
  if not tables:
    problems.append("tables must name at least one domain")
  if empty := [name for name, table in tables.items() if not len(table)]:
    problems.append(f"empty tables: {', '.join(empty)}")
  if batch_size < 1:
    problems.append(f"batch_size must be at least 1, got {batch_size}")
  if max_rows is not None and max_rows < 1:
    problems.append(f"max_rows must be at least 1 or None, got {max_rows}")
  num_shards = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  if batch_size % num_shards:
    axes = " x ".join(BATCH_AXES)
    problems.append(f"batch_size {batch_size} must be a multiple of {axes} = {num_shards}")
  if problems:
    raise ValueError("; ".join(problems))


def _evaluate_rows(
  token_losses: TokenLosses,
  params: Params,
  table: Table,
  ids: np.ndarray,
  batch_size: int,
  mesh: jax.sharding.Mesh | None,
) -> _Totals:
  loss, num_tokens = 0.0, 0
  pending = None
  # The host adds up one batch while the devices work on the next.
  for arrays in _batches(table, ids, batch_size, mesh):
    following = _masked_losses(token_losses, mesh)(params, *arrays)
    if pending is not None:
      loss, num_tokens = _add(loss, num_tokens, pending)
    pending = following
  assert pending is not None  # there is at least one row
  loss, num_tokens = _add(loss, num_tokens, pending)
  num_bytes = int(np.sum(np.asarray(table.num_bytes)[ids], dtype=np.int64))
  return _Totals(loss, num_tokens, num_bytes, len(ids))


def _add(loss: float, num_tokens: int, batch: tuple[jax.Array, jax.Array]) -> tuple[float, int]:
  losses_BxT, num_tokens_B = jax.device_get(batch)
  with np.errstate(invalid="ignore"):  # inf - inf
    loss += float(np.sum(losses_BxT, dtype=np.float64))
  return loss, num_tokens + int(np.sum(num_tokens_B, dtype=np.int64))


@functools.lru_cache(maxsize=8)
def _masked_losses(
  token_losses: TokenLosses, mesh: jax.sharding.Mesh | None
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """A jitted function that every process can read: losses, 0 off target, and target counts."""

  def masked_losses(
    params: Params,
    tokens: jax.Array,
    targets: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    mask: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    losses_BxT = token_losses(params, tokens, targets, positions, segments)
    return jnp.where(mask, losses_BxT, 0.0), jnp.sum(mask, axis=1, dtype=jnp.int32)

  if mesh is None:
    return jax.jit(masked_losses)
  compiled = jax.jit(masked_losses, out_shardings=jax.NamedSharding(mesh, jax.P()))

  def on_mesh(*args: jax.Array) -> tuple[jax.Array, jax.Array]:
    with jax.set_mesh(mesh):
      return compiled(*args)

  return on_mesh


def _batches(
  table: Table, ids: np.ndarray, batch_size: int, mesh: jax.sharding.Mesh | None
) -> Iterator[list[jax.Array]]:
  """Yields batches of inputs on the devices, the last one filled with rows of segment 0."""
  local = _local_rows(batch_size, mesh)
  for start in range(0, len(ids), batch_size):
    present = local[start + local < len(ids)]
    # A process without a row of its own in the last batch reads one for its shape.
    tokens, segments = table.rows(ids[start + present] if len(present) else ids[:1])
    padding = len(local) - len(present)
    rows = inputs_and_targets(
      _padded(tokens[: len(present)], padding), _padded(segments[: len(present)], padding)
    )
    if mesh is None:
      yield [jax.device_put(array) for array in rows]
    else:
      sharding = jax.NamedSharding(mesh, jax.P(BATCH_AXES))
      yield [
        jax.make_array_from_process_local_data(sharding, array, (batch_size, *array.shape[1:]))
        for array in rows
      ]


def _padded(rows: np.ndarray, num_rows: int) -> np.ndarray:
  return np.pad(rows, ((0, num_rows), (0, 0)))


def _local_rows(batch_size: int, mesh: jax.sharding.Mesh | None) -> np.ndarray:
  """The rows of a global batch that live on this process's devices, in order."""
  rows = np.arange(batch_size, dtype=np.int64)
  if mesh is None:
    return rows
  sharding = jax.NamedSharding(mesh, jax.P(BATCH_AXES))
  indices = sharding.addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([rows[index] for index in indices if index is not None]))


def _metrics(totals: dict[str, _Totals]) -> dict[str, float]:
  metrics: dict[str, float] = {}
  for name, total in totals.items():
    path = f"validation/{name}"
    metrics[f"{path}/loss"] = total.loss / total.num_tokens
    metrics[f"{path}/perplexity"] = _exp(total.loss / total.num_tokens)
    metrics[f"{path}/bits_per_byte"] = total.loss / (total.num_bytes * math.log(2))
    metrics[f"{path}/num_tokens"] = total.num_tokens
    metrics[f"{path}/num_rows"] = total.num_rows
  loss, num_tokens, num_bytes, num_rows = (
    sum(column) for column in zip(*totals.values(), strict=True)
  )
  for quantity, micro in [
    ("loss", loss / num_tokens),
    ("bits_per_byte", loss / (num_bytes * math.log(2))),
  ]:
    values = [metrics[f"validation/{name}/{quantity}"] for name in totals]
    metrics[f"validation/macro_{quantity}"] = sum(values) / len(values)
    metrics[f"validation/micro_{quantity}"] = micro
  metrics["validation/num_tokens"] = num_tokens
  metrics["validation/num_rows"] = num_rows
  return metrics


def _exp(value: float) -> float:
  try:
    return math.exp(value)
  except OverflowError:
    return math.inf
