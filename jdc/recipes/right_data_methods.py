"""The methods of the table of right data found."""

from collections.abc import Sequence

import numpy as np

from jdc.data import dsir, tfidf
from jdc.policies import selection, weighting
from jdc.recipes.right_data import ONE_IN, Method
from jdc.recipes.right_data_online import Online
from jdc.train import config as c


def offline(count: int, num_layers: int) -> dict[str, Method]:
  """Returns the methods that pick `count` rows of a pool under a checkpoint, by name."""
  # Seven linear maps in each layer, 16 x 16 numbers of each.
  kron = {"provider": "kron", "size": num_layers * 7 * 16**2}
  top = {"provider": "kron", "size": num_layers // 2 * 7 * 16**2, "top_layers": num_layers // 2}
  by_gradient = c.policy(selection.less, direction="gradient")
  words = {"reward": "jdc.recipes.right_data_reward:word_f1", "max_new_tokens": 48}
  return {
    "tfidf": Method(match=tfidf.likeness, tasks="any"),
    "dsir": Method(match=_importance, draw="gumbel_top_k", tasks="any"),
    "random": Method(c.policy(selection.random), "gumbel_top_k", False, tasks="any"),
    "loss": Method(c.policy(selection.loss), "gumbel_top_k", targeted=False),
    # The rows whose loss has fallen most: its window begins 0.6 % into their order.
    "delta_loss": Method(
      c.policy(selection.delta_loss, window=1 / ONE_IN, update_times=1000),
      targeted=False,
      since_first_quarter=True,
    ),
    "el2n": Method(c.policy(selection.el2n), targeted=False),
    "grand": Method(c.policy(selection.grand), targeted=False, features=kron),
    "coincide": Method(c.policy(selection.coincide, count=count), targeted=False),
    "near": Method(c.policy(selection.near, count=count)),
    "tsds": Method(c.policy(selection.tsds), "gumbel_top_k"),
    "mates": Method(c.policy(selection.mates), probes=128),
    "cluster_less": Method(c.policy(selection.cluster_less)),
    "less_kron_top": Method(by_gradient, features=top),
    "less_kron": Method(by_gradient, features=kron),
    "less_gradient": Method(by_gradient),
    "less": Method(c.policy(selection.less), tasks="any"),
    "zeroth_order": Method(
      c.policy(selection.zeroth_order), features={"provider": "directional", "size": 1}
    ),
    "nice": Method(c.policy(selection.nice), responses=words),
    "nice_dataflex": Method(
      c.policy(selection.nice), responses=words | {"coefficients": "dataflex", "baseline": True}
    ),
    # With one task its order is that of LESS.
    "icons": Method(c.policy(selection.icons, share=1 / ONE_IN), tasks="all"),
  }


def _importance(texts: Sequence[str], target: Sequence[str]) -> np.ndarray:
  return dsir.log_importance(dsir.hash_ngrams(texts), dsir.hash_ngrams(target))


def online() -> dict[str, Online]:
  """Returns the methods that choose while they train, by name."""
  by_maps = {"alignment": "linear_maps"}
  return {
    "uds": Online(c.policy(selection.uds), "kept"),
    "greats": Online(c.policy(selection.greats), "kept", target={}),
    "in_run_shapley": Online(c.policy(selection.in_run_shapley), "logit", target=by_maps),
    "infobatch": Online(c.policy(selection.infobatch, anneal=1.0), "pruned"),
    "learning_to_reweight": Online(
      c.policy(weighting.learning_to_reweight), "weight", target=by_maps
    ),
    "rho_loss": Online(c.policy(selection.rho_loss), "kept", refers=True),
  }
