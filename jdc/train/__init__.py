"""Training under data policies: state, step, loop, checkpoints."""
