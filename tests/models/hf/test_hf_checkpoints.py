"""Tests of reading and writing checkpoints: sharded, bitwise, whole or not at all."""

import dataclasses
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jdc.models import hf
from jdc.models.base import MESH_AXES
from jdc.models.configs import (
  DecoderConfig,
  gemma3_1b,
  mixtral_8x7b,
  olmoe_1b_7b,
  qwen3_30b_a3b,
)
from jdc.models.decoder import decoder
from jdc.models.hf import read, write
from jdc.models.hf.files import INDEX, SINGLE, Tensors, open_folder
from jdc.models.hf.names import default_layout, flatten, leaves
from jdc.models.hf.safetensors import write_file

SMALL = {
  "vocab_size": 160,  # more than the rows that are transposed at a time
  "width": 32,
  "num_layers": 3,
  "num_heads": 4,
  "num_kv_heads": 2,
  "mlp_width": 48,
  "head_size": 16,
  "context_length": 128,
}
EXPERTS = {"num_experts": 4, "experts_per_token": 2}
QWEN2 = DecoderConfig(**SMALL, family="qwen2", attention_bias=True)
CONFIGS = {
  "llama": DecoderConfig(**SMALL, tie_embeddings=True),
  "qwen2": QWEN2,
  "gemma3_text": gemma3_1b(**SMALL | {"num_layers": 7}),
  "mixtral": mixtral_8x7b(**SMALL | EXPERTS),
  "qwen3_moe": qwen3_30b_a3b(**SMALL | EXPERTS),
  "olmoe": olmoe_1b_7b(**SMALL | EXPERTS | {"head_size": 8}),
}
KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}


def random_params(config, seed=0):
  """Parameters of which no two numbers are likely to be equal."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), target(config)
  )


@functools.cache
def model_and_shapes(config):
  model = decoder(config)
  return model, jax.eval_shape(model.init, jax.random.key(0))


def target(config, mesh=None, **changes):
  """Shapes of the parameters, with shardings on a mesh."""
  model, shapes = model_and_shapes(dataclasses.replace(config, **changes))
  shapes = jax.tree.map(lambda leaf: leaf, shapes)  # a tree that may be changed
  if mesh is None:
    return shapes
  return jax.tree.map(
    lambda leaf, spec: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=jax.NamedSharding(mesh, spec)
    ),
    shapes,
    model.partition_specs(shapes),
  )


def make_mesh(*shape):
  axis_types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  return jax.make_mesh(shape, MESH_AXES, axis_types=axis_types)


def assert_same(actual, expected):
  """Bitwise, types included."""
  for left, right in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    assert left.dtype == right.dtype
    np.testing.assert_array_equal(left, right)


def rewrite(folder, change):
  """Writes the single file of a folder anew, after `change` to its dict of arrays."""
  tensors = Tensors([folder / SINGLE])
  arrays = {name: np.array(tensors.read(name)) for name in tensors.info}
  arrays = change(arrays) or arrays
  headers = [(n, KINDS[str(a.dtype)], a.shape) for n, a in arrays.items()]
  write_file(folder / SINGLE, headers, arrays.values())


@pytest.fixture
def folder(tmp_path):
  hf.save(tmp_path / "saved", QWEN2, random_params(QWEN2))
  return tmp_path / "saved"


@pytest.mark.parametrize("family", CONFIGS)
def test_import_of_an_export_is_bitwise_the_same(family, tmp_path):
  config = CONFIGS[family]
  params = random_params(config)
  hf.save(tmp_path / "a", config, params)
  assert hf.from_hf_config(tmp_path / "a") == config
  assert_same(hf.load(tmp_path / "a", config, target(config)), params)
  assert (tmp_path / "a" / SINGLE).exists()


@pytest.mark.parametrize("family", CONFIGS)
def test_sharded_equals_single_device_and_reads_each_byte_once(family, tmp_path, monkeypatch):
  config = CONFIGS[family]
  params = random_params(config)
  mesh = make_mesh(1, 2, 2, 2) if config.num_experts else make_mesh(1, 4, 1, 2)
  on_mesh = target(config, mesh)
  sharded = jax.tree.map(lambda x, t: jax.device_put(x, t.sharding), params, on_mesh)
  hf.save(tmp_path / "a", config, sharded)
  hf.save(tmp_path / "b", config, params)
  assert (tmp_path / "a" / SINGLE).read_bytes() == (tmp_path / "b" / SINGLE).read_bytes()

  opened, shards = [], []
  monkeypatch.setattr(
    read, "open_folder", lambda f: opened.append(open_folder(f)) or opened[-1]
  )
  shard_of = read._shard

  def recorded(tensors, *args):
    before = tensors.bytes_read
    shard = shard_of(tensors, *args)
    shards.append((shard.nbytes, tensors.bytes_read - before))
    return shard

  monkeypatch.setattr(read, "_shard", recorded)
  loaded = hf.load(tmp_path / "a", config, on_mesh)
  assert_same(loaded, params)
  for array, leaf in zip(*map(jax.tree.leaves, (loaded, on_mesh)), strict=True):
    assert array.sharding == leaf.sharding
  # Each shard is made of just its own bytes, replicas are read once, and so is everything.
  assert all(made == read for made, read in shards)
  assert opened[0].bytes_read == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  largest = max(math.prod(x.sharding.shard_shape(x.shape)) * 4 for x in jax.tree.leaves(loaded))
  assert max(made for made, _ in shards) == largest


def test_reads_what_one_process_needs(folder):
  """A process with half of the devices reads half of the bytes."""
  mesh = make_mesh(1, 4, 1, 2)
  shape, half = (3, 32, 64), set(jax.devices()[:4])
  sharding = jax.NamedSharding(mesh, jax.P(None, "fsdp", "tensor"))
  indices = sharding.addressable_devices_indices_map(shape)
  tensors = open_folder(folder)
  leaf = leaves(QWEN2, default_layout(QWEN2))["layers", "attention", "query", "kernel"]
  for device in half:
    parts = tuple(range(*i.indices(n)) for i, n in zip(indices[device], shape, strict=True))
    read._shard(tensors, leaf, parts, np.dtype(np.float32))
  assert tensors.bytes_read == math.prod(shape) * 4 // 2


def test_replicas_are_read_once(folder, monkeypatch):
  opened = []
  monkeypatch.setattr(
    read, "open_folder", lambda f: opened.append(open_folder(f)) or opened[-1]
  )
  params = hf.load(folder, QWEN2, target(QWEN2, make_mesh(8, 1, 1, 1)))
  assert opened[0].bytes_read == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert_same(params, random_params(QWEN2))


def test_divides_large_checkpoints_into_files(tmp_path):
  params = random_params(QWEN2)
  hf.save(tmp_path / "a", QWEN2, params, max_shard_bytes=20_000)
  files = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
  assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
  assert not (tmp_path / "a" / SINGLE).exists()
  for name in files:
    info = Tensors([tmp_path / "a" / name]).info
    size = sum(i.stop - i.start for i in info.values())
    assert size <= 20_000 or len(info) == 1
  index = json.loads((tmp_path / "a" / INDEX).read_text())
  total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert index["metadata"]["total_size"] == total
  assert_same(hf.load(tmp_path / "a", QWEN2, target(QWEN2)), params)
  hf.save(tmp_path / "b", QWEN2, params)
  assert hf.fingerprint(tmp_path / "a") == hf.fingerprint(tmp_path / "b")


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_converts_to_the_type_of_the_target(kind, wanted, folder):
  def halve(arrays):
    return {name: array.astype(ml_dtypes.finfo(kind).dtype) for name, array in arrays.items()}

  rewrite(folder, halve)
  params = hf.load(folder, QWEN2, target(QWEN2, parameter_dtype=wanted))
  expected = jax.tree.map(
    lambda x: np.asarray(x).astype(ml_dtypes.finfo(kind).dtype).astype(jnp.dtype(wanted)),
    random_params(QWEN2),
  )
  assert_same(params, expected)


@pytest.mark.parametrize("given", ["jax", "numpy"])
def test_writes_another_type(given, tmp_path):
  params = random_params(QWEN2)
  if given == "numpy":
    params = jax.tree.map(np.asarray, params)
  hf.save(tmp_path / "a", QWEN2, params, dtype="bfloat16")
  assert {info.dtype for info in open_folder(tmp_path / "a").info.values()} == {"BF16"}
  assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"
  loaded = hf.load(tmp_path / "a", QWEN2, target(QWEN2, parameter_dtype="bfloat16"))
  assert_same(loaded, jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params))
  # Written as they are, weights in bfloat16 come back bitwise as well.
  hf.save(tmp_path / "b", QWEN2, loaded)
  assert hf.fingerprint(tmp_path / "b") == hf.fingerprint(tmp_path / "a")


def test_one_error_lists_all_tensors_that_do_not_fit(folder):
  def spoil(arrays):
    del arrays["model.norm.weight"], arrays["model.layers.2.mlp.up_proj.weight"]
    arrays["model.layers.3.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)
    arrays["model.layers.0.self_attn.o_proj.bias"] = np.zeros(32, np.float32)
    arrays["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    arrays["lm_head.weight"] = arrays["lm_head.weight"].T.copy()

  rewrite(folder, spoil)
  with pytest.raises(ValueError) as error:
    hf.load(folder, QWEN2, target(QWEN2))
  message = str(error.value)
  assert "missing: model.layers.2.mlp.up_proj.weight, model.norm.weight;" in message
  assert (
    "left over: model.layers.0.self_attn.o_proj.bias, model.layers.3.mlp.up_proj.weight;"
    in message
  )
  assert "model.layers.0.self_attn.q_proj.bias has shape (32,), not (64,)" in message
  assert "lm_head.weight has shape (32, 160), not (160, 32)" in message


def test_weights_of_other_types_are_an_error(folder):
  raw = (folder / SINGLE).read_bytes()
  (folder / SINGLE).write_bytes(raw.replace(b'"dtype": "F32"', b'"dtype": "I32"', 1))
  with pytest.raises(ValueError, match=r"is of type I32, not of F32, F16, BF16"):
    hf.load(folder, QWEN2, target(QWEN2))


def test_a_target_of_another_tree_is_an_error(folder):
  tree = target(QWEN2)
  tree["layers"]["mlp"]["up"]["lora_a"] = tree["final_norm"]["scale"]
  tree["final_norm"]["scale"] = jax.ShapeDtypeStruct((31,), jnp.float32)
  with pytest.raises(ValueError) as error:
    hf.load(folder, QWEN2, tree)
  assert "layers/mlp/up/lora_a is no parameter of the decoder" in str(error.value)
  assert "final_norm/scale has shape (32,), the target has (31,)" in str(error.value)


def test_reads_some_of_the_parameters(folder):
  tree, expected = target(QWEN2), random_params(QWEN2)
  mlp = {"layers": {"mlp": tree["layers"]["mlp"]}}
  assert_same(hf.load(folder, QWEN2, mlp), {"layers": {"mlp": expected["layers"]["mlp"]}})
  rewrite(folder, lambda arrays: {n: a for n, a in arrays.items() if n != "lm_head.weight"})
  with pytest.raises(ValueError, match=r"missing: lm_head.weight"):
    hf.load(folder, QWEN2, mlp)


def test_rotary_frequencies_are_ignored(folder):
  def older(arrays):
    arrays["model.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    arrays["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)

  rewrite(folder, older)
  assert_same(hf.load(folder, QWEN2, target(QWEN2)), random_params(QWEN2))


def test_an_output_matrix_beside_tied_embeddings_must_equal_them(tmp_path):
  config = CONFIGS["llama"]
  hf.save(tmp_path / "a", config, random_params(config))
  embedding = np.array(open_folder(tmp_path / "a").read("model.embed_tokens.weight"))
  rewrite(tmp_path / "a", lambda arrays: arrays | {"lm_head.weight": embedding})
  assert_same(hf.load(tmp_path / "a", config, target(config)), random_params(config))
  other = np.nextafter(embedding, np.float32(9))
  rewrite(tmp_path / "a", lambda arrays: arrays | {"lm_head.weight": other})
  with pytest.raises(ValueError, match=r"lm_head.weight differs from the embeddings"):
    hf.load(tmp_path / "a", config, target(config))


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_reads_the_text_part_of_a_multimodal_gemma3(prefix, tmp_path):
  config = CONFIGS["gemma3_text"]
  hf.save(tmp_path / "a", config, random_params(config))
  vision = {"language_model.model.": "", "model.language_model.": "model."}[prefix]

  def wrap(arrays):
    renamed = {prefix + name.removeprefix("model."): a for name, a in arrays.items()}
    more = ("vision_tower.x.weight", "multi_modal_projector.y.weight")
    return renamed | {vision + name: np.zeros(2, np.float32) for name in more}

  rewrite(tmp_path / "a", wrap)
  assert_same(hf.load(tmp_path / "a", config, target(config)), random_params(config))
  # Beside another architecture they are left over.
  rewrite(tmp_path / "a", lambda arrays: arrays | {"model.vision_tower.z": np.zeros(2, "f4")})
  with pytest.raises(ValueError, match=r"left over: .*vision_tower.z"):
    hf.load(tmp_path / "a", CONFIGS["llama"], target(CONFIGS["llama"]))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_reads_fused_experts_on_a_mesh(family, tmp_path):
  config = CONFIGS[family]
  hf.save(tmp_path / "a", config, random_params(config))

  def fuse(arrays):
    names = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    result, experts = {}, {}
    for name, array in arrays.items():
      name = name.replace("block_sparse_moe", "mlp")
      match = re.fullmatch(r"(.*experts\.)\d+\.(\w+)\.weight", name)
      if match is None:
        result[name] = array
      else:
        experts.setdefault(match[1], {}).setdefault(match[2], []).append(array)
    for base, maps in experts.items():
      gate, up, down = (np.stack(maps[name]) for name in names)
      result[f"{base}gate_up_proj"] = np.concatenate([gate, up], axis=1)
      result[f"{base}down_proj"] = down
    return result

  rewrite(tmp_path / "a", fuse)
  assert_same(
    hf.load(tmp_path / "a", config, target(config, make_mesh(1, 4, 1, 2))),
    random_params(config),
  )


def test_refuses_a_folder_that_is_not_empty(folder, tmp_path):
  before = {path: path.read_bytes() for path in folder.iterdir()}
  with pytest.raises(ValueError, match="exists and is not empty"):
    hf.save(folder, QWEN2, random_params(QWEN2, seed=1))
  assert {path: path.read_bytes() for path in folder.iterdir()} == before
  (tmp_path / "empty").mkdir()
  hf.save(tmp_path / "empty", QWEN2, random_params(QWEN2))
  assert hf.fingerprint(tmp_path / "empty") == hf.fingerprint(folder)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "saved"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
  def full(*args):
    next(args[2])
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(write, "write_file", full)
  with pytest.raises(OSError, match="No space left"):
    hf.save(tmp_path / "a", QWEN2, random_params(QWEN2))
  assert list(tmp_path.iterdir()) == []


def test_refuses_other_parameters_and_arguments_at_once(tmp_path):
  params = random_params(QWEN2)
  params["layers"]["attention"]["query"]["lora_a"] = jnp.zeros((3, 32, 2))
  params["final_norm"]["scale"] = jnp.zeros(31)
  params["embedding"]["embedding"] = jnp.zeros((160, 32), jnp.int32)
  del params["output"]
  with pytest.raises(ValueError) as error:
    hf.save(
      tmp_path / "a",
      QWEN2,
      params,
      dtype="float16",
      max_shard_bytes=0,
      tokenizer_folder=tmp_path,
    )
  for part in (
    "query/lora_a is no parameter (adapters must be merged first)",
    "final_norm/scale has shape (31,), not (32,)",
    "embedding/embedding is of type int32",
    "output/kernel is missing",
    "dtype must be one of float32, bfloat16 or None, got 'float16'",
    "max_shard_bytes must be at least 1, got 0",
    "has none of tokenizer.json",
  ):
    assert part in str(error.value)
  assert list(tmp_path.iterdir()) == []


def test_copies_the_tokenizer_and_writes_the_generation_config(tmp_path):
  source = tmp_path / "source"
  (source / "additional_chat_templates").mkdir(parents=True)
  files = ["tokenizer.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"]
  for name in [*files, "optimizer.pt"]:
    (source / name).write_text(name)
  hf.save(
    tmp_path / "a",
    QWEN2,
    random_params(QWEN2),
    tokenizer_folder=source,
    generation_config={"eos_token_id": [1, 2]},
  )
  assert all((tmp_path / "a" / name).read_text() == name for name in files)
  assert not (tmp_path / "a" / "optimizer.pt").exists()
  written = json.loads((tmp_path / "a" / "generation_config.json").read_text())
  assert written == {"eos_token_id": [1, 2]}


def test_a_fingerprint_tells_weights_apart(folder):
  first = hf.fingerprint(folder)
  assert re.fullmatch("[0-9a-f]{64}", first)

  def one_bit(arrays):
    arrays["model.norm.weight"].view(np.uint32)[3] ^= 1

  def swap(arrays):
    up, gate = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
    arrays[up], arrays[gate] = arrays[gate], arrays[up]

  def rename(arrays):
    return {name.replace("norm.weight", "norm.weights"): a for name, a in arrays.items()}

  def reshape(arrays):
    arrays["lm_head.weight"] = arrays["lm_head.weight"].reshape(32, 160)

  prints = {first}
  for change in (one_bit, swap, rename, reshape):
    rewrite(folder, change)
    prints.add(hf.fingerprint(folder))
  assert len(prints) == 5


@pytest.mark.parametrize("family", CONFIGS)
def test_every_parameter_has_its_tensors(family):
  config = CONFIGS[family]
  assert leaves(config, default_layout(config)).keys() == flatten(target(config)).keys()
