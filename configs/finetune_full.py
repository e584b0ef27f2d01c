"""Fine-tunes all parameters of a published checkpoint on instruction data.

  python launch/train.py --config=configs/finetune_full.py --config.weights.folder=MODEL \
    --config.data=DIR --workdir=runs/full

MODEL and DIR are as in `configs/finetune_lora.py`. Parameters and optimizer state are float32,
the arithmetic bfloat16; on several devices they are split over all of them
(`--config.mesh.fsdp=-1`). `--config.trainable='("layers/mlp/*",)'` freezes everything else.
`:tiny` shrinks everything but the model and writes the records in a plain template.

  python launch/export.py --checkpoint=runs/full --output=DIR

writes a folder that transformers loads.
"""

from ml_collections import ConfigDict

from jdc.policies import mixture
from jdc.train import config as c


def get_config(arg: str = "") -> ConfigDict:
  """Returns the run; `arg` is empty or `tiny`."""
  tiny = c.parse_arg(arg, tiny=False)["tiny"]
  return c.to_config_dict(
    c.TrainConfig(
      num_steps=20 if tiny else 500,
      batch_size=8,
      sequence_length=256 if tiny else 1024,
      weights=c.WeightsConfig(
        dtype="float32" if tiny else "bfloat16", remat="none" if tiny else "layer"
      ),
      corpus=c.CorpusConfig(
        tokenizer="weights",
        format="auto",
        template="plain" if tiny else "tokenizer",
        on_long="truncate",
      ),
      optimizer=c.OptimizerConfig(
        learning_rate=3e-3 if tiny else 1e-5, warmup_steps=2 if tiny else 25
      ),
      mixture=c.policy(mixture.by_size),
      plan=c.PlanConfig(max_segments=16),
      mesh=c.MeshConfig(data=1, fsdp=-1),
      evaluation=c.EvaluationConfig(max_rows=8 if tiny else 128),
      checkpoint=c.CheckpointConfig(every_steps=10 if tiny else 100, keep=1),
      logging=c.LoggingConfig(every_steps=5 if tiny else 10),
    )
  )
