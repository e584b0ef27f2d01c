"""Per-example statistics, for training steps and for sweeps over the pool."""
