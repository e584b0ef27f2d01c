"""Times the decoder beside the same model in transformers and torch, on one CPU core.

  python launch/bench_models.py                       # batches of 8 rows of 256 tokens
  python launch/bench_models.py --batch_size=4 --sequence_length=512

A Llama of 6.8 million parameters in float32: the training step (forward, backward, AdamW) and
the scoring pass (the loss of every token). Both sides take the same tokens and weights, their
losses are compared, and their calls take turns in one process that is bound to one core. What
is timed is the process's CPU time, which other processes change least.
Needs torch and transformers.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags

CORE = flags.DEFINE_integer("core", None, "The core to use; default: the last one allowed.")
BATCH = flags.DEFINE_integer("batch_size", 8, "Rows of a step.")
LENGTH = flags.DEFINE_integer("sequence_length", 256, "Tokens of a row.")
PAIRS = flags.DEFINE_integer("pairs", 15, "Interleaved calls of each.")

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-2

Call = Callable[[], float]


def main(argv: list[str]) -> None:
  del argv
  # Before either library counts the cores for its threads.
  core = max(os.sched_getaffinity(0)) if CORE.value is None else CORE.value
  os.sched_setaffinity(0, {core})
  for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

  import numpy as np

  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 4096, (BATCH.value, LENGTH.value + 1)).astype(np.int32)
  ours, params = _jdc(tokens)
  theirs = _torch(tokens, params)
  for what in ("scoring", "training"):
    losses = float(ours[what]()), float(theirs[what]())
    if abs(losses[0] - losses[1]) > 1e-4:
      raise ValueError(f"the two sides compute different losses: {losses}")
    print(f"{what}, {BATCH.value} rows of {LENGTH.value} tokens, loss {losses[0]:.5f}")
    calls = {"jdc": ours[what], "torch": theirs[what], "torch again (A/A)": theirs[what]}
    seconds = _interleave(calls)
    base = np.asarray(seconds["torch"])
    for name, values in seconds.items():
      print(
        f"{name:>20}: median {1e3 * np.median(values):7.1f} ms, min {1e3 * min(values):7.1f}; "
        f"over torch {np.median(values / base):.3f} of medians, "
        f"{min(values) / base.min():.3f} of minima"
      )


def _jdc(tokens: Any) -> tuple[dict[str, Call], Any]:
  """Returns the calls of the decoder, and its initial parameters."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  from jdc.models.decoder import decoder

  model, optimizer = decoder(_config()), optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
  params = jax.jit(model.init)(jax.random.key(0))
  inputs, targets = jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:])
  positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
  rows = inputs, targets, positions, jnp.ones_like(inputs)
  token_losses = jax.jit(model.token_losses)

  def loss_fn(params: Any, rows: Any) -> jax.Array:
    return jnp.mean(model.token_losses(params, *rows))

  def step(params: Any, opt_state: Any, rows: Any) -> tuple[Any, Any, jax.Array]:
    loss, grads = jax.value_and_grad(loss_fn)(params, rows)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  train_step = jax.jit(step, donate_argnums=(0, 1))
  state = [jax.tree.map(jnp.copy, params), optimizer.init(params)]

  def training() -> float:
    state[0], state[1], loss = train_step(*state, rows)
    return float(jax.block_until_ready((state, loss))[1])

  def scoring() -> float:
    return float(np.mean(token_losses(params, *rows)))

  return {"scoring": scoring, "training": training}, params


def _torch(tokens: Any, params: Any) -> dict[str, Call]:
  """Returns the calls of the peer, which starts from the same parameters."""
  import torch
  from transformers import LlamaForCausalLM

  torch.set_num_threads(1)
  model = LlamaForCausalLM(_llama_config())
  model.load_state_dict(_llama_weights(params))
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.999)
  )
  inputs = torch.from_numpy(tokens[:, :-1].astype("int64"))
  targets = torch.from_numpy(tokens[:, 1:].astype("int64"))

  def token_losses() -> Any:
    logits = model(input_ids=inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
      logits.flatten(0, 1), targets.flatten(), reduction="none"
    )

  def training() -> float:
    loss = token_losses().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()

  def scoring() -> float:
    with torch.inference_mode():
      return token_losses().mean().item()

  return {"scoring": scoring, "training": training}


def _config() -> Any:
  from jdc.models.decoder_config import DecoderConfig

  return DecoderConfig(
    vocab_size=4096, width=256, num_layers=6, num_heads=8, num_kv_heads=4, mlp_width=768
  )


def _llama_config() -> Any:
  from transformers import LlamaConfig

  ours = _config()
  return LlamaConfig(
    vocab_size=ours.vocab_size,
    hidden_size=ours.width,
    intermediate_size=ours.mlp_width,
    num_hidden_layers=ours.num_layers,
    num_attention_heads=ours.num_heads,
    num_key_value_heads=ours.num_kv_heads,
    rms_norm_eps=ours.norm_epsilon,
    max_position_embeddings=LENGTH.value,
    tie_word_embeddings=False,
    attn_implementation="sdpa",  # type: ignore[call-arg]
  )


def _llama_weights(params: Any) -> dict[str, Any]:
  """The parameters under the names of transformers, matrices transposed."""
  import numpy as np
  import torch

  def tensor(x: Any) -> Any:
    return torch.from_numpy(np.array(x))

  layers = params["layers"]
  weights = {
    "model.embed_tokens.weight": tensor(params["embedding"]["embedding"]),
    "model.norm.weight": tensor(params["final_norm"]["scale"]),
    "lm_head.weight": tensor(params["output"]["kernel"].T),
  }
  for i in range(_config().num_layers):
    for ours, theirs in (("attention_norm", "input"), ("mlp_norm", "post_attention")):
      weights[f"model.layers.{i}.{theirs}_layernorm.weight"] = tensor(layers[ours]["scale"][i])
    for module, name, theirs in (
      ("attention", "query", "self_attn.q_proj"),
      ("attention", "key", "self_attn.k_proj"),
      ("attention", "value", "self_attn.v_proj"),
      ("attention", "attention_output", "self_attn.o_proj"),
      ("mlp", "gate", "mlp.gate_proj"),
      ("mlp", "up", "mlp.up_proj"),
      ("mlp", "down", "mlp.down_proj"),
    ):
      kernel = layers[module][name]["kernel"][i]
      weights[f"model.layers.{i}.{theirs}.weight"] = tensor(kernel.T)
  return weights


def _interleave(calls: dict[str, Call]) -> dict[str, list[float]]:
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for pair in range(-2, PAIRS.value):  # the first two calls warm up
    for name in calls if pair % 2 else reversed(calls):
      started = time.process_time()
      calls[name]()
      if pair >= 0:
        seconds[name].append(time.process_time() - started)
  return seconds


if __name__ == "__main__":
  app.run(main)
