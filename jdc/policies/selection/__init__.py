"""Policies that decide which examples are drawn."""

from jdc.policies.selection.cluster_less import cluster_less
from jdc.policies.selection.coincide import coincide
from jdc.policies.selection.delta_loss import delta_loss
from jdc.policies.selection.el2n import el2n
from jdc.policies.selection.from_file import from_file
from jdc.policies.selection.grand import grand
from jdc.policies.selection.greats import greats
from jdc.policies.selection.icons import icons
from jdc.policies.selection.in_run_shapley import in_run_shapley
from jdc.policies.selection.infobatch import infobatch
from jdc.policies.selection.less import less
from jdc.policies.selection.loss import loss
from jdc.policies.selection.mates import mates
from jdc.policies.selection.near import near
from jdc.policies.selection.nice import nice
from jdc.policies.selection.random import random
from jdc.policies.selection.rho_loss import rho_loss
from jdc.policies.selection.tsds import tsds
from jdc.policies.selection.uds import uds
from jdc.policies.selection.zeroth_order import zeroth_order

__all__ = [
  "cluster_less",
  "coincide",
  "delta_loss",
  "el2n",
  "from_file",
  "grand",
  "greats",
  "icons",
  "in_run_shapley",
  "infobatch",
  "less",
  "loss",
  "mates",
  "near",
  "nice",
  "random",
  "rho_loss",
  "tsds",
  "uds",
  "zeroth_order",
]
