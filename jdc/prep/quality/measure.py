"""How good scores are: rank, accuracy, calibration; and Platt's calibration of them."""

import math
from typing import Any

import numpy as np

BINS = 10


def platt(z: np.ndarray, label: np.ndarray) -> tuple[float, float]:
  r"""Returns a and c of p = 1 / (1 + exp(-(a z + c))), by maximum likelihood.

  Labels are (n_1 + 1) / (n_1 + 2) for 1 and 1 / (n_0 + 2) for 0, so that no probability must be
  0 or 1. Newton's method, with steps halved until the likelihood grows.

  References:
    Platt, "Probabilistic outputs for support vector machines", 1999. Lin, Lin and Weng, "A note
    on Platt's probabilistic outputs for support vector machines", 2007.

  Example:
    >>> z = np.linspace(-2, 2, 4001)
    >>> a, c = platt(z, np.random.default_rng(0).random(4001) < 1 / (1 + np.exp(-3 * z + 1)))
    >>> round(a), round(c)
    (3, -1)
  """
  ones = int(np.sum(label))
  target = np.where(label, (ones + 1) / (ones + 2), 1 / (len(label) - ones + 2))
  x = np.stack([z, np.ones(len(z))], axis=1).astype(np.float64)
  loss = lambda v: float(np.sum(np.logaddexp(0, x @ v) - target * (x @ v)))
  found = np.array([1.0, math.log((ones + 1) / (len(label) - ones + 1))])
  for _ in range(100):
    p = 1 / (1 + np.exp(-np.clip(x @ found, -500, 500)))
    gradient = x.T @ (p - target)
    if np.max(np.abs(gradient)) < 1e-9 * len(z):
      break
    hessian = x.T @ (x * (p * (1 - p))[:, None]) + 1e-12 * np.eye(2)
    step, size = np.linalg.solve(hessian, gradient), 1.0
    while loss(found - size * step) > loss(found) and size > 1e-10:
      size /= 2
    found = found - size * step
  return float(found[0]), float(found[1])


def ranks(values: np.ndarray) -> np.ndarray:
  """Returns the ranks of numbers, from 1 on; equal ones share the mean of theirs.

  >>> ranks(np.array([5, 1, 5, 3])).tolist()
  [3.5, 1.0, 3.5, 2.0]
  """
  _, place, count = np.unique(values, return_inverse=True, return_counts=True)
  last = np.cumsum(count)
  return (last - (count - 1) / 2)[place]


def auc(score: np.ndarray, label: np.ndarray) -> float:
  """Returns how often a positive one scores above a negative one; equal ones count one half.

  >>> auc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
  0.875
  """
  ones = int(np.sum(label))
  zeros = len(label) - ones
  return float((np.sum(ranks(score)[label]) - ones * (ones + 1) / 2) / (ones * zeros))


def auc_error(value: float, ones: int, zeros: int) -> float:
  """Returns the standard error of an AUC (Hanley and McNeil, 1982).

  Where all pairs are in order, or none, as if half a pair were not: few documents prove little.

  >>> round(auc_error(1.0, 5, 6), 3), round(auc_error(1.0, 500, 600), 5)
  (0.044, 4e-05)
  """
  value = min(max(value, 0.5 / (ones * zeros)), 1 - 0.5 / (ones * zeros))
  q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
  spread = value * (1 - value) + (ones - 1) * (q1 - value**2) + (zeros - 1) * (q2 - value**2)
  return math.sqrt(max(spread, 0.0) / (ones * zeros))


def log_loss(p: np.ndarray, label: np.ndarray) -> float:
  """Returns the mean of -log p of what is true, nats."""
  p = np.clip(p, 1e-12, 1 - 1e-12)
  return float(-np.mean(np.where(label, np.log(p), np.log1p(-p))))


def reliability(p: np.ndarray, label: np.ndarray) -> tuple[float, list[dict[str, float]]]:
  r"""Returns the expected calibration error and its bins.

    ECE = sum_m (n_m / n) |mean p - share of positives| over ten bins of equal width.

  References:
    Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599.
  """
  which, bins, error = np.minimum((p * BINS).astype(int), BINS - 1), [], 0.0
  for m in range(BINS):
    here = which == m
    if here.any():
      mean, share = float(np.mean(p[here])), float(np.mean(label[here]))
      error += np.mean(here) * abs(mean - share)
      bins.append(
        {"low": m / BINS, "high": (m + 1) / BINS, "documents": int(np.sum(here)),
         "mean_score": round(mean, 4), "positive": round(share, 4)}
      )  # fmt: skip
  return float(error), bins


def thresholds(p: np.ndarray, label: np.ndarray) -> list[dict[str, Any]]:
  """Returns what documents with a score of at least 0.1, 0.2, ... are like."""
  found = []
  for step in range(1, BINS):
    kept = p >= step / BINS
    precision = float(np.mean(label[kept])) if kept.any() else None
    found.append(
      {
        "min_score": step / BINS,
        "kept": round(float(np.mean(kept)), 4),
        "kept_of_positive": round(float(np.mean(kept[label])), 4),
        "kept_of_negative": round(float(np.mean(kept[~label])), 4),
        "precision": None if precision is None else round(precision, 4),
      }
    )
  return found


def kappa(a: np.ndarray, b: np.ndarray) -> float:
  """Returns Cohen's kappa of two yes-no judgements; 1 where both always say the same one."""
  agree = float(np.mean(a == b))
  chance = float(np.mean(a) * np.mean(b) + np.mean(~a) * np.mean(~b))
  return 1.0 if chance == 1 else (agree - chance) / (1 - chance)


def report(p: np.ndarray, label: np.ndarray) -> dict[str, Any]:
  """Returns what is to be known of calibrated scores of documents that were held out."""
  area, ones = auc(p, label), int(np.sum(label))
  error, bins = reliability(p, label)
  return {
    "documents": len(label),
    "positive": ones,
    "auc": round(area, 5),
    "auc_standard_error": round(auc_error(area, ones, len(label) - ones), 5),
    "accuracy": round(float(np.mean((p >= 0.5) == label)), 5),
    "accuracy_of_majority": round(max(ones, len(label) - ones) / len(label), 5),
    "log_loss": round(log_loss(p, label), 5),
    "expected_calibration_error": round(error, 5),
    "reliability": bins,
    "thresholds": thresholds(p, label),
  }


def agreement(p: np.ndarray, label: np.ndarray, value: np.ndarray) -> dict[str, float]:
  """Returns how scores agree with labels that were numbers: kappa, and Spearman's rank."""
  a, b = ranks(p), ranks(value)
  spread = float(np.std(a) * np.std(b))
  together = float(np.mean((a - a.mean()) * (b - b.mean())))
  return {
    "kappa": round(kappa(p >= 0.5, label), 5),
    "spearman": round(together / spread, 5) if spread else 0.0,
  }
