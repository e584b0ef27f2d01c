"""Identification of the language of a document."""

import functools
from typing import NamedTuple

import numba
import numpy as np
import pyarrow as pa

from jdc.prep.text.buffers import to_buffers

UNKNOWN = "und"
# Languages of one macrolanguage that written text does not tell apart reliably (ISO 639-3).
_MACROLANGUAGE = {"wuu": "zh", "yue": "zh"}
_PARTS = 8
_SCALE = 1024
# Bytes by how often they are met, so that a row's transitions lie in few lines of the cache.
_COMMON = b" etaoinsrhldcumfpgwybvk,.-xjqz\n0123456789TASIWCBMPHDRFLENOGJUKVYQXZ'\"()/:;"
_LANES = 16
_BLOCK = 64


class _Model(NamedTuple):
  """A naive Bayes model over sequences of bytes, of F features, K classes, S states."""

  columns: np.ndarray  # u8[256], where in a row the transition of each byte stands
  rows: np.ndarray  # u32[R*256], the next states
  states: np.ndarray  # u64[S], its row << 32 | the feature that ends there + 1, 0 for none
  weights: np.ndarray  # i16[F,K], log P(feature | class) * _SCALE
  priors: np.ndarray  # f32[K], log P(class) * _SCALE
  label_of: np.ndarray  # i32[K], classes of one language share a label
  labels: np.ndarray  # U3[L]


def language(text: pa.StringArray, max_bytes: int = 512) -> dict[str, np.ndarray]:
  """Identifies the language of each document from a part of its bytes.

  The model is that of py3langid, after langid.py: with c_f, how often byte sequence f occurs as
  the longest that ends at a byte of the b bytes read, a class k has

    s_k = log P(k) + sum_f log(1 + c_f) log P(f | k),    p = softmax(s / sqrt(b)),

  summed over the classes of one language. Text in capitals is read in small letters, as there.
  It was trained on text in NFC. It is computed here over Arrow's buffers.

  Departures: of a document of more than `max_bytes`, eight parts of an eighth of that are read,
  from its start to its end at equal distances, each without the characters that its ends cut:
  the start alone is often navigation. Weights are rounded to 1/1024. Wu (wuu) and Cantonese
  (yue) count as Chinese (zh).

  Args:
    text: n documents.
    max_bytes: at least 64; how much of each is read.

  Returns:
    `lang`, U3[n]: an ISO 639 code; "zxx" for what is no language, "und" for a document without
    any feature. `lang_score`, f32[n]: p of it, to four digits; 0 for "und".

  Raises:
    ValueError: if `max_bytes` is below 64.

  References:
    Lui and Baldwin, langid.py: An Off-the-shelf Language Identification Tool, ACL 2012;
    Barbaresi, py3langid.

  Example:
    >>> found = language(pa.array(["The cat sat on the mat.", "Le chat dort sur le lit."]))
    >>> found["lang"].tolist()
    ['en', 'fr']
  """
  if max_bytes < 64:
    raise ValueError(f"max_bytes must be at least 64, got {max_bytes}")
  model = _model()
  offsets, data = to_buffers(text)
  first, starts, ends = _parts(data, offsets, max_bytes)
  best, scores = _classify(data, first, starts, ends, *model[:6], len(model.labels))
  rows = [
    (row, head)
    for row in np.flatnonzero(_without_small_letters(data, first, starts, ends)).tolist()
    if (head := _read(data, starts, ends, first[row], first[row + 1])).isupper()
  ]
  if rows:
    where = [row for row, _ in rows]
    lowered = pa.array([head.lower() for _, head in rows], pa.string())
    offsets, data = to_buffers(lowered)
    parts = _parts(data, offsets, 4 * max_bytes)
    best[where], scores[where] = _classify(data, *parts, *model[:6], len(model.labels))
  labels = np.append(model.labels, UNKNOWN)
  return {"lang": labels[best], "lang_score": np.round(scores, 4).astype(np.float32)}


def _read(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, low: int, high: int) -> str:
  return b"".join(data[starts[k] : ends[k]].tobytes() for k in range(low, high)).decode()


@functools.cache
def _model() -> _Model:
  from py3langid.langid import MODEL_DIR, MODEL_FILE  # type: ignore[import-untyped]
  from py3langid.modelio import load_model  # type: ignore[import-untyped]

  weights, priors, classes, rows, row_of, features = load_model(MODEL_DIR / MODEL_FILE)
  names = [_MACROLANGUAGE.get(name, name) for name in classes]
  labels = list(dict.fromkeys(names))
  states = np.asarray(row_of).astype(np.uint64) << np.uint64(32)
  states |= (np.asarray(features, np.int64) + 1).astype(np.uint64)
  order = np.array([*_COMMON, *sorted(set(range(256)) - set(_COMMON))])
  return _Model(
    np.argsort(order).astype(np.uint8),
    np.asarray(rows).reshape(-1, 256)[:, order].astype(np.uint32).ravel(),
    states,
    np.round(np.asarray(weights, np.float32) * _SCALE).astype(np.int16),
    np.asarray(priors, np.float32) * _SCALE,
    np.array([labels.index(name) for name in names], np.int32),
    np.array(labels),
  )


@numba.njit(cache=True, nogil=True)
def _parts(
  data: np.ndarray, offsets: np.ndarray, max_bytes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (first i64[n+1], starts, ends i64[m]): document i is read in parts first[i] on."""
  count = len(offsets) - 1
  first = np.zeros(count + 1, np.int64)
  starts, ends = np.empty(count * _PARTS, np.int64), np.empty(count * _PARTS, np.int64)
  at = 0
  for row in range(count):
    start, stop = offsets[row], offsets[row + 1]
    if stop - start <= max_bytes:
      starts[at], ends[at] = start, stop
      at += 1
    else:
      size = max_bytes // _PARTS
      for k in range(_PARTS):
        low = start + k * (stop - start - size) // (_PARTS - 1)
        high = low + size
        while data[low] & 0xC0 == 0x80:
          low += 1
        while high < stop and data[high] & 0xC0 == 0x80:
          high -= 1
        starts[at], ends[at] = low, high
        at += 1
    first[row + 1] = at
  return first, starts[:at], ends[:at]


@numba.njit(cache=True, nogil=True)
def _without_small_letters(
  data: np.ndarray, first: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
  """Returns bool[n], true where there is no small ASCII letter but some other letter."""
  found = np.zeros(len(first) - 1, np.bool_)
  for row in range(len(found)):
    small = False
    for k in range(first[row], first[row + 1]):
      for i in range(starts[k], ends[k]):
        byte = data[i]
        if 97 <= byte <= 122:
          small = True
          break
        found[row] |= byte >= 0x80 or 65 <= byte <= 90
      if small:
        found[row] = False
        break
  return found


@numba.njit(cache=True, nogil=True)
def _classify(
  data: np.ndarray,
  first: np.ndarray,
  starts: np.ndarray,
  ends: np.ndarray,
  columns: np.ndarray,
  rows: np.ndarray,
  states: np.ndarray,
  weights: np.ndarray,
  priors: np.ndarray,
  label_of: np.ndarray,
  num_labels: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the best label of each document (num_labels for none), and its probability."""
  count = len(first) - 1
  best, scores = np.full(count, num_labels, np.int64), np.zeros(count)
  hits = np.zeros(len(weights) + 1, np.uint16)
  sums, total = np.empty(num_labels), np.empty(len(priors), np.float32)
  for low in range(0, count, _BLOCK):
    high = min(low + _BLOCK, count)
    base, stop = first[low], first[high]
    # Where the features of each part go, and then stand.
    place = np.zeros(stop - base + 1, np.int64)
    place[1:] = np.cumsum(ends[base:stop] - starts[base:stop])
    features = np.empty(place[-1], np.uint32)
    _walk(data, starts[base:stop], ends[base:stop], place, features, columns, rows, states)
    for row in range(low, high):
      found = features[place[first[row] - base] : place[first[row + 1] - base]]
      if _add_up(found, hits, weights, priors, total):
        best[row], scores[row] = _best(total, len(found), label_of, sums)
  return best, scores


@numba.njit(cache=True, nogil=True)
def _walk(
  data: np.ndarray,
  starts: np.ndarray,
  ends: np.ndarray,
  place: np.ndarray,
  features: np.ndarray,
  columns: np.ndarray,
  rows: np.ndarray,
  states: np.ndarray,
) -> None:
  """Writes the feature that ends at each byte of each part.

  Parts are read side by side: the automaton is far larger than the caches, and so the loads of
  one part do not wait for those of another.
  """
  lanes = np.zeros(_LANES, np.uint64)
  for low in range(0, len(starts), _LANES):
    width = min(_LANES, len(starts) - low)
    longest = 0
    for lane in range(width):
      lanes[lane] = states[0]
      longest = max(longest, ends[low + lane] - starts[low + lane])
    for step in range(longest):
      for lane in range(width):
        i = starts[low + lane] + step
        if i < ends[low + lane]:
          row = lanes[lane] >> np.uint64(32)
          state = states[rows[(row << np.uint64(8)) + np.uint64(columns[data[i]])]]
          lanes[lane] = state
          features[place[low + lane] + step] = np.uint32(state & np.uint64(0xFFFFFFFF))


@numba.njit(cache=True, nogil=True)
def _add_up(
  found: np.ndarray,
  hits: np.ndarray,
  weights: np.ndarray,
  priors: np.ndarray,
  total: np.ndarray,
) -> bool:
  """Sets `total` (f32[K]) to the scores of the features; returns whether there are any."""
  seen, count = np.empty(len(found) + 1, np.int64), 0
  for feature in found:
    if feature:
      if hits[feature] == 0:
        seen[count] = feature
        count += 1
      if hits[feature] < 65535:
        hits[feature] += np.uint16(1)
  total[:] = priors
  for k in range(count - count % 2, count):
    _add(total, weights, seen[k], np.float32(0), seen[k], np.float32(np.log1p(hits[seen[k]])))
  for k in range(0, count - 1, 2):
    a, b = seen[k], seen[k + 1]
    factor_a, factor_b = np.float32(np.log1p(hits[a])), np.float32(np.log1p(hits[b]))
    _add(total, weights, a, factor_a, b, factor_b)
  for k in range(count):
    hits[seen[k]] = 0
  return count > 0


@numba.njit(cache=True, nogil=True)
def _add(
  total: np.ndarray,
  weights: np.ndarray,
  a: int,
  factor_a: np.float32,
  b: int,
  factor_b: np.float32,
) -> None:
  for k in range(len(total)):
    left = factor_a * np.float32(weights[a - 1, k])
    total[k] += left + factor_b * np.float32(weights[b - 1, k])


@numba.njit(cache=True, nogil=True)
def _best(
  total: np.ndarray, num_bytes: int, label_of: np.ndarray, sums: np.ndarray
) -> tuple[int, float]:
  scale = 1 / (np.sqrt(num_bytes) * _SCALE)
  largest = total.max()
  sums[:] = 0
  for k in range(len(total)):
    sums[label_of[k]] += np.exp((total[k] - largest) * scale)
  best = np.argmax(sums)
  return int(best), sums[best] / sums.sum()
