"""A curriculum: which examples, and in what order, change while the model learns.

  python launch/train.py --config=configs/curriculum.py --config.data=DIR --workdir=runs/mine

The first rounds draw from the whole pool; later ones from the `fraction` of it that the
selection prefers then, by default the rows of largest errors (EL2N), averaged over the rounds.
Inside every round rows come from low loss to high, shuffled in windows of some batches.
`:selection=infobatch` prunes rows of low loss in all rounds instead, and `:ordering=folding`
goes through the range of losses several times a round; `none` leaves either out. `:tiny`
shrinks the run.

  python launch/train.py --config=configs/curriculum.py:selection=none,ordering=none \
    --config.data=DIR --config.plan.replay=runs/mine --workdir=runs/again

trains on the examples of a run again, under no policy: with another model, say.

Without `--config.data` it trains on the quickstart's text.
"""

from ml_collections import ConfigDict

from jdc import policies
from jdc.models.configs import DecoderConfig
from jdc.policies import ordering, selection
from jdc.policies.base import DataPolicy, Ordering
from jdc.train import config as c


def later(rounds: int, fraction: float, preferred: DataPolicy) -> DataPolicy:
  """Draws from the whole pool at first, then from a share of it."""
  return policies.schedule(
    [(0, selection.random()), (rounds, policies.keep(fraction, preferred))]
  )


def in_windows(window: int, inner: Ordering) -> Ordering:
  """Shuffles over short distances, so that a batch is not all of one loss."""
  return ordering.window_shuffle(window, inner)


def get_config(arg: str = "") -> ConfigDict:
  """Returns the run; see the module's docstring for `arg`."""
  chosen = c.parse_arg(arg, tiny=False, selection="el2n", ordering="sorting")
  tiny = chosen["tiny"]
  selections = {
    "el2n": c.policy(later, rounds=2, fraction=0.5, preferred=c.policy(selection.el2n)),
    "infobatch": c.policy(selection.infobatch),
    "none": None,
  }
  window = 4 * (8 if tiny else 16)
  orderings = {
    "sorting": c.policy(in_windows, window=window, inner=c.policy(ordering.sorting)),
    "folding": c.policy(in_windows, window=window, inner=c.policy(ordering.folding)),
    "none": None,
  }
  for name, known in (("selection", selections), ("ordering", orderings)):
    if chosen[name] not in known:
      raise ValueError(
        f"config argument {name} must be one of {', '.join(known)}, got {chosen[name]!r}"
      )
  return c.to_config_dict(
    c.TrainConfig(
      num_steps=20 if tiny else 400,
      batch_size=8 if tiny else 16,
      sequence_length=64 if tiny else 128,
      data="python",
      model=DecoderConfig(
        vocab_size=258,
        width=32 if tiny else 128,
        num_layers=2 if tiny else 4,
        num_heads=2,
        num_kv_heads=2,
        mlp_width=64 if tiny else 352,
      ),
      optimizer=c.OptimizerConfig(learning_rate=3e-3, warmup_steps=5 if tiny else 40),
      selection=selections[chosen["selection"]],
      ordering=orderings[chosen["ordering"]],
      plan=c.PlanConfig(
        draw="shuffle" if chosen["selection"] == "none" else "gumbel_top_k",
        steps_per_round=5 if tiny else 50,
      ),
      evaluation=c.EvaluationConfig(max_rows=8 if tiny else 64),
      checkpoint=c.CheckpointConfig(every_steps=10 if tiny else 100),
      logging=c.LoggingConfig(every_steps=5 if tiny else 10),
    )
  )
