"""RegMix: proportions found before the run, by regression over many small runs.

Train a small model on each of `sample_mixtures`, `fit` their losses on the target, and give the
`best_mixture` to `static` in the run proper. Plain NumPy on the host, in float64.

References:
  Liu et al., "RegMix: Data Mixture as Regression for Language Model Pre-training", 2025, arXiv
  2407.01492. Of the two regressions that it compares, this is the linear one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jdc.policies import checks
from jdc.policies.mixture import proxy_mixtures
from jdc.policies.mixture.proxy_mixtures import PAPER, Space, sample_mixtures

__all__ = ["PAPER", "Best", "Fit", "Space", "best_mixture", "fit", "sample_mixtures"]


class Fit(NamedTuple):
  """A linear model of the loss: sum_k w_k c_k for mixture w.

  A held-out loss is predicted from the other runs alone. What is not defined, because all
  losses or all predictions are equal, is NaN.
  """

  coefficients: np.ndarray  # f64[K], c: the loss predicted for domain k by itself, nats
  r2: float  # share of the variance explained, of the runs fitted
  held_out: np.ndarray  # f64[R], nats
  held_out_r2: float  # 1 - sum (loss - held_out)^2 / sum (loss - mean)^2; may be negative
  held_out_rank_correlation: float  # Spearman's


class Best(NamedTuple):
  mixture: np.ndarray  # f64[K], sum 1
  loss: float  # predicted, nats


def fit(mixtures: ArrayLike, losses: ArrayLike) -> Fit:
  """Fits the loss on the target as a linear function of the mixture, by least squares.

  Since shares have sum 1, an intercept would add nothing.

  Args:
    mixtures: w, [R, K] with K >= 2 and R > K, rows of sum 1.
    losses: [R], of the small runs on the target, nats.

  Returns:
    The model and how well it does.

  Raises:
    ValueError: if runs are too few or do not vary enough, a row is no mixture, or a loss is not
      finite; runs are named by index.

  Example:
    >>> model = fit([[1, 0], [0, 1], [0.5, 0.5], [0.2, 0.8]], [3.0, 2.0, 2.5, 2.2])
    >>> model.coefficients.round(3).tolist(), round(model.held_out_r2, 3)
    ([3.0, 2.0], 1.0)
  """
  mixtures_RxK, losses_R = np.asarray(mixtures, np.float64), np.asarray(losses, np.float64)
  _check_runs(mixtures_RxK, losses_R)
  coefficients_K = _solve(mixtures_RxK, losses_R)
  held_out_R = np.array([
    w_K @ _solve(np.delete(mixtures_RxK, run, axis=0), np.delete(losses_R, run))
    for run, w_K in enumerate(mixtures_RxK)
  ])  # fmt: skip
  return Fit(
    coefficients=coefficients_K,
    r2=_r2(losses_R, mixtures_RxK @ coefficients_K),
    held_out=held_out_R,
    held_out_r2=_r2(losses_R, held_out_R),
    held_out_rank_correlation=_correlation(_ranks(losses_R), _ranks(held_out_R)),
  )


def best_mixture(
  coefficients: ArrayLike,
  seed: int,
  prior: ArrayLike,
  space: Space = PAPER,
  num_simulated: int = 100_000,
  num_best: int = 128,
) -> Best:
  """Returns the mean of the mixtures with the lowest predicted loss.

  A linear model is lowest at a corner, which no run has tried; the mean of the best that could
  have been drawn is not as extreme.

  Args:
    coefficients: of the fit, [K].
    seed: of the simulated mixtures, >= 0.
    prior: as for `sample_mixtures`.
    space: likewise.
    num_simulated: mixtures to draw.
    num_best: how many of them to average; the earlier ones where losses are equal.

  Returns:
    The mixture and its predicted loss.

  Raises:
    ValueError: if an argument is out of range, or too few draws are accepted.

  Example:
    >>> best = best_mixture([3.0, 2.0, 4.0], seed=0, prior=[1, 1, 1], num_simulated=2000)
    >>> int(best.mixture.argmax())
    1
  """
  prior_K = proxy_mixtures.shares(prior)
  coefficients_K = np.asarray(coefficients, np.float64)
  good = coefficients_K.shape == prior_K.shape and bool(np.isfinite(coefficients_K).all())
  checks.require(
    *proxy_mixtures.space_claims(space, prior_K.size),
    (good, f"coefficients must be finite, one a domain ({prior_K.size}), got {coefficients!r}"),
    proxy_mixtures.count("seed", seed),
    proxy_mixtures.count("num_simulated", num_simulated, 1),
    proxy_mixtures.count("num_best", num_best, 1),
    (
      num_best <= num_simulated,
      f"num_best must be at most num_simulated {num_simulated}, got {num_best}",
    ),
  )
  best, left = np.zeros((0, prior_K.size)), num_simulated
  for chunk in proxy_mixtures.accepted(seed, prior_K, num_simulated, space):
    best = np.concatenate([best, chunk[:left]])
    best = best[np.argsort(best @ coefficients_K, kind="stable")[:num_best]]
    left -= min(left, len(chunk))
    if left == 0:
      mixture_K = best.mean(axis=0)
      return Best(mixture_K, float(mixture_K @ coefficients_K))
  raise proxy_mixtures.too_few(num_simulated - left, num_simulated, prior_K, space)


def _solve(mixtures_RxK: np.ndarray, losses_R: np.ndarray) -> np.ndarray:
  """Least squares around the mean: what the runs do not tell apart is predicted alike."""
  mean = losses_R.mean()
  return mean + np.linalg.lstsq(mixtures_RxK, losses_R - mean, rcond=None)[0]


def _r2(losses_R: np.ndarray, predicted_R: np.ndarray) -> float:
  if np.ptp(losses_R) == 0:
    return np.nan
  unexplained = np.sum((losses_R - predicted_R) ** 2)
  return float(1 - unexplained / np.sum((losses_R - losses_R.mean()) ** 2))


def _ranks(values: np.ndarray) -> np.ndarray:
  """Ranks from 1; equal values share the mean of theirs."""
  _, group, count = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(count) - (count - 1) / 2)[group]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
  a, b = a - a.mean(), b - b.mean()
  scale = np.sqrt(np.sum(a * a) * np.sum(b * b))
  return float(np.sum(a * b) / scale) if scale > 0 else np.nan


def _check_runs(mixtures_RxK: np.ndarray, losses_R: np.ndarray) -> None:
  shape = mixtures_RxK.shape
  matrix = len(shape) == 2
  checks.require(
    (matrix and shape[1] >= 2, f"mixtures must be [runs, domains >= 2], got {shape}"),
    (
      matrix and losses_R.shape == shape[:1],
      f"losses must be one a run, got {losses_R.shape} for mixtures {shape}",
    ),
  )
  row_ok = np.all(mixtures_RxK >= 0, axis=1) & (np.abs(mixtures_RxK.sum(axis=1) - 1) < 1e-4)
  no_mixture = np.flatnonzero(~row_ok).tolist()
  nonfinite = np.flatnonzero(~np.isfinite(losses_R)).tolist()
  checks.require(
    (
      shape[0] > shape[1],
      f"{shape[1]} domains need at least {shape[1] + 1} runs, got {shape[0]}",
    ),
    (not no_mixture, f"mixtures must be >= 0 with sum 1, those of runs {no_mixture} are not"),
    (not nonfinite, f"losses must be finite, those of runs {nonfinite} are not"),
  )
  rank = np.linalg.matrix_rank(mixtures_RxK)
  unused = np.flatnonzero(~mixtures_RxK.any(axis=0)).tolist()
  checks.require(
    (
      rank == shape[1],
      f"the mixtures tell only {rank} of {shape[1]} domains apart; in no run: {unused}",
    )
  )
