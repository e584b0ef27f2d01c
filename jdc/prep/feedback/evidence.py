r"""What the table of a run says about domains and documents, with its uncertainty.

*Learning.* The loss of a piece when it is first seen is a loss on text that was not trained on.
Of the pieces of a domain that were first seen at steps s after a tenth of the run,

  l = c - b log s + noise,

a least squares fit weighted by tokens. b log 2 is what as much training again would gain.

*Influence.* With n_i views of the rows of document i, mean influence m_i and variance of views
sigma^2, of domain k with mean mu_k and variance between documents tau_k^2 (by moments),

  mean_i = (tau^2 n_i m_i + sigma^2 mu) / (tau^2 n_i + sigma^2),
  var_i = tau^2 sigma^2 / (tau^2 n_i + sigma^2) + (sigma^2 / (tau^2 n_i + sigma^2))^2 se(mu)^2.

A document of few views is judged as its domain is, one of many by itself.

*Surprise.* A document's loss when it was first seen, less the domain's fit at that step, over
the spread of that difference in the domain (1.4826 times the median absolute one).
"""

from typing import NamedTuple

import numpy as np

from jdc.prep.feedback.table import Documents, Table

BURN_IN = 0.1  # of the steps: pieces first seen before tell more of the start than of the text
MIN_TOKENS = 32  # seen of a document that is judged by its loss


class Domain(NamedTuple):
  """Of a domain; NaN where it is not known."""

  documents: int
  seen: int  # documents with rows that were trained on
  tokens: float
  level: float  # nats per token of text first seen at the end of the run
  fall: float  # b
  fall_error: float  # its standard error
  influence: float  # mu
  influence_error: float


class Evidence(NamedTuple):
  """Of K domains by name, and of D documents, [D] each."""

  domains: dict[str, Domain]
  found: Documents
  surprise: np.ndarray
  influence: np.ndarray
  influence_error: np.ndarray


def weigh(table: Table, found: Documents) -> Evidence:
  """Returns what is known of the domains and documents of a table."""
  last = np.nanmax(table.pieces.step_last) if len(table.pieces.step_last) else np.nan
  sigma2 = _variance_of_views(found)
  surprise = np.full(len(table.doc_id), np.nan)
  influence, error = surprise.copy(), surprise.copy()
  domains = {}
  for k, name in enumerate(table.domains):
    of = table.domain == k
    slope, slope_error, level = _curve(table, of, last)
    surprise[of] = _surprise(found, of, slope, level, last)
    mean, mean_error = _shrunk(found, of, sigma2, influence, error)
    domains[name] = Domain(
      int(of.sum()), int((found.seen[of] > 0).sum()), float(found.tokens[of].sum()), level,
      slope, slope_error, mean, mean_error,
    )  # fmt: skip
  return Evidence(domains, found, surprise, influence, error)


def _curve(table: Table, of: np.ndarray, last: float) -> tuple[float, float, float]:
  """Returns b, its standard error and the loss at the last step."""
  p = table.pieces
  use = of[p.document] & np.isfinite(p.loss_first) & (p.tokens > 0) & ~table.is_copy
  use &= p.step_first > BURN_IN * last
  if use.sum() < 3 or len(np.unique(p.step_first[use])) < 3:
    return np.nan, np.nan, np.nan
  x, y, w = np.log(p.step_first[use] / last), p.loss_first[use], p.tokens[use]
  w = w / w.sum()
  x_mean, y_mean = w @ x, w @ y
  spread = w @ (x - x_mean) ** 2
  slope = (w * (x - x_mean)) @ (y - y_mean) / spread
  residual = y - y_mean - slope * (x - x_mean)
  # Robust to unequal variances (White 1980).
  error = np.sqrt(np.sum((w * (x - x_mean) * residual) ** 2)) / spread
  return float(-slope), float(error), float(y_mean - slope * x_mean)


def _surprise(
  found: Documents, of: np.ndarray, fall: float, level: float, last: float
) -> np.ndarray:
  known = (found.seen[of] >= MIN_TOKENS) & (found.step_first[of] > BURN_IN * last)
  steps = np.where(known, found.step_first[of], last)
  residual = found.loss_first[of] - (level - fall * np.log(steps / last))
  if known.sum() < 8:
    return np.full(int(of.sum()), np.nan)
  middle = np.median(residual[known])
  spread = 1.4826 * np.median(np.abs(residual[known] - middle))
  if not spread > 0:
    return np.full(int(of.sum()), np.nan)
  return np.where(known, (residual - middle) / spread, np.nan)


def _variance_of_views(found: Documents) -> float:
  several = found.influence_count > 1
  degrees = (found.influence_count[several] - 1).sum()
  return float(found.influence_squares[several].sum() / degrees) if degrees else np.nan


def _shrunk(
  found: Documents, of: np.ndarray, sigma2: float, influence: np.ndarray, error: np.ndarray
) -> tuple[float, float]:
  """Fills in the documents of a domain; returns its mean and that one's standard error."""
  n, m = found.influence_count[of], found.influence[of]
  known = n > 0
  if known.sum() < 2 or not np.isfinite(sigma2):
    return np.nan, np.nan
  n, m = n[known], m[known]
  mu = (n @ m) / n.sum()
  # By moments: E sum_i n_i (m_i - mu)^2 = (D - 1) sigma^2 + (N - sum n_i^2 / N) tau^2.
  total = n.sum()
  tau2 = (n @ (m - mu) ** 2 - (len(n) - 1) * sigma2) / (total - (n @ n) / total)
  tau2 = max(float(tau2), 0.0)
  mu_error2 = sigma2 / total + tau2 * (n @ n) / total**2
  all_n, all_m = found.influence_count[of], np.nan_to_num(found.influence[of])
  share = sigma2 / (tau2 * all_n + sigma2) if sigma2 > 0 else (all_n == 0).astype(float)
  influence[of] = np.where(all_n > 0, (1 - share) * all_m + share * mu, np.nan)
  variance = tau2 * share + share**2 * mu_error2
  error[of] = np.where(all_n > 0, np.sqrt(variance), np.nan)
  return float(mu), float(np.sqrt(mu_error2))
