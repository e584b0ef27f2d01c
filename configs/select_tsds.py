"""Fine-tunes adapters on examples that lie like a target task in embedding space: TSDS, NEAR.

  python launch/train.py --config=configs/select_tsds.py --config.weights.folder=MODEL \
    --config.data=DIR --config.target.folder=TARGETS --workdir=runs/tsds

MODEL is a Hugging Face folder: config.json, safetensors, tokenizer. DIR holds one file or
folder a domain, of alpaca, sharegpt or messages records; TARGETS a file a task, of some dozen
records each, which are neither trained on nor validated. Each round embeds the pool by the
model's mean hidden state, a forward pass, and draws by optimal transport from the target set;
`:policy=near` takes the nearest neighbours of its records in turns. `:tiny` shrinks everything
but the model.
"""

from ml_collections import ConfigDict

from jdc.models.lora import LoraConfig
from jdc.policies import selection
from jdc.train import config as c


def get_config(arg: str = "") -> ConfigDict:
  """Returns the run; `arg` may hold `tiny` and `policy=near`."""
  chosen = c.parse_arg(arg, tiny=False, policy="tsds")
  tiny = chosen["tiny"]
  known = {
    "tsds": c.policy(selection.tsds),
    "near": c.policy(selection.near, count=16 if tiny else 1000),
  }
  if chosen["policy"] not in known:
    raise ValueError(
      f"config argument policy must be one of {', '.join(known)}, got {chosen['policy']!r}"
    )
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
      plan=c.PlanConfig(draw="gumbel_top_k", steps_per_round=10 if tiny else 250),
      target=c.TargetConfig(rows=4 if tiny else 64, every_steps=10 if tiny else 250),
      selection=known[chosen["policy"]],
      evaluation=c.EvaluationConfig(max_rows=8 if tiny else 128),
      checkpoint=c.CheckpointConfig(every_steps=10 if tiny else 100),
      logging=c.LoggingConfig(every_steps=5 if tiny else 10),
    )
  )
