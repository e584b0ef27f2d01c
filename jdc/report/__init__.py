"""From a run directory to something a person can read."""
