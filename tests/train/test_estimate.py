"""What a dry run tells: sizes, memory by device, FLOPs; nothing is read or allocated."""

import dataclasses
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.models import configs, subsets
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.lora import LoraConfig
from jdc.train import config as c
from jdc.train import estimate, model_parts, sharding, state
from jdc.train.optimizer import make_optimizer

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


def table(report):
  """The numbers of the table by the number of devices, in GiB: parameters to all."""
  lines = [line.split() for line in report.splitlines() if re.match(r" +\d+ +data=", line)]
  return {int(line[0]): [float(x) for x in line[-5:]] for line in lines}


@pytest.mark.parametrize(
  ("model", "count"),
  [
    (configs.llama3_2_1b(), 1_235_814_400),
    (configs.mistral_7b(), 7_241_732_096),
    (configs.mixtral_8x7b(), 46_702_792_704),
  ],
  ids=["llama3_2_1b", "mistral_7b", "mixtral_8x7b"],
)
def test_counts_parameters(model, count):
  report = estimate.report(c.TrainConfig(model=model, mesh=c.MeshConfig(data=1, fsdp=-1)))
  assert f"parameters: {count:,}, trained {count:,} (100.00 %)" in report


def test_counts_the_parameters_of_adapters():
  config = c.TrainConfig(model=configs.llama3_2_1b(), lora=LoraConfig(rank=8))
  # Of every map of a layer, 8 times its inputs and outputs.
  maps = [(2048, 2048), (2048, 512), (2048, 512), (2048, 2048), *[(2048, 8192)] * 3]
  trained = 16 * 8 * sum(a + b for a, b in maps)
  total = 1_235_814_400 + trained
  assert f"parameters: {total:,}, trained {trained:,} (" in estimate.report(config)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "adapters", "accumulated"])
def test_memory_adds_up(kind):
  count = 7_241_732_096
  size = 2 if kind in ("bfloat16", "adapters") else 4
  model = configs.mistral_7b(
    dtype="bfloat16", parameter_dtype="bfloat16" if size == 2 else "float32", remat="layer"
  )
  config = c.TrainConfig(
    model=model,
    lora=LoraConfig(rank=16) if kind == "adapters" else None,
    batch_size=128,
    sequence_length=2048,
    accumulation_steps=2 if kind == "accumulated" else 1,
    mesh=c.MeshConfig(data=1, fsdp=-1),
  )
  found = table(estimate.report(config))
  assert sorted(found) == [8, 16, 64]
  sides = (4096, 1024, 1024, 4096, *[14336] * 3)  # of each map, the other one is the width
  for devices, (params, optimizer, gradient, inputs, total) in found.items():
    held = trained = count * size / devices
    if kind == "adapters":  # float32, of which the sides of the width are split
      trained = 4 * 32 * 16 * sum(4096 / devices + side for side in sides)
      held += trained
    expected = [
      held,
      2 * trained,
      trained,
      128 / devices / config.accumulation_steps * 2048 * 4096 * 32 * 2,
    ]
    for value, wanted in zip((params, optimizer, gradient, inputs), expected, strict=True):
      assert value == pytest.approx(wanted / GIB, abs=0.0051)  # of two decimals
    assert total == pytest.approx(sum(expected) / GIB, abs=0.0051)


def test_memory_is_that_of_the_arrays_of_a_run():
  """The bytes that one of eight devices really holds, of a model small enough to be made."""
  model = DecoderConfig(
    vocab_size=512, width=64, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=128
  )
  config = c.TrainConfig(model=model, mesh=c.MeshConfig(data=1, fsdp=4, tensor=2))
  _, start = model_parts.build(config)
  optimizer, _ = make_optimizer(config.optimizer, config.num_steps)
  mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
  with jax.set_mesh(mesh):
    made = state.init(start, optimizer, {}, mesh, 0)
  shapes = state.abstract(start, optimizer, {}, estimate._abstract_mesh(8, config))
  device = jax.devices()[3]
  for part in ("params", "opt_state"):
    held = [
      shard.data.nbytes
      for leaf in jax.tree.leaves(getattr(made, part))
      for shard in leaf.addressable_shards
      if shard.device == device
    ]
    assert estimate._bytes(getattr(shapes, part)) == sum(held)


def test_meshes_that_do_not_fit_are_told():
  config = c.TrainConfig(
    model=configs.llama3_2_1b(), mesh=c.MeshConfig(data=3, fsdp=-1), batch_size=48
  )
  report = estimate.report(config)
  assert not table(report)
  assert report.count("does not cover") == 3


# FLOPs.


def count_flops(jaxpr):
  """The FLOPs of the matrix products of a program, those in loops by their lengths."""
  total = 0.0
  for equation in jaxpr.eqns:
    assert equation.primitive.name not in ("ragged_dot", "ragged_dot_general", "while")
    if equation.primitive.name == "dot_general":
      shape = equation.invars[0].aval.shape
      (contracted, _), _ = equation.params["dimension_numbers"]
      inner = math.prod(shape[axis] for axis in contracted)
      total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
    times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
    for value in equation.params.values():
      for inner_jaxpr in value if isinstance(value, tuple | list) else (value,):
        inner_jaxpr = getattr(inner_jaxpr, "jaxpr", inner_jaxpr)
        if hasattr(inner_jaxpr, "eqns"):
          total += times * count_flops(inner_jaxpr)
  return total


@pytest.mark.parametrize("kind", ["llama", "tied", "adapters", "long"])
def test_flops_are_those_of_the_matrix_products(kind):
  """Counted in the program of loss and gradient itself."""
  batch, length = 4, 512 if kind == "long" else 32
  model = DecoderConfig(
    vocab_size=640, width=128, num_layers=3, num_heads=4, num_kv_heads=2, mlp_width=384,
    tie_embeddings=kind == "tied", attention="mask",
  )  # fmt: skip
  lora = LoraConfig(rank=2) if kind == "adapters" else None
  config = c.TrainConfig(model=model, lora=lora, batch_size=batch, sequence_length=length)
  network = decoder(model, lora=lora)
  params = jax.eval_shape(network.init, jax.random.key(0))
  rows = jax.ShapeDtypeStruct((batch, length), jnp.int32)

  def loss(trained, frozen, *rows):
    joined = trained if lora is None else subsets.join(trained, frozen)
    return network.weighted_loss(joined, *rows, jnp.ones((batch, length)))[0]

  trained, frozen = params, {}
  if lora is not None:
    trained, frozen = subsets.split(params, subsets.matcher(c.ADAPTERS))
  program = jax.make_jaxpr(jax.grad(loss))(trained, frozen, *[rows] * 4)
  counted = count_flops(program.jaxpr)
  num_params, num_trained = (estimate._count(x) for x in (params, trained))
  told = estimate.flops_per_step(model, num_params, num_trained, config)
  # Not told are pairs of positions that the mask then hides, and the products of attention
  # that its backward pass may compute once more.
  pairs = batch * 3 * 4 * 32 * length
  more = 12.0 * pairs * (length - (length + 1) / 2) + 4.0 * pairs * length
  slack = 0.08 if kind == "adapters" else 0.01
  assert (1 - slack) * told < counted < (1 + slack) * (told + more)
  if kind != "long":
    assert more < 0.05 * told


def test_a_window_is_what_the_positions_see():
  assert estimate._mean_seen(6, None) == np.mean([1, 2, 3, 4, 5, 6])
  assert estimate._mean_seen(6, 2) == np.mean([1, 2, 2, 2, 2, 2])
  assert estimate._mean_seen(6, 9) == np.mean([1, 2, 3, 4, 5, 6])


def test_a_token_uses_the_experts_that_it_is_sent_to():
  # As published: 12.9 of 46.7, 1.3 of 6.9 and 3.3 of 30.5 thousand million.
  for model, billions in (
    (configs.mixtral_8x7b(), 12.9),
    (configs.olmoe_1b_7b(), 1.3),
    (configs.qwen3_30b_a3b(), 3.3),
    (configs.mistral_7b(), 7.24),
  ):
    embedding = model.vocab_size * model.width  # looked up, not multiplied
    used = estimate.active_params(model) + embedding
    assert used == pytest.approx(billions * 1e9, rel=0.03)


# Nothing is read or allocated.


def test_allocates_nothing():
  before = len(jax.live_arrays())
  started = time.perf_counter()
  estimate.report(c.TrainConfig(model=configs.llama2_7b()))
  assert len(jax.live_arrays()) <= before + 2  # the keys of the abstract initialisation
  assert time.perf_counter() - started < 30


def test_reads_nothing_of_the_weights_but_their_config(base_folder, tmp_path):
  folder = tmp_path / "base"
  folder.mkdir()
  (folder / "config.json").write_bytes((base_folder / "config.json").read_bytes())
  config = c.TrainConfig(weights=c.WeightsConfig(folder=str(folder)))
  report = estimate.report(config)
  expected = decoder(model_parts.decoder_config(config))
  count = estimate._count(jax.eval_shape(expected.init, jax.random.key(0)))
  assert f"parameters: {count:,}" in report
  with pytest.raises(ValueError, match="it has neither"):
    estimate.report(dataclasses.replace(config, weights=c.WeightsConfig()))


def run(config, *arguments, **environment):
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
  return subprocess.run(
    [sys.executable, ROOT / "launch/train.py", f"--config={config}", *map(str, arguments)],
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
    env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)} | environment,
  )


CONFIG_7B = """
from jdc.models import configs, subsets
from jdc.train import config as c

def get_config(arg=""):
  return c.to_config_dict(c.TrainConfig(
    model=configs.mistral_7b(dtype="bfloat16", remat="layer"),
    batch_size=64, sequence_length=4096, mesh=c.MeshConfig(data=1, fsdp=-1),
  ))
"""

# Reports the most memory that the process ever had; getrusage would count that of its parent.
MEASURED = """
import atexit, pathlib, re
status = pathlib.Path("/proc/self/status")
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1])
atexit.register(lambda: print("peak MiB:", peak() // 1024))
"""


def test_dry_run_of_a_7b_model_takes_seconds_and_little_memory(tmp_path):
  (tmp_path / "config.py").write_text(CONFIG_7B)
  (tmp_path / "sitecustomize.py").write_text(MEASURED)
  done = run(
    tmp_path / "config.py", "--dry_run", f"--workdir={tmp_path}/run",
    PYTHONPATH=f"{tmp_path}:{ROOT}",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "parameters: 7,241,732,096" in done.stdout
  assert sorted(table(done.stdout)) == [8, 16, 64]
  assert not (tmp_path / "run").exists()
  assert int(re.search(r"peak MiB: (\d+)", done.stdout)[1]) < 1500


@pytest.mark.slow
def test_dry_run_compiles_when_asked(tmp_path):
  arguments = ("--dry_run", "--compile", f"--workdir={tmp_path}/run")
  done = run(f"{ROOT}/configs/quickstart.py:tiny", *arguments)
  assert done.returncode == 0, done.stderr
  assert re.search(r"compiled without policies for 1 cpu devices in [\d.]+ s", done.stdout)
  assert not (tmp_path / "run").exists()


def test_compile_needs_a_dry_run(tmp_path):
  done = run(f"{ROOT}/configs/quickstart.py:tiny", "--compile", f"--workdir={tmp_path}/run")
  assert done.returncode != 0
  assert "--compile needs --dry_run" in done.stderr + done.stdout
  assert not (tmp_path / "run").exists()
