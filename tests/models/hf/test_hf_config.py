"""Tests of config.json: both versions of transformers, and everything that is refused."""

import dataclasses
import json

import pytest

from jdc.models.configs import gemma3_270m, mixtral_8x7b, qwen2_5_0_5b
from jdc.models.decoder_config import DecoderConfig, RopeScaling
from jdc.models.hf import from_hf_config, read_token_ids, to_hf_config

SIZES = {
  "vocab_size": 64,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 128,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
OURS = DecoderConfig(
  vocab_size=64,
  width=32,
  num_layers=4,
  num_heads=4,
  num_kv_heads=2,
  mlp_width=48,
  context_length=128,
)
LLAMA3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 64,
}


def read(kind="llama", **more):
  return from_hf_config({"model_type": kind, **SIZES, **more})


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ({"rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
    (
      {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
      {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
    ),
    ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, LLAMA3 | {"rope_theta": 5e5}),
  ],
)
def test_both_versions_name_rotary_positions(old, new):
  config = read(**old)
  assert config == read(rope_parameters=new)
  assert config.rope_base == 5e5
  scaling = {"linear": RopeScaling("linear", 4.0), "default": None}
  scaling["llama3"] = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
  assert config.rope_scaling == scaling[new["rope_type"]]


def test_the_older_name_of_a_scaling_wins_as_in_transformers():
  both = {"rope_scaling": {"type": "linear", "factor": 4.0}}
  both["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
  assert read(**both).rope_scaling == RopeScaling("linear", 4.0)
  assert read(**both).rope_base == 1e4


def test_both_versions_name_the_two_bases_of_gemma3():
  old = {"rope_theta": 5e5, "rope_local_base_freq": 2e3}
  old["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
  new = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}}
  new["sliding_attention"] = {"rope_type": "default", "rope_theta": 2e3}
  config = read("gemma3_text", **old)
  assert config == read("gemma3_text", rope_parameters=new)
  assert (config.rope_base, config.local_rope_base) == (5e5, 2e3)
  assert config.rope_scaling == RopeScaling("linear", 8.0)


@pytest.mark.parametrize(
  ("kind", "keys", "window", "layer_types"),
  [
    ("mistral", {}, 4096, ()),  # the default of transformers
    ("mistral", {"sliding_window": None}, None, ()),
    ("mistral", {"sliding_window": 8}, 8, ()),
    ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, None, ()),
    ("qwen2", {"sliding_window": 8}, None, ()),
    ("qwen2", {"sliding_window": 8, "use_sliding_window": True}, None, ()),  # 28 layers first
    (
      "qwen2",
      {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
      8,
      ("global", "global", "global", "local"),
    ),
    (
      "qwen3",
      {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0},
      8,
      (),
    ),
    (
      "qwen3",
      {
        "sliding_window": 8,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
      },
      8,
      ("local", "global") * 2,
    ),
    ("gemma3_text", {"sliding_window": 8}, 8, ()),  # every sixth of four layers is global
    (
      "gemma3_text",
      {"sliding_window": 8, "sliding_window_pattern": 2},
      8,
      ("local", "global") * 2,
    ),
    ("gemma3_text", {"sliding_window_pattern": 1}, None, ()),
    ("qwen3_moe", EXPERTS | {"sliding_window": 8}, None, ()),
    ("qwen3_moe", EXPERTS | {"sliding_window": 8, "use_sliding_window": True}, 8, ()),
  ],
)
def test_reads_which_layers_have_a_window(kind, keys, window, layer_types):
  config = read(kind, **keys)
  assert (config.sliding_window, config.layer_types) == (window, layer_types)
  written = to_hf_config(config)
  assert from_hf_config(written) == config
  assert written["sliding_window"] == window
  assert written.get("use_sliding_window", window is not None) == (window is not None)


def test_reads_the_query_scale_of_gemma3():
  assert read("gemma3_text", head_dim=16).attention_scale == 1 / 16  # 256 by default
  assert read("gemma3_text", head_dim=256).attention_scale is None


def test_both_versions_name_the_number_of_experts():
  config = read("qwen3_moe", **EXPERTS)
  named = {k: v for k, v in EXPERTS.items() if k != "num_experts"}
  assert config == read("qwen3_moe", num_local_experts=4, **named)
  assert (config.num_experts, config.experts_per_token, config.mlp_width) == (4, 2, 16)


def test_the_text_part_of_gemma3_may_leave_out_sizes():
  """As the file of google/gemma-3-4b-it does."""
  text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10_240}
  text |= {"num_hidden_layers": 34, "sliding_window": 1024}
  text["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}
  config = from_hf_config({"model_type": "gemma3", "text_config": text, "vision_config": {}})
  assert (config.vocab_size, config.num_heads, config.num_kv_heads) == (262_208, 8, 4)
  assert (config.head_size, config.tie_embeddings) == (256, True)
  assert config.layer_types[:7] == ("local",) * 5 + ("global", "local")


def test_changes_are_fields_of_the_decoder(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES}))
  expected = dataclasses.replace(OURS, head_size=8, dtype="bfloat16", remat="layer")
  for source in (tmp_path, str(tmp_path / "config.json")):
    assert from_hf_config(source, dtype="bfloat16", remat="layer") == expected


@pytest.mark.parametrize(
  ("kind", "keys", "message"),
  [
    ("gpt2", {}, "model_type 'gpt2' .*accepted: llama, mistral"),
    ("llama", {"hidden_act": "relu"}, "hidden_act 'relu'"),
    ("llama", {"attention_bias": True}, "attention_bias True"),
    ("qwen3", {"attention_bias": True}, "attention_bias True"),
    ("llama", {"mlp_bias": True}, "mlp_bias True"),
    ("llama", {"attention_dropout": 0.1}, "attention_dropout 0.1"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ("llama", {"sliding_window": 8}, "sliding_window 8 of a llama"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4}"),
    ("llama", {"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling 'yarn'"),
    ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope scaling 'longrope'"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "'linear' without factor"),
    (
      "llama",
      {"rope_scaling": {"type": "llama3", "factor": 2.0}},
      "'llama3' without high_freq_factor, low_freq_factor",
    ),
    (
      "llama",
      {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
      "partial_rotary_factor 0.5",
    ),
    ("llama", {"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "'mrope'"),
    (
      "llama",
      {"rope_scaling": {"type": "default", "mrope_section": [1]}},
      r"mrope_section \[1\]",
    ),
    ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3_text", {"hidden_activation": "gelu"}, "hidden_activation 'gelu'"),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 1.0}}, "by type of layer"),
    (
      "gemma3_text",
      {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
      "rope_parameters of sliding_attention",
    ),
    (
      "gemma3_text",
      {"layer_types": ["chunked_attention", "full_attention"] * 2},
      "layer_types 'chunked_attention'",
    ),
    ("mistral", {"layer_types": ["full_attention"] * 4}, "layer_types .* of a mistral"),
    ("olmoe", EXPERTS | {"clip_qkv": 8.0}, "clip_qkv 8.0"),
    ("olmoe", EXPERTS | {"head_dim": 16}, "head_dim 16 of a olmoe"),
    ("qwen3_moe", EXPERTS | {"mlp_only_layers": [0]}, r"mlp_only_layers \[0\]"),
    ("qwen3_moe", EXPERTS | {"decoder_sparse_step": 2}, "decoder_sparse_step 2"),
    ("qwen3_moe", EXPERTS | {"shared_expert_intermediate_size": 8}, "shared_expert"),
    (
      "qwen3_moe",
      EXPERTS | {"use_sliding_window": True, "max_window_layers": 2},
      "max_window_layers 2",
    ),
    ("qwen3_moe", {"num_experts_per_tok": 2}, "moe_intermediate_size None.*num_experts None"),
    ("llama", {"hidden_size": "32"}, "hidden_size '32'"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers 0"),
    ("llama", {"vocab_size": None}, "vocab_size None"),
  ],
)
def test_refuses_what_the_decoder_lacks(kind, keys, message):
  with pytest.raises(ValueError, match=message):
    read(kind, **keys)


def test_names_all_offenders_at_once():
  with pytest.raises(ValueError) as error:
    read(
      "gemma3_text",
      attention_bias=True,
      hidden_activation="relu",
      final_logit_softcapping=30.0,
      rope_scaling={"rope_type": "yarn"},
      layer_types=["x"] * 4,
      quantization_config={"bits": 4},
    )
  for name in ("attention_bias", "hidden_activation", "softcapping", "yarn", "'x'", "bits"):
    assert name in str(error.value)


@pytest.mark.parametrize(
  ("content", "message"), [("{", "is not JSON"), ("[]", "must hold a JSON object, got list")]
)
def test_a_file_that_is_no_config_is_an_error(content, message, tmp_path):
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(ValueError, match=rf"config.json {message}"):
    from_hf_config(tmp_path)
  with pytest.raises(ValueError, match="does not exist"):
    from_hf_config(tmp_path / "absent.json")


@pytest.mark.parametrize(
  ("config", "changes", "message"),
  [
    (OURS, {"family": "gpt2"}, "family must be one of llama, .* got 'gpt2'"),
    (OURS, {"qk_norm": "head"}, r"a llama .* cannot have qk_norm 'head' \(only 'none'\)"),
    (OURS, {"attention_bias": True}, "attention_bias True"),
    (OURS, {"norm_offset": 1.0}, "norm_offset 1.0"),
    (OURS, {"post_norms": True}, "post_norms True"),
    (OURS, {"scale_embeddings": True}, "scale_embeddings True"),
    (OURS, {"attention_scale": 0.5}, "attention_scale 0.5"),
    (OURS, {"sliding_window": 8}, r"sliding_window 8 of 4 layers \(only of no layer\)"),
    (OURS, {"num_experts": 4, "experts_per_token": 2}, r"num_experts 4 \(only 0\)"),
    (OURS, {"context_length": 0}, "context_length 0"),
    (OURS, {"num_heads": 6, "head_size": 8}, "width 32 .*multiples of num_heads 6"),
    (OURS, {"family": "mixtral"}, r"num_experts 0 \(at least 1\)"),
    (mixtral_8x7b(), {"normalise_experts": False}, "normalise_experts False"),
    (
      OURS,
      {
        "family": "mistral",
        "sliding_window": 8,
        "layer_types": ("local", "global", "local", "global"),
      },
      "of 2 layers .only of every layer or none",
    ),
    (qwen2_5_0_5b(), {"attention_bias": False}, r"attention_bias False \(only True\)"),
    (gemma3_270m(), {"attention_scale": 0.3}, "attention_scale 0.3"),
    (
      gemma3_270m(),
      {"local_rope_base": None, "rope_scaling": RopeScaling("linear", 8.0)},
      "local_rope_base must be stated",
    ),
  ],
)
def test_refuses_what_an_architecture_of_transformers_lacks(config, changes, message):
  with pytest.raises(ValueError, match=message):
    to_hf_config(dataclasses.replace(config, **changes))


def test_an_olmoe_has_heads_as_wide_as_the_model():
  config = read("olmoe", **EXPERTS)
  with pytest.raises(ValueError, match="head_size 16"):
    to_hf_config(dataclasses.replace(config, head_size=16))


def test_token_ids_are_stated_or_null():
  content = to_hf_config(OURS, token_ids={"eos_token_id": [1, 2], "pad_token_id": 0})
  assert (content["eos_token_id"], content["pad_token_id"]) == ([1, 2], 0)
  assert content["bos_token_id"] is None
  assert read_token_ids(content) == {"eos_token_id": [1, 2], "pad_token_id": 0}
  with pytest.raises(ValueError, match=r"bos_token_id 64 .only 0 to 63.*unk_token_id among"):
    to_hf_config(OURS, token_ids={"bos_token_id": 64, "unk_token_id": 1})


def test_states_the_type_of_the_weights():
  assert to_hf_config(OURS)["dtype"] == "float32"
  assert to_hf_config(OURS, dtype="bfloat16")["torch_dtype"] == "bfloat16"
