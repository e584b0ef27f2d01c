"""From raw files to training shards: a typed plan, its operators, and a runner that resumes.

A plan (`PlanSpec`, or the same as `pipeline.toml`) says what is read, which operators run in
which order, and what is written. `jdc.prep.runner.run` carries it out shard by shard; every
finished piece is committed under a hash of all that it depends on, so that a run that was
killed goes on, and a changed plan redoes no more than the change touches.
"""

import importlib.util

_MISSING = [
  name
  for name in ("numba", "orjson", "pyarrow", "pydantic", "zstandard")
  if importlib.util.find_spec(name) is None
]
if _MISSING:
  raise ImportError(f"{', '.join(_MISSING)} needed here: pip install jdc[prep]")

from jdc.prep.spec import (  # noqa: E402
  Expectation,
  InputSpec,
  OutputSpec,
  PlanSpec,
  StepSpec,
  step,
)

__all__ = ["Expectation", "InputSpec", "OutputSpec", "PlanSpec", "StepSpec", "step"]
