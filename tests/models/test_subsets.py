"""Tests of the parts of a tree of parameters."""

import jax
import jax.numpy as jnp
import pytest

from jdc.models.decoder import DecoderConfig, decoder
from jdc.models.lora import LoraConfig
from jdc.models.subsets import check_patterns, join, matcher, paths, split

CONFIG = DecoderConfig(
  vocab_size=16, width=8, num_layers=2, num_heads=2, num_kv_heads=1, mlp_width=12
)
ADAPTERS = ("layers/*/lora_*",)


def shapes():
  return jax.eval_shape(decoder(CONFIG, lora=LoraConfig(rank=2)).init, jax.random.key(0))


def test_paths_are_those_of_the_leaves():
  assert paths({"b": {"x": 1, "y": {"z": 2}}, "a": 3}) == ("b/x", "b/y/z", "a")
  expected = {
    "/".join(entry.key for entry in path) for path, _ in jax.tree.leaves_with_path(shapes())
  }
  assert set(paths(shapes())) == expected
  assert "layers/attention/query/lora_a" in expected


def test_split_and_join_are_inverse():
  params = shapes()
  trainable, frozen = split(params, matcher(ADAPTERS))
  assert set(paths(trainable)) | set(paths(frozen)) == set(paths(params))
  assert all(path.endswith(("lora_a", "lora_b")) for path in paths(trainable))
  assert not any("lora_" in path for path in paths(frozen))
  assert len(paths(trainable)) == 2 * 7
  assert join(trainable, frozen) == params
  assert join(frozen, trainable) == params


def test_there_are_no_empty_dicts():
  params = {"a": {"b": {"c": 1}}, "d": 2}
  assert split(params, lambda path: path == "d") == ({"d": 2}, {"a": {"b": {"c": 1}}})
  assert split(params, lambda path: True) == (params, {})
  assert split(params, lambda path: False) == ({}, params)
  assert join({}, params) == params == join(params, {})


def test_the_arguments_are_left_alone():
  a, b = {"m": {"x": 1}}, {"m": {"y": 2}}
  joined = join(a, b)
  joined["m"]["z"] = 3
  assert (a, b) == ({"m": {"x": 1}}, {"m": {"y": 2}})
  whole = {"m": {"x": 1, "y": 2}}
  part, _ = split(whole, lambda path: True)
  part["m"]["z"] = 3
  assert whole == {"m": {"x": 1, "y": 2}}


def test_leaves_may_be_partition_specs():
  model = decoder(CONFIG, lora=LoraConfig(rank=2))
  specs = model.partition_specs(shapes())
  trainable, frozen = split(specs, matcher(ADAPTERS))
  assert join(trainable, frozen) == specs
  assert trainable["layers"]["attention"]["query"]["lora_a"] == jax.P(None, "fsdp", None)


def test_joined_under_jit_and_grad():
  trainable, frozen = split({"m": {"x": jnp.array(2.0), "y": jnp.array(3.0)}}, matcher(["*/x"]))

  @jax.jit
  def gradient(trainable, frozen):
    def loss(part):
      params = join(part, frozen)
      return params["m"]["x"] ** 2 * params["m"]["y"]

    return jax.grad(loss)(trainable)

  assert gradient(trainable, frozen) == {"m": {"x": 12.0}}


def test_join_names_every_shared_path():
  a = {"m": {"x": 1, "y": 2}, "n": 3}
  with pytest.raises(ValueError) as error:
    join(a, {"m": {"x": 1, "z": 2}, "n": {"o": 1}})
  assert str(error.value) == "both parts have m/x, n"


def test_check_patterns_names_those_that_match_nothing():
  check_patterns(["*"], shapes())
  check_patterns(ADAPTERS, shapes())
  check_patterns([], shapes())
  with pytest.raises(ValueError) as error:
    check_patterns(["layers/*/lora_c", "*/kernel", "layer/*"], shapes())
  message = str(error.value)
  assert message.startswith("'layers/*/lora_c', 'layer/*' match no parameter; known: ")
  assert "layers/attention/query/lora_a" in message
