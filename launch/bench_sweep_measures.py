"""What `bench_sweeps.py` measures of jdc: the peak, bare forward passes and sweeps."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from bench_setup import CPU_TIME

from jdc.data import loader
from jdc.data.batch import RowInputs, inputs_and_targets
from jdc.models import subsets
from jdc.models.base import LanguageModel
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.lora import LoraConfig
from jdc.stats import losses, pool
from jdc.stats.buckets import buckets
from jdc.stats.directions import Adam, Moments
from jdc.stats.gradients import Options, make_features

VOCAB, RANK = 8192, 8  # of the model, and of its adapters
SIZE = 1024  # numbers of a feature
_LONGEST, _FULL_ROWS = 512, 8
_SQUARE = 1536  # of the product whose speed is called the peak
_KERNELS, _ADAPTERS = ("layers/*/kernel",), ("*/lora_*",)

Params = tuple[Any, Any]
ScoreChunk = Callable[[Params, Any, loader.Batch], dict[str, jax.Array]]


class Cost(NamedTuple):
  """What a call took."""

  seconds: float
  examples: int
  positions: int = 0  # computed, padding included
  padding: int = 0
  flops: float = 0.0  # of products of matrices


class Records:
  """Random examples of given lengths, in memory; the first part of each is a prompt."""

  def __init__(self, lengths: np.ndarray, prompts: np.ndarray):
    self.lengths, self._prompts = lengths, prompts
    rng = np.random.default_rng(1)
    self._tokens = rng.integers(1, VOCAB, (len(lengths), _LONGEST + 1)).astype(np.int32)

  def __len__(self) -> int:
    return len(self.lengths)

  def rows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and segments, as `jdc.data.loader.Pool` reads them."""
    place = np.arange(_LONGEST + 1)
    is_read = place < self.lengths[ids][:, None]
    segments = np.where(place < self._prompts[ids][:, None], -1, 1) * is_read
    return self._tokens[ids] * is_read, segments.astype(np.int32)


class Compiled:
  """A function of a batch that is compiled for each shape, and counts its products."""

  def __init__(self, function: ScoreChunk):
    self._function = function
    self._known: dict[tuple[int, ...], tuple[Any, float]] = {}
    self.flops = 0.0

  def __call__(self, params: Any, context: Any, batch: loader.Batch) -> dict[str, jax.Array]:
    shape = batch.tokens.shape
    if shape not in self._known:
      traced = jax.jit(self._function).trace(params, context, batch)
      self._known[shape] = traced.lower().compile(), product_flops(traced.jaxpr)
    compiled, flops = self._known[shape]
    self.flops += flops
    return compiled(params, context, batch)


def product_flops(jaxpr: Any) -> float:
  """Returns two for each multiplication in products of matrices, those of scans multiplied out.

  The compiler's own count takes the body of a loop once.
  """
  total = 0.0
  for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      numbers = [*equation.outvars[0].aval.shape, *(left[axis] for axis in contracted)]
      total += 2.0 * float(np.prod(numbers))
    inner = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    total += times * sum(product_flops(x) for x in inner if _is_jaxpr(x))
  return total


def draw_lengths(count: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the tokens of examples, about 170 in the mean, and those of their prompts."""
  rng = np.random.default_rng(0)
  # At the quantiles of a log-normal distribution, so that few examples have its mean, too.
  normal = np.sort(rng.standard_normal(100_000))[(np.arange(count) * 2 + 1) * 50_000 // count]
  drawn = 170 * np.exp(0.6 * normal - 0.6**2 / 2)
  lengths = rng.permutation(np.clip(drawn.round(), 16, _LONGEST).astype(np.int64))
  return lengths, (lengths * rng.uniform(0.15, 0.55, count)).astype(np.int64)


def make_measures(
  records: Records, batches: jax.NamedSharding, microbatch_size: int
) -> dict[str, Callable[[], Cost]]:
  """Returns what to call, by name; sweeps are of all records."""
  model, params = _model()
  rows_pool, ids = loader.Pool([records], _LONGEST), np.arange(len(records), dtype=np.int32)
  moments = Moments(
    jax.tree.map(lambda x: 1e-3 * x, params[0]),
    jax.tree.map(lambda x: 1e-4 * jnp.abs(x) + 1e-8, params[0]),
    jnp.int32(100),
  )

  def sweep(function: ScoreChunk, max_shapes: int) -> Callable[[], Cost]:
    compiled = Compiled(function)

    def measure() -> Cost:
      # The shapes of a long sweep, which are worth their compilation.
      pool.buckets = functools.partial(buckets, compilation=0, max_shapes=max_shapes)
      compiled.flops, begin = 0.0, _now()
      swept = pool.sweep(
        compiled, params, moments, rows_pool, ids, _FULL_ROWS, batches, name=None
      )
      seconds = _now() - begin
      return Cost(seconds, len(ids), swept.positions, swept.padding, compiled.flops)

    return measure

  def forward(length: int) -> Callable[[], Cost]:
    return _forward(by_losses, params, length, int(records.lengths.sum()), batches)

  by_losses = _losses(model)
  gradients = _gradients(model, params, microbatch_size)
  return {
    "peak": _peak(),
    "bare forward, rows of 512": forward(512),
    "bare forward, rows of 168": forward(168),
    "losses": sweep(by_losses, max_shapes=16),
    # Of few shapes, since the programs of all must fit the memory maps of a process together.
    **{name: sweep(function, max_shapes=6) for name, function in gradients.items()},
  }


def _model() -> tuple[LanguageModel, Params]:
  """A Llama of 7 million parameters with adapters, which alone are trained."""
  config = DecoderConfig(
    vocab_size=VOCAB, width=256, num_layers=4, num_heads=8, num_kv_heads=4, mlp_width=688
  )
  model = decoder(config, lora=LoraConfig(rank=RANK))

  params = jax.jit(model.init)(jax.random.key(0))
  adapters, frozen = subsets.split(params, subsets.matcher(_ADAPTERS))
  rng = np.random.default_rng(3)
  # None of them is 0, as after some steps.
  noise = lambda x: x + 0.01 * rng.standard_normal(x.shape, np.float32)
  return model, (jax.tree.map(noise, adapters), frozen)


def _losses(model: LanguageModel) -> ScoreChunk:
  example_losses = losses.make_example_losses(model)

  def by_losses(params: Params, context: Any, batch: loader.Batch) -> dict[str, jax.Array]:
    del context
    return {"loss": example_losses(losses.full_params(params), _inputs(batch))}

  return by_losses


def _gradients(
  model: LanguageModel, params: Params, microbatch_size: int
) -> dict[str, ScoreChunk]:
  def features(wanted: str, **options: Any) -> ScoreChunk:
    chosen = Options(microbatch_size=microbatch_size, **options)
    adam, key = Adam(0.9, 0.999, 1e-8), jax.random.key(1)
    made = make_features(model, params, frozenset({wanted}), chosen, key, adam)
    return lambda params, moments, batch: made.compute(params, moments, _inputs(batch))

  def kron(parameters: tuple[str, ...], top_layers: int, matrices: int) -> ScoreChunk:
    size = matrices * round((SIZE / matrices) ** 0.5) ** 2  # the nearest that fits
    return features(
      "gradient", provider="kron", parameters=parameters, top_layers=top_layers, size=size
    )

  mean_loss = losses.make_mean_loss(model)

  def batch_gradient(params: Params, batch: loader.Batch) -> dict[str, jax.Array]:
    def loss(trained: Any) -> jax.Array:
      return mean_loss(losses.full_params((trained, params[1])), _inputs(batch))

    # All of it is read, and one number a row is what a sweep takes.
    leaves = jax.tree.leaves(jax.grad(loss)(params[0]))
    square = sum(jnp.sum(jnp.square(x)) for x in leaves)
    return {"square": jnp.broadcast_to(square, batch.tokens.shape[:1])}

  return {
    "exact, Adam, count sketch": features("update_direction", size=SIZE),
    "kron, all layers": kron(_KERNELS, 0, 28),
    "kron, all layers, of adapters": kron(_ADAPTERS, 0, 56),
    "kron, top half": kron(_KERNELS, 2, 14),
    "kron, top half, of adapters": kron(_ADAPTERS, 2, 28),
    "batch gradient, adapters": lambda params, _, batch: batch_gradient(params, batch),
    "batch gradient, all": lambda params, _, batch: batch_gradient(
      (losses.full_params(params), None), batch
    ),
  }


def _peak() -> Callable[[], Cost]:
  square = jax.random.normal(jax.random.key(0), (_SQUARE, _SQUARE))
  product = jax.jit(jnp.matmul)

  def measure() -> Cost:
    begin = _now()
    jax.block_until_ready(product(square, square))
    return Cost(_now() - begin, 1, flops=2.0 * _SQUARE**3)

  return measure


def _forward(
  function: ScoreChunk, params: Params, length: int, positions: int, batches: Any
) -> Callable[[], Cost]:
  """The jitted function of full rows on the device, for about so many positions."""
  rows = _FULL_ROWS * _LONGEST // length
  rng, shape = np.random.default_rng(2), (rows, length + 1)
  tokens, ones = rng.integers(1, VOCAB, shape).astype(np.int32), np.ones(rows, np.float32)
  batch = loader.Batch(tokens, np.ones(shape, np.int32), *[np.arange(rows)] * 2, *[ones] * 3)
  batch = loader.place(batch, batches)
  compiled, times = Compiled(function), max(1, round(positions / (rows * length)))

  def measure() -> Cost:
    compiled.flops, begin = 0.0, _now()
    for _ in range(times):
      jax.block_until_ready(compiled(params, None, batch))
    seconds = _now() - begin
    return Cost(seconds, times * rows, times * rows * length, 0, compiled.flops)

  return measure


def _inputs(batch: loader.Batch) -> RowInputs:
  return inputs_and_targets(batch.tokens, batch.segments)


def _is_jaxpr(x: Any) -> bool:
  return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def _now() -> float:
  return time.process_time() if CPU_TIME.value else time.perf_counter()
