"""Policies that decide which examples are drawn."""

from jdc.policies.selection.loss import loss
from jdc.policies.selection.random import random

__all__ = ["loss", "random"]
