"""Fine-tunes adapters on the examples whose gradients help a target task: LESS and its kin.

  python launch/train.py --config=configs/select_less.py --config.weights.folder=MODEL \
    --config.data=DIR --config.target.folder=TARGETS --workdir=runs/less

MODEL is a Hugging Face folder: config.json, safetensors, tokenizer. DIR holds one file or
folder a domain, of alpaca, sharegpt or messages records; TARGETS a file a task, of some dozen
records each, which are neither trained on nor validated. The first round draws a random 5 % of
the pool, from which Adam has its moments; then each round draws the 5 % with the highest
influence. `:policy=icons` selects by the votes of the tasks, and `:policy=cluster_less` sweeps
some examples of each cluster in place of all; `:composed` lets ODM mix the domains and the
losses weight the examples besides, and then the 5 % are those of each domain. `:tiny` shrinks
everything but the model.

  python launch/sweep.py --config=configs/select_less.py:scores ... --run=RUN --output=FILE

writes the scores of all examples under a checkpoint: `:scores` leaves the warm-up out.
"""

from ml_collections import ConfigDict

from jdc import policies
from jdc.models.lora import LoraConfig
from jdc.policies import mixture, selection, weighting
from jdc.policies.base import DataPolicy
from jdc.train import config as c


def after_random(
  rounds: int, fraction: float, policy: DataPolicy, by_domain: bool
) -> DataPolicy:
  """Keeps a share of the pool: at random in the first rounds, then the best, as LESS does."""
  stages = [
    (0, selection.random(fraction, by_domain)),
    (rounds, policies.keep(fraction, policy, by_domain)),
  ]
  return policies.schedule(stages)


def get_config(arg: str = "") -> ConfigDict:
  """Returns the run; `arg` may hold `tiny`, `composed`, `scores` and `policy=icons`."""
  chosen = c.parse_arg(arg, tiny=False, composed=False, scores=False, policy="less")
  tiny, share = chosen["tiny"], 0.5 if chosen["tiny"] else 0.05
  known = {
    "less": c.policy(selection.less),
    "icons": c.policy(selection.icons, share=share),
    "cluster_less": c.policy(selection.cluster_less, clusters=4 if tiny else None),
  }
  if chosen["policy"] not in known:
    raise ValueError(
      f"config argument policy must be one of {', '.join(known)}, got {chosen['policy']!r}"
    )
  # A mixture draws of every domain, so that each must keep some rows.
  kept = {"fraction": share, "policy": known[chosen["policy"]], "by_domain": chosen["composed"]}
  selecting = c.policy(after_random, rounds=1, **kept)
  if chosen["policy"] == "cluster_less":  # names the rows to sweep, as no other stage would
    selecting = c.policy(policies.keep, **kept)
  if chosen["scores"]:
    selecting = known[chosen["policy"]]
  others = {}
  if chosen["composed"]:
    others = {
      "mixture": c.policy(mixture.odm),
      "weighting": c.policy(weighting.loss_reweighting, burn_in_steps=5 if tiny else 50),
    }
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
        steps_per_round=5 if tiny else 100,
        sweep_batch_size=8,
      ),
      features=c.FeaturesConfig(size=64 if tiny else 8192),
      target=c.TargetConfig(rows=4 if tiny else 64, every_steps=10 if tiny else 100),
      selection=selecting,
      evaluation=c.EvaluationConfig(max_rows=8 if tiny else 128),
      checkpoint=c.CheckpointConfig(every_steps=10 if tiny else 100),
      logging=c.LoggingConfig(every_steps=5 if tiny else 10),
      **others,
    )
  )
