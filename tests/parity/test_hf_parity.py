"""Checkpoints mean the same here and in transformers, for every architecture."""

import dataclasses
import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.models import hf
from jdc.models.decoder import decoder
from jdc.models.hf.files import open_folder

with warnings.catch_warnings():
  # What these packages and theirs warn about while they are imported is not ours to mend.
  warnings.simplefilter("ignore")
  torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
  transformers = pytest.importorskip("transformers", reason="parity needs transformers")
  transformers.utils.logging.disable_progress_bar()

VOCABULARY, LENGTH = 96, 40
SIZES = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 16,  # shorter than the rows
  "bos_token_id": None,
  "eos_token_id": None,
  "pad_token_id": None,
}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 10_000.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
GEMMA3 = {
  "head_dim": 16,
  "num_hidden_layers": 7,
  "sliding_window": 6,
  "query_pre_attn_scalar": 24,
}
GEMMA3_SCALED = {
  "rope_parameters": {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
  },
  "layer_types": ["full_attention", "sliding_attention", "full_attention"],
  "num_hidden_layers": 3,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 5}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}
CASES = {
  "llama": {},
  "llama3": {"rope_parameters": LLAMA3, "head_dim": 16, "tie_word_embeddings": True},
  "llama_linear": {"rope_parameters": LINEAR, "num_key_value_heads": 1},
  "llama_gelu": {"hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 4},
  "mistral": {"sliding_window": 5, "head_dim": 16},
  "mistral_global": {"sliding_window": None},
  "qwen2": {"tie_word_embeddings": True},
  "qwen2_window": WINDOW | {"max_window_layers": 1, "rope_parameters": LINEAR},
  "qwen3": {"head_dim": 16},
  "qwen3_window": WINDOW | {"max_window_layers": 2, "tie_word_embeddings": True},
  "gemma3_text": GEMMA3,
  "gemma3_text_scaled": GEMMA3 | GEMMA3_SCALED,
  "mixtral": {"num_local_experts": 4, "sliding_window": 5},
  "qwen3_moe": EXPERTS | {"moe_intermediate_size": 24, "head_dim": 16, "norm_topk_prob": True},
  "qwen3_moe_window": EXPERTS | {"moe_intermediate_size": 24} | WINDOW,
  "olmoe": EXPERTS,
  "olmoe_normalised": EXPERTS | {"norm_topk_prob": True, "num_key_value_heads": 4},
}


@functools.cache
def peer(case):
  """A small model of transformers with random weights, norms and biases included."""
  kind = case.removesuffix("_scaled")
  while kind not in transformers.CONFIG_MAPPING:
    kind = kind.rpartition("_")[0] or "llama"
  config = transformers.CONFIG_MAPPING[kind](**SIZES | CASES[case])
  model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
  generator = torch.Generator().manual_seed(len(case))
  with torch.no_grad():
    for parameter in model.parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      if parameter.ndim == 1:
        parameter.add_(0.3 * noise)
      else:
        parameter.copy_(noise / parameter.shape[-1] ** 0.5)
  return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """The folder of each case, as transformers writes it."""

  @functools.cache
  def folder(case):
    path = tmp_path_factory.mktemp(case)
    peer(case).save_pretrained(path)
    return path

  return folder


def ours(folder, **changes):
  """The decoder of a folder, and its parameters."""
  config = hf.from_hf_config(folder, **changes)
  model = decoder(config)
  return config, model, hf.load(folder, config, jax.eval_shape(model.init, jax.random.key(0)))


def their_logits(model, tokens, mask=None, positions=None):
  with torch.no_grad():
    more = {"attention_mask": mask, "position_ids": positions}
    more = {k: torch.tensor(np.array(v)) for k, v in more.items() if v is not None}
    return model(torch.tensor(tokens), **more).logits.numpy()


def random_tokens(num_rows=2, length=LENGTH, seed=0):
  return np.random.default_rng(seed).integers(0, VOCABULARY, (num_rows, length), np.int32)


def whole_rows(tokens):
  """Positions and segments of rows without padding."""
  positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
  return positions, np.ones_like(tokens)


@pytest.mark.parametrize("case", CASES)
def test_logits_agree(case, saved):
  _, model, params = ours(saved(case))
  tokens = random_tokens()
  actual = jax.jit(model.logits)(params, tokens, *whole_rows(tokens))
  expected = their_logits(peer(case), tokens)
  assert np.abs(expected).max() > 0.5  # of a size at which the tolerance means something
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["llama3", "mistral", "gemma3_text", "qwen3_moe", "olmoe"])
def test_logits_agree_beside_padding(case, saved):
  _, model, params = ours(saved(case))
  tokens, index = random_tokens(5, 24), np.arange(24)
  left, right = [index >= 7, index >= 20], [index < 17, index < 3]
  mask = np.int32([index >= 0, *left, *right])
  positions = np.int32(np.maximum(np.cumsum(mask, axis=1) - 1, 0))
  actual = np.asarray(jax.jit(model.logits)(params, tokens, positions, mask))
  expected = their_logits(peer(case), tokens, mask, positions)
  np.testing.assert_allclose(actual[mask > 0], expected[mask > 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["mixtral", "olmoe"])
def test_the_balance_of_experts_agrees(case, saved):
  """Theirs, k times ours, of one layer at a time; and the load of the last one."""
  config, model, params = ours(saved(case))
  tokens, k = random_tokens(3, 24), config.experts_per_token
  mask = np.int32(np.arange(24) < np.array([[24], [17], [5]]))
  positions = np.broadcast_to(np.arange(24, dtype=np.int32), mask.shape)
  actual = jax.jit(model.outputs)(params, tokens, tokens, positions, mask)
  given, mask = torch.tensor(tokens), torch.tensor(mask)
  with torch.no_grad():
    layers = peer(case)(given, attention_mask=mask, output_router_logits=True).router_logits
  loss = transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func
  theirs = [float(loss((layer,), config.num_experts, k, mask)) for layer in layers]
  np.testing.assert_allclose(actual.balance_loss, np.mean(theirs) / k, rtol=1e-5)
  chosen = torch.topk(layers[-1], k).indices.reshape(3, -1, k)
  counts = torch.nn.functional.one_hot(chosen).sum(2) * mask[..., None]
  np.testing.assert_array_equal(actual.expert_load, counts.sum(1))


@pytest.mark.parametrize("case", ["llama_linear", "gemma3_text"])
def test_packed_documents_are_as_alone(case, saved):
  _, model, params = ours(saved(case))
  tokens = random_tokens(1, 24)
  segments = np.int32(1 + (np.arange(24) >= 9))[None]
  positions = np.concatenate([np.arange(9), np.arange(15)]).astype(np.int32)[None]
  actual = np.asarray(jax.jit(model.logits)(params, tokens, positions, segments))
  first, second = tokens[:, :9], tokens[:, 9:]
  expected = [their_logits(peer(case), part) for part in (first, second)]
  np.testing.assert_allclose(actual, np.concatenate(expected, axis=1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_export_means_the_same(case, tmp_path, saved):
  config, _, params = ours(saved(case))
  hf.save(tmp_path / "export", config, params, max_shard_bytes=30_000)
  assert len(list((tmp_path / "export").glob("*.safetensors"))) > 1
  exported, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "export", output_loading_info=True
  )
  assert exported.dtype == torch.float32
  assert not any(info.values()), info
  tokens = random_tokens()
  expected = their_logits(peer(case), tokens)
  np.testing.assert_array_equal(their_logits(exported, tokens), expected)

  again, _, params_again = ours(tmp_path / "export")
  assert again == config
  jax.tree.map(np.testing.assert_array_equal, params_again, params)


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe", "olmoe"])
def test_reads_fused_experts(case, tmp_path, saved):
  peer(case).save_pretrained(tmp_path, save_original_format=False)
  names = open_folder(tmp_path).info
  assert "model.layers.0.mlp.experts.gate_up_proj" in names
  _, _, expected = ours(saved(case))
  _, _, actual = ours(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("case", ["qwen2_window", "gemma3_text", "mixtral", "olmoe"])
def test_the_config_of_version_4_means_the_same(case, saved):
  """The keys of before `rope_parameters` and `layer_types` alone are enough for both."""
  config, *_ = ours(saved(case))
  content = hf.to_hf_config(config)
  old = {k: v for k, v in content.items() if k not in ("rope_parameters", "layer_types")}
  assert hf.from_hf_config(old) == config
  kind = transformers.CONFIG_MAPPING[config.family]
  read = kind(**{k: v for k, v in old.items() if k not in ("model_type", "torch_dtype")})
  assert hf.from_hf_config(json.loads(read.to_json_string(use_diff=False))) == config


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reads_half_precision(dtype, tmp_path, saved):
  model = transformers.AutoModelForCausalLM.from_pretrained(
    saved("qwen2"), dtype=getattr(torch, dtype)
  )
  model.save_pretrained(tmp_path)
  _, ours_model, params = ours(tmp_path)
  kernel = params["layers"]["attention"]["query"]["kernel"][1]
  theirs = model.model.layers[1].self_attn.q_proj.weight.detach().float().numpy()
  np.testing.assert_array_equal(kernel, theirs.T)
  tokens = random_tokens()
  logits = jax.jit(ours_model.logits)(params, tokens, *whole_rows(tokens))
  expected = their_logits(model.float(), tokens)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
  _, _, halves = ours(tmp_path, parameter_dtype="bfloat16")
  assert halves["layers"]["attention"]["query"]["kernel"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    halves["layers"]["attention"]["query"]["kernel"][1], theirs.T.astype(jnp.bfloat16)
  )


def test_reads_the_text_part_of_a_multimodal_gemma3(tmp_path, saved):
  text = peer("gemma3_text").config.to_dict()
  vision = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
  }
  config = transformers.Gemma3Config(
    text_config=text, vision_config=vision, mm_tokens_per_image=4
  )
  whole = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
  whole.model.language_model.load_state_dict(peer("gemma3_text").model.state_dict())
  whole.save_pretrained(tmp_path)
  config, _, params = ours(tmp_path)
  expected_config, _, expected = ours(saved("gemma3_text"))
  assert config == expected_config
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_tokenizer_and_its_token_ids_come_back(tmp_path, saved):
  tokenizers = pytest.importorskip("tokenizers")
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
  source = tmp_path / "source"
  transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b").save_pretrained(
    source
  )
  config, _, params = ours(saved("llama"))
  config = dataclasses.replace(config, context_length=64)
  hf.save(
    tmp_path / "export",
    config,
    params,
    tokenizer_folder=source,
    token_ids={"eos_token_id": 1},
    generation_config={"max_new_tokens": 3, "eos_token_id": 1, "do_sample": False},
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
  assert tokenizer.eos_token_id == model.config.eos_token_id == 1
  assert (model.config.bos_token_id, model.config.pad_token_id) == (None, None)
  assert model.generation_config.max_new_tokens == 3
  assert hf.read_token_ids(tmp_path / "export") == {"eos_token_id": 1}
