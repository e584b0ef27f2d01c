"""Parameters and optimizer of another run's checkpoint, for scores of a pool."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdc.train import checkpoint, loop
from jdc.train import config as config_lib
from jdc.train.state import TrainState, Weights


def restored(state: TrainState, checkpoints: str, step: int, run: loop.Run) -> TrainState:
  """Returns the state with parameters and optimizer of a checkpoint; policies go on.

  Raises:
    ValueError: if the run of the checkpoint trained other parameters, or by another optimizer.
    checkpoint.Damaged: if it cannot be read.
  """
  folder = Path(checkpoints)
  _, payload = checkpoint.read_payload(folder, step)
  wanted = {"params": state.params, "opt_state": state.opt_state}
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted
  )
  _check_parts(payload["host"]["parts"], shapes, folder, run.weights)
  _check_optimizer(payload["host"]["config"], folder, run)
  found = checkpoint.read_fields(folder, step, payload, shapes)
  return state._replace(
    step=jax.device_put(np.int32(step), state.step.sharding),
    params=found["params"],
    opt_state=found["opt_state"],
  )


def _check_parts(
  saved: dict[str, str], shapes: dict[str, Any], folder: Path, weights: Weights | None
) -> None:
  """Raises a ValueError if a run trained other parameters, or by another optimizer."""
  wanted = {
    f"state.{jax.tree_util.keystr(path[:1], simple=True)}{jax.tree_util.keystr(path[1:])}": (
      f"{x.dtype}{list(x.shape)}"
    )
    for path, x in jax.tree_util.tree_leaves_with_path(shapes)
  }
  if weights is not None:
    wanted["weights"] = weights.fingerprint
  compared = ("state.params", "state.opt_state", "weights")
  held = {n: x for n, x in saved.items() if n.startswith(compared)}
  wrong = [
    f"{name}: {held.get(name)} -> {wanted.get(name)}"
    for name in sorted(held.keys() | wanted.keys())
    if held.get(name) != wanted.get(name)
  ]
  if wrong:
    raise ValueError(f"{folder} holds other parameters than the config: {'; '.join(wrong)}")


def _check_optimizer(saved: dict[str, Any], folder: Path, run: loop.Run) -> None:
  """Raises a ValueError if the optimizer that the selection reads was another in training.

  A run that was not made from a config says nothing of its optimizer, and is not compared.
  """
  assert run.policies.selection is not None
  observed, names = run.policies.selection.observes, []
  if "update_direction" in observed:
    names += [f"optimizer.{name}" for name in ("b1", "b2", "epsilon", "clip_norm")]
  if "learning_rate" in observed:
    names.append("num_steps")
    names += [f"optimizer.{n}" for n in ("learning_rate", "schedule", "warmup_steps")]
    names.append("optimizer.final_fraction")
  here = config_lib.to_json(run.config)
  wrong = [
    f"config.{name}: {saved[name]} -> {here[name]}"
    for name in names
    if name in saved and name in here and saved[name] != here[name]
  ]
  if wrong:
    raise ValueError(
      f"{folder} is of a run with another optimizer, which the selection reads; give the "
      f"config its values: {'; '.join(wrong)}"
    )
