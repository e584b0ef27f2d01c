"""One process of a run; `fit_process.py INDEX COUNT PORT RUN WORKDIR CASE NUM_STEPS`.

RUN is a pickle of (domains, config of the model, config of the run); for the case "adapters",
of (domains, the whole config).
"""

import dataclasses
import json
import pickle
import sys
from pathlib import Path

import jax
import optax

from jdc import policies
from jdc.models.decoder import decoder
from jdc.policies import mixture, ordering, selection, weighting
from jdc.train import loop, model_parts
from jdc.train.config import CheckpointConfig, MeshConfig, build_policies
from jdc.train.optimizer import make_optimizer

CASES = {
  # Parameters are spread over all devices, so that no process holds them.
  "static": (policies.combine(), {}, MeshConfig(data=1, fsdp=-1)),
  "everything": (
    policies.combine(
      mixture=mixture.odm(warmup_steps=1),
      selection=selection.loss(),
      weighting=weighting.loss_reweighting(burn_in_steps=2),
      ordering=ordering.sorting(),
    ),
    {"draw": "gumbel_top_k"},
    MeshConfig(data=2, fsdp=-1),
  ),
}


def main(
  index: int, count: int, port: int, run: str, workdir: str, case: str, num_steps: int
) -> None:
  if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
  content = pickle.loads(Path(run).read_bytes())
  built = adapters(*content) if case == "adapters" else tiny(*content, case, num_steps)
  result = loop.fit(built, workdir)
  devices = jax.device_count()
  step = int(result.plan.step)
  print(json.dumps({"stopped": result.stopped, "step": step, "devices": devices}), flush=True)


def adapters(domains, config) -> loop.Run:
  config, start = model_parts.build(config)
  optimizer, rate = make_optimizer(config.optimizer, config.num_steps)
  return loop.Run(
    start.model, optimizer, rate, build_policies(config), domains, config,
    weights=start.weights, trainable=start.trainable,
  )  # fmt: skip


def tiny(domains, model_config, config, case, num_steps) -> loop.Run:
  chosen, plan, mesh = CASES[case]
  config = dataclasses.replace(
    config,
    num_steps=num_steps,
    mesh=mesh,
    plan=dataclasses.replace(config.plan, **plan),
    checkpoint=CheckpointConfig(every_steps=7),
  )
  schedule = optax.constant_schedule(1e-2)
  return loop.Run(
    decoder(model_config), optax.adamw(schedule), schedule, chosen, domains, config
  )


if __name__ == "__main__":
  integers = {0: int, 1: int, 2: int, 6: int}
  main(*(integers.get(i, str)(value) for i, value in enumerate(sys.argv[1:])))
