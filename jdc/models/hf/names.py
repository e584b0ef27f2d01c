"""Which tensors of a Hugging Face checkpoint make up each parameter of a decoder."""

import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax

from jdc.models.base import Params
from jdc.models.decoder_config import DecoderConfig

Path = tuple[str, ...]

# What the names begin with, and the output matrix: of a causal language model; inside a
# multimodal Gemma 3, before and since transformers 4.52; of a model without an output matrix.
_OUTPUTS = {
  "model.": "lm_head.weight",
  "language_model.model.": "language_model.lm_head.weight",
  "model.language_model.": "lm_head.weight",
  "": "lm_head.weight",
}

# Rotary frequencies, which older versions saved although they follow from config.json.
_BUFFER = re.compile(r"(.+\.)?rotary_emb\.inv_freq")
_VISION = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\..+")


class Layout(NamedTuple):
  """How a checkpoint names and divides what transformers names in several ways."""

  prefix: str = "model."
  mixture: str = "mlp"  # the module of a mixture of experts
  fused: bool = False  # all experts of a layer in one tensor, their gate and up maps too

  @property
  def output(self) -> str:
    """The name of the output matrix."""
    return _OUTPUTS[self.prefix]


class Leaf(NamedTuple):
  """The tensors that a parameter is made of.

  The first `stacked` axes of the parameter, layers and experts, count tensors. What is left of
  its axes is one tensor, its last two axes swapped where `transposed`; or, of several parts of
  a tensor's axis -2, the one of that number.
  """

  template: str  # the name, with {layer} and {expert}
  stacked: int
  transposed: bool
  part: int = 0
  num_parts: int = 1

  def name(self, *coordinates: int) -> str:
    """The tensor at these positions of the stacked axes."""
    return self.template.format(**dict(zip(("layer", "expert"), coordinates, strict=False)))

  def shape(self, parameter_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of each of the tensors."""
    shape = list(parameter_shape[self.stacked :])
    if self.transposed:
      shape[-2:] = [shape[-1] * self.num_parts, shape[-2]]
    return tuple(shape)


def default_layout(config: DecoderConfig) -> Layout:
  """The layout that is written: the one that transformers 4 and 5 both read."""
  return Layout(mixture="block_sparse_moe" if config.family == "mixtral" else "mlp")


def find_layout(config: DecoderConfig, names: Collection[str]) -> Layout:
  """The layout that a checkpoint with these tensors has; the default one where none fits."""
  found = [p for p in _OUTPUTS if f"{p}embed_tokens.weight" in names]
  layout = default_layout(config)._replace(prefix=found[0] if found else "model.")
  first = f"{layout.prefix}layers.0."
  if f"{first}mlp.gate.weight" in names:
    layout = layout._replace(mixture="mlp")
  return layout._replace(fused=f"{first}{layout.mixture}.experts.gate_up_proj" in names)


def leaves(config: DecoderConfig, layout: Layout) -> dict[Path, Leaf]:
  """The tensors of every parameter of a decoder.

  Args:
    config: the decoder.
    layout: that of the checkpoint.

  Returns:
    For each path in the tree of parameters, the tensors that it is made of.
  """
  result: dict[Path, Leaf] = {}
  result["embedding", "embedding"] = Leaf(f"{layout.prefix}embed_tokens.weight", 0, False)
  for path, name in _norms(config).items():
    result["layers", *path] = Leaf(f"{layout.prefix}layers.{{layer}}.{name}.weight", 1, False)
  for module, name in _ATTENTION.items():
    template = f"{layout.prefix}layers.{{layer}}.self_attn.{name}"
    result["layers", "attention", module, "kernel"] = Leaf(f"{template}.weight", 1, True)
    if config.attention_bias and module != "attention_output":
      result["layers", "attention", module, "bias"] = Leaf(f"{template}.bias", 1, False)
  for path, leaf in _mlp(config, layout):
    result["layers", "mlp", *path] = leaf
  result["final_norm", "scale"] = Leaf(f"{layout.prefix}norm.weight", 0, False)
  if not config.tie_embeddings:
    result["output", "kernel"] = Leaf(layout.output, 0, True)
  return result


def is_ignored(config: DecoderConfig, name: str) -> bool:
  """Whether a tensor that no parameter is made of does not matter.

  These do not: rotary frequencies, and beside the text part of Gemma 3 the image encoder and
  its projection.
  """
  is_vision = config.family == "gemma3_text" and _VISION.fullmatch(name) is not None
  return is_vision or _BUFFER.fullmatch(name) is not None


def flatten(tree: Params) -> dict[Path, Any]:
  """The leaves of a tree of parameters by their paths."""
  return {names_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def names_of(path: tuple[Any, ...]) -> Path:
  """The path of a leaf as JAX states it, as names."""
  return tuple(entry.key for entry in path)


_ATTENTION = {
  "query": "q_proj",
  "key": "k_proj",
  "value": "v_proj",
  "attention_output": "o_proj",
}
_GATED = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}


def _norms(config: DecoderConfig) -> dict[Path, str]:
  norms: dict[Path, str] = {("attention_norm", "scale"): "input_layernorm"}
  if config.post_norms:
    norms["post_attention_norm", "scale"] = "post_attention_layernorm"
    norms["mlp_norm", "scale"] = "pre_feedforward_layernorm"
    norms["post_mlp_norm", "scale"] = "post_feedforward_layernorm"
  else:
    norms["mlp_norm", "scale"] = "post_attention_layernorm"
  if config.qk_norm != "none":
    norms["attention", "query_norm", "scale"] = "self_attn.q_norm"
    norms["attention", "key_norm", "scale"] = "self_attn.k_norm"
  return norms


def _mlp(config: DecoderConfig, layout: Layout) -> Iterator[tuple[Path, Leaf]]:
  base = f"{layout.prefix}layers.{{layer}}.{layout.mixture}"
  if not config.num_experts:
    for module, name in _GATED.items():
      yield (module, "kernel"), Leaf(f"{base}.{name}.weight", 1, True)
    return
  yield ("router", "kernel"), Leaf(f"{base}.gate.weight", 1, True)
  if layout.fused:
    for part, module in enumerate(("gate", "up")):
      yield (module, "kernel"), Leaf(f"{base}.experts.gate_up_proj", 1, True, part, 2)
    yield ("down", "kernel"), Leaf(f"{base}.experts.down_proj", 1, True)
    return
  names = _MIXTRAL if config.family == "mixtral" else _GATED
  for module, name in names.items():
    yield (module, "kernel"), Leaf(f"{base}.experts.{{expert}}.{name}.weight", 2, True)
