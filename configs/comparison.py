"""Policies side by side: the same model, data and training tokens, several seeds.

  python launch/compare.py --config=configs/comparison.py --config.base.data=DIR --skew=20 \
    --workdir=runs/comparison

DIR is a folder of domains with validation files. `contestants` holds one run a policy: what it
changes in `base`, and the recipe that it needs, if any. `--only=odm,ado` picks some, beside the
controls. Horizons are scaled to the run: ten rounds, Aioli's forty; a hundredth of the steps of
warm-up for ODM; a twentieth before ADO's first fit and between two; a tenth of the steps on
each domain for Skill-It's graph; for DoReMi a reference and a proxy as long as the run.
`:steps=1000` is a longer run, to which they scale as well; `:tiny` shrinks everything.
"""

from ml_collections import ConfigDict

from jdc.models.configs import DecoderConfig
from jdc.policies import mixture
from jdc.recipes import contestants
from jdc.train import config as c


def get_config(arg: str = "") -> ConfigDict:
  """Returns the base run and the contestants; `arg` may hold `tiny` and `steps=N`."""
  chosen = c.parse_arg(arg, tiny=False, steps=400)
  tiny = chosen["tiny"]
  num_steps = 40 if tiny else chosen["steps"]
  if num_steps % 40:  # rounds are tenths and fortieths of it
    raise ValueError(f"config argument steps must be a multiple of 40, got {num_steps}")
  base = c.TrainConfig(
    num_steps=num_steps,
    batch_size=8 if tiny else 16,
    sequence_length=64 if tiny else 128,
    model=DecoderConfig(
      vocab_size=258,
      width=32 if tiny else 96,
      num_layers=2 if tiny else 3,
      num_heads=2,
      num_kv_heads=2,
      mlp_width=64 if tiny else 256,
    ),
    optimizer=c.OptimizerConfig(learning_rate=3e-3, warmup_steps=num_steps // 10),
    plan=c.PlanConfig(steps_per_round=num_steps // 10),
    target=c.TargetConfig(rows=4 if tiny else 16, every_steps=num_steps // 10),
    probe=c.ProbeConfig(rows=2 if tiny else 8),
    evaluation=c.EvaluationConfig(max_rows=8 if tiny else 128),
    checkpoint=c.CheckpointConfig(every_steps=num_steps, keep=1),
    logging=c.LoggingConfig(every_steps=num_steps // 10, tensorboard=False),
  )
  plain = {
    # The controls.
    "by_size": c.policy(mixture.by_size),
    "uniform": c.policy(mixture.by_size, temperature=float("inf")),
    "random": c.policy(mixture.random),
    # Policies that need one run.
    "loss_proportional": c.policy(mixture.loss_proportional),
    "odm": c.policy(mixture.odm),
    "ado": c.policy(mixture.ado),
    "group_dro": c.policy(mixture.group_dro),
    "doge": c.policy(mixture.doge),
    "aioli": c.policy(mixture.aioli, period=20, lp_rounds=1),
  }
  contenders = {name: ConfigDict({"mixture": slot}) for name, slot in plain.items()}
  # Two periods of twenty short rounds: one for each perturbed mixture, the rest on the result.
  contenders["aioli"].plan = ConfigDict({"steps_per_round": num_steps // 40})
  # Those that need runs before their own.
  for name, recipe in (("doremi", contestants.doremi), ("skill_it", contestants.skill_it)):
    contenders[name] = ConfigDict({"recipe": recipe, "mixture": plain["by_size"]})
  return ConfigDict(
    {
      "base": c.to_config_dict(base),
      "contestants": contenders,
      "controls": ("by_size", "uniform", "random"),
    }
  )
