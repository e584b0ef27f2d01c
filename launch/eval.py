"""Evaluates a checkpoint: perplexity by domain, multiple choice, written answers.

  python launch/eval.py --checkpoint=FOLDER --output=result.json \\
    --tasks=perplexity:DIR,mmlu:DIR,choice:FILE.jsonl,gsm8k:FILE.jsonl

FOLDER is a run directory or a Hugging Face checkpoint. The result holds every number, what was
evaluated and how; what each question got lies beside it, one JSON line a question.
"""

import dataclasses
import json
import math
import os
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import jax
from absl import app, flags

from jdc.data.chat import Chat
from jdc.eval import specs
from jdc.eval.task import Outcome, Task
from jdc.eval.text_model import TextModel, check_vocabulary
from jdc.eval.tokenizer import OwnTokenizer, of_training, open_tokenizer
from jdc.train import checkpoint, corpus, pretrained, process, sharding
from jdc.train import config as config_lib

CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "A run directory or a Hugging Face folder.", required=True
)
STEP = flags.DEFINE_integer("step", None, "Of a run: another checkpoint than the newest.")
TASKS = flags.DEFINE_list("tasks", None, "KIND:PATH or KIND:PATH:SHOTS, ...", required=True)
OUTPUT = flags.DEFINE_string("output", None, "The result, a new JSON file.", required=True)
TOKENIZER = flags.DEFINE_string(
  "tokenizer", "", "bytes or a tokenizer.json; empty: the checkpoint's own."
)
CHAT = flags.DEFINE_enum(
  "chat",
  None,
  ["none", *corpus.TEMPLATES],
  "Write prompts as a user's message; default: as the run was trained, none for other models.",
)
NUM_SHOTS = flags.DEFINE_integer("num_shots", 5, "Questions shown with their answers.")
CHOICE_SCORE = flags.DEFINE_enum(
  "choice_score", "letter", ["letter", "text"], "Score an option's letter or its text."
)
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "Of a written answer.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Of written answers; 0: greedy.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from so many tokens; 0: all.")
TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from tokens of this probability; 1: all.")
SEED = flags.DEFINE_integer("seed", 0, "Of draws.")
SEQUENCE_LENGTH = flags.DEFINE_integer(
  "sequence_length", 0, "Of perplexity's rows; 0: the context, 1,024 at most."
)
MAX_ROWS = flags.DEFINE_integer("max_rows", None, "Of each of perplexity's domains; none: all.")
TEXT_FIELD = flags.DEFINE_string("text_field", "text", "Of perplexity's records.")
CACHE_DIR = flags.DEFINE_string("cache_dir", "", "Of packed rows; empty: $JDC_CACHE.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Rows in one call, over all devices.")
CONTEXT_LENGTH = flags.DEFINE_integer(
  "context_length", 0, "Positions at most; 0: those the checkpoint states, if any."
)
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of activations.")
PARAMETER_DTYPE = flags.DEFINE_enum(
  "parameter_dtype", None, ["float32", "bfloat16"], "Of parameters."
)
MESH = {
  axis: flags.DEFINE_integer(f"mesh_{axis}", size, f"Devices along {axis}; -1: what is left.")
  for axis, size in (("data", 1), ("fsdp", -1), ("expert", 1), ("tensor", 1))
}
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Start jax.distributed (several hosts).")


def main(argv: list[str]) -> None:
  process.log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  if DISTRIBUTED.value:
    jax.distributed.initialize()
  output = Path(OUTPUT.value)
  # Everything that can be wrong without the model.
  options = _options()
  *tasks, mesh, _ = config_lib.collect(
    *(lambda spec=spec: specs.parse(spec, options) for spec in TASKS.value),
    lambda: sharding.make_mesh(**{axis: flag.value for axis, flag in MESH.items()}),
    lambda: _check_output(output),
  )
  sharding.check_batch(mesh, batch_size=BATCH_SIZE.value)

  changes = {"dtype": DTYPE.value, "parameter_dtype": PARAMETER_DTYPE.value}
  changes = {name: value for name, value in changes.items() if value is not None}
  opened = pretrained.open_model(CHECKPOINT.value, mesh, STEP.value, **changes)
  own = _tokenizer(opened)
  check_vocabulary(own, opened.model)
  model = TextModel(
    opened.model,
    opened.params,
    own,
    CONTEXT_LENGTH.value or opened.config.context_length,
    BATCH_SIZE.value,
    mesh,
    _chat(opened),
  )
  # All tasks are checked with the model's tokenizer before the first is run.
  runs = config_lib.collect(*(lambda task=task: task.prepare(model) for task in tasks))
  result: dict[str, Any] = {"evaluated": _describe(opened, model), "tasks": {}}
  for task, run in zip(tasks, runs, strict=True):
    outcome = run()
    records = _write_records(output, task, outcome)
    result["tasks"][task.name] = {
      "metrics": outcome.metrics, "settings": task.settings, "records": records
    }  # fmt: skip
    if jax.process_index() == 0:
      print(_table(task, outcome), flush=True)
  _write(output, json.dumps(_strict(result), indent=2) + "\n")
  if jax.process_index() == 0:
    print(f"result: {output}")


def _options() -> specs.Options:
  return specs.Options(
    num_shots=NUM_SHOTS.value,
    choice_score=cast(Any, CHOICE_SCORE.value),
    max_new_tokens=MAX_NEW_TOKENS.value,
    temperature=TEMPERATURE.value,
    top_k=TOP_K.value,
    top_p=TOP_P.value,
    seed=SEED.value,
    sequence_length=SEQUENCE_LENGTH.value,
    max_rows=MAX_ROWS.value,
    text_field=TEXT_FIELD.value,
    cache_dir=str(
      corpus.cache_dir(config_lib.CorpusConfig(cache_dir=CACHE_DIR.value)) / "rows"
    ),
  )


def _check_output(output: Path) -> None:
  if output.suffix != ".json":
    raise ValueError(f"--output={output} must end in .json")
  if output.exists():
    raise ValueError(f"--output={output} exists; give another name or remove it")
  if not output.absolute().parent.is_dir():
    raise ValueError(f"--output={output}: its folder does not exist")
  if duplicates := sorted({spec for spec in TASKS.value if TASKS.value.count(spec) > 1}):
    raise ValueError(f"--tasks names more than once: {', '.join(duplicates)}")


def _tokenizer(opened: pretrained.Opened) -> OwnTokenizer:
  """That of the flag, of the run's config, or of the checkpoint's folder."""
  if TOKENIZER.value or not opened.run:
    return open_tokenizer(TOKENIZER.value, opened.source)
  config = _corpus(opened)
  return of_training(corpus.tokenizer(config), config.tokenizer)


def _corpus(opened: pretrained.Opened) -> config_lib.CorpusConfig:
  """How the run read its data; of another checkpoint, its own tokenizer."""
  if not opened.run:
    named = TOKENIZER.value or str(opened.source)
    return config_lib.CorpusConfig(tokenizer=named, format="messages")
  config = config_lib.from_json(opened.run, config_lib.CorpusConfig, "corpus.")
  return corpus.with_tokenizer_of(str(opened.base or ""), config)


def _chat(opened: pretrained.Opened) -> Chat | None:
  config = _corpus(opened)
  if CHAT.value == "none" or (
    CHAT.value is None and (not opened.run or config.format == "text")
  ):
    return None
  chosen = CHAT.value or config.template
  return corpus.chat(dataclasses.replace(config, template=chosen))


def _template(opened: pretrained.Opened) -> str:
  return CHAT.value or (str(opened.run.get("corpus.template")) if opened.run else "none")


def _describe(opened: pretrained.Opened, model: TextModel) -> dict[str, Any]:
  tokenizer = model.own.tokenizer
  return {
    "checkpoint": str(opened.source),
    "step": opened.step,
    "parameters": sum(x.size for x in jax.tree.leaves(opened.params)),
    "parameters_fingerprint": checkpoint.fingerprint(opened.params),
    "config": dataclasses.asdict(opened.config),
    "context_length": model.context_length,
    "batch_size": model.batch_size,
    "tokenizer": {
      "source": model.own.source,
      "fingerprint": tokenizer.fingerprint,
      "vocab_size": tokenizer.vocab_size,
      "puts_before_a_text": tokenizer.bos_id,
      "puts_after_a_text": tokenizer.eos_id,
      "stop_ids": list(model.stop_ids),
      "chat": "none" if model.chat is None else _template(opened),
    },
    "versions": {"jdc": metadata.version("jdc"), "jax": jax.__version__},
    "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
  }


def _write_records(output: Path, task: Task, outcome: Outcome) -> str | None:
  if not outcome.records:
    return None
  name = "".join(c if c.isalnum() or c in "-_." else "_" for c in task.name)
  path = output.with_name(f"{output.stem}.{name}.jsonl")
  lines = (json.dumps(_strict(record), ensure_ascii=False) for record in outcome.records)
  _write(path, "".join(f"{line}\n" for line in lines))
  return path.name


def _write(path: Path, text: str) -> None:
  if jax.process_index() == 0:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _strict(value: Any) -> Any:
  """The same value with null for numbers that are not finite, which JSON does not have."""
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {key: _strict(each) for key, each in value.items()}
  return [_strict(each) for each in value] if isinstance(value, list | tuple) else value


def _table(task: Task, outcome: Outcome) -> str:
  """The metrics without those of single subjects where there are many of them."""
  metrics = outcome.metrics
  overall = {name: value for name, value in metrics.items() if "/" not in name}
  shown = metrics if len(metrics) <= 40 else overall
  errors = "_standard_error"
  lines = [task.name]
  for name, value in shown.items():
    if name.endswith(errors):
      continue
    error = f" +- {shown[name + errors]:.4f}" if name + errors in shown else ""
    number = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
    lines.append(f"  {name:<40} {number:>14}{error}")
  return "\n".join(lines)


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main)
