"""Parameters that exist already: published checkpoints to start from, runs to evaluate."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jdc.models import hf, lora, subsets
from jdc.models.base import LanguageModel, Params
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.lora import LoraConfig
from jdc.train import checkpoint
from jdc.train import config as config_lib
from jdc.train.state import Weights


class Opened(NamedTuple):
  """A model that was opened for evaluation, generation or export."""

  config: DecoderConfig
  model: LanguageModel
  params: Params  # adapters merged
  source: Path  # the folder of the checkpoint
  step: int | None  # of a run
  base: Path | None  # the folder of the weights that a run started from
  run: dict[str, Any]  # config of a run as flat JSON, else empty
  # With adapters, what they are and the parameters before they were merged.
  lora: LoraConfig | None
  unmerged: Params


def weights(folder: str | os.PathLike[str], config: DecoderConfig) -> Weights:
  """Returns the weights of a Hugging Face folder, which hold all parameters but adapters.

  Raises:
    ValueError: here if a file cannot be read; when they are loaded, listing every tensor that
      is missing, left over or of another shape.
  """

  def load(target: Params) -> Params:
    return hf.load(folder, config, target)

  return Weights(load, lambda path: path.split("/")[-1] not in lora.LEAVES, _contents(folder))


def open_model(
  folder: str | os.PathLike[str],
  mesh: jax.sharding.Mesh,
  step: int | None = None,
  **changes: Any,
) -> Opened:
  """Opens a Hugging Face folder, or the newest checkpoint of a run directory.

  Args:
    folder: holds `config.json` and safetensors, or `checkpoints/`; such a folder of checkpoints
      itself is accepted too.
    mesh: the devices on which the parameters are laid out.
    step: of a run: another checkpoint than the newest.
    **changes: fields of `DecoderConfig` with other values, such as dtype="bfloat16".

  Raises:
    ValueError: if the folder is neither, the step is not there, or its contents do not fit.
    checkpoint.Damaged: if the checkpoint fails its checksums.
  """
  folder = Path(folder)
  if (folder / "config.json").is_file():
    if step is not None:
      raise ValueError(f"{folder} is no run directory and has no step {step}")
    return _open_hugging_face(folder, mesh, changes)
  for place in (folder / "checkpoints", folder):
    if place.is_dir() and any(path.name.isdigit() for path in place.iterdir()):
      return _open_run(place, mesh, step, changes)
  raise ValueError(
    f"{folder}: neither a Hugging Face checkpoint (config.json) nor a run directory "
    "(checkpoints/)"
  )


def _open_hugging_face(
  folder: Path, mesh: jax.sharding.Mesh, changes: Mapping[str, Any]
) -> Opened:
  config = hf.from_hf_config(folder, **changes)
  model = decoder(config)
  params = hf.load(folder, config, _target(model, mesh))
  return Opened(config, model, params, folder, None, None, {}, None, params)


def _open_run(
  folder: Path, mesh: jax.sharding.Mesh, step: int | None, changes: Mapping[str, Any]
) -> Opened:
  step, payload = checkpoint.read_payload(folder, step)
  run = payload["host"]["config"]
  if "model.vocab_size" not in run:
    raise ValueError(f"{folder}: the run was not made from a config with a decoder")
  config = config_lib.from_json(run, DecoderConfig, "model.", **changes)
  adapters = config_lib.from_json(run, LoraConfig, "lora.") if "lora.rank" in run else None
  base = Path(run["weights.folder"]) if run.get("weights.folder") else None
  target = _target(decoder(config, lora=adapters), mesh)
  trained: Params = target
  frozen: Params = {}
  if trainable := config_lib.trainable_patterns(run):
    trained, frozen = subsets.split(target, subsets.matcher(trainable))
  params = checkpoint.read_params(folder, step, payload, trained)
  if frozen:
    if base is None:
      raise ValueError(f"{folder}: frozen parameters of a run without weights cannot be read")
    found = _contents(base)
    if found != payload["host"]["parts"]["weights"]:
      raise ValueError(f"{base}: other weights than those that the run in {folder} began with")
    params = subsets.join(params, hf.load(base, config, frozen))
  merged = params if adapters is None else lora.merged(params, adapters)
  source = folder.parent if folder.name == "checkpoints" else folder
  return Opened(config, decoder(config), merged, source, step, base, run, adapters, params)


def _target(model: LanguageModel, mesh: jax.sharding.Mesh) -> Params:
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(
    lambda x, spec: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec)
    ),
    shapes,
    model.partition_specs(shapes),
  )


def _contents(folder: str | os.PathLike[str]) -> str:
  return f"sha256 {hf.fingerprint(folder)}"
