"""Data-centric training of language models in JAX."""
