"""Opening what was trained: runs, chosen steps, Hugging Face folders; and what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jdc.models import configs, hf
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.lora import LoraConfig
from jdc.train import checkpoint, pretrained, sharding
from jdc.train import config as c

TOKENS = np.random.default_rng(0).integers(0, 320, (2, 12)).astype(np.int32)


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(data=1, fsdp=4, tensor=2)


def flatten(params):
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
    for path, x in jax.tree_util.tree_leaves_with_path(jax.device_get(params))
  }


def logits(model, params):
  positions = np.broadcast_to(np.arange(12, dtype=np.int32), (2, 12))
  return np.asarray(model.logits(params, TOKENS, positions, np.ones((2, 12), np.int32)))


def contents(folder):
  """Everything in a folder, with the times of the last change."""
  return {
    str(path.relative_to(folder)): (
      path.stat().st_mtime_ns,
      path.is_file() and path.read_bytes(),
    )
    for path in sorted(folder.rglob("*"))
  }


def test_a_run_with_adapters_is_opened_merged(adapted, base_folder, mesh, assert_same):
  workdir, result = adapted
  before = contents(workdir)
  opened = pretrained.open_model(workdir, mesh)
  assert contents(workdir) == before
  assert opened.config == hf.from_hf_config(base_folder)
  assert (opened.step, opened.source, opened.base) == (9, workdir, base_folder)
  assert opened.run["sequence_length"] == 63
  merged, unmerged = flatten(opened.params), flatten(result.state.model_params)
  assert {name for name in unmerged if "lora" not in name} == set(merged)
  num_adapted = 0
  for name, x in merged.items():
    expected, a = unmerged[name].astype(np.float64), unmerged.get(f"{name[:-6]}lora_a")
    if name.endswith("kernel") and a is not None:
      b = unmerged[f"{name[:-6]}lora_b"]
      expected = expected + 4.0 / 2 * a.astype(np.float64) @ b.astype(np.float64)
      num_adapted += 1
    np.testing.assert_allclose(x, expected, atol=1e-6, err_msg=name)
  assert num_adapted == 4


def test_adapters_are_opened_alone(adapted, base_folder, mesh, assert_same, tmp_path):
  workdir, result = adapted
  shutil.copytree(workdir, tmp_path / "run")  # and not what they adapt
  found = pretrained.open_adapters(tmp_path / "run", mesh)
  assert_same(found.params, result.state.params)
  assert (found.step, found.base) == (9, str(base_folder))
  assert found.lora == LoraConfig(
    rank=2, alpha=4.0, dropout=0.3, targets=("layers/*/query", "layers/mlp/*")
  )
  assert pretrained.has_adapters(workdir)
  assert not pretrained.has_adapters(base_folder)
  with pytest.raises(ValueError, match="neither a Hugging Face checkpoint"):
    pretrained.open_adapters(base_folder, mesh)


def test_what_is_opened_computes_what_was_trained(adapted, mesh):
  workdir, result = adapted
  opened = pretrained.open_model(workdir, mesh)
  trained = decoder(opened.config, lora=pretrained.open_adapters(workdir, mesh).lora)
  with jax.set_mesh(mesh):
    found = logits(opened.model, opened.params)
    expected = logits(trained, jax.device_get(result.state.model_params))
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert not opened.model.dropout


def test_parameters_lie_on_the_mesh(adapted, mesh):
  kernel = pretrained.open_model(adapted[0], mesh).params["layers"]["mlp"]["gate"]["kernel"]
  assert kernel.sharding.mesh == mesh
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 8, 32)


def test_a_run_of_a_whole_model(full, base_folder, mesh, assert_same):
  workdir, result = full
  for folder in (workdir, workdir / "checkpoints"):
    opened = pretrained.open_model(folder, mesh)
    assert (opened.step, opened.source, opened.base) == (4, workdir, base_folder)
    assert not pretrained.has_adapters(folder)
    assert_same(opened.params, result.state.params)


def test_a_chosen_step(full, mesh):
  workdir, _ = full
  with pytest.raises(ValueError, match=r"no checkpoint of step 3; there are \[2, 4\]"):
    pretrained.open_model(workdir, mesh, step=3)
  second, last = (pretrained.open_model(workdir, mesh, step=step) for step in (2, None))
  assert (second.step, last.step) == (2, 4)
  assert not np.array_equal(
    second.params["final_norm"]["scale"], last.params["final_norm"]["scale"]
  )


def test_a_hugging_face_folder(base_folder, mesh, assert_same):
  opened = pretrained.open_model(base_folder, mesh)
  config = hf.from_hf_config(base_folder)
  target = jax.eval_shape(decoder(config).init, jax.random.key(0))
  assert_same(opened.params, hf.load(base_folder, config, target))
  assert (opened.config, opened.step, opened.base) == (config, None, None)
  assert (opened.source, opened.run) == (base_folder, {})


@pytest.mark.parametrize("kind", ["adapted", "full", "base"])
def test_other_types(kind, adapted, full, base_folder, mesh):
  folder = {"adapted": adapted[0], "full": full[0], "base": base_folder}[kind]
  opened = pretrained.open_model(folder, mesh, dtype="bfloat16", parameter_dtype="bfloat16")
  assert (opened.config.dtype, opened.config.parameter_dtype) == ("bfloat16", "bfloat16")
  exact = flatten(pretrained.open_model(folder, mesh).params)
  for name, x in flatten(opened.params).items():
    assert x.dtype == "bfloat16"
    np.testing.assert_array_equal(x, exact[name].astype(x.dtype))


def test_a_run_with_frozen_patterns(finetune, full_fields, mesh, assert_same, tmp_path):
  fields = full_fields | {"trainable": ("layers/mlp/*",), "num_steps": 1}
  result = finetune(tmp_path / "run", **fields)
  opened = pretrained.open_model(tmp_path / "run", mesh)
  assert_same(opened.params, result.state.model_params)


def test_frozen_parameters_of_a_random_model_are_drawn_again(
  finetune, finetune_config, full_fields, base_folder, mesh, assert_same, tmp_path
):
  fields = full_fields | {
    "model": hf.from_hf_config(base_folder),
    "weights": c.WeightsConfig(),
    "corpus": dataclasses.replace(finetune_config.corpus, tokenizer=str(base_folder)),
    "trainable": ("layers/mlp/*",),
    "num_steps": 1,
    "seed": 11,
  }
  result = finetune(tmp_path / "run", **fields)
  opened = pretrained.open_model(tmp_path / "run", mesh)
  assert opened.base is None
  assert_same(opened.params, result.state.model_params)


NAMED = [f for name, f in sorted(vars(configs).items()) if name[0].islower() and callable(f)]


@pytest.mark.parametrize("named", NAMED, ids=lambda named: named.__name__)
def test_decoders_are_read_back_from_the_config_of_a_run(named):
  model, lora = named(), LoraConfig(rank=3, targets=("layers/mlp/*",))
  flat = json.loads(json.dumps(c.to_json(c.TrainConfig(model=model, lora=lora))))
  assert c.from_json(flat, DecoderConfig, "model.") == model
  assert c.from_json(flat, LoraConfig, "lora.") == lora
  other = c.from_json(flat, DecoderConfig, "model.", dtype="bfloat16")
  assert other == dataclasses.replace(model, dtype="bfloat16")


# What is refused.


def test_folders_that_hold_no_model(full, base_folder, mesh, tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "file").write_text("x")
  for name in ("empty", "file", "absent"):
    with pytest.raises(ValueError, match=f"{name}: neither a Hugging Face checkpoint"):
      pretrained.open_model(tmp_path / name, mesh)
  with pytest.raises(ValueError, match="is no run directory, and step=3, weights_folder=w is"):
    pretrained.open_model(base_folder, mesh, step=3, weights_folder="w")


def test_a_run_of_another_model_than_a_decoder(fit, mesh, tmp_path):
  fit(tmp_path / "run", num_steps=1)  # of a library that has its own model
  with pytest.raises(ValueError, match="not made from a config with a decoder"):
    pretrained.open_model(tmp_path / "run", mesh)


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


# See test_checkpoint.py: loads that fail leave complaints of Orbax behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint(full, mesh, tmp_path):
  run = shutil.copytree(full[0], tmp_path / "run")
  for path in (run / "checkpoints/4/state/d").iterdir():
    flip(path)
  before = contents(run)
  with pytest.raises(checkpoint.Damaged, match="checkpoints/4"):
    pretrained.open_model(run, mesh)
  assert contents(run) == before  # nothing is set aside by a reader
  assert pretrained.open_model(run, mesh, step=2).step == 2
  metadata = run / "checkpoints/2/_CHECKPOINT_METADATA"
  metadata.write_text(metadata.read_text().replace("batch_size", "botch_size"))
  with pytest.raises(checkpoint.Damaged, match="checkpoints/2: its metadata"):
    pretrained.open_model(run, mesh, step=2)


def test_weights_that_are_others_or_elsewhere(
  adapted, base_folder, mesh, assert_same, tmp_path
):
  workdir, _ = adapted
  run = shutil.copytree(workdir, tmp_path / "run")
  moved = shutil.copytree(base_folder, tmp_path / "moved")
  opened = pretrained.open_model(run, mesh, weights_folder=moved)
  assert opened.base == moved
  assert_same(opened.params, pretrained.open_model(workdir, mesh).params)
  with pytest.raises(ValueError, match="are not there; where are they now"):
    pretrained.open_model(run, mesh, weights_folder=tmp_path / "absent")
  path = moved / "model.safetensors"
  content = bytearray(path.read_bytes())
  content[-5] ^= 1
  path.write_bytes(content)
  with pytest.raises(ValueError, match="other weights than those that the run"):
    pretrained.open_model(run, mesh, weights_folder=moved)
