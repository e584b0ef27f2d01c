"""Compiled kernels are kept, and never outlive the code that they were made of."""

import ast
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numba
import pytest

import jdc
from jdc.prep import jit as jit_lib
from jdc.prep.text import language_tables

_SHINGLES = """
import numpy as np
from jdc.prep.kernels import hashes, minhash
text = np.frombuffer(b"one two three", np.uint8)
fold = np.arange(128, dtype=np.uint32) | np.uint32(hashes.WORD << 30)
print(minhash.shingle_sets(np.array([0, 13]), text, fold, 5, np.empty(13, np.uint64))[1][0])
print(sum(minhash.shingle_sets.stats.cache_hits.values()))
"""


def _run(root: Path) -> list[str]:
  env = os.environ | {"PYTHONPATH": str(root), "JDC_CACHE": str(root / "cache")}
  env.pop("NUMBA_CACHE_DIR", None)
  made = subprocess.run(
    [sys.executable, "-c", _SHINGLES], env=env, cwd=root, capture_output=True, text=True
  )
  assert made.returncode == 0, made.stderr
  return made.stdout.split()


def test_a_change_in_another_file_is_compiled(tmp_path):
  shutil.copytree(
    Path(jdc.__file__).parent, tmp_path / "jdc", ignore=shutil.ignore_patterns("__pycache__")
  )
  first, hits = _run(tmp_path)
  assert hits == "0"
  assert _run(tmp_path) == [first, "1"]  # from the cache

  path = tmp_path / "jdc/prep/kernels/hashes.py"  # a constant of a function that is called
  text = path.read_text()
  assert "0xBF58476D1CE4E5B9" in text
  path.write_text(text.replace("0xBF58476D1CE4E5B9", "0xBF58476D1CE4E5BB"))
  changed, hits = _run(tmp_path)
  assert changed != first
  assert hits == "0"

  path.write_text(text)
  assert _run(tmp_path)[0] == first


def test_kernels_take_nothing_from_folders_that_do_not_count():
  kernels = 0
  for path in Path(jit_lib.__file__).parent.rglob("*.py"):
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    imports = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    imports |= {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    imports = {name for name in imports if name.startswith("jdc")}
    if "jdc.prep.jit" in imports:
      kernels += 1
      assert {name.split(".")[2] for name in imports} <= {"jit", *jit_lib._KERNELS}, path
  assert kernels > 10


def test_the_setting_of_the_process_is_left_as_it_was(monkeypatch, tmp_path):
  monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
  jit_lib._folder.cache_clear()
  try:
    assert jit_lib.jit(_double)(3) == 6
    assert str(tmp_path) == numba.config.CACHE_DIR
    assert [*tmp_path.glob("kernels-*/*/*._double-*")]
  finally:
    jit_lib._folder.cache_clear()


def test_a_folder_that_cannot_be_written_is_told_once(monkeypatch, tmp_path):
  (tmp_path / "file").write_text("")
  monkeypatch.setattr(numba.config, "CACHE_DIR", "")
  monkeypatch.setenv("JDC_CACHE", str(tmp_path / "file"))
  jit_lib._folder.cache_clear()
  try:
    with pytest.warns(RuntimeWarning, match=r"cannot be kept.*file.*set JDC_CACHE"):
      assert jit_lib.jit(_double)(3) == 6
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      assert jit_lib.jit_inline(_double)(4) == 8
  finally:
    jit_lib._folder.cache_clear()


def test_without_a_home_kernels_are_compiled_and_languages_read(monkeypatch):
  def no_home(path):
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.setattr(numba.config, "CACHE_DIR", "")
  monkeypatch.delenv("JDC_CACHE", raising=False)
  monkeypatch.setattr(Path, "expanduser", no_home)
  jit_lib._folder.cache_clear()
  try:
    with pytest.warns(RuntimeWarning, match=r"cannot be kept.*home.*set JDC_CACHE"):
      assert jit_lib.jit(_double)(3) == 6
  finally:
    jit_lib._folder.cache_clear()
  assert "en" in language_tables.codes()


def _double(x: int) -> int:
  return 2 * x
