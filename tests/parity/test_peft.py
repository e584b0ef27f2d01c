"""Adapters against the PEFT library on tiny random models of each family: both directions."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.models import hf
from jdc.models.decoder import decoder
from jdc.models.hf.config import from_hf_config
from jdc.models.lora import LoraConfig, adaptable, merged
from jdc.models.peft import load_adapter, save_adapter
from jdc.models.peft.config import CONFIG
from jdc.models.subsets import join, matcher, split

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

# PEFT asks transformers for a property by the name that it had before.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

SIZES = {
  "vocab_size": 64,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 8,
  "max_position_embeddings": 64,
  "bos_token_id": None,
  "eos_token_id": None,
  "pad_token_id": None,
}
EXPERTS = {"num_experts_per_tok": 2}
OWN = {
  "llama": {},
  "mistral": {"sliding_window": 5},
  "qwen2": {},
  "qwen3": {},
  "gemma3_text": {
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 8,
  },
  "mixtral": {**EXPERTS, "num_local_experts": 4, "sliding_window": None},
  "qwen3_moe": {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 48},
  "olmoe": {**EXPERTS, "num_experts": 4},
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
TOKENS = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 12))


def torch_model(family):
  sizes = SIZES if family != "olmoe" else {k: v for k, v in SIZES.items() if k != "head_dim"}
  torch.manual_seed(0)
  config = transformers.AutoConfig.for_model(family, **sizes, **OWN[family])
  model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if "norm" not in name:  # larger than the library's initial values, so that maps matter
        parameter.copy_(0.2 * torch.randn_like(parameter))
  return model.eval()


@pytest.fixture(scope="module", params=OWN)
def base(request, tmp_path_factory):
  """The family, the folder of its base model, the decoder's config and its parameters."""
  family = request.param
  folder = tmp_path_factory.mktemp(family)
  torch_model(family).save_pretrained(folder)
  config = from_hf_config(folder)
  target = jax.eval_shape(decoder(config).init, jax.random.key(0))
  return family, folder, config, hf.load(folder, config, target)


def peft_logits(model):
  with torch.no_grad():
    return model(torch.tensor(TOKENS)).logits.numpy()


def adapted_by_peft(family, folder, **options):
  """A base model with random adapters, both maps different from 0, saved in `folder`."""
  targets = "all-linear" if family in DENSE else ATTENTION
  options = {"r": 3, "lora_alpha": 8, "target_modules": targets, **options}
  config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
  model = peft.get_peft_model(torch_model(family), config).eval()
  model.save_pretrained(folder)
  return model


@functools.cache  # the base models of a family compile once
def compiled(config, lora):
  return jax.jit(decoder(config, lora=lora).logits)


def our_logits(config, params, lora=None):
  tokens = jnp.asarray(TOKENS, jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  return compiled(config, lora)(params, tokens, positions, jnp.ones_like(tokens))


def check(config, frozen, lora, adapters, expected):
  adapted = our_logits(config, join(frozen, adapters), lora)
  np.testing.assert_allclose(adapted, expected, atol=1e-4)
  whole = merged(join(frozen, adapters), lora)
  np.testing.assert_allclose(our_logits(config, whole), expected, atol=1e-4)
  assert np.abs(expected - our_logits(config, frozen)).max() > 0.05  # the adapter matters


def test_an_adapter_that_peft_saved(base, tmp_path):
  family, _, config, frozen = base
  stabilised = family in ("mistral", "qwen3_moe")
  model = adapted_by_peft(family, tmp_path, use_rslora=stabilised)
  lora, adapters = load_adapter(tmp_path, config)
  assert (lora.rank, lora.alpha, lora.rank_stabilised) == (3, 8, stabilised)
  assert [module for module in adaptable(config) if not lora.adapts(module)] == []
  expected = peft_logits(model)
  check(config, frozen, lora, adapters, expected)
  np.testing.assert_allclose(peft_logits(model.merge_and_unload()), expected, atol=1e-4)


def test_peft_loads_what_is_saved(base, tmp_path):
  family, folder, config, frozen = base
  targets = ["layers/attention/query", "layers/*/value"]
  lora = LoraConfig(
    rank=4,
    alpha=6.5,
    targets=(*targets, *([] if config.num_experts else ["layers/mlp/*"])),
    rank_stabilised=family in ("llama", "gemma3_text"),
    dtype="bfloat16" if family in ("llama", "qwen2") else "float32",
  )
  adapters = random_adapters(config, lora)
  save_adapter(tmp_path / "out", adapters, lora, config, base_model_name=str(folder))
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
  model = peft.PeftModel.from_pretrained(model, tmp_path / "out").eval()
  check(config, frozen, lora, adapters, peft_logits(model))


def random_adapters(config, lora):
  shapes = jax.eval_shape(decoder(config, lora=lora).init, jax.random.key(0))
  rng = np.random.default_rng(1)
  adapters, _ = split(shapes, matcher(["*/lora_*"]))
  return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), adapters)


@pytest.mark.parametrize(
  "options",
  [
    {"target_modules": r"model\.layers\.\d+\.(self_attn\.(q|v)_proj|mlp\.up_proj)"},
    {"target_modules": ["self_attn.q_proj", "v_proj", "up_proj", "gate_up_proj"]},
    {"target_modules": "all-linear", "exclude_modules": r".*\.(k|o|gate|down)_proj"},
    {
      "target_modules": ["q_proj", "v_proj", "mlp.up_proj", "k_proj"],
      "exclude_modules": ["k_proj"],
    },
  ],
)
def test_target_modules_mean_what_they_mean_to_peft(options, tmp_path):
  adapted_by_peft("llama", tmp_path, **options)
  with (tmp_path / CONFIG).open() as file:
    assert json.load(file)["target_modules"]
  config = from_hf_config({"model_type": "llama", **SIZES})
  lora, _ = load_adapter(tmp_path, config)  # which checks that these modules have tensors
  assert lora.targets == ("layers/attention/query", "layers/attention/value", "layers/mlp/up")


@pytest.mark.parametrize(
  ("family", "options", "named"),
  [
    ("olmoe", {"target_modules": "all-linear"}, ["target_parameters", "rank_pattern"]),
    ("llama", {"use_dora": True}, ["use_dora True"]),
    ("llama", {"bias": "all", "lora_bias": True}, ["bias 'all'", "lora_bias True"]),
    (
      "llama",
      {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
      ["lm_head is adapted", "model.embed_tokens is adapted"],
    ),
    (
      "llama",
      {
        "target_modules": ["q_proj"],
        "rank_pattern": {"q_proj": 2},
        "modules_to_save": ["norm"],
      },
      ["rank_pattern {'q_proj': 2}", "modules_to_save ['norm']"],
    ),
    (
      "llama",
      {
        "target_modules": ["q_proj"],
        "layers_to_transform": [1],
        "alpha_pattern": {"q_proj": 2},
      },
      ["layers_to_transform [1]", "alpha_pattern {'q_proj': 2}"],
    ),
  ],
)
@pytest.mark.filterwarnings("ignore")  # PEFT has many to give about such adapters
def test_what_the_decoder_lacks_is_an_error(family, options, named, tmp_path):
  adapted_by_peft(family, tmp_path, **options)
  sizes = {k: v for k, v in SIZES.items() if k != "head_dim"}
  config = from_hf_config({"model_type": family, **sizes, **OWN[family]})
  with pytest.raises(ValueError) as error:
    load_adapter(tmp_path, config)
  for words in named:
    assert words in str(error.value)
