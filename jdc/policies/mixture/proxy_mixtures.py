"""Random mixtures, to train small models on and to search for a good one among."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jdc.policies import checks

_NUM_STRENGTHS = 15
_DRAWS_PER_MIXTURE = 1_000  # before giving up


class Space(NamedTuple):
  """How mixtures are drawn: w ~ Dirichlet(s q), q_k proportional to p_k^temperature.

  Shares below the minimum become 0, and the others have sum 1 again. A mixture is rejected if
  the run proper would see a domain more than `max_epochs` times: w_k epochs / p_k times.
  """

  temperature: float = 0.5  # in (0, 1]; below 1, small domains get more than by their size
  min_strength: float = 0.1  # of s, drawn from 15 values evenly spaced on a logarithmic scale;
  max_strength: float = 5.0  # the smaller, the closer a mixture is to a single domain
  max_epochs: float = 15.0
  epochs: float = 1.0  # length of the run proper, in passes over the tokens of all domains
  minimum: float = 2e-4  # in [0, 1 / K)


PAPER = Space()


def sample_mixtures(seed: int, prior: ArrayLike, num: int, space: Space = PAPER) -> np.ndarray:
  """Draws the mixtures of the small runs, no two alike.

  Args:
    seed: of the draws, >= 0.
    prior: p > 0, [K], the tokens of each domain, in any unit.
    num: mixtures to draw; the paper trains 512 models.
    space: how they are drawn.

  Returns:
    f64[num, K], rows of sum 1.

  Raises:
    ValueError: if an argument is out of range, or too few draws are accepted.

  References:
    Liu et al., "RegMix", 2025, arXiv 2407.01492, and the authors' sail-sg/regmix, whose numbers
    are the defaults. The repository also rounds the shares to multiples of the smallest one;
    here their sum is 1.

  Example:
    >>> mixtures = sample_mixtures(0, [80, 15, 5], num=32)
    >>> mixtures.shape, bool(np.allclose(mixtures.sum(axis=1), 1))
    ((32, 3), True)
  """
  prior_K = shares(prior)
  checks.require(*space_claims(space, prior_K.size), count("num", num, 1), count("seed", seed))
  found = np.zeros((0, prior_K.size))
  for chunk in accepted(seed, prior_K, num, space):
    found = _distinct(np.concatenate([found, chunk]))[:num]
    if len(found) == num:
      return found
  raise too_few(len(found), num, prior_K, space)


def accepted(seed: int, prior_K: np.ndarray, num: int, space: Space) -> Iterator[np.ndarray]:
  """Yields chunks of accepted mixtures, until 1,000 `num` were drawn."""
  rng = np.random.default_rng(seed)
  base_K = prior_K**space.temperature / np.sum(prior_K**space.temperature)
  ends = np.log([space.min_strength, space.max_strength])
  strengths = np.exp(np.linspace(ends[0], ends[1], _NUM_STRENGTHS))
  size = max(1, 100_000 // prior_K.size)  # bounds the memory
  for _ in range(-(-_DRAWS_PER_MIXTURE * num // size)):
    w_NxK = _dirichlet(rng, rng.choice(strengths, (size, 1)) * base_K)
    w_NxK = np.where(w_NxK < space.minimum, 0.0, w_NxK)
    w_NxK /= w_NxK.sum(axis=1, keepdims=True)
    yield w_NxK[np.all(w_NxK <= _most(prior_K, space), axis=1)]


def _most(prior_K: np.ndarray, space: Space) -> np.ndarray:
  """The largest share of each domain, if its rows shall not be seen too often."""
  return np.minimum(space.max_epochs * prior_K / space.epochs, 1.0)


def _dirichlet(rng: np.random.Generator, alpha_NxK: np.ndarray) -> np.ndarray:
  """Draws one from each row; by logarithms, since gammas of a small shape underflow to 0."""
  log_gamma = np.log(rng.standard_gamma(alpha_NxK + 1))
  log_gamma += np.log1p(-rng.random(alpha_NxK.shape)) / alpha_NxK
  weight = np.exp(log_gamma - log_gamma.max(axis=1, keepdims=True))
  return weight / weight.sum(axis=1, keepdims=True)


def _distinct(mixtures: np.ndarray) -> np.ndarray:
  """Returns the first of those that are equal to five decimals, in the order drawn."""
  _, first = np.unique(mixtures.round(5), axis=0, return_index=True)
  return mixtures[np.sort(first)]


def shares(prior: ArrayLike) -> np.ndarray:
  """Returns the shares of the domains, f64[K] of sum 1, from positive numbers."""
  prior_K = np.asarray(prior, np.float64)
  one_axis = prior_K.ndim == 1 and prior_K.size > 0
  bad = np.flatnonzero(~(np.isfinite(prior_K) & (prior_K > 0))).tolist()
  checks.require(
    (one_axis, f"prior must have one number for each domain, got shape {prior_K.shape}"),
    (not bad, f"prior must be positive and finite, is not for domains {bad}: {prior!r}"),
  )
  return prior_K / prior_K.sum()


def count(name: str, value: int, minimum: int = 0) -> tuple[bool, str]:
  """Returns the claim that `value` is a whole number of at least `minimum`."""
  message = f"{name} must be a whole number >= {minimum}, got {value}"
  return checks.is_count(value, minimum), message


def space_claims(space: Space, num_domains: int) -> list[tuple[bool, str]]:
  """Returns what must hold of a space."""
  positive = lambda value: checks.is_finite(value) and value > 0
  names = ("temperature", "min_strength", "max_strength", "max_epochs", "epochs")
  bad = {name: getattr(space, name) for name in names if not positive(getattr(space, name))}
  return [
    (not bad, f"{', '.join(names)} must be positive and finite, got {bad}"),
    (
      bool(bad) or space.temperature <= 1,
      f"temperature must be in (0, 1], got {space.temperature}",
    ),
    (
      bool(bad) or space.min_strength <= space.max_strength,
      f"min_strength {space.min_strength} must not exceed max_strength {space.max_strength}",
    ),
    (
      bool(bad) or space.epochs <= space.max_epochs,
      f"epochs {space.epochs} must not exceed max_epochs {space.max_epochs}",
    ),
    (
      checks.is_finite(space.minimum) and 0 <= space.minimum < 1 / num_domains,
      f"minimum must be in [0, 1 / {num_domains}), got {space.minimum}",
    ),
  ]


def too_few(found: int, num: int, prior_K: np.ndarray, space: Space) -> ValueError:
  """Returns the error for a space in which mixtures are too rare."""
  return ValueError(
    f"found only {found} of {num} mixtures in {_DRAWS_PER_MIXTURE * num} draws; shares may be "
    f"at most {_most(prior_K, space).round(4).tolist()}: raise max_epochs {space.max_epochs} "
    f"or min_strength {space.min_strength}, or lower epochs {space.epochs} or the number"
  )
