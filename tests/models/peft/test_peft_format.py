"""Tests of the files of adapters: what is saved is read back, what does not fit is named."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.models.base import MESH_AXES
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.hf.files import Tensors
from jdc.models.hf.safetensors import write_file
from jdc.models.lora import LoraConfig
from jdc.models.peft import load_adapter, read_adapter_config, save_adapter
from jdc.models.peft.adapter import WEIGHTS
from jdc.models.peft.config import CONFIG as CONFIG_FILE
from jdc.models.subsets import join, matcher, paths, split

CONFIG = DecoderConfig(
  vocab_size=32, width=16, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=24
)
LORA = LoraConfig(
  rank=2, alpha=3.0, dropout=0.1, targets=("layers/attention/query", "layers/mlp/down")
)
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def shapes(lora=LORA, config=CONFIG):
  whole = jax.eval_shape(decoder(config, lora=lora).init, jax.random.key(0))
  return split(whole, matcher(["*/lora_*"]))[0]


def adapters(lora=LORA, config=CONFIG):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes(lora, config)
  )


@pytest.fixture
def folder(tmp_path):
  save_adapter(tmp_path / "adapter", adapters(), LORA, CONFIG, base_model_name="base")
  return tmp_path / "adapter"


def rewrite(folder, change):
  """Writes the tensors again, after `change` to a dict of arrays by name."""
  tensors = Tensors([folder / WEIGHTS])
  arrays = {name: np.array(tensors.read(name)) for name in tensors.info}
  change(arrays)
  names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
  headers = [(name, names[str(x.dtype)], x.shape) for name, x in arrays.items()]
  write_file(folder / WEIGHTS, headers, arrays.values())


def edit(folder, **changes):
  content = json.loads((folder / CONFIG_FILE).read_text())
  (folder / CONFIG_FILE).write_text(json.dumps(content | changes))


def same(left, right):
  assert paths(left) == paths(right)
  for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


# There and back.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank_stabilised", [False, True])
@pytest.mark.parametrize("alpha", [3.0, 2.5])
def test_what_is_saved_is_read_back(dtype, rank_stabilised, alpha, tmp_path):
  lora = dataclasses.replace(LORA, dtype=dtype, rank_stabilised=rank_stabilised, alpha=alpha)
  frozen = decoder(CONFIG).init(jax.random.key(0))
  save_adapter(tmp_path / "a", join(adapters(lora), frozen), lora, CONFIG)
  found, params = load_adapter(tmp_path / "a", CONFIG)
  assert found == lora == read_adapter_config(tmp_path / "a", CONFIG)
  same(params, adapters(lora))
  assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
  assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [CONFIG_FILE, WEIGHTS]


def test_the_files_are_those_of_peft(folder):
  content = json.loads((folder / CONFIG_FILE).read_text())
  assert content["peft_type"] == "LORA"
  assert content["target_modules"] == ["q_proj", "down_proj"]
  assert (content["r"], content["lora_alpha"], content["lora_dropout"]) == (2, 3, 0.1)
  assert content["base_model_name_or_path"] == "base"
  tensors = Tensors([folder / WEIGHTS])
  assert len(tensors.info) == 2 * 2 * CONFIG.num_layers
  down = "base_model.model.model.layers.1.mlp.down_proj"
  leaves = adapters()["layers"]["mlp"]["down"]
  np.testing.assert_array_equal(
    tensors.read(f"{down}.lora_A.weight"), np.asarray(leaves["lora_a"][1]).T
  )
  np.testing.assert_array_equal(
    tensors.read(f"{down}.lora_B.weight"), np.asarray(leaves["lora_b"][1]).T
  )


def test_float16_is_read_into_float32(folder):
  def halve(arrays):
    for name in arrays:
      arrays[name] = arrays[name].astype(np.float16)

  rewrite(folder, halve)
  lora, params = load_adapter(folder, CONFIG)
  assert lora.dtype == "float32"
  same(params, jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), adapters()))


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_an_adapter_of_the_text_part_of_a_multimodal_model(prefix, folder):
  def rename(arrays):
    for name in list(arrays):
      arrays[name.replace("model.layers.", f"{prefix}layers.")] = arrays.pop(name)

  rewrite(folder, rename)
  edit(
    folder, target_modules=[f"{prefix}layers.{i}.mlp.down_proj" for i in (0, 1)] + ["q_proj"]
  )
  lora, params = load_adapter(folder, CONFIG)
  assert lora.targets == LORA.targets
  same(params, adapters())


def test_sharded_both_ways(tmp_path):
  model = decoder(CONFIG, lora=LORA)
  mesh = jax.make_mesh((1, 4, 1, 2), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
  specs = model.partition_specs(shapes())
  target = jax.tree.map(
    lambda x, spec: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec)
    ),
    shapes(),
    specs,
  )
  placed = jax.device_put(adapters(), jax.tree.map(lambda x: x.sharding, target))
  save_adapter(tmp_path / "a", placed, LORA, CONFIG)
  _, params = load_adapter(tmp_path / "a", CONFIG, target)
  same(params, adapters())
  for found, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True):
    assert found.sharding == wanted.sharding


def test_a_target_says_the_type_and_may_hold_other_parameters(folder):
  lora = dataclasses.replace(LORA, dtype="bfloat16")
  target = jax.eval_shape(decoder(CONFIG, lora=lora).init, jax.random.key(0))
  _, params = load_adapter(folder, CONFIG, target)
  same(params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), adapters()))


# Which modules.


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ("all-linear", ["query", "key", "value", "attention_output", "gate", "up", "down"]),
    (["q_proj", "mlp.up_proj"], ["query", "up"]),
    (["q_proj", "query_key_value"], ["query"]),
    ([f"model.layers.{i}.self_attn.o_proj" for i in range(2)], ["attention_output"]),
    (r".*\.self_attn\.[qkv]_proj", ["query", "key", "value"]),
    (r"(?!.*(lm_head|embed_tokens)).*(down|gate)_proj", ["gate", "down"]),
  ],
)
def test_target_modules(given, expected, folder):
  edit(folder, target_modules=given)
  lora = read_adapter_config(folder, CONFIG)
  assert [target.rpartition("/")[2] for target in lora.targets] == expected


@pytest.mark.parametrize("excluded", [["k_proj", "mlp.up_proj"], r".*\.(k|up)_proj"])
def test_exclude_modules(excluded, folder):
  edit(folder, target_modules="all-linear", exclude_modules=excluded)
  names = [t.rpartition("/")[2] for t in read_adapter_config(folder, CONFIG).targets]
  assert names == ["query", "value", "attention_output", "gate", "down"]


# What does not fit.


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"peft_type": "IA3"}, "peft_type 'IA3' (accepted: LORA)"),
    ({"task_type": "SEQ_CLS"}, "task_type 'SEQ_CLS' (accepted: None, CAUSAL_LM)"),
    ({"bias": "lora_only"}, "bias 'lora_only' (accepted: none)"),
    (
      {"init_lora_weights": "pissa_niter_4"},
      "init_lora_weights 'pissa_niter_4' (accepted: True",
    ),
    ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
    ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "loftq_config {"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
    ({"use_dora": True}, "use_dora True"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save ['lm_head']"),
    ({"rank_pattern": {"q_proj": 4}}, "rank_pattern {'q_proj': 4}"),
    ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern {'q_proj': 4}"),
    ({"layers_to_transform": [0]}, "layers_to_transform [0]"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication [[0, 2], [1, 2]]"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices [1]"),
    ({"target_parameters": ["x"]}, "target_parameters ['x']"),
    ({"a_later_invention": 2}, "a_later_invention 2"),
    ({"r": 0}, "r 0 must be a positive integer"),
    ({"r": True}, "r True must be a positive integer"),
    ({"r": 2.0}, "r 2.0 must be a positive integer"),
    ({"lora_alpha": None}, "lora_alpha None must be positive"),
    ({"lora_dropout": 1.0}, "lora_dropout 1.0 must be in [0, 1)"),
    ({"use_rslora": "yes"}, "use_rslora 'yes' must be true or false"),
    ({"target_modules": None}, "target_modules None must be a list of names, or a string"),
    ({"target_modules": []}, "target_modules [] match no linear map"),
    ({"target_modules": ["c_attn"]}, "target_modules ['c_attn'] match no linear map"),
    ({"target_modules": "(q_proj"}, "target_modules '(q_proj' is no regular expression"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, "model.embed_tokens is adapted"),
    ({"target_modules": ["q_proj", "lm_head"]}, "lm_head is adapted"),
    ({"target_modules": r".*1\.self_attn.*"}, "self_attn.k_proj is adapted in layers 1 only"),
    ({"exclude_modules": 3}, "exclude_modules 3 must be a list of names, or a string"),
  ],
)
def test_what_the_decoder_lacks_is_an_error(changes, message, folder):
  edit(folder, **changes)
  with pytest.raises(ValueError) as error:
    read_adapter_config(folder, CONFIG)
  assert str(folder / CONFIG_FILE) in str(error.value)
  assert message in str(error.value)


def test_all_that_the_decoder_lacks_is_listed(folder):
  edit(folder, use_dora=True, bias="all", lora_dropout=-1, target_modules=["lm_head"])
  with pytest.raises(ValueError) as error:
    load_adapter(folder, CONFIG)
  for words in ("use_dora", "bias 'all'", "lora_dropout -1", "lm_head is adapted"):
    assert words in str(error.value)


def test_keys_that_must_be_given(folder):
  (folder / CONFIG_FILE).write_text(json.dumps({"target_modules": ["q_proj"]}))
  with pytest.raises(ValueError, match="peft_type, r, lora_alpha must be given"):
    read_adapter_config(folder, CONFIG)


def test_what_says_nothing_of_the_adapter_is_not_read(folder):
  edit(
    folder,
    task_type=None,
    init_lora_weights="gaussian",
    peft_version="9.9",
    runtime_config={"ephemeral_gpu_offload": False},
    megatron_core="megatron.core",
    qalora_group_size=16,
    use_qalora=False,
    rank_pattern={},
    layers_pattern="layers",
  )
  assert read_adapter_config(folder, CONFIG) == LORA


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_json_object(text, folder):
  (folder / CONFIG_FILE).write_text(text)
  with pytest.raises(ValueError, match=CONFIG_FILE):
    load_adapter(folder, CONFIG)


def test_absent_files(folder):
  (folder / CONFIG_FILE).unlink()
  with pytest.raises(ValueError, match=f"{CONFIG_FILE} does not exist"):
    load_adapter(folder, CONFIG)
  (folder / WEIGHTS).rename(folder / "adapter_model.bin")
  with pytest.raises(ValueError, match=f"has no {WEIGHTS}; adapters in other formats"):
    load_adapter(folder, CONFIG)


def test_a_truncated_file(folder):
  path = folder / WEIGHTS
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(ValueError, match="truncated"):
    load_adapter(folder, CONFIG)


def test_all_tensors_that_do_not_fit_are_listed(folder):
  def change(arrays):
    arrays["base_model.model.lm_head.lora_A.weight"] = np.ones((2, 16), np.float32)
    arrays["base_model.model.model.norm.weight"] = np.ones(16, np.float32)
    del arrays[FIRST.replace("lora_A", "lora_B")]
    arrays[FIRST] = np.ones((3, 16), np.float32)

  rewrite(folder, change)
  with pytest.raises(ValueError) as error:
    load_adapter(folder, CONFIG)
  message = str(error.value)
  assert f"missing: {FIRST.replace('lora_A', 'lora_B')};" in message
  assert (
    "left over: base_model.model.lm_head.lora_A.weight, base_model.model.model.norm.weight;"
    in message
  )
  assert f"{FIRST} has shape (3, 16), not (2, 16)" in message


def test_tensors_of_another_type(folder):
  from safetensors.numpy import load_file, save_file

  arrays = load_file(folder / WEIGHTS)
  save_file({**arrays, FIRST: arrays[FIRST].astype(np.float64)}, folder / WEIGHTS)
  with pytest.raises(ValueError, match="is of type F64, not of F32, F16, BF16"):
    load_adapter(folder, CONFIG)


def test_more_layers_than_the_decoder_has(folder):
  with pytest.raises(ValueError, match=r"left over: .*layers\.1\..*"):
    load_adapter(folder, dataclasses.replace(CONFIG, num_layers=1))


def test_a_target_that_does_not_fit(folder):
  target = shapes(dataclasses.replace(LORA, rank=4, targets=("layers/attention/*",)))
  with pytest.raises(ValueError) as error:
    load_adapter(folder, CONFIG, target)
  for words in (
    "layers/attention/key/lora_a is no adapter of the decoder",
    "layers/mlp/down/lora_b is missing",
    "layers/attention/query/lora_a has shape (2, 16, 4), not (2, 16, 2)",
  ):
    assert words in str(error.value)


def test_parameters_that_are_not_those_of_the_adapters(tmp_path):
  params = adapters()
  params["layers"]["attention"]["query"]["lora_a"] = jnp.ones((2, 16, 3))
  params["layers"]["mlp"]["up"] = params["layers"]["mlp"].pop("down")
  params["layers"]["attention"]["query"]["lora_b"] = jnp.ones((2, 2, 16), jnp.float16)
  with pytest.raises(ValueError) as error:
    save_adapter(tmp_path / "a", params, LORA, CONFIG)
  for words in (
    "layers/attention/query/lora_a has shape (2, 16, 3), not (2, 16, 2)",
    "layers/mlp/up/lora_a is no adapter of the decoder",
    "layers/mlp/down/lora_a is missing",
    "layers/attention/query/lora_b is of type float16, not of float32, bfloat16",
  ):
    assert words in str(error.value)
  assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
  (tmp_path / "note").write_text("mine")
  with pytest.raises(ValueError, match="exists and is not empty"):
    save_adapter(tmp_path, adapters(), LORA, CONFIG)
  assert [p.name for p in tmp_path.iterdir()] == ["note"]
