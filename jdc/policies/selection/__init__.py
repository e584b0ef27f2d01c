"""Policies that decide which examples are drawn."""

from jdc.policies.selection.greats import greats
from jdc.policies.selection.loss import loss
from jdc.policies.selection.random import random
from jdc.policies.selection.rho_loss import rho_loss

__all__ = ["greats", "loss", "random", "rho_loss"]
