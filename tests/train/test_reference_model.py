"""A reference that does not fit is refused; a cache that one process lacks is filled by all."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from jdc import policies
from jdc.data.loader import Pool
from jdc.policies import mixture
from jdc.train import command, loop, pretrained, sharding, sources
from jdc.train import config as c
from jdc.train.state import Reference

DOREMI = policies.combine(mixture=mixture.doremi())


def test_its_mesh_is_checked_before_anything_is_written(small_run, small_model, tmp_path):
  def check_partition(sizes):
    raise ValueError(f"7 heads are not divided by tensor={sizes['tensor']}")

  model = small_model._replace(check_partition=check_partition)
  run = small_run(DOREMI, reference=Reference(model, lambda mesh: None, "unread"))
  with pytest.raises(ValueError, match="the reference model: 7 heads are not divided"):
    loop.fit(run, str(tmp_path))
  assert list(tmp_path.iterdir()) == []


def test_it_was_trained_with_the_tokenizer_of_the_run(one_step_config, tmp_path):
  tokenizers = pytest.importorskip("tokenizers")
  model = tokenizers.models.WordLevel({f"w{i}": i for i in range(258)}, unk_token="w0")
  for place in ("words.json", "copy.json"):
    tokenizers.Tokenizer(model).save(str(tmp_path / place))
  config = one_step_config
  trained = str(tmp_path / "trained")
  command.train(config, trained)
  assert pretrained.corpus_of(trained) == config.corpus

  def opened(**changes):
    changed = dataclasses.replace(config.corpus, **changes)
    compared = c.ReferenceConfig(folder=trained)
    return command._reference(dataclasses.replace(config, corpus=changed, reference=compared))

  assert opened() is not None
  with pytest.raises(ValueError, match=r"another tokenizer \(tokenizer='bytes'.*words\.json"):
    opened(tokenizer=str(tmp_path / "words.json"))
  # The same one elsewhere is no other one.
  first, second = (
    dataclasses.replace(config.corpus, tokenizer=str(tmp_path / place))
    for place in ("words.json", "copy.json")
  )
  command._check_tokenizer(dataclasses.replace(config, corpus=first), second)


def test_a_cache_that_one_process_lacks_is_filled_by_all(
  small_run, small_model, tmp_path, monkeypatch
):
  run, loads = small_run(DOREMI), []
  pool = Pool([domain.train for domain in run.domains.values()], run.config.sequence_length)

  def load(mesh):
    loads.append(mesh)
    return jax.jit(small_model.init)(jax.random.key(1))

  reference = Reference(small_model, load, "first", cache=str(tmp_path))

  def open_cache():
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
      sources.open_reference(reference, pool, run.domains, run.config.batch_size, mesh)

  open_cache()
  for here_and_there, expected in (([1, 1], 1), ([1, 0], 2)):
    with monkeypatch.context() as patch:
      patch.setattr(jax, "process_count", lambda: 2)
      gathered = np.array(here_and_there)
      patch.setattr(multihost_utils, "process_allgather", lambda x, found=gathered: found)
      open_cache()
    assert len(loads) == expected
  assert len(list(tmp_path.iterdir())) == 1
