"""What statistics come from besides a batch: the target set, a reference model, probes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jdc.data import loader
from jdc.data.loader import Pool
from jdc.data.pack import Domain
from jdc.models import subsets
from jdc.models.base import LanguageModel
from jdc.policies.base import RunSpec
from jdc.policies.combine import Policies
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
from jdc.train.rounds import PROBED, Probe
from jdc.train.sharding import batch_sharding
from jdc.train.state import Fixed, Params, Reference, TrainState, full_params

# What is told of the target set by rows or domains, and what besides needs its rows.
REFRESHED = frozenset({"target", "domain_target_loss", "domain_expert_load"})
TARGETED = REFRESHED | {"target_alignment", "domain_target_alignment"}


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
  every_steps: int
  every_round: bool
  cost: Cost

  def due(self, step: int, starts_round: bool) -> bool:
    """Whether the next step, or the round that it starts, needs new statistics."""
    return step % self.every_steps == 0 or (starts_round and self.every_round)

  def __call__(self, state: TrainState) -> TrainState:
    """Returns the state with statistics of its parameters."""
    return state._replace(target=self.compute(state.parts, state.fixed.target))


def make_refresh(
  config: RunConfig,
  model: LanguageModel,
  policies: Policies,
  targets: TargetRows | None,
  spec: RunSpec,
  sharding: jax.NamedSharding,
  features: Features | None = None,
) -> Refresh | None:
  """Returns what computes the observed statistics of the target set, if there are any."""
  in_step, in_round = observed_of(policies, "step"), observed_of(policies, "round")
  read = in_step | in_round
  if targets is None or not read & REFRESHED:
    return None
  fields = read & target_lib.FIELDS
  if "target" not in read:
    fields -= EMBEDDINGS
  batch_size = config.target.batch_size or config.batch_size
  look = target_lib.make_refresh(model, fields, spec.num_domains, batch_size, sharding)
  differentiate = None
  if features is not None:
    differentiate = make_target_gradient(features, batch_size, sharding)

  def compute(params: Params, rows: TargetRows) -> target_lib.TargetState:
    found = look(full_params(*params), rows)
    if differentiate is None:
      return found
    gradient = differentiate(params, rows)
    return found._replace(stats=dataclasses.replace(found.stats, gradient=gradient))

  num_rows = len(targets.task)
  forward, backward = (features.forward, features.backward) if features else (0, 0)
  cost = Cost(num_rows * (1 + forward), num_rows * backward)
  shapes = lambda params: jax.eval_shape(compute, params, targets)
  return Refresh(compute, shapes, config.target.every_steps, bool(in_round & REFRESHED), cost)


def make_probe(
  config: RunConfig,
  model: LanguageModel,
  policies: Policies,
  targets: TargetRows | None,
  spec: RunSpec,
  pool: Pool,
  sharding: jax.NamedSharding,
) -> Probe | None:
  """Returns what computes the products of the domains' gradients, if a policy observes them."""
  observed = observed_of(policies, "round") & PROBED
  if not observed:
    return None
  accepts = subsets.matcher(config.probe.parameters) if config.probe.parameters else None
  products = make_domain_products(model, accepts, sharding)
  aligned = "domain_target_alignment" in observed

  def compute(state: TrainState, round_: int) -> dict[str, jax.Array]:
    ids = probe_ids(spec.domain_sizes, config.probe.rows, config.seed, round_)
    probes, params = read_probes(pool, ids, sharding), state.parts
    found = products(params, probes, state.fixed.target if aligned else None)._asdict()
    return {name: found[name] for name in sorted(observed)}

  rows = 2 * config.probe.rows * spec.num_domains
  rows += len(targets.task) if aligned and targets is not None else 0
  return Probe(compute, Cost(forward=rows, backward=rows))


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
