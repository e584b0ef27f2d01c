"""What a training step costs under each policy, over the static path; and the start of a round.

`--only=odm,rho1` picks the rows whose name contains one of these. Each row takes turns with a
static path of the same model; the A/A row is that path against another one, which is what noise
alone gives. What happens in some steps only, such as the start of a round, is timed apart.
"""

import contextlib
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from bench_setup import (
  PAIRS,
  WARMUP,
  interleave,
  make_config,
  milliseconds,
  model_config,
  ratio_of,
  read_domains,
  steps,
)

from jdc import policies
from jdc.models.decoder import decoder
from jdc.policies import Policies, mixture, selection, weighting
from jdc.train import config as c
from jdc.train import loop, sharding
from jdc.train.optimizer import make_optimizer
from jdc.train.state import Reference

ONLY = flags.DEFINE_list("only", [], "Parts of the names of policies; empty: all.")

_EVERY = 20  # steps between two starts of a round, refreshes of the target set, or fits


class Row(NamedTuple):
  """A policy, and what it may cost."""

  policies: Policies
  most: float | None = 1.02  # times the static path, as the project asks
  rare: str = ""  # what happens every `_EVERY` steps
  reference: str = ""  # whose losses are computed in each "step", or are "cached"
  num_experts: int = 0
  draw: str = "shuffle"
  alignment: str = "exact"  # of `target_alignment`


def rows(num_domains: int) -> dict[str, Row]:
  """Returns the policies to measure, by name, with defaults wherever there are some."""
  mix = lambda policy: policies.combine(mixture=policy)
  weigh = lambda policy: policies.combine(weighting=policy)
  select = lambda policy: policies.combine(selection=policy)
  graph = 0.5 * np.eye(num_domains) + 0.5
  first = [1.0] * num_domains
  stages = [(0, first), (10**6, [2.0, *first[1:]])]
  return {
    "static path again (A/A)": Row(policies.combine(), None),
    "mixture.schedule": Row(mix(mixture.schedule(stages, "linear"))),
    "mixture.loss_proportional": Row(mix(mixture.loss_proportional())),
    "mixture.group_dro": Row(mix(mixture.group_dro())),
    "mixture.odm": Row(mix(mixture.odm(warmup_steps=0))),
    "mixture.ado": Row(mix(mixture.ado(start_steps=_EVERY, refit_steps=_EVERY)), rare="fit"),
    "mixture.doremi": Row(mix(mixture.doremi()), 1.40, reference="step"),
    "mixture.doremi, cached reference": Row(mix(mixture.doremi()), reference="cached"),
    "mixture.dynamic_moe": Row(mix(mixture.dynamic_moe()), None, "refresh", num_experts=4),
    "weighting.loss_reweighting": Row(weigh(weighting.loss_reweighting(burn_in_steps=0))),
    "weighting.group_dro": Row(weigh(weighting.group_dro())),
    "weighting.ohem": Row(weigh(weighting.ohem(0.5))),
    "weighting.focal": Row(weigh(weighting.focal())),
    "weighting.self_paced": Row(weigh(weighting.self_paced(quantiles=(0.5, 1.0)))),
    "weighting.selective_backprop": Row(weigh(weighting.selective_backprop())),
    "weighting.rho1, cached reference": Row(weigh(weighting.rho1()), reference="cached"),
    "weighting.adapt": Row(weigh(weighting.adapt()), 1.05, "refresh"),
    "weighting.joint_update_aware": Row(weigh(weighting.joint_update_aware()), 1.05, "refresh"),
    "weighting.learning_to_reweight": Row(weigh(weighting.learning_to_reweight()), None),
    "weighting by el2n": Row(weigh(_by_errors()), 1.10),
    "selection.infobatch": Row(select(selection.infobatch()), 1.10, "round", draw="top_k"),
    "selection.in_run_shapley": Row(
      select(selection.in_run_shapley()), None, draw="gumbel_top_k", alignment="linear_maps"
    ),
    "selection.in_run_shapley, low rank": Row(
      select(selection.in_run_shapley()),
      1.10,
      "refresh",
      draw="gumbel_top_k",
      alignment="low_rank",
    ),
    "mixture.doge": Row(mix(mixture.doge()), rare="round"),
    "mixture.pike": Row(mix(mixture.pike(0.01, 0.1)), rare="round"),
    "mixture.skill_it": Row(mix(mixture.skill_it(graph)), rare="round"),
    "mixture.aioli": Row(mix(mixture.aioli()), rare="round"),
  }


def _by_errors() -> policies.DataPolicy:
  """Weights rows by the norm of their error vectors, over that of the batch."""

  def init(spec: policies.RunSpec, key: jax.Array) -> tuple[policies.Decision, Any]:
    del key
    return policies.Decision(weights=jnp.ones(spec.batch_size)), ()

  def update(stats: policies.ExampleStats, state: Any) -> tuple[policies.Decision, Any]:
    return policies.Decision(weights=stats.el2n / jnp.mean(stats.el2n)), state

  return policies.DataPolicy(init, update, frozenset({"el2n"}), scope="step")


def main() -> None:
  """Prints a line a policy."""
  domains = read_domains()
  known = rows(len(domains))
  wrong = [part for part in ONLY.value if not any(part in name for name in known)]
  if wrong:
    raise ValueError(f"--only={','.join(wrong)} names none of {', '.join(known)}")
  chosen = {
    name: row
    for name, row in known.items()
    if not ONLY.value or any(part in name for part in (*ONLY.value, "A/A"))
  }
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    bases: dict[int, Any] = {}
    for name, row in chosen.items():
      experts = row.num_experts
      if experts not in bases:
        base = Row(policies.combine(), num_experts=experts)
        running = steps(_run(base, domains, folder), f"{folder}/static_{experts}")
        bases[experts] = stack.enter_context(contextlib.closing(running))
      workdir = f"{folder}/{name.replace(' ', '_')}"
      with contextlib.closing(steps(_run(row, domains, folder), workdir)) as running:
        seconds = interleave({"static": bases[experts], name: running}, PAIRS.value)
      _report(name, row, seconds[name], seconds["static"])


def _report(name: str, row: Row, values: np.ndarray, base: np.ndarray) -> None:
  number = WARMUP + np.arange(len(values))  # of the step, from 0
  if row.rare == "fit":
    number += 1  # after the statistics of the step
  is_rare = (number % _EVERY == 0) & (row.rare != "")
  ratio, low, high = ratio_of(values[~is_rare], base[~is_rare])
  asked = "" if row.most is None else f", at most {row.most:.2f} is asked"
  print(f"{name:>34}: {ratio:.4f}x  95 % interval [{low:.4f}, {high:.4f}]{asked}", flush=True)
  if row.num_experts or "A/A" in name:
    print(f"{'':>36}static path: {milliseconds(base)}", flush=True)
  if is_rare.any():
    extra = np.median(values[is_rare]) - np.median(values[~is_rare])
    times = extra / np.median(base)
    what = {"round": "start of a round", "refresh": "refresh of the target set"}
    print(f"{'':>36}and a {what.get(row.rare, row.rare)}: {1e3 * extra:.1f} ms, "
          f"{times:.2f} steps", flush=True)  # fmt: skip


def _run(row: Row, domains: Any, folder: str) -> loop.Run:
  config = make_config(
    plan=c.PlanConfig(steps_per_round=_EVERY, draw=row.draw),
    target=c.TargetConfig(every_steps=_EVERY, alignment=row.alignment),
  )
  changes: dict[str, Any] = {}
  if row.num_experts:
    changes = {"num_experts": row.num_experts, "experts_per_token": 2}
  optimizer, schedule = make_optimizer(config.optimizer, config.num_steps)
  model = decoder(model_config(**changes))
  reference = _reference(row.reference, folder) if row.reference else None
  return loop.Run(
    model, optimizer, schedule, row.policies, domains, config, reference=reference
  )


def _reference(losses: str, folder: str) -> Reference:
  """A model of the size of the one that is trained, but a tiny one to fill a cache."""
  tiny = {"width": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "mlp_width": 32}
  model = decoder(model_config(**(tiny if losses == "cached" else {})))

  def load(mesh: jax.sharding.Mesh) -> Any:
    return jax.device_put(jax.jit(model.init)(jax.random.key(1)), sharding.replicated(mesh))

  cache = f"{folder}/reference" if losses == "cached" else None
  return Reference(model, load, "drawn at random", cache)
