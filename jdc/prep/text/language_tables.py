"""The model of py3langid as arrays that are laid out for the caches."""

import contextlib
import functools
import importlib.metadata
import os
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

_LAYOUT = 1  # of the files of `_write`; a change makes earlier ones count as not there
# Of the file, or there is no folder: no home is a RuntimeError.
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
LANES = 8  # rows of weights that 16 bits hold the sum of
# Languages of one macrolanguage that written text does not tell apart reliably (ISO 639-3).
_MACROLANGUAGE = {"wuu": "zh", "yue": "zh"}
# Bytes by how often they are met, so that a row's transitions lie in few lines of the cache.
_COMMON = b" etaoinsrhldcumfpgwybvk,.-xjqz\n0123456789TASIWCBMPHDRFLENOGJUKVYQXZ'\"()/:;"


class Model(NamedTuple):
  """A naive Bayes model over sequences of bytes, of F features, K classes, S states, R rows.

  Features, states and rows are numbered from the frequent to the rare, so that what common
  text needs of the tables is close together.
  """

  columns: np.ndarray  # u8[256], where in a row the transition of each byte stands
  rows: np.ndarray  # u32[R*256], the next states
  row_of: np.ndarray  # u32[S]
  feature_of: np.ndarray  # u32[S], what ends there, from 1 on, or 0
  weights: np.ndarray  # u16[F+1,K'], (log P(feature | class) - least) * scale; K' = 16 n >= K
  priors: np.ndarray  # f64[K], log P(class)
  label_of: np.ndarray  # i32[K], classes of one language share a label
  labels: np.ndarray  # U3[L]
  scale: float


@functools.cache
def load() -> Model:
  """Returns the model.

  To unpack the library's own file takes about a second, so that the arrays are kept in
  $JDC_CACHE, else in ~/.cache/jdc. A file there that is not whole is written again; where none
  can be written, the library's is unpacked every time.
  """
  with contextlib.suppress(*_DAMAGE):
    return _read(_path())
  model = _laid_out()
  with contextlib.suppress(OSError, RuntimeError):
    _write(_path(), model)
  return model


def codes() -> list[str]:
  """Returns the codes that documents can get: languages, "zxx" for none, "und" for unknown."""
  with contextlib.suppress(*_DAMAGE), np.load(_path(), allow_pickle=False) as file:
    return [*file["labels"].tolist(), "und"]  # reads this array alone
  return [*load().labels.tolist(), "und"]


def _path() -> Path:
  folder = Path(os.environ.get("JDC_CACHE") or "~/.cache/jdc").expanduser()
  version = importlib.metadata.version("py3langid")
  return folder / f"language-{version}-{_LAYOUT}.npz"


def _read(path: Path) -> Model:
  with (
    open(path, "rb") as opened,
    np.load(opened, allow_pickle=False) as file,
  ):  # and check sums
    held = {name: file[name] for name in Model._fields}
  return Model(**held | {"weights": _aligned(held["weights"]), "scale": float(held["scale"])})


def _write(path: Path, model: Model) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      np.savez(file, **model._asdict())
    os.replace(partial, path)
  except BaseException:
    os.unlink(partial)
    raise


def _laid_out() -> Model:
  from py3langid.langid import MODEL_DIR, MODEL_FILE  # type: ignore[import-untyped]
  from py3langid.modelio import load_model  # type: ignore[import-untyped]

  table, priors, classes, next_states, row_of, features = load_model(MODEL_DIR / MODEL_FILE)
  logs = np.asarray(table, np.float32)
  names = [_MACROLANGUAGE.get(name, name) for name in classes]
  labels = list(dict.fromkeys(names))
  by_use = np.argsort(-logs.mean(axis=1), kind="stable")  # features, the most frequent first
  weights, scale = _rounded(logs[by_use])
  rank = np.zeros(len(logs) + 1, np.int64)  # rank[-1] is that of no feature
  rank[by_use] = np.arange(1, len(logs) + 1)
  feature_of = rank[np.asarray(features, np.int64)]
  states = np.argsort(feature_of, kind="stable")  # the start is the first still
  place = np.argsort(states)
  rows, row_of = _renumbered(np.asarray(next_states), np.asarray(row_of)[states], place)
  return Model(
    np.argsort(_byte_order()).astype(np.uint8),
    rows,
    row_of,
    feature_of[states].astype(np.uint32),
    weights,
    np.asarray(priors, np.float64),
    np.array([labels.index(name) for name in names], np.int32),
    np.array(labels),
    scale,
  )


def _byte_order() -> np.ndarray:
  return np.array([*_COMMON, *sorted(set(range(256)) - set(_COMMON))])


def _renumbered(
  next_states: np.ndarray, row_of: np.ndarray, place: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the transitions to `place[state]`, rows in the order of their first state."""
  used, first, row_of = np.unique(row_of, return_index=True, return_inverse=True)
  order = np.argsort(first)
  rows = next_states.reshape(-1, 256)[used[order]][:, _byte_order()]
  return place.astype(np.uint32)[rows].ravel(), np.argsort(order)[row_of].astype(np.uint32)


def _rounded(logs: np.ndarray) -> tuple[np.ndarray, float]:
  """Returns weights of which 16 bits hold the sum of `LANES`, a row of zeros first; the scale.

  The scale is a power of 2, so that the half floats of the model are what they were.
  """
  least = logs.min()
  scale = 2.0 ** np.floor(np.log2((65535 // LANES) / (logs.max() - least)))
  weights = np.zeros((len(logs) + 1, -(-logs.shape[1] // 16) * 16), np.uint16)
  logs = logs * np.float32(scale)
  logs += np.float32(0.5 - scale * least)
  weights[1:, : logs.shape[1]] = logs
  return _aligned(weights), float(scale)


def _aligned(values: np.ndarray) -> np.ndarray:
  """Returns the array in memory where no load of a vector lies in two lines of the cache."""
  memory = np.empty(values.size + 32, values.dtype)
  begin = -memory.ctypes.data % 64 // values.itemsize
  result = memory[begin : begin + values.size].reshape(values.shape)
  result[...] = values
  return result
