"""Orderings: permutations of the rows that a round draws from a domain, by a score each."""

from jdc.policies.ordering.folding import folding, zigzag
from jdc.policies.ordering.segment import segment
from jdc.policies.ordering.sorting import sorting
from jdc.policies.ordering.stair import saw, stair
from jdc.policies.ordering.window_shuffle import window_shuffle

__all__ = ["folding", "saw", "segment", "sorting", "stair", "window_shuffle", "zigzag"]
