"""Parameters that exist already: published checkpoints to start from, runs to evaluate."""

import dataclasses
import hashlib
import json
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
from jdc.train.config import CorpusConfig
from jdc.train.state import Reference, Start, Weights, initial_params


class Opened(NamedTuple):
  """A model that was opened for evaluation, generation or export."""

  config: DecoderConfig
  model: LanguageModel
  params: Params  # adapters merged
  source: Path  # the folder of the checkpoint
  step: int | None  # of a run
  base: Path | None  # the folder of the weights that a run started from
  run: dict[str, Any]  # config of a run as flat JSON, else empty


class Adapters(NamedTuple):
  """The adapters that a run trained."""

  config: DecoderConfig
  lora: LoraConfig
  params: Params  # their leaves, and no others
  step: int
  base: str | None  # the folder of the weights that the run started from


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
  weights_folder: str | os.PathLike[str] | None = None,
  **changes: Any,
) -> Opened:
  """Opens a Hugging Face folder, or the newest checkpoint of a run directory.

  Args:
    folder: holds `config.json` and safetensors, or `checkpoints/`; such a folder of checkpoints
      itself is accepted too.
    mesh: the devices on which the parameters are laid out.
    step: of a run: another checkpoint than the newest.
    weights_folder: of a run: where the weights that it began with are now; `None`: where they
      were.
    **changes: fields of `DecoderConfig` with other values, such as dtype="bfloat16".

  Raises:
    ValueError: if the folder is neither, the step is not there, or its contents do not fit.
    checkpoint.Damaged: if the checkpoint fails its checksums.
  """
  folder = Path(folder)
  if (folder / "config.json").is_file():
    given = {"step": step, "weights_folder": weights_folder}
    if wrong := [f"{name}={value}" for name, value in given.items() if value is not None]:
      raise ValueError(f"{folder} is no run directory, and {', '.join(wrong)} is for a run")
    return _open_hugging_face(folder, mesh, changes)
  return _open_run(_checkpoints(folder), mesh, step, weights_folder, changes)


def reference(folder: str | os.PathLike[str]) -> Reference:
  """Returns a frozen model of a Hugging Face folder, or of the newest checkpoint of a run.

  Nothing but its configuration is read until it is loaded.

  Raises:
    ValueError: if the folder is neither.
    checkpoint.Damaged: if the checkpoint cannot be read.
  """
  folder = Path(folder)
  if (folder / "config.json").is_file():
    step, config, fingerprint = None, hf.from_hf_config(folder), _contents(folder)
  else:
    place = _checkpoints(folder)
    step, payload = checkpoint.read_payload(place)
    run = payload["host"]["config"]
    if "model.vocab_size" not in run:
      raise ValueError(f"{folder}: the run was not made from a config with a decoder")
    config = config_lib.from_json(run, DecoderConfig, "model.")
    parts = [payload["checksums"], payload["host"]["parts"].get("weights")]
    fingerprint = f"sha256 {hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"
  return Reference(
    decoder(config), lambda mesh: open_model(folder, mesh, step).params, fingerprint
  )


def corpus_of(folder: str | os.PathLike[str]) -> CorpusConfig | None:
  """Returns what the newest checkpoint of a run says of its data; `None` of another folder."""
  folder = Path(folder)
  if (folder / "config.json").is_file():
    return None
  _, payload = checkpoint.read_payload(_checkpoints(folder))
  run = payload["host"]["config"]
  found: CorpusConfig = config_lib.from_json(run, CorpusConfig, "corpus.")
  if found.tokenizer != "weights":
    return found
  return dataclasses.replace(found, tokenizer=run["weights.folder"])


def has_adapters(folder: str | os.PathLike[str], step: int | None = None) -> bool:
  """Whether a folder is a run directory whose model has adapters."""
  folder = Path(folder)
  if (folder / "config.json").is_file():
    return False
  _, payload = checkpoint.read_payload(_checkpoints(folder), step)
  return "lora.rank" in payload["host"]["config"]


def open_adapters(
  folder: str | os.PathLike[str], mesh: jax.sharding.Mesh, step: int | None = None
) -> Adapters:
  """Opens the adapters of a run, without the parameters that they adapt.

  Args:
    folder: a run directory.
    mesh: the devices on which they are laid out.
    step: another checkpoint than the newest.

  Raises:
    ValueError: if the run trained no adapters, or other parameters besides.
    checkpoint.Damaged: if the checkpoint fails its checksums.
  """
  place = _checkpoints(Path(folder))
  step, payload = checkpoint.read_payload(place, step)
  run = payload["host"]["config"]
  if "lora.rank" not in run:
    raise ValueError(f"{folder} has no adapters")
  config = config_lib.from_json(run, DecoderConfig, "model.")
  adapters = config_lib.from_json(run, LoraConfig, "lora.")
  trained, _ = subsets.split(
    _target(decoder(config, lora=adapters), mesh),
    subsets.matcher(config_lib.trainable_patterns(run)),
  )
  others = [path for path in subsets.paths(trained) if path.split("/")[-1] not in lora.LEAVES]
  if others:
    raise ValueError(
      f"{folder} trained more than adapters: {', '.join(others)}; merge them into a model"
    )
  params = checkpoint.read_params(place, step, payload, trained)
  return Adapters(config, adapters, params, step, run.get("weights.folder") or None)


def _checkpoints(folder: Path) -> Path:
  for place in (folder / "checkpoints", folder):
    if place.is_dir() and any(path.name.isdigit() for path in place.iterdir()):
      return place
  raise ValueError(
    f"{folder}: neither a Hugging Face checkpoint (config.json) nor a run directory "
    "(checkpoints/)"
  )


def _open_hugging_face(
  folder: Path, mesh: jax.sharding.Mesh, changes: Mapping[str, Any]
) -> Opened:
  config = hf.from_hf_config(folder, **changes)
  model = decoder(config)
  _check_mesh(model, mesh)
  params = hf.load(folder, config, _target(model, mesh))
  return Opened(config, model, params, folder, None, None, {})


def _open_run(
  folder: Path,
  mesh: jax.sharding.Mesh,
  step: int | None,
  weights_folder: str | os.PathLike[str] | None,
  changes: Mapping[str, Any],
) -> Opened:
  step, payload = checkpoint.read_payload(folder, step)
  run = payload["host"]["config"]
  if "model.vocab_size" not in run:
    raise ValueError(f"{folder}: the run was not made from a config with a decoder")
  named = run.get("weights.folder") or None
  if weights_folder is not None and named is None:
    raise ValueError(f"{folder}: the run began with no weights, got {weights_folder}")
  base = None if named is None else Path(weights_folder or named)
  saved = config_lib.from_json(run, DecoderConfig, "model.")
  config = dataclasses.replace(saved, **changes)
  adapters = config_lib.from_json(run, LoraConfig, "lora.") if "lora.rank" in run else None
  model = decoder(config)
  _check_mesh(model, mesh)
  target = _target(decoder(saved, lora=adapters), mesh)
  trained: Params = target
  frozen: Params = {}
  if trainable := config_lib.trainable_patterns(run):
    trained, frozen = subsets.split(target, subsets.matcher(trainable))
  params = checkpoint.read_params(folder, step, payload, trained)
  if frozen:
    found = _frozen(frozen, base, folder, payload["host"], decoder(saved, lora=adapters))
    params = subsets.join(params, found)
  merged = params if adapters is None else lora.merged(params, adapters, donate=True)
  if config.parameter_dtype != saved.parameter_dtype:
    merged = jax.tree.map(lambda x, like: x.astype(like.dtype), merged, _target(model, mesh))
  source = folder.parent if folder.name == "checkpoints" else folder
  return Opened(config, model, merged, source, step, base, run)


def _check_mesh(model: LanguageModel, mesh: jax.sharding.Mesh) -> None:
  if model.check_partition is not None:
    model.check_partition(dict(mesh.shape))


def _frozen(
  target: Params, base: Path | None, folder: Path, host: dict[str, Any], model: LanguageModel
) -> Params:
  """The parameters that a run did not train: from its weights, or drawn again."""
  if base is None:
    key = jax.random.key(host["config"]["seed"])
    return initial_params(Start(model), target, key)
  if not base.is_dir():
    raise ValueError(
      f"{base}: the weights that the run in {folder} began with are not there; where are they "
      "now (weights_folder)?"
    )
  if _contents(base) != host["parts"]["weights"]:
    raise ValueError(f"{base}: other weights than those that the run in {folder} began with")
  config = config_lib.from_json(host["config"], DecoderConfig, "model.")
  return hf.load(base, config, target)


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
