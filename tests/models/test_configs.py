"""Tests of the decoder's configuration: it accepts shapes that work and names what does not."""

import dataclasses

import pytest

from jdc.models.configs import DecoderConfig

GOOD = {
  "vocab_size": 64,
  "width": 48,
  "num_layers": 2,
  "num_heads": 4,
  "num_kv_heads": 2,
  "mlp_width": 96,
}


def test_derives_the_head_size():
  assert DecoderConfig(**GOOD).features_per_head == 12
  assert DecoderConfig(**GOOD, head_size=8).features_per_head == 8
  assert DecoderConfig(**GOOD | {"width": 50}, head_size=8).features_per_head == 8


def test_is_hashable_and_frozen():
  config = DecoderConfig(**GOOD)
  assert hash(config) == hash(DecoderConfig(**GOOD))
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.width = 64


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"vocab_size": 0}, "vocab_size must be a positive integer, got 0"),
    ({"width": 48.0}, "width"),
    ({"num_layers": True}, "num_layers"),
    ({"num_heads": -4}, "num_heads"),
    ({"mlp_width": "96"}, "mlp_width"),
    ({"head_size": 0}, "head_size must be a positive integer, got 0"),
    ({"head_size": 7}, "head_size must be even"),
    ({"width": 36, "num_heads": 4}, "head_size must be even .* got 9"),
    ({"width": 50}, "width 50 must be a multiple of num_heads 4"),
    ({"num_kv_heads": 3}, "num_heads 4 must be a multiple of num_kv_heads 3"),
    ({"rope_base": float("inf")}, "rope_base"),
    ({"norm_epsilon": 0.0}, "norm_epsilon"),
    ({"initializer_scale": float("nan")}, "initializer_scale"),
    ({"tie_embeddings": "yes"}, "tie_embeddings"),
    ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, got 'float16'"),
    ({"parameter_dtype": "int8"}, "parameter_dtype"),
    ({"remat": "full"}, "remat must be one of none, layer"),
  ],
)
def test_rejects(change, message):
  with pytest.raises(ValueError, match=message):
    DecoderConfig(**GOOD | change)


def test_names_all_offenders_at_once():
  with pytest.raises(ValueError) as error:
    DecoderConfig(**GOOD | {"width": 0, "num_kv_heads": 3, "dtype": "half", "remat": ""})
  for name in ("width", "num_kv_heads", "dtype", "remat"):
    assert name in str(error.value)
