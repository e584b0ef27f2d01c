"""Atomic, asynchronous checkpoints, verified when they are read.

One commit holds the state on the devices (`state`), host arrays by name (`arrays`) and JSON
values (`host`). Orbax commits by renaming a finished folder; a checksum of every array, taken
on the devices before the save, tells a damaged checkpoint from a good one.
"""

import hashlib
import json
import logging
import os
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

_LOG = logging.getLogger("jdc")
# What the names of folders begin with, before the step.
_DAMAGED = "damaged-"
_REPLACED = "replaced-"  # its step is being saved once more


class Saved(NamedTuple):
  """A checkpoint that was read and verified."""

  step: int
  state: Any
  host: dict[str, Any]  # JSON values
  arrays: dict[str, np.ndarray]


class Damaged(RuntimeError):
  """A checkpoint that cannot be read or fails its checksum."""


class Checkpoints:
  """The checkpoints of a run.

  Args:
    folder: a local or `gs://` folder.
    keep: how many of the newest to keep.
  """

  def __init__(self, folder: str, keep: int):
    # Orbax takes absolute paths only.
    self._folder = epath.Path(folder if "://" in folder else os.path.abspath(folder))
    self._keep = keep
    self._put_back_replaced()
    self._checkpointer = self._open()
    self._pending: Any = None
    self._failed = False
    self._intact: list[int] = []

  def save(
    self, step: int, state: Any, host: dict[str, Any], arrays: dict[str, np.ndarray]
  ) -> None:
    """Starts a save; the state may be donated afterwards.

    A checkpoint of the same step stays until the new one is committed.

    Raises:
      RuntimeError: if the save before this one failed; the older checkpoints are intact.
    """
    self.wait()
    payload = json.dumps(
      {
        "host": host,
        "checksums": [int(x) for x in checksums(state)],
        "arrays": {name: zlib.crc32(x.tobytes()) for name, x in arrays.items()},
      }
    )
    metadata = {"payload": payload, "crc32": zlib.crc32(payload.encode())}
    items = {"state": state, **({"arrays": arrays} if arrays else {})}
    self._intact = self.steps()
    if step in self._intact:
      self._checkpointer.close()
      if jax.process_index() == 0:
        (self._folder / str(step)).rename(self._folder / f"{_REPLACED}{step}")
      _sync("replaced checkpoint")
      self._checkpointer = self._open()
    try:
      self._pending = self._checkpointer.save_checkpointables_async(
        step, items, force=True, custom_metadata=metadata
      )
    except Exception as error:
      raise self._save_failed(error) from error

  def wait(self) -> None:
    """Returns when the pending save is committed; raises RuntimeError if it failed."""
    pending, self._pending = self._pending, None
    if pending is not None:
      try:
        pending.result()
      except Exception as error:
        raise self._save_failed(error) from error
      self._delete_replaced()

  def close(self) -> None:
    """Waits and releases the folder."""
    try:
      self.wait()
    finally:
      try:
        self._checkpointer.close()
      except Exception:
        if not self._failed:  # Orbax raises the error of a failed save again.
          raise

  def steps(self) -> list[int]:
    """Returns the steps that were committed, oldest first."""
    return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

  def newest_host(self) -> dict[str, Any] | None:
    """Returns the JSON values of the newest checkpoint whose metadata can be read."""
    for step in reversed(self.steps()):
      try:
        return self._payload(step)["host"]
      except Damaged:
        continue  # `restore` reports it
    return None

  def restore(self, abstract_state: Any) -> Saved | None:
    """Returns the newest checkpoint that is intact, or `None` if there is none at all.

    Damaged ones are reported and, once an intact one is found, renamed to `damaged-STEP`.

    Args:
      abstract_state: shapes, dtypes and shardings to restore into.

    Raises:
      Damaged: if there are checkpoints but none is intact.
    """
    faults: dict[int, Damaged] = {}
    for step in reversed(self.steps()):
      try:
        saved = self._load(step, abstract_state)
      except Damaged as error:
        _LOG.error("checkpoint %s/%d is damaged: %s", self._folder, step, error)
        faults[step] = error
        continue
      if faults:
        _LOG.error("using checkpoint %s/%d instead", self._folder, step)
        self._checkpointer.close()
        self._set_aside(*faults)
        self._checkpointer = self._open()
      return saved
    shown = [f"step {step}: {error}" for step, error in faults.items()]
    if not self.steps():
      shown = sorted(path.name for path in self._folder.glob(f"{_DAMAGED}*"))
    if shown:
      raise Damaged(
        f"none of the checkpoints in {self._folder} is intact; remove them to start afresh: "
        + "; ".join(shown)
      )
    return None

  def _open(self) -> Any:
    def opened() -> Any:
      return ocp.training.Checkpointer(
        self._folder,
        preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
        cleanup_tmp_directories=True,
      )

    try:
      return opened()
    except Exception:  # One checkpoint with unreadable metadata is enough.
      steps = [int(path.name) for path in self._folder.glob("*") if path.name.isdigit()]
      damaged = [step for step in steps if not _has_metadata(self._folder / str(step))]
      if not damaged:
        raise
      for step in damaged:
        _LOG.error("checkpoint %s/%d is damaged: no metadata", self._folder, step)
      self._set_aside(*damaged)
      return opened()

  def _payload(self, step: int) -> dict[str, Any]:
    try:
      metadata = self._checkpointer.metadata(step).custom_metadata
      payload = metadata["payload"]
      intact = zlib.crc32(payload.encode()) == metadata["crc32"]
    except Exception as error:
      raise Damaged(f"its metadata cannot be read ({type(error).__name__})") from error
    if not intact:
      raise Damaged("its metadata fails the checksum")
    return json.loads(payload)

  def _load(self, step: int, abstract_state: Any) -> Saved:
    payload = self._payload(step)
    wanted: dict[str, Any] = {"state": abstract_state}
    if payload["arrays"]:
      wanted["arrays"] = None
    try:
      loaded = self._checkpointer.load_checkpointables(step, wanted)
    except Exception as error:
      raise Damaged(f"{type(error).__name__}: {str(error)[:200]}") from error
    state = jax.tree.map(_placed, loaded["state"], abstract_state)
    arrays = {name: np.asarray(x) for name, x in (loaded.get("arrays") or {}).items()}
    found = {name: zlib.crc32(x.tobytes()) for name, x in arrays.items()}
    state_sums = [int(x) for x in checksums(state)]
    if state_sums != payload["checksums"] or found != payload["arrays"]:
      raise Damaged("its arrays fail their checksums")
    return Saved(step, state, payload["host"], arrays)

  def _put_back_replaced(self) -> None:
    # A kill while a step was saved once more leaves what was there under its other name.
    if jax.process_index() == 0:
      for path in self._replaced():
        final = self._folder / path.name.removeprefix(_REPLACED)
        if not (final / "commit_success.txt").exists():
          if final.exists():
            final.rmtree()
          path.rename(final)
    self._delete_replaced()

  def _delete_replaced(self) -> None:
    if jax.process_index() == 0:
      for path in self._replaced():
        path.rmtree()
    _sync("replaced checkpoints")

  def _replaced(self) -> list[epath.Path]:
    return list(self._folder.glob(f"{_REPLACED}*"))

  def _set_aside(self, *steps: int) -> None:
    # Names that are no steps, so that the run can save these steps again.
    if jax.process_index() == 0:
      for step in steps:
        name, taken = f"{_DAMAGED}{step}", 1
        while (self._folder / name).exists():
          name, taken = f"{_DAMAGED}{step}-{taken}", taken + 1
        (self._folder / str(step)).rename(self._folder / name)
    _sync("damaged checkpoints")

  def _save_failed(self, error: Exception) -> RuntimeError:
    self._failed = True
    kept = f"intact are those of steps {self._intact}" if self._intact else "it is the first"
    return RuntimeError(
      f"the checkpoint in {self._folder} could not be saved ({kept}): "
      f"{type(error).__name__}: {error}"
    )


def read_payload(folder: epath.PathLike, step: int | None = None) -> tuple[int, dict[str, Any]]:
  """Returns the step and the JSON values of a checkpoint, without touching the folder.

  Args:
    folder: of checkpoints.
    step: of the checkpoint; default: the newest.

  Raises:
    ValueError: if it is not there.
    Damaged: if it cannot be read.
  """
  folder = epath.Path(os.path.abspath(folder) if "://" not in str(folder) else folder)
  steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
  if not steps or (step is not None and step not in steps):
    raise ValueError(f"{folder}: no checkpoint of step {step}; there are {steps}")
  step = steps[-1] if step is None else step
  try:
    metadata = ocp.checkpointables_metadata(folder / str(step)).custom_metadata
    payload, crc32 = metadata["payload"], metadata["crc32"]
  except Exception as error:
    raise Damaged(f"{folder}/{step}: its metadata cannot be read") from error
  if zlib.crc32(payload.encode()) != crc32:
    raise Damaged(f"{folder}/{step}: its metadata fails the checksum")
  return step, json.loads(payload)


def read_params(
  folder: epath.PathLike, step: int, payload: dict[str, Any], abstract_params: Any
) -> Any:
  """Returns the parameters that a checkpoint holds, and nothing else of it.

  Raises:
    Damaged: if they cannot be read or fail their checksums.
  """
  return read_fields(folder, step, payload, {"params": abstract_params})["params"]


def read_fields(
  folder: epath.PathLike, step: int, payload: dict[str, Any], wanted: dict[str, Any]
) -> dict[str, Any]:
  """Returns the first fields of the state that a checkpoint holds, after its step.

  Args:
    folder: of checkpoints.
    step: of the checkpoint.
    payload: of `read_payload`.
    wanted: shapes of `params`, and of `opt_state` too if it is asked for.

  Raises:
    Damaged: if they cannot be read or fail their checksums.
  """
  folder = epath.Path(os.path.abspath(folder) if "://" not in str(folder) else folder)
  context = ocp.Context()
  context.pytree.loading.partial_load = True
  try:
    with context:
      loaded = ocp.load_checkpointables(folder / str(step), {"state": wanted})
  except Exception as error:
    raise Damaged(f"{folder}/{step}: {type(error).__name__}: {str(error)[:200]}") from error
  # In the order of the state, whatever that of `wanted`: trees of JAX sort their keys.
  fields: list[str] = [name for name in ("params", "opt_state") if name in wanted]
  found = {name: loaded["state"][name] for name in fields}
  sums = [int(x) for part in found.values() for x in checksums(part)]
  # The leaves of a state are its step and then these.
  if sums != payload["checksums"][1 : 1 + len(sums)]:
    raise Damaged(f"{folder}/{step}: its {', '.join(found)} fail their checksums")
  return found


def _placed(x: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
  # On one device keys come back with the partition of their data, which has one axis more.
  return x if x.sharding == wanted.sharding else jax.device_put(x, wanted.sharding)


def _has_metadata(checkpoint: epath.Path) -> bool:
  try:
    ocp.checkpointables_metadata(checkpoint)
    return isinstance(json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text()), dict)
  except Exception:  # whatever a damaged file makes the readers raise, it cannot be read
    return False


def _sync(name: str) -> None:
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def checksums(tree: Any) -> np.ndarray:
  """Returns one number per leaf, u32[leaves], that does not depend on the sharding."""
  return np.asarray(jax.device_get(_checksums(tree)))


def fingerprint(tree: Any) -> str:
  """Returns a hash of the names, types, shapes and values of a tree, 32 hex digits.

  Example:
    >>> a = fingerprint({"kernel": jnp.arange(4.0)})
    >>> (
    ...   a == fingerprint({"kernel": jnp.arange(4.0)}),
    ...   a == fingerprint({"bias": jnp.arange(4.0)}),
    ... )
    (True, False)
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  described = [
    [jax.tree_util.keystr(path), str(leaf.dtype), list(leaf.shape), int(checksum)]
    for (path, leaf), checksum in zip(leaves, checksums(tree), strict=True)
  ]
  return hashlib.blake2b(json.dumps(described).encode(), digest_size=16).hexdigest()


@jax.jit
def _checksums(tree: Any) -> jax.Array:
  return jnp.stack([_checksum(x) for x in jax.tree.leaves(tree)])


def _checksum(x: jax.Array) -> jax.Array:
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{x.dtype.itemsize * 8}"))
  place = jnp.uint32(0)
  for axis, size in enumerate(x.shape):
    place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
  # One to one in the bits of an element, so that a change of one element changes the sum, and
  # unrelated between places. Integer sums do not depend on their order, hence not on devices.
  return jnp.sum(_mix(bits.astype(jnp.uint32) ^ _mix(place)), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
  x = (x ^ (x >> 16) ^ jnp.uint32(0x2545F491)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
