"""Policies that decide the proportions of the domains."""

from jdc.policies.mixture.by_size import by_size
from jdc.policies.mixture.odm import odm
from jdc.policies.mixture.static import static

__all__ = ["by_size", "odm", "static"]
