"""Fine-tunes adapters of a published checkpoint on instruction data, under three policies.

  python launch/train.py --config=configs/finetune_lora.py --config.weights.folder=MODEL \
    --config.data=DIR --workdir=runs/lora

MODEL is a Hugging Face folder: config.json, safetensors, tokenizer. DIR holds one file or
folder a domain, of alpaca, sharegpt or messages records (JSON, JSONL, Parquet); the model's own
chat template writes them (`--config.corpus.template_date=2026-01-31` for one that asks for the
day). ODM decides how much of each domain is drawn, the loss selector which
records of it, and the weighting how much each one counts; `:policy=none` trains on all alike.
`:tiny` shrinks everything but the model and writes the records in a plain template.

  python launch/export.py --checkpoint=runs/lora --output=DIR

writes the adapter for PEFT, or with `--merge` a whole model for transformers.
"""

from ml_collections import ConfigDict

from jdc.models.lora import LoraConfig
from jdc.policies import mixture, selection, weighting
from jdc.train import config as c


def get_config(arg: str = "") -> ConfigDict:
  """Returns the run; `arg` may hold `tiny` and `policy=none`."""
  chosen = c.parse_arg(arg, tiny=False, policy="three")
  tiny = chosen["tiny"]
  if chosen["policy"] not in ("three", "none"):
    raise ValueError(f"config argument policy must be three or none, got {chosen['policy']!r}")
  slots = {}
  if chosen["policy"] == "three":
    slots = {
      "mixture": c.policy(mixture.odm),
      "selection": c.policy(selection.loss, focus="high"),
      "weighting": c.policy(
        weighting.loss_reweighting, strategy="linupper", burn_in_steps=5 if tiny else 50
      ),
    }
  return c.to_config_dict(
    c.TrainConfig(
      num_steps=20 if tiny else 500,
      batch_size=8,
      sequence_length=256 if tiny else 1024,
      weights=c.WeightsConfig(
        dtype="float32" if tiny else "bfloat16",
        parameter_dtype="float32" if tiny else "bfloat16",
        remat="none" if tiny else "layer",
      ),
      lora=LoraConfig(rank=4 if tiny else 16, alpha=8.0 if tiny else 32.0, dropout=0.05),
      corpus=c.CorpusConfig(
        tokenizer="weights",
        format="auto",
        template="plain" if tiny else "tokenizer",
        on_long="truncate",
      ),
      optimizer=c.OptimizerConfig(
        learning_rate=1e-2 if tiny else 2e-4,
        warmup_steps=2 if tiny else 25,
        weight_decay=0.0,
      ),
      plan=c.PlanConfig(
        draw="gumbel_top_k" if slots else "shuffle",
        steps_per_round=5 if tiny else 100,
        sweep_rows=(64 if tiny else 2048) if slots else 0,
        max_segments=16,
      ),
      evaluation=c.EvaluationConfig(max_rows=8 if tiny else 128),
      checkpoint=c.CheckpointConfig(every_steps=10 if tiny else 100),
      logging=c.LoggingConfig(every_steps=5 if tiny else 10),
      **slots,
    )
  )
