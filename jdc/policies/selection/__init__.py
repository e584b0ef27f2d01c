"""Policies that decide which examples are drawn."""

from jdc.policies.selection.cluster_less import cluster_less
from jdc.policies.selection.delta_loss import delta_loss
from jdc.policies.selection.from_file import from_file
from jdc.policies.selection.greats import greats
from jdc.policies.selection.icons import icons
from jdc.policies.selection.less import less
from jdc.policies.selection.loss import loss
from jdc.policies.selection.near import near
from jdc.policies.selection.random import random
from jdc.policies.selection.rho_loss import rho_loss
from jdc.policies.selection.tsds import tsds

__all__ = [
  "cluster_less",
  "delta_loss",
  "from_file",
  "greats",
  "icons",
  "less",
  "loss",
  "near",
  "random",
  "rho_loss",
  "tsds",
]
