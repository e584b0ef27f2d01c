"""Tests of the decoder: its equations, what a token may see, its options."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.data.batch import inputs_and_targets
from jdc.models.decoder import DecoderConfig, decoder

CONFIG = DecoderConfig(
  vocab_size=61,
  width=24,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  mlp_width=40,
  head_size=8,
  initializer_scale=2.5,  # large, so that attention is far from uniform
)
KEY = jax.random.key(0)


def replace(**changes):
  return dataclasses.replace(CONFIG, **changes)


@functools.cache
def make(config):
  """A model and its initial parameters; one a configuration, so that it compiles once."""
  model = decoder(config)
  return model, jax.jit(model.init)(KEY)


def packed_rows(segments, seed=0, vocab_size=61):
  """Rows with random tokens in the given segments, and the masks of their targets."""
  segments = np.asarray(segments, np.int32)
  rng = np.random.default_rng(seed)
  tokens = np.where(segments > 0, rng.integers(0, vocab_size, segments.shape), 0)
  return inputs_and_targets(np.int32(tokens), segments)


def losses(model, params, rows):
  return jax.jit(model.token_losses)(params, *rows[:4])


def gradients(model, params, rows):
  """Of the mean loss over all positions."""
  loss = lambda params: jnp.mean(model.token_losses(params, *rows[:4]))
  return jax.jit(jax.grad(loss))(params)


ROWS = packed_rows([[1] * 5 + [2] * 8, [1] * 9 + [0] * 4])


# The equations again, in NumPy and float64, one sequence of one document at a time.


def reference_losses(config, params, tokens, targets):
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  hidden_TxD = params["embedding"]["embedding"][tokens]
  for i in range(config.num_layers):
    layer = jax.tree.map(lambda x, i=i: x[i], params["layers"])
    x_TxD = reference_norm(config, hidden_TxD, layer["attention_norm"])
    hidden_TxD = hidden_TxD + reference_attention(config, x_TxD, layer["attention"])
    x_TxD = reference_norm(config, hidden_TxD, layer["mlp_norm"])
    gate_TxF = x_TxD @ layer["mlp"]["gate"]["kernel"]
    gated_TxF = gate_TxF / (1 + np.exp(-gate_TxF)) * (x_TxD @ layer["mlp"]["up"]["kernel"])
    hidden_TxD = hidden_TxD + gated_TxF @ layer["mlp"]["down"]["kernel"]
  hidden_TxD = reference_norm(config, hidden_TxD, params["final_norm"])
  tied = config.tie_embeddings
  output_DxV = params["embedding"]["embedding"].T if tied else params["output"]["kernel"]
  logits_TxV = hidden_TxD @ output_DxV
  normaliser_T = np.log(np.exp(logits_TxV).sum(axis=1))
  return normaliser_T - logits_TxV[np.arange(len(targets)), targets]


def reference_norm(config, x_TxD, norm):
  return x_TxD / np.sqrt((x_TxD**2).mean(axis=1) + config.norm_epsilon)[:, None] * norm["scale"]


def reference_attention(config, x_TxD, layer):
  size = config.features_per_head
  group = config.num_heads // config.num_kv_heads
  attended = []
  for head in range(config.num_heads):
    columns = slice(head * size, (head + 1) * size)
    kv_columns = slice(head // group * size, (head // group + 1) * size)
    query_TxH = reference_rotation(config, x_TxD @ layer["query"]["kernel"][:, columns])
    key_TxH = reference_rotation(config, x_TxD @ layer["key"]["kernel"][:, kv_columns])
    value_TxH = x_TxD @ layer["value"]["kernel"][:, kv_columns]
    for t in range(len(x_TxD)):
      score = np.exp(key_TxH[: t + 1] @ query_TxH[t] / np.sqrt(size))
      attended.append(score / score.sum() @ value_TxH[: t + 1])
  attended = np.array(attended).reshape(config.num_heads, len(x_TxD), size)
  return attended.swapaxes(0, 1).reshape(len(x_TxD), -1) @ layer["attention_output"]["kernel"]


def reference_rotation(config, x_TxH):
  """Features i and i + H / 2 are the parts of a complex number, turned by t base^(-2i/H)."""
  half = config.features_per_head // 2
  frequency = config.rope_base ** (-2 * np.arange(half) / config.features_per_head)
  turn = np.exp(1j * np.arange(len(x_TxH))[:, None] * frequency)
  turned = (x_TxH[:, :half] + 1j * x_TxH[:, half:]) * turn
  return np.concatenate([turned.real, turned.imag], axis=1)


@pytest.mark.parametrize(
  ("num_kv_heads", "tie_embeddings"), [(1, False), (2, True), (4, False)]
)
def test_agrees_with_the_equations(num_kv_heads, tie_embeddings):
  config = replace(num_kv_heads=num_kv_heads, tie_embeddings=tie_embeddings, rope_base=50.0)
  model, params = make(config)
  params = randomised_norms(params)
  rows = packed_rows([[1] * 12, [1] * 12])
  computed = losses(model, params, rows)
  for row in range(2):
    expected = reference_losses(config, params, rows.tokens[row], rows.targets[row])
    np.testing.assert_allclose(computed[row], expected, rtol=2e-5, atol=2e-5)


def randomised_norms(params):
  """Initial scales are all one, which would hide a scale that is not used."""
  keys = iter(jax.random.split(jax.random.key(7), 3))
  spread = lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape)
  layers = params["layers"]
  norms = {name: {"scale": spread(layers[name]["scale"])} for name in layers if "norm" in name}
  final_norm = {"scale": spread(params["final_norm"]["scale"])}
  return params | {"layers": layers | norms, "final_norm": final_norm}


def test_packed_documents_have_the_losses_of_each_alone():
  model, params = make(CONFIG)
  documents = [(0, 6), (6, 15), (15, 18)]
  packed = packed_rows([[1] * 6 + [2] * 9 + [3] * 3] * 3)
  tokens = np.append(packed.tokens[0], packed.targets[0, -1:])
  alone = np.zeros((3, 18), np.int32)
  for row, (start, end) in zip(alone, documents, strict=True):
    row[: end - start] = tokens[start:end]
  lengths = np.array([[end - start] for start, end in documents])
  separate = inputs_and_targets(alone, np.int32(np.arange(18) < lengths))
  packed_losses = losses(model, params, packed)[0]
  separate_losses = losses(model, params, separate)
  for row, (start, end) in enumerate(documents):
    expected = separate_losses[row, : end - start - 1]
    np.testing.assert_allclose(packed_losses[start : end - 1], expected, rtol=1e-5, atol=1e-5)


def test_sees_only_earlier_tokens_of_its_own_segment():
  model, params = make(CONFIG)
  rows = packed_rows([[1] * 5 + [2] * 6 + [0] * 3])
  changed_token = 7
  tokens = rows.tokens.copy()
  tokens[0, changed_token] = (tokens[0, changed_token] + 1) % CONFIG.vocab_size
  hidden = jax.jit(model.hidden)
  before = hidden(params, rows.tokens, rows.positions, rows.segments)
  after = hidden(params, tokens, rows.positions, rows.segments)
  changed = np.abs(after - before).max(axis=2)[0]
  sees_it = (np.arange(13) >= changed_token) & (rows.segments[0] == 2)
  assert np.all(changed[~sees_it] == 0)
  assert np.all(changed[sees_it] > 1e-4)


def test_positions_matter_only_relative_to_each_other():
  model, params = make(CONFIG)
  logits = jax.jit(model.logits)
  base = logits(params, ROWS.tokens, ROWS.positions, ROWS.segments)
  shifted = logits(params, ROWS.tokens, ROWS.positions + 5, ROWS.segments)
  spread = logits(params, ROWS.tokens, ROWS.positions * 2, ROWS.segments)
  np.testing.assert_allclose(shifted, base, rtol=1e-4, atol=1e-4)
  assert np.abs(spread - base).max() > 1e-2


def test_grouped_queries_equal_full_heads_with_repeated_kv_heads():
  (grouped, params), (full, _) = make(CONFIG), make(replace(num_kv_heads=4))
  size = CONFIG.features_per_head

  def repeat_heads(kernel):
    heads = kernel.reshape(*kernel.shape[:2], CONFIG.num_kv_heads, size)
    return jnp.repeat(heads, 2, axis=2).reshape(*kernel.shape[:2], -1)

  attention = params["layers"]["attention"]
  repeated = {
    name: {"kernel": repeat_heads(attention[name]["kernel"])} for name in ("key", "value")
  }
  full_params = params | {"layers": params["layers"] | {"attention": attention | repeated}}
  expected = losses(grouped, params, ROWS)
  np.testing.assert_allclose(losses(full, full_params, ROWS), expected, rtol=1e-5, atol=1e-5)


def test_tied_embeddings_equal_untied_ones_with_the_same_matrix():
  (tied, params), (untied, _) = make(replace(tie_embeddings=True)), make(CONFIG)
  assert "output" not in params
  untied_params = params | {"output": {"kernel": params["embedding"]["embedding"].T}}
  expected = losses(tied, params, ROWS)
  np.testing.assert_allclose(losses(untied, untied_params, ROWS), expected, rtol=1e-6)

  gradient = gradients(tied, params, ROWS)
  parts = gradients(untied, untied_params, ROWS)
  expected = parts["embedding"]["embedding"] + parts["output"]["kernel"].T
  np.testing.assert_allclose(gradient["embedding"]["embedding"], expected, rtol=1e-4, atol=1e-6)


def test_remat_changes_memory_and_not_gradients():
  rows = packed_rows([[1] * 65] * 8)

  def compiled(remat):
    model = decoder(replace(remat=remat, num_layers=6))
    loss = lambda params: jnp.mean(model.token_losses(params, *rows[:4]))
    params = model.init(KEY)
    function = jax.jit(jax.grad(loss)).lower(params).compile()
    return function(params), function.memory_analysis().temp_size_in_bytes

  plain, plain_bytes = compiled("none")
  remat, remat_bytes = compiled("layer")
  assert remat_bytes < plain_bytes / 2
  for expected, actual in zip(*map(jax.tree.leaves, (plain, remat)), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_activations_keep_parameters_and_stay_near_float32():
  (low, params), (high, _) = make(replace(dtype="bfloat16")), make(CONFIG)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
  hidden = jax.eval_shape(low.hidden, params, ROWS.tokens, ROWS.positions, ROWS.segments)
  assert hidden.dtype == jnp.bfloat16
  gradient = gradients(low, params, ROWS)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}
  difference = losses(low, params, ROWS) - losses(high, params, ROWS)
  assert 0 < np.abs(difference).max() < 0.1  # losses are near 5 nats; bfloat16 has 8 bits
  assert abs(difference.mean()) < 0.02


def test_parameters_can_be_bfloat16():
  params = jax.eval_shape(decoder(replace(parameter_dtype="bfloat16")).init, KEY)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


@pytest.mark.parametrize(("remat", "dtype"), [("none", "float32"), ("layer", "bfloat16")])
def test_padding_is_finite_and_without_effect(remat, dtype):
  model = decoder(replace(remat=remat, dtype=dtype), loss_chunk=4)
  params = model.init(KEY)
  rows = packed_rows([[1] * 6 + [0] * 7, [0] * 13])

  @jax.jit
  def loss_and_gradient(params, tokens):
    def loss(params):
      losses_BxT = model.token_losses(params, tokens, *rows[1:4])
      return jnp.sum(jnp.where(rows.mask, losses_BxT, 0.0)), losses_BxT

    return jax.value_and_grad(loss, has_aux=True)(params)

  (loss, losses_BxT), gradient = loss_and_gradient(params, rows.tokens)
  assert np.all(np.isfinite(losses_BxT))
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
  (other_loss, _), _ = loss_and_gradient(params, np.where(rows.segments == 0, 9, rows.tokens))
  assert other_loss == loss


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_number_of_parameters(tie_embeddings):
  config = replace(tie_embeddings=tie_embeddings)
  shapes = jax.eval_shape(decoder(config).init, KEY)
  vocab_size, width, size = config.vocab_size, config.width, config.features_per_head
  attention = 2 * width * size * (config.num_heads + config.num_kv_heads)
  layer = attention + 3 * width * config.mlp_width + 2 * width
  expected = config.num_layers * layer + width + vocab_size * width * (2 - tie_embeddings)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_initial_scales():
  params = make(replace(width=160, mlp_width=256, initializer_scale=0.5))[1]
  mlp = params["layers"]["mlp"]
  residual_scale = 0.025 / np.sqrt(2 * CONFIG.num_layers)
  np.testing.assert_allclose(np.std(mlp["up"]["kernel"]), 0.025, rtol=0.03)
  np.testing.assert_allclose(np.std(mlp["down"]["kernel"]), residual_scale, rtol=0.03)
  np.testing.assert_allclose(np.std(params["embedding"]["embedding"]), 0.025, rtol=0.03)
  layers = np.reshape(mlp["up"]["kernel"], (CONFIG.num_layers, -1))
  assert np.abs(np.corrcoef(layers) - np.eye(CONFIG.num_layers)).max() < 0.05  # distinct keys


def test_chunked_losses_equal_the_logits():
  model = decoder(CONFIG, loss_chunk=5)
  params = model.init(KEY)
  logits = jax.jit(model.logits)(params, ROWS.tokens, ROWS.positions, ROWS.segments)
  assert logits.dtype == jnp.float32
  log_probability = jax.nn.log_softmax(logits)
  expected = -np.take_along_axis(log_probability, ROWS.targets[..., None], axis=2)[..., 0]
  np.testing.assert_allclose(losses(model, params, ROWS), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss_chunk", [0, -1, 2.0, "all"])
def test_rejects_a_loss_chunk(loss_chunk):
  with pytest.raises(ValueError, match="loss_chunk"):
    decoder(CONFIG, loss_chunk=loss_chunk)


def test_per_example_gradients_agree_with_a_loop():
  model, params = make(CONFIG)

  def loss(params, row):
    return jnp.sum(model.token_losses(params, *(x[None] for x in row)))

  gradient = jax.jit(jax.grad(loss))
  per_example = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, ROWS[:4])
  for i in range(2):
    alone = gradient(params, tuple(x[i] for x in ROWS[:4]))
    for expected, actual in zip(*map(jax.tree.leaves, (alone, per_example)), strict=True):
      np.testing.assert_allclose(actual[i], expected, rtol=1e-4, atol=1e-5)


def test_learns_to_copy():
  model = decoder(replace(initializer_scale=1.0, vocab_size=8))
  tokens = jax.random.randint(jax.random.key(1), (16, 8), 0, 8, dtype=jnp.int32)
  rows = np.tile(tokens, 2)
  batch = inputs_and_targets(rows, np.ones_like(rows))

  def loss(params):
    return jnp.mean(model.token_losses(params, *batch[:4])[:, 8:])  # the second copies

  @jax.jit
  def step(params):
    value, gradient = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.005 * jnp.sign(g), params, gradient), value

  params = model.init(KEY)
  for _ in range(60):
    params, value = step(params)
  assert value < 0.5 * np.log(8)
