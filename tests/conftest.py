"""Gives every test eight virtual CPU devices; this must happen before jax is imported."""

import os

# Tests compile far more than they compute, so the compiler takes its short cuts. Tests of the
# launch scripts run them as users do, without these flags.
_FLAGS = (
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_given = os.environ.get("XLA_FLAGS", "")
_missing = [flag for flag in _FLAGS if flag.partition("=")[0] not in _given]
os.environ["XLA_FLAGS"] = " ".join([*_given.split(), *_missing])
