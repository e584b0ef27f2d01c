"""A mixture of experts whose domains are sampled by how differently they load the experts.

  python launch/train.py --config=configs/mixture_of_experts.py --config.data=DIR \
    --workdir=runs/experts

Every tenth of the run the mixture compares, on the target split, how the domains' tokens are
sent to the experts of the last layer, and raises those that differ from the others. A balance
loss keeps the experts in use. `--config.mesh.expert=4` splits the experts over four devices.
Without DIR it trains on the quickstart's text. `:tiny` shrinks the run.
"""

from ml_collections import ConfigDict

from jdc.models.configs import DecoderConfig
from jdc.policies import mixture
from jdc.train import config as c


def get_config(arg: str = "") -> ConfigDict:
  """Returns the run; `arg` is empty or `tiny`."""
  tiny = c.parse_arg(arg, tiny=False)["tiny"]
  num_steps = 20 if tiny else 400
  return c.to_config_dict(
    c.TrainConfig(
      num_steps=num_steps,
      batch_size=8 if tiny else 16,
      sequence_length=64 if tiny else 128,
      data="python",
      corpus=c.CorpusConfig(target_fraction=0.05),
      model=DecoderConfig(
        vocab_size=258,
        width=32 if tiny else 96,
        num_layers=2 if tiny else 4,
        num_heads=2,
        num_kv_heads=2,
        mlp_width=32 if tiny else 128,
        num_experts=4,
        experts_per_token=2,
        balance_weight=0.01,
      ),
      optimizer=c.OptimizerConfig(learning_rate=3e-3, warmup_steps=num_steps // 10),
      mixture=c.policy(mixture.dynamic_moe, every_steps=num_steps // 10),
      target=c.TargetConfig(rows=8, every_steps=num_steps // 10),
      evaluation=c.EvaluationConfig(max_rows=8 if tiny else 64),
      checkpoint=c.CheckpointConfig(every_steps=num_steps // 4),
      logging=c.LoggingConfig(every_steps=5 if tiny else 10),
    )
  )
