"""What statistics come from besides a batch: the target set, a reference model, probes."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jdc.data import loader, replay
from jdc.data.batch import RowInputs, inputs_and_targets
from jdc.data.loader import Pool
from jdc.data.pack import Domain
from jdc.metrics import Decisions, read_decisions
from jdc.models import subsets
from jdc.models.base import LanguageModel
from jdc.policies.base import RunSpec, TargetStats
from jdc.policies.combine import Policies
from jdc.stats import low_rank
from jdc.stats import probe_labels as probe_rows
from jdc.stats import reference as reference_lib
from jdc.stats import target as target_lib
from jdc.stats.domain_gradients import make_domain_products
from jdc.stats.gradients import Features
from jdc.stats.probes import probe_ids, read_probes
from jdc.stats.target_rows import TargetRows, choose_rows
from jdc.train import setup
from jdc.train.config import RunConfig
from jdc.train.cost import Cost
from jdc.train.features import make_target_gradient
from jdc.train.observe import observed_of
from jdc.train.passes import EMBEDDINGS, make_forward
from jdc.train.responses import Responses, Rewarded, make_rewarded
from jdc.train.rounds import PROBED, Probe
from jdc.train.sharding import batch_sharding
from jdc.train.state import Fixed, Params, Reference, TrainState, full_params

# What is told of the target set by rows or domains, and what besides needs its rows.
REFRESHED = frozenset({
  "target", "domain_target_loss", "domain_expert_load", "target_reward",
})  # fmt: skip
TARGETED = REFRESHED | {
  "target_alignment", "target_curvature", "domain_target_alignment", "probe_label",
}  # fmt: skip


def target_rows(
  config: RunConfig,
  policies: Policies,
  domains: Mapping[str, Domain],
  tasks: Mapping[str, Any] | None,
) -> TargetRows | None:
  """Returns the rows of the target set; `None` where no policy reads it or there is none."""
  observed = observed_of(policies, "step") | observed_of(policies, "round")
  if not observed & TARGETED:
    return None
  tables = tasks or {n: d.target for n, d in domains.items() if d.target is not None}
  if not tables:
    return None
  return choose_rows(tables, config.target.rows, list(domains))


class Refresh(NamedTuple):
  """Keeps the statistics of the target set up to date."""

  compute: Callable[[Params, TargetRows], target_lib.TargetState]
  shapes: Callable[[Params], target_lib.TargetState]  # of abstract parameters
  every_steps: int  # 0: not while a round lasts
  every_round: bool
  cost: Cost  # of `compute`
  rewarded: Rewarded | None = None  # what comes after it, where responses are drawn

  def due(self, step: int, starts_round: bool) -> bool:
    """Whether the next step, or the round that it starts, needs new statistics."""
    in_between = self.every_steps > 0 and step % self.every_steps == 0
    return in_between or (starts_round and self.every_round)

  def __call__(self, state: TrainState) -> tuple[TrainState, Cost]:
    """Returns the state with statistics of its parameters, and what they cost."""
    found, cost = self.compute(state.parts, state.fixed.target), self.cost
    if self.rewarded is not None:
      found, spent, _ = self.rewarded.compute(state, found)
      cost = cost.plus(spent)
    return state._replace(target=found), cost

  def metrics(self, state: TrainState) -> dict[str, float]:
    """Returns what a refresh has to report of itself."""
    if state.target.gradient is None:
      return {}
    return {"target/gradient_share": float(jax.device_get(state.target.gradient.share))}


def recorded_decisions(config: RunConfig, spec: RunSpec, workdir: str) -> Decisions | None:
  """Returns what `plan.replay` names; `None` where it is empty.

  Raises:
    ValueError: if the folder holds no log, or it does not fit the run.
  """
  if not config.plan.replay:
    return None
  if Path(config.plan.replay).resolve() == Path(workdir).resolve():
    raise ValueError(f"plan.replay={config.plan.replay} is the workdir, which has its own log")
  recorded = read_decisions(config.plan.replay)
  replay.check(recorded, spec, config.num_steps)
  return recorded


def make_refresh(
  config: RunConfig,
  model: LanguageModel,
  policies: Policies,
  targets: TargetRows | None,
  spec: RunSpec,
  sharding: jax.NamedSharding,
  features: Features | None = None,
  responses: Responses | None = None,
) -> Refresh | None:
  """Returns what computes the observed statistics of the target set, if there are any."""
  in_step, in_round = observed_of(policies, "step"), observed_of(policies, "round")
  read = in_step | in_round
  aligned = config.target.alignment == "low_rank" and "target_alignment" in in_step
  if targets is None or not (read & REFRESHED or aligned):
    return None
  fields = read & target_lib.FIELDS
  if "target" not in read:
    fields -= EMBEDDINGS
  batch_size = config.target.batch_size or config.batch_size
  look = target_lib.make_refresh(model, fields, spec.num_domains, batch_size, sharding)
  differentiate, rewarded = None, None
  if responses is not None:
    assert features is not None  # who observes rewards observes gradients
    rewarded = make_rewarded(config, model, responses, targets, features, sharding)
  elif features is not None:
    differentiate = make_target_gradient(features, batch_size, sharding)
  compress = None
  if aligned:
    rank, everywhere = config.target.alignment_rank, jax.NamedSharding(sharding.mesh, jax.P())
    # As many rows as a step differentiates at once.
    at_once = config.target.batch_size or config.batch_size // config.accumulation_steps
    compress = low_rank.make_low_rank_gradient(model, rank, at_once, sharding)
    compress = jax.jit(compress, out_shardings=everywhere)

  def compute(params: Params, rows: TargetRows) -> target_lib.TargetState:
    found = target_lib.TargetState(TargetStats())
    if read & REFRESHED:
      found = look(full_params(*params), rows)
    if compress is not None:
      found = found._replace(gradient=compress(params, rows))
    if differentiate is None:
      return found
    gradient = differentiate(params, rows)
    return found._replace(stats=dataclasses.replace(found.stats, gradient=gradient))

  num_rows = len(targets.task)
  cost = Cost(forward=num_rows if read & REFRESHED else 0)
  if aligned:
    cost = cost.plus(Cost(num_rows, num_rows))
  if features is not None and rewarded is None:
    cost = cost.plus(Cost(num_rows * features.forward, num_rows * features.backward))

  def shapes(params: Params) -> target_lib.TargetState:
    found = jax.eval_shape(compute, params, targets)
    return found if rewarded is None else rewarded.shapes(found)

  # Nobody reads in the middle of a round what policies read as it begins.
  every_steps = config.target.every_steps if in_step & REFRESHED or aligned else 0
  every_round = bool(in_round & REFRESHED)
  return Refresh(compute, shapes, every_steps, every_round, cost, rewarded)


def make_probe(
  config: RunConfig,
  model: LanguageModel,
  policies: Policies,
  targets: TargetRows | None,
  spec: RunSpec,
  pool: Pool,
  sharding: jax.NamedSharding,
  optimizer: optax.GradientTransformation,
) -> Probe | None:
  """Returns what computes the products of the domains' gradients, if a policy observes them.

  For probe rows it computes the target's loss after a step on each, by the same rows.
  """
  observed = observed_of(policies, "round") & PROBED
  if not observed:
    return None
  accepts = subsets.matcher(config.probe.parameters) if config.probe.parameters else None
  products = make_domain_products(model, accepts, sharding)
  aligned = "domain_target_alignment" in observed
  labelled, multiplied = observed & probe_rows.FIELDS, observed - probe_rows.FIELDS
  everywhere = jax.NamedSharding(sharding.mesh, jax.P())

  def label(state: TrainState, rows: RowInputs) -> jax.Array:
    size = config.target.batch_size or config.batch_size
    target = target_lib.split_rows(state.fixed.target, size, sharding)
    return probe_rows.probe_labels(model, optimizer, state, rows, target)

  label = jax.jit(label, out_shardings=everywhere)

  def compute(state: TrainState, round_: int) -> dict[str, jax.Array]:
    ids = probe_ids(spec.domain_sizes, config.probe.rows, config.seed, round_)
    found: dict[str, jax.Array] = {}
    if multiplied:
      probes, params = read_probes(pool, ids, sharding), state.parts
      found |= products(params, probes, state.fixed.target if aligned else None)._asdict()
    if labelled:
      id_P = ids.reshape(-1)
      rows = inputs_and_targets(*pool.rows(id_P, np.ones(len(id_P), bool)))
      found["probe_id"] = loader.place(id_P, everywhere)
      found["probe_label"] = label(state, loader.place(rows, everywhere))
    return {name: found[name] for name in sorted(observed)}

  rows = 2 * config.probe.rows * spec.num_domains
  num_targets = 0 if targets is None else len(targets.task)
  cost = Cost()
  if multiplied:
    both = rows + num_targets * aligned
    cost = cost.plus(Cost(forward=both, backward=both))
  if "probe_label" in labelled:
    cost = cost.plus(Cost(forward=rows * (1 + num_targets), backward=rows))
  return Probe(compute, cost)


def open_reference(
  reference: Reference | None, pool: Pool, domains: Mapping[str, Domain], batch_size: int,
  mesh: jax.sharding.Mesh,
) -> tuple[Any, reference_lib.ReferenceLosses | None]:  # fmt: skip
  """Returns the parameters of a reference model, or its losses on all rows."""
  if reference is None:
    return None, None
  if reference.cache is None:
    return reference.load(mesh), None
  losses = reference_lib.cached_losses(
    make_forward(reference.model),
    lambda: reference.load(mesh),
    pool,
    [reference.fingerprint, setup.fingerprints(domains)],
    reference.cache,
    batch_size,
    batch_sharding(mesh),
  )
  return None, losses


def fixed_parts(params: Any, targets: Any, mesh: jax.sharding.Mesh) -> Fixed:
  """Returns what steps read and never change, on the devices."""
  everywhere = jax.NamedSharding(mesh, jax.P())
  return Fixed(params, None if targets is None else loader.place(targets, everywhere))
