"""RegMix: small runs on random mixtures, a regression, a run on the mixture it prefers."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdc.policies import mixture
from jdc.policies.mixture import regmix
from jdc.policies.mixture.regmix import PAPER, Space
from jdc.recipes import runs
from jdc.recipes.runs import Data, Train
from jdc.train import fields
from jdc.train.config import TrainConfig
from jdc.train.loop import Result

_LOG = logging.getLogger("jdc")


@dataclasses.dataclass(frozen=True)
class Search:
  """Which mixtures are tried, and how the best one is sought; the numbers are the paper's."""

  num_proxies: int = 512
  seed: int = 0  # of the mixtures
  target_domains: tuple[str, ...] = ()  # whose mean loss is to be low; empty: all
  # The next ones are those of `jdc.policies.mixture.proxy_mixtures.Space`.
  temperature: float = PAPER.temperature
  min_strength: float = PAPER.min_strength
  max_strength: float = PAPER.max_strength
  max_epochs: float = PAPER.max_epochs  # passes of the target's run over a domain
  minimum: float = PAPER.minimum
  num_simulated: int = 100_000
  num_best: int = 128

  def __post_init__(self) -> None:
    if wrong := list(fields.wrong_types(self)):
      raise ValueError("; ".join(wrong))


class Outcome(NamedTuple):
  """What the runs gave."""

  mixture: dict[str, float]  # by domain, sum 1; empty after a signal to stop before it
  target: Result | None  # `None` after such a signal


def run(
  search: Search,
  proxy: TrainConfig,
  target: TrainConfig,
  workdir: str,
  train: Train,
  *,
  data: Data | None = None,
) -> Outcome:
  """Trains the proxies, fits their losses on the target split, trains on the best mixture.

  Each run has a folder of its own in `workdir` and continues from its newest checkpoint. The
  losses of finished proxies are kept in `proxies.json`, and these are not trained again; more
  of them may be asked for later. The regression is written to `regmix.json`.

  Args:
    search: which mixtures the proxies try.
    proxy: of every proxy; its mixture is set here, and it is evaluated on the target split.
    target: of the run proper; its mixture becomes the best one.
    workdir: a local folder.
    train: trains one run.
    data: of all runs; default: what `proxy` names.

  Returns:
    The mixture and how the target's run ended.

  Raises:
    ValueError: before any run, listing what is wrong; if `proxies.json` is of other settings.
    FloatingPointError: naming a proxy whose loss is not finite.

  References:
    Liu et al., "RegMix: Data Mixture as Regression for Language Model Pre-training", 2025,
    arXiv 2407.01492.
  """
  check(proxy, target)
  best = best_mixture(search, proxy, target, workdir, train, data=data)
  if best is None:
    return Outcome({}, None)
  chosen = runs.on_mixture(target, tuple(best.values()))
  return Outcome(best, train(chosen, f"{workdir}/target"))


def best_mixture(
  search: Search,
  proxy: TrainConfig,
  target: TrainConfig,
  workdir: str,
  train: Train,
  *,
  data: Data | None = None,
) -> dict[str, float] | None:
  """Returns what `run` finds before the target's run; `None` after a signal to stop."""
  if data is None:
    data = runs.read_data(proxy, workdir)
  names, scored = list(data.tokens), search.target_domains or tuple(data.tokens)
  _check_search(search, names)
  space, prior = space_of(search, target, data), list(data.tokens.values())
  mixtures = regmix.sample_mixtures(search.seed, prior, search.num_proxies, space)
  regmix.fit(mixtures, np.zeros(len(mixtures)))  # tells whether a regression is possible
  named = {f"{number:04d}": w_K.tolist() for number, w_K in enumerate(mixtures)}
  losses = runs.losses(proxy, named, data, workdir, train)
  if losses is None:
    return None
  loss_R = losses.after[:, [names.index(name) for name in scored]].mean(axis=1)
  fit = regmix.fit(mixtures, loss_R)
  best = regmix.best_mixture(
    fit.coefficients, search.seed, prior, space, search.num_simulated, search.num_best
  )
  chosen = dict(zip(names, best.mixture.tolist(), strict=True))
  _log(chosen, best.loss, fit)
  content = {
    "domains": names,
    "target_domains": list(scored),
    "mixtures": mixtures.tolist(),
    "losses": loss_R.tolist(),
    "coefficients": dict(zip(names, fit.coefficients.tolist(), strict=True)),
    "r2": _number(fit.r2),
    "held_out": fit.held_out.tolist(),
    "held_out_r2": _number(fit.held_out_r2),
    "held_out_rank_correlation": _number(fit.held_out_rank_correlation),
    "mixture": chosen,
    "predicted_loss": best.loss,
  }
  runs.write_json(Path(workdir) / "regmix.json", content)
  return chosen


def check(proxy: TrainConfig, target: TrainConfig) -> None:
  """Raises a ValueError that lists what keeps two configs from being RegMix's."""
  stages = {"proxy": proxy, "target": target}
  errors = runs.not_shared(stages) + runs.faults(stages)
  for name, config in stages.items():
    factory = None if config.mixture is None else config.mixture.get("factory")
    if factory not in (None, mixture.static):
      errors.append(f"the {name}'s mixture is set by RegMix: it must be None or mixture.static")
  if errors:
    raise ValueError("; ".join(errors))


def space_of(search: Search, target: TrainConfig, data: Data) -> Space:
  """Returns how mixtures are drawn; none repeats a domain too often in the target's run."""
  num_tokens = sum(data.tokens.values())
  row_tokens: float = target.sequence_length
  if target.corpus.format != "text" and not target.plan.max_segments:
    row_tokens = num_tokens / data.num_examples  # a record a row
  return Space(
    temperature=search.temperature,
    min_strength=search.min_strength,
    max_strength=search.max_strength,
    max_epochs=search.max_epochs,
    epochs=target.num_steps * target.batch_size * row_tokens / num_tokens,
    minimum=search.minimum,
  )


def _check_search(search: Search, names: list[str]) -> None:
  errors = []
  if unknown := [name for name in search.target_domains if name not in names]:
    errors.append(f"search.target_domains: no domains {unknown}; known: {', '.join(names)}")
  if search.num_proxies <= len(names):
    errors.append(
      f"search.num_proxies must be above the number of domains, {len(names)}, got "
      f"{search.num_proxies}"
    )
  if errors:
    raise ValueError("; ".join(errors))


def _log(chosen: dict[str, float], loss: float, fit: regmix.Fit) -> None:
  shown = ", ".join(f"{name} {weight:.3f}" for name, weight in chosen.items())
  _LOG.info("mixture: %s (predicted loss %.4f)", shown, loss)
  _LOG.info(
    "held-out proxies: R2 %.3f, rank correlation %.3f",
    fit.held_out_r2,
    fit.held_out_rank_correlation,
  )
  if not fit.held_out_r2 > 0:
    _LOG.warning(
      "losses of held-out proxies are predicted no better than by their mean: the mixture says "
      "little; more proxies or longer ones may help"
    )


def _number(value: Any) -> float | None:
  return float(value) if math.isfinite(value) else None  # JSON has no NaN
