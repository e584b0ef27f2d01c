"""Evaluation on held-out text."""

from jdc.eval.perplexity import evaluate

__all__ = ["evaluate"]
