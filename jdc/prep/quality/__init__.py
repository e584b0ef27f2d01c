"""Quality of documents: a classifier that learns from examples, and what it was learnt from."""
