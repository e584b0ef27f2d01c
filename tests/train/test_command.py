"""Where programs that a command has compiled are kept."""

import json

import jax
import pytest

from jdc.models.decoder_config import DecoderConfig
from jdc.train import command
from jdc.train import config as c


@pytest.fixture
def build(tmp_path):
  """Returns `build(set_before, *arguments)`, which returns the folder that JAX is set to."""
  (tmp_path / "data").mkdir()
  lines = "".join(json.dumps({"text": f"fig {i} " * 20}) + "\n" for i in range(20))
  (tmp_path / "data/fruit.jsonl").write_text(lines)
  config = c.TrainConfig(
    num_steps=1,
    batch_size=8,
    sequence_length=16,
    data=str(tmp_path / "data"),
    corpus=c.CorpusConfig(cache_dir=str(tmp_path / "rows"), validation_fraction=0.2),
    model=DecoderConfig(
      vocab_size=258, width=8, num_layers=1, num_heads=1, num_kv_heads=1, mlp_width=8
    ),
    logging=c.LoggingConfig(tensorboard=False),
  )

  def folder_after(before, *arguments):
    jax.config.update("jax_compilation_cache_dir", before)
    command.build_run(config, str(tmp_path / "run"), *arguments)
    return jax.config.jax_compilation_cache_dir

  given = jax.config.jax_compilation_cache_dir
  yield folder_after
  jax.config.update("jax_compilation_cache_dir", given)


def test_what_jax_is_set_to_is_kept(build, tmp_path):
  assert build(str(tmp_path / "mine")) == str(tmp_path / "mine")


def test_else_they_lie_beside_the_rows(build, tmp_path):
  assert build(None) == str(tmp_path / "rows/xla")


def test_a_folder_that_is_named_or_none(build, tmp_path):
  assert build(str(tmp_path / "mine"), str(tmp_path / "other")) == str(tmp_path / "other")
  assert build(str(tmp_path / "mine"), "") is None
