"""Policies that decide how much each example counts in the loss.

Weights that a rule normalises have mean 1 over the examples of a batch. Where the loss is an
average over tokens, long examples still count by their length.
"""

from jdc.policies.weighting.adapt import adapt
from jdc.policies.weighting.focal import focal
from jdc.policies.weighting.group_dro import group_dro
from jdc.policies.weighting.joint_update_aware import joint_update_aware
from jdc.policies.weighting.learning_to_reweight import learning_to_reweight
from jdc.policies.weighting.loss_reweighting import loss_reweighting
from jdc.policies.weighting.ohem import ohem
from jdc.policies.weighting.rho1 import rho1
from jdc.policies.weighting.selective_backprop import selective_backprop
from jdc.policies.weighting.self_paced import self_paced

__all__ = [
  "adapt",
  "focal",
  "group_dro",
  "joint_update_aware",
  "learning_to_reweight",
  "loss_reweighting",
  "ohem",
  "rho1",
  "selective_backprop",
  "self_paced",
]
