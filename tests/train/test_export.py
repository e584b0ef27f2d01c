"""`launch/export.py` on runs: what it writes computes the same in transformers and PEFT."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jdc.models import hf
from jdc.train import pretrained, sharding

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

ROOT = Path(__file__).parents[2]
TOKENS = np.random.default_rng(0).integers(0, 320, (2, 12)).astype(np.int32)


def export(checkpoint, output, *arguments, devices=1):
  flag = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
  return subprocess.run(
    [sys.executable, ROOT / "launch/export.py", f"--checkpoint={checkpoint}",
     f"--output={output}", *arguments],
    capture_output=True, text=True, timeout=300, check=False,
    env=os.environ | {"XLA_FLAGS": flag, "PYTHONPATH": str(ROOT)},
  )  # fmt: skip


def exported(checkpoint, output, *arguments, devices=1):
  done = export(checkpoint, output, *arguments, devices=devices)
  assert done.returncode == 0, done.stderr
  assert str(output) in done.stdout
  return output


def logits_of_run(workdir, step=None):
  mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
  opened = pretrained.open_model(workdir, mesh, step)
  positions = np.broadcast_to(np.arange(12, dtype=np.int32), (2, 12))
  with jax.set_mesh(mesh):
    ones = np.ones((2, 12), np.int32)
    return np.asarray(opened.model.logits(opened.params, TOKENS, positions, ones))


def logits_of(model):
  with torch.no_grad():
    return model.eval()(torch.from_numpy(TOKENS).long()).logits.float().numpy()


def loaded(folder):
  return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


# PEFT asks transformers for a property by the name that it had before.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_compute_the_same_in_peft(adapted, base_folder, tmp_path):
  workdir, _ = adapted
  output = exported(workdir, tmp_path / "adapter")
  base = loaded(base_folder)
  without = logits_of(base)
  expected = logits_of_run(workdir)
  assert np.abs(without - expected).max() > 0.05
  found = logits_of(peft.PeftModel.from_pretrained(base, output))
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert peft.PeftConfig.from_pretrained(output).base_model_name_or_path == str(base_folder)


def assert_same_tokenizer(folder, base_folder):
  text = "copy this: fig plum\nred is a colour."
  found, expected = (
    transformers.AutoTokenizer.from_pretrained(path) for path in (folder, base_folder)
  )
  assert found(text).input_ids == expected(text).input_ids
  assert found.chat_template == expected.chat_template
  assert found.eos_token == "<|im_end|>"


def test_merged_adapters_compute_the_same_in_transformers(adapted, base_folder, tmp_path):
  workdir, _ = adapted
  output = exported(workdir, tmp_path / "model", "--merge", devices=2)
  model = loaded(output)
  assert type(model).__name__ == "Qwen2ForCausalLM"
  np.testing.assert_allclose(logits_of(model), logits_of_run(workdir), atol=1e-4)
  assert_same_tokenizer(output, base_folder)
  assert model.generation_config.eos_token_id == model.config.eos_token_id == 2
  found, base = (hf.from_hf_config(folder) for folder in (output, base_folder))
  assert found == base


def test_a_whole_model_computes_the_same_in_transformers(full, base_folder, tmp_path):
  workdir, _ = full
  output = exported(workdir, tmp_path / "model")
  np.testing.assert_allclose(logits_of(loaded(output)), logits_of_run(workdir), atol=1e-4)
  assert_same_tokenizer(output, base_folder)


def test_a_chosen_step_in_bfloat16(full, tmp_path):
  workdir, _ = full
  output = exported(workdir, tmp_path / "model", "--step=2", "--dtype=bfloat16")
  model = loaded(output)
  assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
  found = logits_of(model.float())
  expected, last = logits_of_run(workdir, 2), logits_of_run(workdir)
  np.testing.assert_allclose(found, expected, atol=0.05)
  assert np.abs(found - expected).mean() < np.abs(found - last).mean() / 4


@pytest.mark.parametrize(
  ("kind", "arguments", "said"),
  [
    ("full", ["--merge"], "has no adapters to merge"),
    ("adapted", ["--dtype=bfloat16"], "are for whole models; give --merge as well"),
    ("adapted", ["--merge", "--weights=absent"], "are not there; where are they now"),
    ("full", ["--step=3"], "no checkpoint of step 3; there are [2, 4]"),
  ],
)
def test_refuses(kind, arguments, said, adapted, full, tmp_path):
  workdir = {"adapted": adapted, "full": full}[kind][0]
  done = export(workdir, tmp_path / "model", *arguments)
  assert done.returncode != 0
  assert said in done.stderr
  assert not (tmp_path / "model").exists()


def test_what_is_there_is_not_overwritten(full, tmp_path):
  (tmp_path / "config.json").write_text("precious")
  done = export(full[0], tmp_path)
  assert done.returncode != 0
  assert str(tmp_path) in done.stderr
  assert (tmp_path / "config.json").read_text() == "precious"
  assert len(list(tmp_path.iterdir())) == 1
