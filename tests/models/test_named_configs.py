"""Tests of the decoders by name: their sizes, and what their published config.json says."""

import math

import jax
import pytest

from jdc.models import configs
from jdc.models.decoder import decoder
from jdc.models.hf import from_hf_config, to_hf_config

# Parameters of the published checkpoints; a tied embedding counts once.
COUNTS = {
  "llama2_7b": 6_738_415_616,
  "llama3_1_8b": 8_030_261_248,
  "llama3_2_1b": 1_235_814_400,
  "llama3_2_3b": 3_212_749_824,
  "mistral_7b": 7_241_732_096,
  "qwen2_5_0_5b": 494_032_768,
  "qwen2_5_1_5b": 1_543_714_304,
  "qwen2_5_7b": 7_615_616_512,
  "qwen3_0_6b": 596_049_920,
  "qwen3_1_7b": 1_720_574_976,
  "qwen3_30b_a3b": 30_532_122_624,
  "gemma3_270m": 268_098_176,
  "gemma3_1b": 999_885_952,
  "mixtral_8x7b": 46_702_792_704,
  "olmoe_1b_7b": 6_919_161_856,
}

# What the published files say of the model.
LLAMA3_2_3B = {
  "model_type": "llama",
  "attention_bias": False,
  "attention_dropout": 0.0,
  "bos_token_id": 128000,
  "eos_token_id": 128001,
  "head_dim": 128,
  "hidden_act": "silu",
  "hidden_size": 3072,
  "intermediate_size": 8192,
  "max_position_embeddings": 131072,
  "mlp_bias": False,
  "num_attention_heads": 24,
  "num_hidden_layers": 28,
  "num_key_value_heads": 8,
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_scaling": {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
  },
  "rope_theta": 500000.0,
  "tie_word_embeddings": True,
  "vocab_size": 128256,
}
MISTRAL_7B = {
  "model_type": "mistral",
  "hidden_act": "silu",
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "max_position_embeddings": 32768,
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05,
  "rope_theta": 10000.0,
  "sliding_window": 4096,
  "tie_word_embeddings": False,
  "vocab_size": 32000,
}
QWEN2_5_0_5B = {
  "model_type": "qwen2",
  "attention_dropout": 0.0,
  "hidden_act": "silu",
  "hidden_size": 896,
  "intermediate_size": 4864,
  "max_position_embeddings": 32768,
  "max_window_layers": 24,
  "num_attention_heads": 14,
  "num_hidden_layers": 24,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0,
  "sliding_window": 32768,
  "tie_word_embeddings": True,
  "use_mrope": False,
  "use_sliding_window": False,
  "vocab_size": 151936,
}
QWEN3_0_6B = {
  "model_type": "qwen3",
  "attention_bias": False,
  "attention_dropout": 0.0,
  "head_dim": 128,
  "hidden_act": "silu",
  "hidden_size": 1024,
  "intermediate_size": 3072,
  "max_position_embeddings": 40960,
  "max_window_layers": 28,
  "num_attention_heads": 16,
  "num_hidden_layers": 28,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06,
  "rope_scaling": None,
  "rope_theta": 1000000,
  "sliding_window": None,
  "tie_word_embeddings": True,
  "use_sliding_window": False,
  "vocab_size": 151936,
}
GEMMA3_1B = {
  "model_type": "gemma3_text",
  "attention_bias": False,
  "attention_dropout": 0.0,
  "attn_logit_softcapping": None,
  "final_logit_softcapping": None,
  "head_dim": 256,
  "hidden_activation": "gelu_pytorch_tanh",
  "hidden_size": 1152,
  "intermediate_size": 6912,
  "max_position_embeddings": 32768,
  "num_attention_heads": 4,
  "num_hidden_layers": 26,
  "num_key_value_heads": 1,
  "query_pre_attn_scalar": 256,
  "rms_norm_eps": 1e-06,
  "rope_local_base_freq": 10000,
  "rope_scaling": None,
  "rope_theta": 1000000,
  "sliding_window": 512,
  "sliding_window_pattern": 6,
  "vocab_size": 262144,
}
MIXTRAL_8X7B = {
  "model_type": "mixtral",
  "attention_dropout": 0.0,
  "hidden_act": "silu",
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "max_position_embeddings": 32768,
  "num_attention_heads": 32,
  "num_experts_per_tok": 2,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "num_local_experts": 8,
  "output_router_logits": False,
  "rms_norm_eps": 1e-05,
  "rope_theta": 1000000.0,
  "router_aux_loss_coef": 0.02,
  "sliding_window": None,
  "tie_word_embeddings": False,
  "vocab_size": 32000,
}
OLMOE_1B_7B = {
  "model_type": "olmoe",
  "attention_bias": False,
  "attention_dropout": 0.0,
  "clip_qkv": None,
  "hidden_act": "silu",
  "hidden_size": 2048,
  "intermediate_size": 1024,
  "max_position_embeddings": 4096,
  "norm_topk_prob": False,
  "num_attention_heads": 16,
  "num_experts": 64,
  "num_experts_per_tok": 8,
  "num_hidden_layers": 16,
  "num_key_value_heads": 16,
  "rms_norm_eps": 1e-05,
  "rope_scaling": None,
  "rope_theta": 10000.0,
  "tie_word_embeddings": False,
  "vocab_size": 50304,
}
PUBLISHED = {
  "llama3_2_3b": LLAMA3_2_3B,
  "mistral_7b": MISTRAL_7B,
  "qwen2_5_0_5b": QWEN2_5_0_5B,
  "qwen3_0_6b": QWEN3_0_6B,
  "gemma3_1b": GEMMA3_1B,
  "mixtral_8x7b": MIXTRAL_8X7B,
  "olmoe_1b_7b": OLMOE_1B_7B,
}


@pytest.mark.parametrize("name", COUNTS)
def test_has_as_many_parameters_as_published(name):
  shapes = jax.eval_shape(decoder(getattr(configs, name)()).init, jax.random.key(0))
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == COUNTS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_is_what_the_published_file_says(name):
  assert from_hf_config(PUBLISHED[name]) == getattr(configs, name)()


@pytest.mark.parametrize("name", COUNTS)
def test_comes_back_from_the_file_that_is_written(name):
  config = getattr(configs, name)()
  assert from_hf_config(to_hf_config(config)) == config


def test_docstrings_state_the_counts():
  for name, count in COUNTS.items():
    assert f"{count:,}" in getattr(configs, name).__doc__


def test_changes_replace_fields():
  config = configs.gemma3_1b(num_layers=7, vocab_size=128, dtype="bfloat16")
  assert config.layer_types == ("local",) * 5 + ("global", "local")
  assert (config.vocab_size, config.dtype) == (128, "bfloat16")
  assert configs.mistral_7b(sliding_window=None).sliding_window is None
  with pytest.raises(TypeError, match="hidden_size"):
    configs.llama3_2_1b(hidden_size=1)
