"""Policies that decide how much each example counts in the loss."""

from jdc.policies.weighting.loss_reweighting import loss_reweighting

__all__ = ["loss_reweighting"]
