"""The runs of `launch/loop.py` on a small corpus: bytes, 0.4 million parameters.

  python launch/loop.py --plan=corpus/pipeline.toml --config=configs/loop.py \\
    --config.target.folder=corpus/target --held_out=corpus/held_out --tokens=2_000_000 \\
    --workdir=runs/loop

Rows are drawn as without a policy; the policy has the alignment of each row's gradient with
that of the target set computed, from which feedback learns what a row does for the target. Of
the gradients of linear maps alone, that costs a tenth of a step. `:tiny` is a size to try
things with.
"""

from ml_collections import ConfigDict

from jdc import policies
from jdc.models.configs import DecoderConfig
from jdc.policies import mixture
from jdc.train import config as c


def get_config(arg: str = "") -> ConfigDict:
  """Returns the config."""
  tiny = c.parse_arg(arg, tiny=False)["tiny"]
  return c.to_config_dict(
    c.TrainConfig(
      num_steps=20 if tiny else 1000,  # set by the loop
      batch_size=8 if tiny else 16,
      sequence_length=64 if tiny else 128,
      data="",
      model=DecoderConfig(
        vocab_size=258,
        width=32 if tiny else 96,
        num_layers=2 if tiny else 3,
        num_heads=2,
        num_kv_heads=2,
        mlp_width=64 if tiny else 288,
      ),
      optimizer=c.OptimizerConfig(learning_rate=1e-2 if tiny else 4e-3, warmup_steps=20),
      mixture=c.policy(
        policies.observing, fields=("target_alignment",), policy=c.policy(mixture.by_size)
      ),
      target=c.TargetConfig(rows=16 if tiny else 64, alignment="linear_maps"),
      evaluation=c.EvaluationConfig(max_rows=16),
      checkpoint=c.CheckpointConfig(every_steps=200, keep=1),
      logging=c.LoggingConfig(every_steps=10, tensorboard=False),
    )
  )
