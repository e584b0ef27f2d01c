"""Means with standard errors, by group and over all."""

import math
from collections.abc import Mapping, Sequence

import numpy as np


def mean_and_error(values: Sequence[float] | Sequence[bool]) -> tuple[float, float]:
  r"""The mean of n values and its standard error, sqrt(sum_i (x_i - mean)^2 / (n (n - 1))).

  Returns:
    The mean, and the error; NaN for a single value.

  Raises:
    ValueError: if there is no value.

  Example:
    >>> mean_and_error([1, 0, 1, 1])
    (0.75, 0.25)
  """
  if not len(values):
    raise ValueError("a mean needs at least one value, got none")
  x = np.asarray(values, np.float64)
  error = float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else math.nan
  return float(x.mean()), error


def grouped(values: Mapping[str, Sequence[float]], name: str) -> dict[str, float]:
  r"""Means of groups, their macro mean (groups weigh the same) and micro mean (values do).

  The standard error of the macro mean over K groups is sqrt(sum_k error_k^2) / K.

  Args:
    values: of each group, at least one.
    name: of the quantity.

  Returns:
    `group/name`, `group/name_standard_error` and `group/count` of each group; `macro_name`,
    `micro_name`, their standard errors and `count` over all.

  Example:
    >>> result = grouped({"a": [1, 1], "b": [0, 1, 0, 1]}, "accuracy")
    >>> result["macro_accuracy"], round(result["micro_accuracy"], 3), result["count"]
    (0.75, 0.667, 6)
  """
  result: dict[str, float] = {}
  means, errors = [], []
  for group, each in values.items():
    mean, error = mean_and_error(each)
    result |= {f"{group}/{name}": mean, f"{group}/{name}_standard_error": error}
    result[f"{group}/count"] = len(each)
    means.append(mean)
    errors.append(error)
  result[f"macro_{name}"] = sum(means) / len(means)
  result[f"macro_{name}_standard_error"] = math.hypot(*errors) / len(errors)
  everything = [x for each in values.values() for x in each]
  result[f"micro_{name}"], result[f"micro_{name}_standard_error"] = mean_and_error(everything)
  result["count"] = len(everything)
  return result
