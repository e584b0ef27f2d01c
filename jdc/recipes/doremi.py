"""DoReMi's three runs: a reference, a proxy that finds domain weights, the target."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdc.policies import mixture
from jdc.recipes import runs
from jdc.recipes.runs import Train as Train
from jdc.train import process, sharding
from jdc.train.config import TrainConfig
from jdc.train.loop import Result

_LOG = logging.getLogger("jdc")


class Outcome(NamedTuple):
  """What the three runs gave."""

  weights: dict[str, float]  # of the domains, sum 1
  target: Result | None  # `None` after a signal to stop


def run(
  reference: TrainConfig, proxy: TrainConfig, target: TrainConfig, workdir: str, train: Train
) -> Outcome:
  """Trains the reference, then the proxy against it, then the target on the mean weights.

  Each run has a folder of its own in `workdir` and continues from its newest checkpoint; one
  that is finished is only opened. The mean of the proxy's domain weights is read from its last
  checkpoint and written to `domain_weights.json`.

  Args:
    reference: trained on the mixture it names, the paper's reference weights.
    proxy: its mixture is `mixture.doremi`; its reference is set here.
    target: its mixture becomes `mixture.static` with the mean weights.
    workdir: a local folder.
    train: trains one run.

  Returns:
    The weights and how the target's run ended.

  Raises:
    ValueError: before any run, listing what is wrong with the three configs.

  References:
    Xie et al., "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining", 2023,
    arXiv 2305.10429.
  """
  check(reference, proxy, target)
  weights = domain_weights(reference, proxy, workdir, train)
  if weights is None:
    return Outcome({}, None)
  return Outcome(weights, train(with_weights(target, weights), f"{workdir}/target"))


def domain_weights(
  reference: TrainConfig, proxy: TrainConfig, workdir: str, train: Train
) -> dict[str, float] | None:
  """Returns what the first two runs find; `None` after a signal to stop."""
  folder = Path(workdir)
  with process.sigterm(sharding.make_mesh(**dataclasses.asdict(proxy.mesh))) as told_to_stop:
    found = train(reference, str(folder / "reference"))
    if found.stopped == "SIGTERM" or told_to_stop():
      return None
    chosen = dataclasses.replace(proxy.reference, folder=str(folder / "reference"))
    found = train(dataclasses.replace(proxy, reference=chosen), str(folder / "proxy"))
    if found.stopped == "SIGTERM" or told_to_stop():
      return None
  weights = mean_weights(found)
  shown = ", ".join(f"{name} {weight:.3f}" for name, weight in weights.items())
  _LOG.info("domain weights: %s", shown)
  runs.write_json(folder / "domain_weights.json", weights)
  return weights


def check(reference: TrainConfig, proxy: TrainConfig, target: TrainConfig) -> None:
  """Raises a ValueError that lists what keeps three configs from being DoReMi's."""
  errors = []
  if _factory(proxy) is not mixture.doremi:
    errors.append("the proxy's mixture must be mixture.doremi")
  if proxy.reference.folder:
    errors.append(
      f"the proxy's reference.folder={proxy.reference.folder!r} must be empty: the reference "
      "is trained first"
    )
  for name, config in (("reference", reference), ("target", target)):
    if config.reference.folder:
      errors.append(f"the {name}'s reference.folder is not read, it must be empty")
  if reference.checkpoint.folder:
    errors.append(
      f"the reference's checkpoint.folder={reference.checkpoint.folder!r} must be empty: the "
      "proxy reads it from the workdir"
    )
  stages = {"reference": reference, "proxy": proxy, "target": target}
  errors += runs.not_shared(stages)
  errors += runs.faults(stages)
  if reference.sequence_length < proxy.sequence_length:
    errors.append(
      f"the proxy's sequence_length={proxy.sequence_length} is above the reference's "
      f"{reference.sequence_length}"
    )
  if errors:
    raise ValueError("; ".join(errors))


def mean_weights(proxy: Result) -> dict[str, float]:
  """Returns the mean domain weights over the steps of a proxy's run."""
  alpha_K = np.asarray(proxy.state.policies["mixture"].mean_alpha_K, np.float64)
  weights = alpha_K / alpha_K.sum()
  return dict(zip(proxy.spec.domain_names, weights.tolist(), strict=True))


def with_weights(target: TrainConfig, weights: dict[str, float]) -> TrainConfig:
  """Returns the config of a run on fixed domain weights."""
  return runs.on_mixture(target, tuple(weights.values()))


def _factory(config: TrainConfig) -> Any:
  return None if config.mixture is None else config.mixture.get("factory")
