"""Scores of languages over the bytes of documents."""

import numpy as np

from jdc.prep.jit import jit, jit_inline
from jdc.prep.text.language_tables import LANES

PARTS = 8
_LANES = LANES  # also the parts that are walked side by side
_BLOCK = 64  # documents
_ROW = np.uint64(8)  # bits of a byte
_SMALL = np.float64(-30.0)  # exp of it does not show beside 1


@jit
def parts(
  data: np.ndarray, offsets: np.ndarray, max_bytes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (first i64[n+1], starts, ends i64[m]): document i is read in parts first[i] on."""
  count = len(offsets) - 1
  first = np.zeros(count + 1, np.int64)
  starts, ends = np.empty(count * PARTS, np.int64), np.empty(count * PARTS, np.int64)
  at = 0
  for row in range(count):
    start, stop = offsets[row], offsets[row + 1]
    if stop - start <= max_bytes:
      starts[at], ends[at] = start, stop
      at += 1
    else:
      size = max_bytes // PARTS
      for k in range(PARTS):
        low = start + k * (stop - start - size) // (PARTS - 1)
        high = low + size
        while data[low] & 0xC0 == 0x80:
          low += 1
        while high < stop and data[high] & 0xC0 == 0x80:
          high -= 1
        starts[at], ends[at] = low, high
        at += 1
    first[row + 1] = at
  return first, starts[:at], ends[:at]


@jit
def without_small_letters(
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


@jit
def classify(
  data: np.ndarray,
  first: np.ndarray,
  starts: np.ndarray,
  ends: np.ndarray,
  columns: np.ndarray,
  rows: np.ndarray,
  row_of: np.ndarray,
  feature_of: np.ndarray,
  weights: np.ndarray,
  priors: np.ndarray,
  label_of: np.ndarray,
  scale: float,
  num_labels: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the best label of each document (num_labels for none), and its probability."""
  count = len(first) - 1
  best, scores = np.full(count, num_labels, np.int64), np.zeros(count)
  hits = np.zeros(len(weights), np.uint32)
  sums, total = np.empty(num_labels), np.empty(len(priors))
  memory = np.empty(_most_bytes(first, starts, ends), np.uint32)
  for low in range(0, count, _BLOCK):
    high = min(low + _BLOCK, count)
    base, stop = first[low], first[high]
    # Where the states of each part go, and then stand.
    place = np.zeros(stop - base + 1, np.int64)
    place[1:] = np.cumsum(ends[base:stop] - starts[base:stop])
    states = memory[: place[-1]]
    _walk(data, starts[base:stop], place, states, columns, rows, row_of)
    for row in range(low, high):
      visited = states[place[first[row] - base] : place[first[row + 1] - base]]
      if _add_up(visited, feature_of, hits, weights, scale, priors, total):
        best[row], scores[row] = _best(total, np.sqrt(len(visited)), label_of, sums)
  return best, scores


@jit
def _most_bytes(first: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> int:
  """Returns the most bytes that are read of a block of documents."""
  most = 0
  for low in range(0, len(first) - 1, _BLOCK):
    parts = slice(first[low], first[min(low + _BLOCK, len(first) - 1)])
    most = max(most, np.sum(ends[parts]) - np.sum(starts[parts]))
  return most


@jit
def _walk(
  data: np.ndarray,
  starts: np.ndarray,
  place: np.ndarray,
  states: np.ndarray,
  columns: np.ndarray,
  rows: np.ndarray,
  row_of: np.ndarray,
) -> None:
  """Writes the state after each byte of each part.

  Parts of about one length are read side by side: the automaton is far larger than the caches,
  and so the loads of one part do not wait for those of another.
  """
  order = np.argsort(-np.diff(place), kind="mergesort")
  # Unsigned places, which need no look at whether they count from the end.
  at, to = np.empty(_LANES, np.uint64), np.empty(_LANES, np.uint64)
  for low in range(0, len(starts), _LANES):
    for lane in range(_LANES):  # beyond the last part that one again
      part = order[min(low + lane, len(starts) - 1)]
      at[lane], to[lane] = starts[part], place[part]
    shortest = order[min(low + _LANES, len(starts)) - 1]
    common = place[shortest + 1] - place[shortest]
    a0, a1, a2, a3, a4, a5, a6, a7 = at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7]
    t0, t1, t2, t3, t4, t5, t6, t7 = to[0], to[1], to[2], to[3], to[4], to[5], to[6], to[7]
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.uint32(0)
    for k in range(common):
      step = np.uint64(k)
      s0 = states[t0 + step] = _next(s0, data[a0 + step], columns, rows, row_of)
      s1 = states[t1 + step] = _next(s1, data[a1 + step], columns, rows, row_of)
      s2 = states[t2 + step] = _next(s2, data[a2 + step], columns, rows, row_of)
      s3 = states[t3 + step] = _next(s3, data[a3 + step], columns, rows, row_of)
      s4 = states[t4 + step] = _next(s4, data[a4 + step], columns, rows, row_of)
      s5 = states[t5 + step] = _next(s5, data[a5 + step], columns, rows, row_of)
      s6 = states[t6 + step] = _next(s6, data[a6 + step], columns, rows, row_of)
      s7 = states[t7 + step] = _next(s7, data[a7 + step], columns, rows, row_of)
    for lane in range(low, min(low + _LANES, len(starts))):
      part = order[lane]
      state = states[place[part] + common - 1] if common else np.uint32(0)
      for i in range(place[part] + common, place[part + 1]):
        byte = data[starts[part] + i - place[part]]
        state = states[i] = _next(state, byte, columns, rows, row_of)


@jit_inline
def _next(
  state: np.uint32, byte: np.uint8, columns: np.ndarray, rows: np.ndarray, row_of: np.ndarray
) -> np.uint32:
  return rows[np.uint64(row_of[state]) << _ROW | np.uint64(columns[byte])]


@jit
def _add_up(
  visited: np.ndarray,
  feature_of: np.ndarray,
  hits: np.ndarray,
  weights: np.ndarray,
  scale: float,
  priors: np.ndarray,
  total: np.ndarray,
) -> bool:
  """Sets `total`, f64[K], to the scores, all of them lower by one number; False: no features.

  `hits`, u32[F+1], is 0 before and after.
  """
  # Unsigned as in `_walk`.
  seen, some = np.empty(len(visited), np.uint64), np.empty(len(visited) + _LANES, np.uint64)
  count = 0
  hits[0] = 1  # so that no feature is not counted as one
  for state in visited:
    feature = np.uint64(feature_of[state])
    seen[count] = feature
    count += hits[feature] == 0
    hits[feature] += np.uint32(1)
  hits[0] = 0
  total[:] = priors
  rest, times = count, np.uint32(1)
  while rest:  # most occur once, so that whole numbers are added and then multiplied
    alike, rest = _part(seen[:rest], hits, times, some)
    if alike:
      _add_rows(total, weights, some[: -(-alike // _LANES) * _LANES], np.log1p(times) / scale)
    times += np.uint32(1)
  return count > 0


@jit
def _part(
  seen: np.ndarray, hits: np.ndarray, times: np.uint32, some: np.ndarray
) -> tuple[int, int]:
  """Moves features that occur so often to `some`, zeros after them; returns both counts."""
  alike = rest = 0
  for feature in seen:
    here = hits[feature] == times
    some[alike] = seen[rest] = feature
    alike += here
    rest += not here
    hits[feature] = np.uint32(0) if here else hits[feature]
  some[alike : alike + _LANES] = 0
  return alike, rest


@jit
def _add_rows(total: np.ndarray, weights: np.ndarray, which: np.ndarray, factor: float) -> None:
  sums = np.zeros(weights.shape[1], np.int32)
  for k in range(0, len(which), _LANES):
    _add_eight(sums, weights, which[k : k + _LANES])
  for c in range(len(total)):
    total[c] += factor * sums[c]


@jit
def _add_eight(sums: np.ndarray, weights: np.ndarray, which: np.ndarray) -> None:
  a, b, c, d = weights[which[0]], weights[which[1]], weights[which[2]], weights[which[3]]
  e, f, g, h = weights[which[4]], weights[which[5]], weights[which[6]], weights[which[7]]
  for k in range(len(sums)):
    left = np.uint16(np.uint16(a[k] + b[k]) + np.uint16(c[k] + d[k]))
    right = np.uint16(np.uint16(e[k] + f[k]) + np.uint16(g[k] + h[k]))
    sums[k] += np.int32(np.uint16(left + right))


@jit
def _best(
  total: np.ndarray, temperature: float, label_of: np.ndarray, sums: np.ndarray
) -> tuple[int, float]:
  largest = total.max()
  sums[:] = 0
  for k in range(len(total)):
    power = (total[k] - largest) / temperature
    if power > _SMALL:
      sums[label_of[k]] += np.exp(power)
  best = np.argmax(sums)
  return int(best), sums[best] / sums.sum()
