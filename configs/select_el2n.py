"""Fine-tunes adapters on the examples with the largest errors or gradients: EL2N, GraNd.

  python launch/train.py --config=configs/select_el2n.py --config.weights.folder=MODEL \
    --config.data=DIR --workdir=runs/el2n

MODEL is a Hugging Face folder: config.json, safetensors, tokenizer. DIR holds one file or
folder a domain, of alpaca, sharegpt or messages records; there is no target set. Each round
passes the pool forward and draws from the half of it whose error vectors have been longest in
the mean of all rounds so far; the first round draws from all. `:policy=grand` takes the lengths
of the gradients by the adapters in place of these, for a backward pass besides. `:tiny` shrinks
everything but the model.
"""

from ml_collections import ConfigDict

from jdc import policies
from jdc.models.lora import LoraConfig
from jdc.policies import selection
from jdc.train import config as c


def get_config(arg: str = "") -> ConfigDict:
  """Returns the run; `arg` may hold `tiny` and `policy=grand`."""
  chosen = c.parse_arg(arg, tiny=False, policy="el2n")
  tiny = chosen["tiny"]
  known = {"el2n": c.policy(selection.el2n), "grand": c.policy(selection.grand)}
  if chosen["policy"] not in known:
    raise ValueError(
      f"config argument policy must be one of {', '.join(known)}, got {chosen['policy']!r}"
    )
  kept = c.policy(policies.keep, fraction=0.5, policy=known[chosen["policy"]])
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
      plan=c.PlanConfig(
        draw="gumbel_top_k",
        steps_per_round=5 if tiny else 50,
        sweep_batch_size=8,
      ),
      selection=c.policy(policies.after, steps=1, policy=kept),
      evaluation=c.EvaluationConfig(max_rows=8 if tiny else 128),
      checkpoint=c.CheckpointConfig(every_steps=10 if tiny else 100),
      logging=c.LoggingConfig(every_steps=5 if tiny else 10),
    )
  )
