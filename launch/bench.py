"""Measures jdc side by side with the plainest code that does the same.

  python launch/bench.py --what=loop      # training loop against a hand-written one
  python launch/bench.py --what=loader    # rows per second, cost of a changed mixture
  python launch/bench.py --what=throughput --peak_tflops=989  # tokens per second of a big model
  python launch/bench.py --what=policies --only=odm,rho1  # a step under each; default: all
  python launch/bench.py --what=domains --num_domains=1000  # what a mixture of many costs
  python launch/bench.py --what=cross_entropy --vocab_size=32768 --width=512 --loss_chunk=256 \\
    --batch_size=4 --sequence_length=256 --pairs=10  # chunked losses against the plain one
  python launch/bench.py --what=sweeps --peer=PYTHON  # statistics of a pool, beside DataFlex
  python launch/bench.py --what=dsir      # text hashed and weighed a second
  python launch/bench.py --what=prep --peer=PYTHON  # documents prepared a second, beside others
  python launch/bench.py --what=llm  # how busy a server of a model is kept; cached answers
  python launch/bench.py --what=quality  # k-means over its products; text scored a second
  python launch/bench.py --what=generation  # tokens a second, with a cache and by recomputation
  python launch/bench.py --what=logits --vocab_size=32768 --batch_size=16  # what UDS observes

Ratios come from interleaved steps in one process; the A/A row is the hand-written loop against
itself, which is what noise alone gives.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import bench_domains
import bench_dsir
import bench_generation
import bench_llm
import bench_logits
import bench_policies
import bench_prep
import bench_quality
import bench_setup
import bench_sweeps
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from absl import logging as absl_logging
from bench_setup import (
  BATCH,
  DTYPE,
  LAYERS,
  LENGTH,
  PAIRS,
  VOCAB,
  WIDTH,
  interleave,
  make_config,
  make_model,
  milliseconds,
  ratio_of,
  read_domains,
  steps,
)

from jdc import policies
from jdc.data.batch import inputs_and_targets
from jdc.data.loader import Batch, Loader, Pool
from jdc.data.pack import Domain
from jdc.data.plan import PlanSpec
from jdc.models.base import MESH_AXES, LanguageModel
from jdc.models.cross_entropy import ChunkSize, token_cross_entropy, weighted_cross_entropy
from jdc.policies import mixture
from jdc.train import config as c
from jdc.train import loop, setup
from jdc.train import state as state_lib
from jdc.train.optimizer import make_optimizer
from jdc.train.step import make_train_step

WHAT = flags.DEFINE_enum(
  "what",
  "loop",
  [
    "loop",
    "loader",
    "throughput",
    "cross_entropy",
    "policies",
    "domains",
    "sweeps",
    "dsir",
    "generation",
    "logits",
    "prep",
    "llm",
    "quality",
  ],
  "What to measure.",
)
PEAK = flags.DEFINE_float("peak_tflops", 0.0, "The chip's peak, for the share that is used.")
CHUNK = flags.DEFINE_integer("loss_chunk", None, "Positions of a chunk of logits; or auto.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps that throughput is measured over.")
for module in (
  bench_setup,
  bench_policies,
  bench_domains,
  bench_sweeps,
  bench_prep,
  bench_llm,
  bench_quality,
):
  flags.adopt_module_key_flags(module)


def main(argv: list[str]) -> None:
  del argv
  absl_logging.set_verbosity(absl_logging.WARNING)
  {
    "loop": bench_loop,
    "loader": bench_loader,
    "throughput": bench_throughput,
    "cross_entropy": bench_cross_entropy,
    "policies": bench_policies.main,
    "domains": bench_domains.main,
    "sweeps": bench_sweeps.main,
    "dsir": bench_dsir.main,
    "prep": bench_prep.main,
    "generation": bench_generation.main,
    "llm": bench_llm.main,
    "quality": bench_quality.main,
    "logits": bench_logits.main,
  }[WHAT.value]()


def bench_loop() -> None:
  """Prints what a step of each loop takes, over the hand-written one."""
  model, domains = make_model(), read_domains()
  optimizer, schedule = make_optimizer(make_config().optimizer, 10**6)
  choices = {"static path": policies.combine(), "odm": policies.combine(mixture=mixture.odm())}
  with tempfile.TemporaryDirectory() as folder:
    loops: dict[str, Iterator[Any]] = {
      "hand-written": hand_written_loop(model, optimizer, domains),
      "hand-written again (A/A)": hand_written_loop(model, optimizer, domains),
    }
    for name, chosen in choices.items():
      run = loop.Run(model, optimizer, schedule, chosen, domains, make_config())
      workdir = f"{folder}/{name.replace(' ', '_')}"
      loops[f"jdc {name}"] = steps(run, workdir)
    tabled = make_config(logging=c.LoggingConfig(example_table=True))
    run = loop.Run(model, optimizer, schedule, policies.combine(), domains, tabled)
    loops["jdc with a table"] = steps(run, f"{folder}/table")
    seconds = interleave(loops, PAIRS.value)
  base = seconds.pop("hand-written")
  print(f"hand-written step: {milliseconds(base)}")
  for name, values in seconds.items():
    ratio, low, high = ratio_of(values, base)
    print(f"{name:>26}: {ratio:.4f}x  95 % interval [{low:.4f}, {high:.4f}]")
  _print_flops(model, optimizer, schedule, domains, choices)


def hand_written_loop(
  model: LanguageModel, optimizer: optax.GradientTransformation, domains: dict[str, Domain]
) -> Iterator[Any]:
  """The plainest loop: shuffled rows, one jitted step, the loss read one step late."""
  pool = Pool([domain.train for domain in domains.values()], LENGTH.value)
  rng = np.random.default_rng(0)
  train_step = jax.jit(hand_written_step(model, optimizer), donate_argnums=(0, 1))
  params = jax.jit(model.init)(jax.random.key(0))
  opt_state = jax.jit(optimizer.init)(params)
  order, position, last_loss = rng.permutation(len(pool)), 0, None
  while True:
    if position + BATCH.value > len(pool):
      order, position = rng.permutation(len(pool)), 0
    ids = order[position : position + BATCH.value]
    position += BATCH.value
    batch = jax.device_put(pool.rows(ids, np.ones(len(ids), bool)))
    params, opt_state, loss = train_step(params, opt_state, *batch)
    if last_loss is not None and not np.isfinite(float(last_loss)):
      raise FloatingPointError("the hand-written loop diverged")
    last_loss = loss
    yield params


def hand_written_step(
  model: LanguageModel, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[Any, Any, jax.Array]]:
  """Forward, mean loss, gradient, optimizer."""

  def step(params: Any, opt_state: Any, tokens: Any, segments: Any) -> tuple[Any, Any, Any]:
    rows = inputs_and_targets(tokens, segments)

    def loss_fn(params: Any) -> jax.Array:
      losses = model.token_losses(
        params, rows.tokens, rows.targets, rows.positions, rows.segments
      )
      return jnp.sum(losses * rows.mask) / jnp.sum(rows.mask)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  return step


def bench_loader() -> None:
  """Prints rows per second of the loader alone, and the first batch after a new mixture."""
  domains = read_domains()
  pool = Pool([domain.train for domain in domains.values()], LENGTH.value)
  sizes = tuple(len(table) for table in pool.tables)
  spec = PlanSpec(tuple(domains), sizes, batch_size=64, seed=0, mixed=True)
  uniform = np.zeros(len(sizes), np.float32)
  iterator = iter(Loader(pool, spec, uniform))
  rates, changes = [], []
  rng = np.random.default_rng(0)
  for _ in range(20):
    started = time.perf_counter()
    for _ in range(100):
      next(iterator)
    rates.append(100 * spec.batch_size / (time.perf_counter() - started))
    logits = rng.normal(size=len(sizes)).astype(np.float32)
    started = time.perf_counter()
    for _ in range(spec.decision_lag + 1):
      iterator.push(logits)
    next(iterator)
    changes.append(time.perf_counter() - started)
  print(f"{len(sizes)} domains, rows of {LENGTH.value} tokens, batches of {spec.batch_size}")
  print(f"rows/s: median {np.median(rates):,.0f}, min {min(rates):,.0f}")
  print(f"new mixture and its first batch: median {1e3 * np.median(changes):.2f} ms, "
        f"max {1e3 * max(changes):.2f}")  # fmt: skip


def bench_throughput() -> None:
  """Prints tokens per second and the share of the peak, with and without ODM."""
  model, domains = make_model(), read_domains()
  optimizer, schedule = make_optimizer(make_config().optimizer, 10**6)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  num_params = sum(x.size for x in jax.tree.leaves(shapes))
  print(f"{num_params / 1e6:.1f} million parameters on {jax.devices()[0].device_kind}")
  # 6 flops a parameter and token, and 12 L T D of attention, of which causality needs half.
  flops = 6 * num_params + 6 * LAYERS.value * LENGTH.value * WIDTH.value
  for name, chosen in (
    ("static path", policies.combine()),
    ("odm", policies.combine(mixture=mixture.odm())),
  ):
    with tempfile.TemporaryDirectory() as folder:
      run = loop.Run(model, optimizer, schedule, chosen, domains, make_config())
      running = steps(run, folder)
      for _ in range(3):
        jax.block_until_ready(next(running))
      started = time.perf_counter()
      for _ in range(STEPS.value):
        state = next(running)
      jax.block_until_ready(state)
      seconds = (time.perf_counter() - started) / STEPS.value
      running.close()
    rate = BATCH.value * LENGTH.value / seconds
    used = f", {100 * rate * flops / PEAK.value / 1e12:.1f} % of peak" if PEAK.value else ""
    print(f"{name:>12}: {1e3 * seconds:.1f} ms a step, {rate:,.0f} tokens/s{used}")


def bench_cross_entropy() -> None:
  """Prints the time of chunked losses with both gradients, over that of the plain form."""
  rng = np.random.default_rng(0)
  rows, chunk = (BATCH.value, LENGTH.value), cast(ChunkSize, CHUNK.value or "auto")
  hidden = jnp.asarray(rng.normal(size=(*rows, WIDTH.value)), DTYPE.value)
  output = jnp.asarray(rng.normal(size=(WIDTH.value, VOCAB.value)) / 16, jnp.float32)
  targets = jnp.asarray(rng.integers(0, VOCAB.value, rows), jnp.int32)
  arguments = hidden, output, targets, jnp.asarray(rng.random(rows), jnp.float32)

  def token(chunk: ChunkSize) -> Callable[..., jax.Array]:
    return lambda h, w, y, u: jnp.sum(u * token_cross_entropy(h, w, y, chunk))

  forms = {
    "plain": token(None),
    "plain again (A/A)": token(None),
    "weights known": lambda h, w, y, u: weighted_cross_entropy(h, w, y, u, chunk)[0],
    "weights from the loss": token(chunk),
  }

  def calls(form: Callable[..., jax.Array]) -> Iterator[Any]:
    gradients = jax.jit(jax.value_and_grad(form, (0, 1)))
    while True:
      yield gradients(*arguments)

  seconds = interleave({name: calls(form) for name, form in forms.items()}, PAIRS.value)
  base = seconds["plain"]
  for name, values in seconds.items():
    ratio, low, high = ratio_of(values, base)
    print(f"{name:>22}: {milliseconds(values)}, {ratio:.3f}x [{low:.3f}, {high:.3f}], "
          f"of minima {values.min() / base.min():.3f}x")  # fmt: skip


def _print_flops(
  model: LanguageModel, optimizer: Any, schedule: Any, domains: Any, choices: dict[str, Any]
) -> None:
  params = jax.eval_shape(model.init, jax.random.key(0))
  rows = jax.ShapeDtypeStruct((BATCH.value, LENGTH.value + 1), jnp.int32)
  step = hand_written_step(model, optimizer)
  opt_state = jax.eval_shape(optimizer.init, params)
  base = _flops(jax.jit(step).lower(params, opt_state, rows, rows))
  print(f"compiled flops of a step: hand-written {base:.6g}")
  for name, chosen in choices.items():
    config = make_config()
    spec = setup.run_spec(config, domains, chosen)
    decisions, states = state_lib.init_policies(chosen, spec, 0)
    options = setup.step_options(config, decisions, chosen)
    train_step = make_train_step(model, optimizer, schedule, chosen, options)
    axis_types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    mesh = jax.make_mesh((1,) * len(MESH_AXES), MESH_AXES, axis_types=axis_types)
    with jax.set_mesh(mesh):
      state = state_lib.abstract(state_lib.Start(model), optimizer, states, mesh)
      ints = jax.ShapeDtypeStruct((BATCH.value,), jnp.int32)
      floats = jax.ShapeDtypeStruct((BATCH.value,), jnp.float32)
      batch = Batch(rows, rows, ints, ints, floats, floats, floats)
      flops = _flops(jax.jit(train_step).lower(state, batch))
    print(f"{name:>26}: {flops:.6g}, {flops / base:.6f}x")


def _flops(lowered: Any) -> float:
  return lowered.compile().cost_analysis()["flops"]


if __name__ == "__main__":
  app.run(main)
