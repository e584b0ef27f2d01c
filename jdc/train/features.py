"""Gradients of single examples in a run: which are computed, and of which parameters."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.data.batch import RowInputs
from jdc.models.base import LanguageModel
from jdc.policies.combine import Policies
from jdc.stats import ghost, map_alignment
from jdc.stats.alignment import aligned_products
from jdc.stats.directions import Adam
from jdc.stats.gradients import Features, Options
from jdc.stats.gradients import make_features as make_gradients
from jdc.stats.probes import num_shards
from jdc.stats.target import split_rows
from jdc.stats.target_rows import TargetRows
from jdc.train.config import RunConfig
from jdc.train.observe import observed_of
from jdc.train.state import Params, Start, param_shapes, slots

_LOG = logging.getLogger("jdc")
FIELDS = frozenset({"gradient", "update_direction", "gradient_norm"})
OF_TARGET = frozenset({"gradient", "update_direction"})  # with these comes `target.gradient`
PRODUCT = "gradient_product"


class RunFeatures(NamedTuple):
  """What computes gradients of examples in a run; `None` where nothing observes them."""

  step: Features | None
  round: Features | None
  target: Features | None
  products: Callable[..., dict[str, jax.Array]] | None

  @property
  def size(self) -> int:
    """R, the numbers of a projected gradient; 0 where there is none."""
    return max(found.size if found else 0 for found in self[:3])


def of_run(
  config: RunConfig,
  start: Start,
  policies: Policies,
  adam: Adam | None,
  sharding: jax.NamedSharding | None,
) -> RunFeatures:
  """Returns all of them; ValueError as `make_features`."""
  params = param_shapes(start)
  if config.target.alignment != "exact":
    left = map_alignment.left_out(start.model, params)
    _LOG.info("target_alignment is by linear maps; left out: %s", ", ".join(left) or "nothing")
  parts = (config, start.model, policies)
  step, round_, target = (
    make_features(*parts, scope, params, adam, sharding)
    for scope in ("step", "round", "target")
  )
  return RunFeatures(step, round_, target, make_products(*parts, params, sharding))


def make_features(
  config: RunConfig,
  model: LanguageModel,
  policies: Policies,
  scope: str,
  params: Params,
  adam: Adam | None,
  sharding: jax.NamedSharding | None,
) -> Features | None:
  """Returns what computes the gradients that are observed in a step, in a round, or of targets.

  Args:
    config: of the run.
    model: the network.
    policies: what observes.
    scope: "step", "round" or "target".
    params: shapes of the parameters.
    adam: the constants of the optimizer.
    sharding: of batches.

  Raises:
    ValueError: listing what is wrong with `config.features`.
  """
  if scope == "target":
    wanted = frozenset({"gradient"}) if reads_target_gradient(policies) else frozenset()
  else:
    wanted = observed_of(policies, scope)
    if scope == "round":
      wanted |= frozenset[str]().union(*(p.observes_pool for p in slots(policies).values()))
    wanted &= FIELDS
  if not wanted:
    return None
  return make_gradients(model, params, wanted, options(config), _key(config), adam, sharding)


def make_products(
  config: RunConfig,
  model: LanguageModel,
  policies: Policies,
  params: Params,
  sharding: jax.NamedSharding | None,
) -> Callable[..., dict[str, jax.Array]] | None:
  """Returns what computes the inner products of gradients, where a step observes them.

  It maps parameters, the rows of a step and those of a target set, or `None`, to
  `gradient_product` and, with a target, `target_alignment`.
  """
  if PRODUCT not in observed_of(policies, "step"):
    return None
  products = ghost.make_gradient_products(model, params, options(config), sharding)
  shards = 1 if sharding is None else num_shards(sharding)

  def compute(
    params: Params, inputs: RowInputs, target: RowInputs | None
  ) -> dict[str, jax.Array]:
    if target is None:
      return {PRODUCT: products(params, inputs)}
    return aligned_products(products, params, inputs, target, shards)

  return compute


def reads_target_gradient(policies: Policies) -> bool:
  """Whether a policy compares gradients of examples with those of the target set."""
  return any(
    policy.observes & OF_TARGET and "target" in policy.observes
    for policy in (policies.mixture, policies.selection, policies.weighting)
    if policy is not None
  )


def make_target_gradient(
  features: Features, batch_size: int, sharding: jax.NamedSharding | None
) -> Callable[[Params, TargetRows], jax.Array]:
  """Returns `(params, rows) -> f32[M, R]`, projected gradients of the rows of a target set."""

  def target_gradient(params: Params, rows: TargetRows) -> jax.Array:
    chunks = split_rows(rows, batch_size, sharding)
    found = jax.lax.map(lambda x: features.compute(params, None, x)["gradient"], chunks)
    return jnp.reshape(found, (-1, features.size))[: rows.tokens.shape[0]]

  if sharding is None:
    return jax.jit(target_gradient)
  everywhere = jax.NamedSharding(sharding.mesh, jax.P())
  return jax.jit(target_gradient, out_shardings=everywhere)


def options(config: RunConfig) -> Options:
  """Returns the fields of the config as `jdc.stats` takes them."""
  fields: dict[str, Any] = dataclasses.asdict(config.features)
  return Options(**fields | {"parameters": tuple(config.features.parameters)})


def _key(config: RunConfig) -> jax.Array:
  # Of the seed alone, so that all parts of a run project alike.
  seed = np.random.SeedSequence((config.seed, 0x0FEA)).generate_state(1)[0]
  return jax.random.key(int(seed))
