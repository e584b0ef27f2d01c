"""RegMix: small runs on random mixtures, a regression, and the target on the best mixture.

  python launch/regmix.py --workdir=runs/regmix --data=DIR --search.num_proxies=64

runs all of it. The argument names a part: `:search` says which mixtures are tried, `:proxy` is
the config of each small run, `:target` that of the run proper, whose proportions
`launch/regmix.py` puts in. The two runs are configs of their own,

  python launch/train.py --config=configs/regmix.py:proxy \
    --config.mixture.proportions=0.2,0.3,0.5 --workdir=runs/one_proxy

and the argument may add `tiny`, as in `configs/regmix.py:proxy,tiny`. Without DIR it is the
quickstart's text. Proxies are scored on the target split, for which a twentieth of the
documents is set apart unless DIR holds files `NAME.target.jsonl`. The paper has 512 proxies of
a million parameters and a target of a billion: `--target.model.width` and so on make it larger.
"""

from ml_collections import ConfigDict

from jdc.models.configs import DecoderConfig
from jdc.policies import mixture
from jdc.recipes.regmix import Search
from jdc.train import config as c

PARTS = ("search", "proxy", "target")


def get_config(arg: str = "") -> ConfigDict:
  """Returns one part; `arg` names it, and may add `tiny`."""
  chosen = c.parse_arg(arg, tiny=False, search=False, proxy=False, target=False)
  parts = [name for name in PARTS if chosen[name]]
  if len(parts) != 1:
    raise ValueError(f"config argument must name one of {', '.join(PARTS)}, got {arg!r}")
  tiny = chosen["tiny"]
  if parts == ["search"]:
    # A size for an example; at least one more than there are domains are needed.
    return c.to_config_dict(Search(num_proxies=8 if tiny else 16))
  small = tiny or parts == ["proxy"]
  num_steps = 20 if tiny else 100 if small else 400
  return c.to_config_dict(
    c.TrainConfig(
      num_steps=num_steps,
      batch_size=8 if tiny else 16,
      sequence_length=64 if tiny else 128,
      data="python",
      corpus=c.CorpusConfig(target_fraction=0.05),
      model=DecoderConfig(
        vocab_size=258,
        width=32 if small else 96,
        num_layers=2 if small else 4,
        num_heads=2,
        num_kv_heads=2,
        mlp_width=64 if small else 256,
      ),
      optimizer=c.OptimizerConfig(
        learning_rate=1e-2 if small else 3e-3, warmup_steps=num_steps // 10
      ),
      mixture=c.policy(mixture.static),
      evaluation=c.EvaluationConfig(
        split="target" if parts == ["proxy"] else "validation", max_rows=8 if tiny else 64
      ),
      checkpoint=c.CheckpointConfig(every_steps=10 if tiny else 100, keep=1),
      logging=c.LoggingConfig(every_steps=5 if tiny else 10, tensorboard=parts != ["proxy"]),
    )
  )
