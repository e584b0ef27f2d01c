"""A classifier of documents by hashed words and pairs of words: made, kept in a file, used."""

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from jdc.prep.quality import measure
from jdc.prep.quality.features import check_buckets, features, sums
from jdc.prep.sample_keys import hash64

FORMAT = "jdc.prep.quality/1"
BUCKETS = 1 << 20
FEWEST = 50  # examples of a side
_TEST, _CALIBRATE = 0.1, 0.2  # of the numbers that texts get, the ends of these parts


class Classifier(NamedTuple):
  """Gives a document with the sum z of its weights p = 1 / (1 + exp(-(a (z + b) + c))).

  Attributes:
    weight: f32[B], of the buckets of `features`.
    bias: b.
    slope: a, of the calibration.
    offset: c.
    about: what it was made of, and how good it is.
  """

  weight: np.ndarray
  bias: float
  slope: float
  offset: float
  about: dict[str, Any]

  def score(self, text: pa.StringArray) -> np.ndarray:
    """Returns p of each document, f64[n]; NaN for those without words."""
    z, count = sums(text, self.weight)
    return np.where(count > 0, self.probability(z + self.bias), np.nan)

  def probability(self, z: np.ndarray) -> np.ndarray:
    """Returns p of sums with the bias."""
    return 1 / (1 + np.exp(-np.clip(self.slope * z + self.offset, -500, 500)))


class Labelled(NamedTuple):
  """Texts that are good or not.

  Attributes:
    texts: n of them.
    label: bool[n].
    value: f64[n], the numbers that labels were made of; `None` where they were none.
  """

  texts: Sequence[str]
  label: np.ndarray
  value: np.ndarray | None = None


def fit(
  examples: Labelled, *, buckets: int = BUCKETS, l2: float = 1.0, seed: int = 0
) -> Classifier:
  """Makes a classifier of examples, calibrates it, and measures it on examples held out.

  Texts get a number in [0, 1) by a hash of (seed, text): of those below 0.1 it is measured,
  of those up to 0.2 calibrated (`measure.platt`), and of the others made (`logistic.fit`).
  Equal texts are one example of a side, and on one side of these parts. A probability is one
  of documents mixed as the examples are. The result does not depend on the order of examples.

  Args:
    examples: texts with words.
    buckets: a power of two.
    l2: as of `logistic.fit`.
    seed: of the hash.

  Returns:
    The classifier; `about` has the counts of examples, `training`, `test`, and with values
    `agreement`.

  Raises:
    ValueError: if a parameter is out of range, or there are too few examples of a side in all
      or in a part.
  """
  from jdc.prep.quality import logistic

  check_buckets(buckets)
  if not (math.isfinite(l2) and l2 > 0):
    raise ValueError(f"l2 must be above 0, got {l2}")
  examples, counts = _distinct(examples)
  number = np.array([hash64(t.encode(), seed) / 2**64 for t in examples.texts])
  order = np.lexsort((examples.label, number))
  text = pa.array([examples.texts[i] for i in order], pa.string())
  label, number = examples.label[order], number[order]
  found = features(text, buckets)
  worded = np.diff(found.starts) > 0
  counts["without_words"] = int(np.sum(~worded))
  parts = {
    "test": worded & (number < _TEST),
    "calibrate": worded & (number >= _TEST) & (number < _CALIBRATE),
    "train": worded & (number >= _CALIBRATE),
  }
  _check(label, worded, parts)
  train = np.flatnonzero(parts["train"])
  solved = logistic.fit(_of(found, train), label[train], buckets, l2=l2)
  z = sums(text, solved.weight)[0] + solved.bias
  here = parts["calibrate"]
  slope, offset = measure.platt(z[here], label[here])
  made = Classifier(solved.weight, solved.bias, slope, offset, {})
  here = parts["test"]
  p = made.probability(z[here])
  raw = 1 / (1 + np.exp(-np.clip(z[here], -500, 500)))
  error = measure.reliability(raw, label[here])[0]
  about = {
    "examples": counts | {name: int(np.sum(part)) for name, part in parts.items()},
    "parameters": {"buckets": buckets, "l2": l2, "seed": seed},
    "training": {
      "iterations": solved.iterations, "loss": round(solved.loss, 6),
      "gradient": float(f"{solved.gradient:.3g}"),
    },
    "calibration": {
      "slope": round(slope, 5), "offset": round(offset, 5),
      "log_loss_before": round(measure.log_loss(raw, label[here]), 5),
      "expected_calibration_error_before": round(error, 5),
    },
    "test": measure.report(p, label[here]),
  }  # fmt: skip
  if examples.value is not None:
    value = examples.value[order][here]
    about["agreement"] = measure.agreement(p, label[here], value)
  return made._replace(about=about)


def _distinct(examples: Labelled) -> tuple[Labelled, dict[str, int]]:
  """Returns each text of a side once, and counts."""
  sides = zip(examples.texts, examples.label.tolist(), strict=True)
  rows: dict[tuple[str, bool], int] = {}
  for row, example in enumerate(sides):
    rows.setdefault(example, row)
  chosen = np.array(list(rows.values()), np.int64)
  label = examples.label[chosen].astype(bool)
  counts = {
    "positive": int(np.sum(label)),
    "negative": int(np.sum(~label)),
    "duplicates": len(examples.texts) - len(chosen),
    "in_both": len(chosen) - len({text for text, _ in rows}),
  }
  value = None if examples.value is None else np.asarray(examples.value, np.float64)[chosen]
  return Labelled([text for text, _ in rows], label, value), counts


def _check(label: np.ndarray, worded: np.ndarray, parts: dict[str, np.ndarray]) -> None:
  sides = {"positive": label & worded, "negative": ~label & worded}
  found = [
    f"{int(np.sum(side))} {name} examples with words, distinct; at least {FEWEST} are needed"
    for name, side in sides.items()
    if np.sum(side) < FEWEST
  ]
  found += [
    f"no {name} example falls into the part {part!r}; another seed, or more of them, may help"
    for name, side in sides.items()
    for part, here in parts.items()
    if not found and not np.any(side & here)
  ]
  if found:
    raise ValueError("; ".join(found))


def _of(found: Any, rows: np.ndarray) -> Any:
  """Returns the features of some documents."""
  size = np.diff(found.starts)[rows]
  starts = np.concatenate([[0], np.cumsum(size)])
  place = np.arange(starts[-1]) - np.repeat(starts[:-1] - found.starts[rows], size)
  return found._replace(bucket=found.bucket[place], starts=starts)


def to_bytes(classifier: Classifier) -> bytes:
  """Returns the content of a file, in the format safetensors, with `about` as metadata."""
  numbers = {name: getattr(classifier, name) for name in ("bias", "slope", "offset")}
  about = {**classifier.about, "numbers": {k: v.hex() for k, v in numbers.items()}}
  weight = np.ascontiguousarray(classifier.weight, "<f4")
  header = {
    "__metadata__": {"format": FORMAT, "about": json.dumps(about, sort_keys=True)},
    "weight": {"dtype": "F32", "shape": [len(weight)], "data_offsets": [0, weight.nbytes]},
  }
  text = json.dumps(header, sort_keys=True).encode()
  text += b" " * (-len(text) % 8)
  return len(text).to_bytes(8, "little") + text + weight.tobytes()


def load(path: str | Path) -> Classifier:
  """Returns the classifier of a file; it is kept for the next call.

  Raises:
    ValueError: if it is none, or not whole.
  """
  return _load(str(path), Path(path).stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _load(path: str, stamp: int) -> Classifier:
  del stamp
  data = Path(path).read_bytes()
  try:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if header["__metadata__"]["format"] != FORMAT:
      raise ValueError(f"format {header['__metadata__']['format']!r}; accepted: {FORMAT!r}")
    about = json.loads(header["__metadata__"]["about"])
    numbers = {name: float.fromhex(value) for name, value in about.pop("numbers").items()}
    weight = np.frombuffer(data[8 + length :], "<f4")
    if [len(weight)] != header["weight"]["shape"]:
      raise ValueError(f"{len(weight)} weights, not {header['weight']['shape']}")
    check_buckets(len(weight))
    return Classifier(weight, **numbers, about=about)
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path}: not a quality classifier of jdc, or not whole: {error}"
    ) from error
