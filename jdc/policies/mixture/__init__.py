"""Policies that decide the proportions of the domains."""

from jdc.policies.mixture import regmix
from jdc.policies.mixture.ado import ado
from jdc.policies.mixture.aioli import aioli
from jdc.policies.mixture.by_size import by_size
from jdc.policies.mixture.doge import doge
from jdc.policies.mixture.doremi import doremi
from jdc.policies.mixture.dynamic_moe import dynamic_moe
from jdc.policies.mixture.group_dro import group_dro
from jdc.policies.mixture.loss_proportional import loss_proportional
from jdc.policies.mixture.odm import odm
from jdc.policies.mixture.pike import pike
from jdc.policies.mixture.random import random
from jdc.policies.mixture.schedule import schedule
from jdc.policies.mixture.skill_it import adjacency_from_losses, skill_it
from jdc.policies.mixture.static import static

__all__ = [
  "adjacency_from_losses",
  "ado",
  "aioli",
  "by_size",
  "doge",
  "doremi",
  "dynamic_moe",
  "group_dro",
  "loss_proportional",
  "odm",
  "pike",
  "random",
  "regmix",
  "schedule",
  "skill_it",
  "static",
]
