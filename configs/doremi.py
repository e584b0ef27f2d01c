"""DoReMi: a reference, a proxy that finds domain weights, and the target trained on them.

  python launch/doremi.py --workdir=runs/doremi --data=DIR

runs the three stages of this file in order. Each is a config of its own,

  python launch/train.py --config=configs/doremi.py:reference --workdir=runs/reference
  python launch/train.py --config=configs/doremi.py:proxy \
    --config.reference.folder=runs/reference --workdir=runs/proxy

`:target` is trained on fixed proportions; `launch/doremi.py` puts in what the proxy found.
The argument may add `tiny`, as in `configs/doremi.py:proxy,tiny`. Without DIR it is the
quickstart's text. The paper's proxy has a fraction of the target's parameters: the fields
`--target.model.width` and so on make the target larger.
"""

from ml_collections import ConfigDict

from jdc.models.configs import DecoderConfig
from jdc.policies import mixture
from jdc.train import config as c

STAGES = ("reference", "proxy", "target")


def get_config(arg: str = "") -> ConfigDict:
  """Returns the run of one stage; `arg` names it, and may add `tiny`."""
  chosen = c.parse_arg(arg, tiny=False, reference=False, proxy=False, target=False)
  stages = [name for name in STAGES if chosen[name]]
  if len(stages) != 1:
    raise ValueError(f"config argument must name one of {', '.join(STAGES)}, got {arg!r}")
  tiny = chosen["tiny"]
  policies = {
    # The reference's weights are by size, the paper's baseline; the target's are put in later.
    "reference": c.policy(mixture.by_size),
    "proxy": c.policy(mixture.doremi),
    "target": c.policy(mixture.static),
  }
  return c.to_config_dict(
    c.TrainConfig(
      num_steps=20 if tiny else 400,
      batch_size=8 if tiny else 16,
      sequence_length=64 if tiny else 128,
      data="python",
      model=DecoderConfig(
        vocab_size=258,
        width=32 if tiny else 96,
        num_layers=2 if tiny else 4,
        num_heads=2,
        num_kv_heads=2,
        mlp_width=64 if tiny else 256,
      ),
      optimizer=c.OptimizerConfig(learning_rate=3e-3, warmup_steps=5 if tiny else 40),
      mixture=policies[stages[0]],
      evaluation=c.EvaluationConfig(max_rows=8 if tiny else 64),
      checkpoint=c.CheckpointConfig(every_steps=10 if tiny else 100),
      logging=c.LoggingConfig(every_steps=5 if tiny else 10),
    )
  )
