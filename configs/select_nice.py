"""Fine-tunes adapters on the examples whose gradients raise the rewards of responses: NICE.

  python launch/train.py --config=configs/select_nice.py --config.weights.folder=MODEL \
    --config.data=DIR --config.target.folder=TARGETS --config.responses.reward=numeric_answer \
    --workdir=runs/nice

MODEL is a Hugging Face folder: config.json, safetensors, tokenizer. DIR holds one file or
folder a domain, of alpaca, sharegpt or messages records; TARGETS a file a task, of some dozen
records each, which are neither trained on nor validated. The first round draws a random 5 % of
the pool, from which Adam has its moments; then, when each round begins, the model responds to
the prompts of the targets, a reward says how good each response is, and the round draws the
5 % of the pool whose steps point most to where the rewards rise. A reward is `exact_match`,
`numeric_answer` or any function (prompt, response, right answer) -> [0, 1] that Python finds as
`package.module:function`. `--config.responses.folder=OTHER` lets a frozen model respond.
`:scores` leaves the first round out, for `launch/sweep.py`. `:tiny` shrinks everything but the
model.
"""

from ml_collections import ConfigDict

from jdc import policies
from jdc.models.lora import LoraConfig
from jdc.policies import selection
from jdc.policies.base import DataPolicy
from jdc.train import config as c


def after_random(rounds: int, fraction: float, policy: DataPolicy) -> DataPolicy:
  """Keeps a share of the pool: at random in the first rounds, then the best."""
  kept = policies.keep(fraction, policy)
  return policies.schedule([(0, selection.random(fraction)), (rounds, kept)])


def get_config(arg: str = "") -> ConfigDict:
  """Returns the run; `arg` may hold `tiny` and `scores`."""
  chosen = c.parse_arg(arg, tiny=False, scores=False)
  tiny, selecting = chosen["tiny"], c.policy(selection.nice)
  if not chosen["scores"]:
    share = 0.5 if tiny else 0.05
    selecting = c.policy(after_random, rounds=1, fraction=share, policy=selecting)
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
        draw="gumbel_top_k", steps_per_round=5 if tiny else 100, sweep_batch_size=8
      ),
      features=c.FeaturesConfig(size=64 if tiny else 8192),
      target=c.TargetConfig(rows=4 if tiny else 64, every_steps=10 if tiny else 100),
      responses=c.ResponsesConfig(
        reward="exact_match",
        count=2 if tiny else 20,
        max_new_tokens=8 if tiny else 256,
      ),
      selection=selecting,
      evaluation=c.EvaluationConfig(max_rows=8 if tiny else 128),
      checkpoint=c.CheckpointConfig(every_steps=10 if tiny else 100),
      logging=c.LoggingConfig(every_steps=5 if tiny else 10),
    )
  )
