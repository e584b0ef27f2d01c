"""Writes what a run has trained for the Hugging Face libraries.

  python launch/export.py --checkpoint=runs/full --output=DIR

`--checkpoint` is a run directory, or a Hugging Face folder to convert. Adapters are written in
PEFT's format; `--merge` adds them to the weights that they adapt and writes a whole model, as a
run without adapters does. The output must not exist; it is written whole or not at all.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from absl import app, flags

from jdc.models import hf, peft
from jdc.models.decoder_config import DTYPES
from jdc.train import config as config_lib
from jdc.train import corpus, pretrained, process, sharding

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run directory.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "The folder to write.", required=True)
STEP = flags.DEFINE_integer("step", None, "Of the checkpoint; default: the newest.")
WEIGHTS = flags.DEFINE_string(
  "weights",
  None,
  "Where the weights that the run began with are now; default: where they were.",
)
MERGE = flags.DEFINE_bool("merge", False, "Merge adapters into the weights that they adapt.")
DTYPE = flags.DEFINE_enum("dtype", None, DTYPES, "Of the weights; default: as they are.")
TOKENIZER = flags.DEFINE_string(
  "tokenizer", None, "Folder of the tokenizer to copy; default: that of the run."
)


def main(argv: list[str]) -> None:
  process.log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  export(
    CHECKPOINT.value, OUTPUT.value, STEP.value, MERGE.value, DTYPE.value, TOKENIZER.value,
    WEIGHTS.value,
  )  # fmt: skip


def export(
  checkpoint: str,
  output: str,
  step: int | None = None,
  merge: bool = False,
  dtype: str | None = None,
  tokenizer: str | None = None,
  weights: str | None = None,
) -> None:
  """Opens the checkpoint and writes it as a model, or as adapters."""
  folder = Path(output)
  if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
    raise ValueError(f"--output={output} exists; give another name or remove it")
  mesh, adapted = sharding.make_mesh(data=1, fsdp=-1), pretrained.has_adapters(checkpoint, step)
  if merge and not adapted:
    raise ValueError(f"{checkpoint} has no adapters to merge")
  if adapted and not merge:
    if dtype or tokenizer:
      raise ValueError("--dtype and --tokenizer are for whole models; give --merge as well")
    found = pretrained.open_adapters(checkpoint, mesh, step)
    base = weights or found.base
    peft.save_adapter(output, found.params, found.lora, found.config, base)
    print(f"adapters of step {found.step} for {base}: {output}")
    return
  opened = pretrained.open_model(checkpoint, mesh, step, weights)
  config = opened.config
  if not config.context_length:  # known to transformers as the most positions
    length = int(opened.run["sequence_length"])
    config = dataclasses.replace(config, context_length=length)
  origin = opened.base or (opened.source if opened.step is None else None)
  tokenizer_folder = Path(tokenizer) if tokenizer else _tokenizer_folder(opened, origin)
  hf.save(
    output,
    config,
    opened.params,
    tokenizer_folder=tokenizer_folder,
    generation_config=_generation_config(origin),
    token_ids=hf.read_token_ids(origin) if origin else _token_ids(opened),
    dtype=dtype,
  )
  print(f"model{'' if opened.step is None else f' of step {opened.step}'}: {output}")
  if tokenizer_folder is None:
    print("without a tokenizer: the run's is bytes, which transformers does not have")


def _tokenizer_folder(opened: pretrained.Opened, origin: Path | None) -> Path | None:
  named = str(opened.run.get("corpus.tokenizer", "weights"))
  if named == "bytes":
    return None
  if named == "weights":
    return origin
  return Path(named) if Path(named).is_dir() else Path(named).parent


def _token_ids(opened: pretrained.Opened) -> dict[str, int]:
  """The boundary tokens of a run that began with no weights."""
  own = corpus.tokenizer(config_lib.from_json(opened.run, config_lib.CorpusConfig, "corpus."))
  ids = {"bos_token_id": own.bos_id, "eos_token_id": own.eos_id}
  return {name: token for name, token in ids.items() if token is not None}


def _generation_config(origin: Path | None) -> dict[str, Any] | None:
  path = origin / "generation_config.json" if origin else None
  if path is None or not path.exists():
    return None
  return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
  app.run(main)
