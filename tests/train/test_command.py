"""Where programs that a command has compiled are kept."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as cache_lib

from jdc.train import command

FOLDERS = "mine", "other", "cache/xla"


@pytest.fixture
def build(one_step_config, tmp_path):
  """Returns `build(set_before, *arguments)`: which folders then get a program."""

  def kept_in(before, *arguments):
    jax.config.update("jax_compilation_cache_dir", before)
    cache_lib.reset_cache()
    jax.jit(lambda x: x + 1)(1.0)  # opens it
    command.build_run(one_step_config, str(tmp_path / "run"), *arguments)
    held = {folder: entries(folder) for folder in FOLDERS}
    jax.jit(lambda x: x * 2)(1.0)
    return [folder for folder in FOLDERS if entries(folder) != held[folder]]

  def entries(folder):
    return {path.name for path in (tmp_path / folder).glob("*-cache")}

  names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
  given = {name: getattr(jax.config, name) for name in names}
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  yield kept_in
  for name, value in given.items():
    jax.config.update(name, value)
  cache_lib.reset_cache()


def test_what_jax_is_set_to_is_kept(build, tmp_path):
  assert build(str(tmp_path / "mine")) == ["mine"]


def test_else_they_lie_beside_the_rows(build):
  assert build(None) == ["cache/xla"]


def test_in_a_folder_that_is_named(build, tmp_path):
  assert build(str(tmp_path / "mine"), str(tmp_path / "other")) == ["other"]


def test_or_not_at_all(build, tmp_path):
  assert build(str(tmp_path / "mine"), "") == []
