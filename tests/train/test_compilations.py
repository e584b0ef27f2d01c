"""Nothing is compiled after the first round, whatever the later rounds decide or hold."""

import jax
import pytest

from jdc import policies
from jdc.policies import mixture
from jdc.train import loop

# Under `every`, rounds that hold their decision take turns with those that probe.
POLICIES = {
  "probes": lambda: mixture.doge(),
  "probes held": lambda: policies.every(2, mixture.doge()),
  "target": lambda: mixture.aioli(period=4, lp_rounds=1),
}


@pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES.keys())
def test_probes_and_refreshes_compile_in_the_first_round_only(build, small_run, tmp_path):
  compiled: list[str] = []

  def listen(event: str, _: float, **kwargs: object) -> None:
    if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
      compiled.append(str(kwargs.get("fun_name", event)))

  run = small_run(policies.combine(mixture=build()), steps_per_round=3)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    for progress in loop.steps(run, str(tmp_path)):
      if progress.step == 3:
        assert compiled
        compiled.clear()
      if progress.step == run.config.num_steps:
        break
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not compiled
