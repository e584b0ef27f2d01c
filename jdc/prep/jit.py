"""Compilation of the kernels, which is kept from one process to the next."""

import contextlib
import functools
import hashlib
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba

_P = ParamSpec("_P")
_R = TypeVar("_R")
_HERE = Path(__file__).parent
_config: Any = numba.config
_KERNELS = ("kernels", "text")  # folders of what kernels call and take constants from
_LOCK = threading.RLock()


def jit(function: Callable[_P, _R]) -> Callable[_P, _R]:
  """Compiles a function for numbers and arrays; it lets go of the GIL.

  Numba keeps what it has compiled, and compiles a function again when its own file changes. But
  the code of functions that it calls, and global constants, become part of it, and a change of
  those in other files numba does not see: old code would run as new. So what is kept lies in a
  folder named after the contents of all kernels, in $NUMBA_CACHE_DIR, else in $JDC_CACHE, else
  in ~/.cache/jdc. Folders of earlier code may be removed.

  Warns:
    RuntimeWarning: once, if there is no such folder that can be written; every process then
      compiles anew, which takes half a minute.
  """
  return _compiled(function)


def jit_inline(function: Callable[_P, _R]) -> Callable[_P, _R]:
  """As `jit`, for a function that becomes part of those that call it."""
  return _compiled(function, inline="always")


def _compiled(function: Callable[_P, _R], **options: Any) -> Callable[_P, _R]:
  with _LOCK, _caching_in(folder := _folder()):
    return numba.njit(cache=folder is not None, nogil=True, **options)(function)


@contextlib.contextmanager
def _caching_in(folder: Path | None) -> Iterator[None]:
  """Numba chooses the folder when a function is decorated, by a setting of the process."""
  given = _config.CACHE_DIR
  if folder is not None:
    _config.CACHE_DIR = str(folder)
  try:
    yield
  finally:
    _config.CACHE_DIR = given


@functools.cache
def _folder() -> Path | None:
  """Returns the folder for what is compiled of these kernels; None: it cannot be written."""
  base = _config.CACHE_DIR or os.environ.get("JDC_CACHE") or "~/.cache/jdc"
  try:
    folder = Path(base).expanduser() / f"kernels-{_contents()}"
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except (OSError, RuntimeError) as error:  # the latter where there is no home
    warnings.warn(
      f"compiled kernels cannot be kept, so that every process compiles them: {error}; "
      "set JDC_CACHE to a folder that can be written",
      RuntimeWarning,
      stacklevel=2,
    )
    return None
  return folder


def _contents() -> str:
  digest = hashlib.sha256()
  paths = [path for name in _KERNELS for path in (_HERE / name).rglob("*.py")]
  if not paths:
    raise OSError(f"no files in {_HERE}")  # but in an archive, say
  for path in [Path(__file__), *sorted(paths)]:
    name = path.relative_to(_HERE).as_posix()
    digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
  return digest.hexdigest()[:16]
