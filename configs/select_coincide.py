"""Fine-tunes adapters on a diverse part of a pool: COINCIDE, which needs no target set.

  python launch/train.py --config=configs/select_coincide.py --config.weights.folder=MODEL \
    --config.data=DIR --config.selection.count=10000 --workdir=runs/coincide

MODEL is a Hugging Face folder: config.json, safetensors, tokenizer. DIR holds one file or
folder a domain, of alpaca, sharegpt or messages records. Once, before the first step, the pool
is embedded by the model's mean hidden state, a forward pass, and clustered; then all rounds
draw of the same rows. `--config.selection.embeddings=FILE.npz` takes embeddings of another
model, an array `pool` with a line for each example. `:tiny` shrinks everything but the model.
"""

from ml_collections import ConfigDict

from jdc.models.lora import LoraConfig
from jdc.policies import selection
from jdc.train import config as c


def get_config(arg: str = "") -> ConfigDict:
  """Returns the run; `arg` may hold `tiny`."""
  tiny = c.parse_arg(arg, tiny=False)["tiny"]
  return c.to_config_dict(
    c.TrainConfig(
      num_steps=20 if tiny else 500,
      batch_size=8,
      sequence_length=256 if tiny else 1024,
      weights=c.WeightsConfig(
        dtype="float32" if tiny else "bfloat16",
        parameter_dtype="float32" if tiny else "bfloat16",
      ),
      lora=LoraConfig(rank=4 if tiny else 16, alpha=8.0 if tiny else 32.0),
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
      plan=c.PlanConfig(draw="top_k", steps_per_round=10 if tiny else 250),
      selection=c.policy(selection.coincide, count=16 if tiny else 1000),
      evaluation=c.EvaluationConfig(max_rows=8 if tiny else 128),
      checkpoint=c.CheckpointConfig(every_steps=10 if tiny else 100),
      logging=c.LoggingConfig(every_steps=5 if tiny else 10),
    )
  )
