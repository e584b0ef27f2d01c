"""Fine-tunes adapters on the best of each batch of candidates: GREATS, RHO-LOSS.

  python launch/train.py --config=configs/select_greats.py --config.weights.folder=MODEL \
    --config.data=DIR --config.target.folder=TARGETS --workdir=runs/greats

MODEL is a Hugging Face folder: config.json, safetensors, tokenizer. DIR holds one file or
folder a domain, of alpaca, sharegpt or messages records; TARGETS a file a task, of some dozen
records each, which are neither trained on nor validated. Each step keeps the half of 16
candidates whose joint step along Adam's directions lowers the target's loss most.
`:policy=rho_loss` keeps those with most loss above that of a reference model in place of it, a
run directory or another Hugging Face folder: `--config.reference.folder=REFERENCE`, and no
target. `:tiny` shrinks everything but the model.
"""

from ml_collections import ConfigDict

from jdc.models.lora import LoraConfig
from jdc.policies import selection
from jdc.train import config as c


def get_config(arg: str = "") -> ConfigDict:
  """Returns the run; `arg` may hold `tiny` and `policy=rho_loss`."""
  chosen = c.parse_arg(arg, tiny=False, policy="greats")
  tiny = chosen["tiny"]
  known = {
    "greats": c.policy(selection.greats, products="update_direction"),
    "rho_loss": c.policy(selection.rho_loss),
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
      plan=c.PlanConfig(num_candidates=16),
      features=c.FeaturesConfig(size=64 if tiny else 1024),
      target=c.TargetConfig(rows=4 if tiny else 16, every_steps=5 if tiny else 50),
      selection=known[chosen["policy"]],
      evaluation=c.EvaluationConfig(max_rows=8 if tiny else 128),
      checkpoint=c.CheckpointConfig(every_steps=10 if tiny else 100),
      logging=c.LoggingConfig(every_steps=5 if tiny else 10),
    )
  )
