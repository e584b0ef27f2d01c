"""What a mixture of many domains costs: the update of each policy, and the draw of a batch.

All on one core. The policies whose update takes time in proportion to the number of domains are
asked to stay below a millisecond; DoGE, PiKE, Skill-It, Aioli and dynamic mixing compare all
pairs of domains, which takes its square.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jdc.data.draw import Plan
from jdc.data.plan import PlanSpec, initial_state, push
from jdc.policies import DataPolicy, ExampleStats, RunSpec, mixture, sampling

NUM_DOMAINS = flags.DEFINE_integer("num_domains", 1000, "Domains of the mixture.")
ROWS = flags.DEFINE_integer("rows", 512, "Rows of a batch.")
CALLS = flags.DEFINE_integer("calls", 200, "Timed calls of each.")

_LENGTH, _EXPERTS, _ROWS_OF_A_DOMAIN = 128, 8, 100
_WARMUP, _LONGEST = 3, 10.0  # calls, seconds


class Case(NamedTuple):
  policy: DataPolicy
  linear: bool = True  # whether its update takes time in proportion to the domains


def cases(num_domains: int) -> dict[str, Case]:
  """Returns the mixtures to measure, by name."""
  ones = [1.0] * num_domains
  graph = 0.5 * np.eye(num_domains) + 0.5
  return {
    "static": Case(mixture.static(ones)),
    "by_size": Case(mixture.by_size()),
    "random": Case(mixture.random()),
    "schedule": Case(mixture.schedule([(0, ones), (1000, ones)], "cosine")),
    "loss_proportional": Case(mixture.loss_proportional()),
    "group_dro": Case(mixture.group_dro()),
    "odm": Case(mixture.odm(warmup_steps=0)),
    "doremi": Case(mixture.doremi()),
    "ado": Case(mixture.ado()),
    "ado, with a fit": Case(mixture.ado(start_steps=_WARMUP, refit_steps=1), linear=False),
    "dynamic_moe": Case(mixture.dynamic_moe(every_steps=1), linear=False),
    "doge": Case(mixture.doge(), linear=False),
    "pike": Case(mixture.pike(0.01, 0.1, 8), linear=False),
    "skill_it": Case(mixture.skill_it(graph), linear=False),
    "aioli": Case(mixture.aioli(), linear=False),
  }


def main() -> None:
  """Prints microseconds."""
  core = max(os.sched_getaffinity(0))
  os.sched_setaffinity(0, {core})  # before the threads of a device are made
  num_domains = NUM_DOMAINS.value
  spec = _spec(num_domains)
  print(f"{num_domains} domains, a batch of {ROWS.value} rows, one core")
  rng = np.random.default_rng(0)
  for name, case in cases(num_domains).items():
    _, state = case.policy.init(spec, jax.random.key(0))
    stats = _stats(case.policy.observes, spec, rng)
    update = jax.jit(case.policy.update, donate_argnums=1)  # as a training step does
    seconds = _time(_calls(update, stats, jax.tree.map(jnp.copy, state)))
    _print(f"update of {name}", seconds, case.linear)
  _print_draws(spec, rng)


def _print_draws(spec: RunSpec, rng: np.random.Generator) -> None:
  logits_K = rng.normal(size=spec.num_domains).astype(np.float32)
  probability_K = np.exp(np.float64(logits_K))
  plan_spec = PlanSpec(
    spec.domain_names, spec.domain_sizes, spec.batch_size, seed=0, mixed=True
  )

  def counts() -> Iterator[Any]:
    while True:
      yield sampling.systematic_counts(probability_K, spec.batch_size, 0.5)

  def draws() -> Iterator[Any]:
    plan, state = Plan(plan_spec), initial_state(plan_spec, logits_K)
    while True:
      rows, state = plan.draw(push(state, logits_K))
      yield rows

  _print("rows of each domain in a batch", _time(counts()), asked=True)
  _print("draw of all rows of a batch", _time(draws()), asked=False)


def _calls(update: Any, stats: ExampleStats, state: Any) -> Iterator[Any]:
  """Updates a state again and again, and waits for each."""
  while True:
    decision, state = jax.block_until_ready(update(stats, state))
    yield decision


def _time(calls: Iterator[Any]) -> np.ndarray:
  """Returns the seconds of each call, after some that are not timed."""
  for _ in range(_WARMUP):
    next(calls)
  seconds: list[float] = []
  first = time.perf_counter()
  while len(seconds) < CALLS.value and time.perf_counter() - first < _LONGEST:
    started = time.perf_counter()
    next(calls)
    seconds.append(time.perf_counter() - started)
  return np.asarray(seconds)


def _print(name: str, seconds: np.ndarray, asked: bool) -> None:
  median, least = 1e6 * np.median(seconds), 1e6 * seconds.min()
  print(f"{name:>32}: median {median:9.0f} us, min {least:9.0f} us"
        + (", below 1000 is asked" if asked else ""), flush=True)  # fmt: skip


def _spec(num_domains: int) -> RunSpec:
  names = tuple(f"domain_{k}" for k in range(num_domains))
  return RunSpec(
    num_examples=num_domains * _ROWS_OF_A_DOMAIN,
    num_domains=num_domains,
    domain_names=names,
    domain_sizes=(_ROWS_OF_A_DOMAIN,) * num_domains,
    proportions=(1 / num_domains,) * num_domains,
    batch_size=ROWS.value,
    sequence_length=_LENGTH,
    num_experts=_EXPERTS,
    num_steps=10**6,
    steps_per_round=100,
    probe_size=8,
  )


def _stats(observed: frozenset[str], spec: RunSpec, rng: np.random.Generator) -> ExampleStats:
  """Statistics drawn at random, with the fields that a policy observes."""
  B, T, K = spec.batch_size, spec.sequence_length, spec.num_domains
  gradients = rng.normal(size=(2 * K, 64))
  shapes: dict[str, Callable[[], Any]] = {
    "step": lambda: 500,
    "domain": lambda: rng.integers(0, K, B),
    "num_tokens": lambda: np.full(B, T),
    "domain_probability": lambda: np.full(B, 1 / K),
    "loss": lambda: rng.gamma(4.0, 0.5, B),
    "token_loss": lambda: rng.gamma(4.0, 0.5, (B, T)),
    "reference_token_loss": lambda: rng.gamma(4.0, 0.5, (B, T)),
    "token_mask": lambda: np.ones((B, T)),
    "token_segment": lambda: np.repeat(np.arange(B)[:, None], T, 1),
    "domain_target_loss": lambda: rng.gamma(4.0, 0.5, K),
    "domain_expert_load": lambda: rng.random((K, spec.num_experts)),
    "domain_gradient_product": lambda: (gradients @ gradients.T).reshape(K, 2, K, 2),
    "domain_target_alignment": lambda: (gradients @ gradients[0]).reshape(K, 2),
  }
  drawn: dict[str, Any] = {}
  for name in sorted(observed):
    values = np.asarray(shapes[name]())
    whole = values.dtype.kind == "i"
    drawn[name] = jnp.asarray(values, jnp.int32 if whole else jnp.float32)
  return ExampleStats(**drawn)
