"""Proportions to begin with, from the profile of the data and short proxy runs."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdc.policies.mixture import regmix as regression
from jdc.policies.mixture.regmix import Space
from jdc.recipes import regmix, runs
from jdc.recipes.regmix import Search
from jdc.recipes.runs import Data, Train
from jdc.train.config import TrainConfig

_LOG = logging.getLogger("jdc")
FLAGS = "advice.flags"


class Advice(NamedTuple):
  """Proportions by domain, in the order of the runs.

  Attributes:
    proportions: to begin with, sum 1.
    low, high: between which 95 % of the refits lie.
    by_size: what domains have of the tokens.
    held_out_r2: of proxies that the regression did not see.
    flags: of `launch/train.py`, for a config whose mixture is `mixture.static`.
  """

  proportions: dict[str, float]
  low: dict[str, float]
  high: dict[str, float]
  by_size: dict[str, float]
  held_out_r2: float
  flags: str


def advise(
  search: Search,
  proxy: TrainConfig,
  target: TrainConfig,
  workdir: str,
  train: Train,
  *,
  profile: str | Path | None = None,
  resamples: int = 200,
  data: Data | None = None,
) -> Advice | None:
  """Trains RegMix's proxies, and says how sure their regression is of the mixture.

  The regression is fitted again to resamples of the proxies, with replacement; each fit has its
  best mixture, as `regmix.best_mixture` finds it. The proportions are the mean of these: where
  fits disagree, it is less extreme than the mixture of all proxies. Where the regression
  predicts proxies held out of it no better than by their mean, the advice is to stay by size.

  Near duplicates that a profile tells of are repetitions already: with their share r,
  `search.max_epochs` is taken times 1 - r.

  Args:
    search: which mixtures the proxies try.
    proxy: of every proxy.
    target: of the run that the advice is for.
    workdir: a local folder; gets `advice.json`, `advice.flags` and what `regmix` leaves. The
      proxies that have finished are not trained again.
    train: trains one run.
    profile: a file of `launch/prep.py profile`.
    resamples: of the proxies.
    data: of all runs; default: what `proxy` names.

  Returns:
    The advice; `None` after a signal to stop.

  Raises:
    ValueError: before any run, listing what is wrong.

  References:
    Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979; Breiman, "Bagging
    Predictors", 1996, for the mean over resamples.
  """
  regmix.check(proxy, target)
  if resamples < 20:
    raise ValueError(f"resamples must be 20 or more, for an interval of 95 %, got {resamples}")
  told = _profiled(profile)
  epochs = search.max_epochs * (1 - told.get("near_dup_rate", 0.0))
  search = dataclasses.replace(search, max_epochs=epochs)
  if data is None:
    data = runs.read_data(proxy, workdir)
  if regmix.best_mixture(search, proxy, target, workdir, train, data=data) is None:
    return None
  path = Path(workdir) / "regmix.json"
  found = json.loads(path.read_text(encoding="utf-8"))
  names, prior = found["domains"], np.array(list(data.tokens.values()), np.float64)
  mixtures, losses = np.array(found["mixtures"]), np.array(found["losses"])
  space = regmix.space_of(search, target, data)
  best = _resampled(mixtures, losses, prior, space, search, resamples)
  r2 = found["held_out_r2"]
  size = prior / prior.sum()
  useful = r2 is not None and r2 > 0
  chosen = best.mean(axis=0) if useful else size
  if not useful:
    _LOG.warning("the proxies tell mixtures apart no better than chance: stay by size")
  low, high = np.percentile(best, [2.5, 97.5], axis=0)
  by_name = lambda values: dict(zip(names, map(float, values), strict=True))
  advice = Advice(
    by_name(chosen), by_name(low), by_name(high), by_name(size),
    float("nan") if r2 is None else r2, _flags(chosen, target),
  )  # fmt: skip
  content: dict[str, Any] = advice._asdict() | {"held_out_r2": r2, "resamples": resamples}
  content |= {"profile": told, "regmix_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
  runs.write_json(Path(workdir) / "advice.json", content)
  (Path(workdir) / FLAGS).write_text(advice.flags + "\n", encoding="utf-8")
  return advice


def table(advice: Advice) -> str:
  """Returns the advice for the terminal."""
  lines = [f"{'domain':<20} {'by size':>8} {'advice':>8}   95 % of refits"]
  lines += [
    f"{name:<20} {advice.by_size[name]:8.3f} {share:8.3f}   "
    f"[{advice.low[name]:.3f}, {advice.high[name]:.3f}]"
    for name, share in advice.proportions.items()
  ]
  return "\n".join([*lines, f"R2 of proxies held out: {advice.held_out_r2:.3f}", advice.flags])


def _resampled(
  mixtures: np.ndarray,
  losses: np.ndarray,
  prior: np.ndarray,
  space: Space,
  search: Search,
  resamples: int,
) -> np.ndarray:
  """The best mixture of each refit, f64[resamples, K]."""
  rng, found = np.random.default_rng(search.seed), []
  for _ in range(20 * resamples):
    rows = rng.integers(len(losses), size=len(losses))
    # A resample that does not tell the domains apart says nothing about them.
    if np.linalg.matrix_rank(mixtures[rows]) < mixtures.shape[1]:
      continue
    fitted = regression.fit(mixtures[rows], losses[rows])
    best = regression.best_mixture(
      fitted.coefficients, search.seed, prior, space, search.num_simulated, search.num_best
    )
    found.append(best.mixture)
    if len(found) == resamples:
      return np.array(found)
  raise ValueError(
    f"of {20 * resamples} resamples of {len(losses)} proxies, {len(found)} tell all "
    f"{mixtures.shape[1]} domains apart; train more: search.num_proxies={len(losses)}"
  )


def _flags(proportions: np.ndarray, target: TrainConfig) -> str:
  shares = ",".join(f"{p:.6f}" for p in proportions)
  # As the runs that were made: a config file's own share would not be that of token shards.
  fraction = f"--config.corpus.target_fraction={target.corpus.target_fraction:g}"
  return f"--config.mixture.proportions={shares} {fraction}"


def _profiled(path: str | Path | None) -> dict[str, Any]:
  """What a profile says of duplicates, and its hash."""
  if path is None:
    return {}
  content = Path(path).read_bytes()
  value = json.loads(content)
  missing = [name for name in ("exact_dup_rate", "near_dup_rate") if name not in value]
  if missing:
    raise ValueError(f"{path}: is no profile of launch/prep.py: lacks {', '.join(missing)}")
  told = {name: float(value[name]) for name in ("exact_dup_rate", "near_dup_rate")}
  return {**told, "sha256": hashlib.sha256(content).hexdigest()}
