"""Atomic, asynchronous checkpoints, verified when they are read.

One commit holds the state on the devices (`state`), host arrays by name (`arrays`) and JSON
values (`host`). Orbax commits by renaming a finished folder; a checksum of every array, taken
on the devices before the save, tells a damaged checkpoint from a good one.
"""

import json
import logging
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

_LOG = logging.getLogger("jdc")


class Saved(NamedTuple):
  """A checkpoint that was read and verified."""

  step: int
  state: Any
  host: dict[str, Any]  # JSON values
  arrays: dict[str, np.ndarray]


class Damaged(Exception):
  """A checkpoint that cannot be read or fails its checksum."""


class Checkpoints:
  """The checkpoints of a run.

  Args:
    folder: a local or `gs://` folder.
    keep: how many of the newest to keep.
  """

  def __init__(self, folder: str, keep: int):
    self._folder = epath.Path(folder)
    newest = ocp.training.preservation_policies.LatestN(keep)
    self._open = lambda: ocp.training.Checkpointer(
      self._folder, preservation_policy=newest, cleanup_tmp_directories=True
    )
    self._checkpointer = self._open()
    self._pending: Any = None

  def save(
    self, step: int, state: Any, host: dict[str, Any], arrays: dict[str, np.ndarray]
  ) -> None:
    """Starts a save; the state may be donated afterwards.

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
    try:
      self._pending = self._checkpointer.save_checkpointables_async(
        step, items, force=True, overwrite=step in self.steps(), custom_metadata=metadata
      )
    except Exception as error:
      raise _save_failed(self._folder, error) from error

  def wait(self) -> None:
    """Returns when the pending save is committed; raises RuntimeError if it failed."""
    pending, self._pending = self._pending, None
    if pending is not None:
      try:
        pending.result()
      except Exception as error:
        raise _save_failed(self._folder, error) from error

  def close(self) -> None:
    """Waits and releases the folder."""
    self.wait()
    self._checkpointer.close()

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

    Damaged ones are reported and moved aside.

    Args:
      abstract_state: shapes, dtypes and shardings to restore into.

    Raises:
      Damaged: if there are checkpoints but none is intact.
    """
    steps, faults = self.steps(), []
    for step in reversed(steps):
      try:
        return self._load(step, abstract_state)
      except Damaged as error:
        faults.append(f"step {step}: {error}")
        _LOG.error("checkpoint %s/%d is damaged: %s", self._folder, step, error)
        self._move_aside(step)
    if faults:
      raise Damaged(f"no checkpoint in {self._folder} can be read; {'; '.join(faults)}")
    return None

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
    arrays = {name: np.asarray(x) for name, x in (loaded.get("arrays") or {}).items()}
    found = {name: zlib.crc32(x.tobytes()) for name, x in arrays.items()}
    state_sums = [int(x) for x in checksums(loaded["state"])]
    if state_sums != payload["checksums"] or found != payload["arrays"]:
      raise Damaged("its arrays fail their checksums")
    return Saved(step, loaded["state"], payload["host"], arrays)

  def _move_aside(self, step: int) -> None:
    # A name that is no step, so that the run can save this step again.
    self._checkpointer.close()
    if jax.process_index() == 0:
      source = self._folder / str(step)
      target = self._folder / f"damaged-{step}"
      number = 1
      while target.exists():
        target, number = self._folder / f"damaged-{step}-{number}", number + 1
      source.rename(target)
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      multihost_utils.sync_global_devices(f"moved aside {step}")
    self._checkpointer = self._open()


def checksums(tree: Any) -> np.ndarray:
  """Returns one number per leaf, u32[leaves], that does not depend on the sharding."""
  return np.asarray(jax.device_get(_checksums(tree)))


@jax.jit
def _checksums(tree: Any) -> jax.Array:
  return jnp.stack([_checksum(x) for x in jax.tree.leaves(tree)])


def _checksum(x: jax.Array) -> jax.Array:
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{x.dtype.itemsize * 8}"))
  bits = bits.astype(jnp.uint32)
  # Integer sums do not depend on their order, hence not on the devices.
  place = jnp.uint32(0)
  for axis, size in enumerate(x.shape):
    place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
  mixed = (bits ^ (bits >> 15)) * jnp.uint32(0x9E3779B1) * (2 * place + 1)
  return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)


def _save_failed(folder: epath.Path, error: Exception) -> RuntimeError:
  return RuntimeError(
    f"saving to {folder} failed, the checkpoints before it are intact: "
    f"{type(error).__name__}: {error}"
  )
