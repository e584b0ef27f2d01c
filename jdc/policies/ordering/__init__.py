"""Orderings: permutations of the rows that a round draws from a domain, by a score each."""

from jdc.policies.ordering.sorting import sorting

__all__ = ["sorting"]
