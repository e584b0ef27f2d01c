"""Everything that a training step reads and changes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdc.models.base import LanguageModel
from jdc.policies.base import Decision, RunSpec
from jdc.policies.combine import Policies
from jdc.train import sharding


class TrainState(NamedTuple):
  """The state of a run on its devices."""

  step: jax.Array  # i32[], steps taken, skipped ones included
  params: Any
  opt_state: optax.OptState
  policies: dict[str, Any]  # state of each policy by slot, replicated
  key: jax.Array  # key[], of draws inside the step
  skipped: jax.Array  # i32[], steps whose loss or gradient was not finite
  skipped_in_row: jax.Array  # i32[], of these, the ones up to now without a break


def slots(policies: Policies) -> dict[str, Any]:
  """Returns the policies in use, by slot; an ordering has no state and is not among them."""
  named = policies._asdict()
  return {
    name: named[name]
    for name in ("mixture", "selection", "weighting")
    if named[name] is not None
  }


def init_policies(
  policies: Policies, spec: RunSpec, seed: int
) -> tuple[dict[str, Decision], dict[str, Any]]:
  """Returns the initial decision and state of every slot; its name goes into its key.

  Raises:
    ValueError: if policies do not fit the run; all of them are named.
  """
  decisions, states, errors = {}, {}, []
  for name, policy in slots(policies).items():
    key = jax.random.fold_in(jax.random.key(seed), _stable_hash(name))
    try:
      decisions[name], states[name] = policy.init(spec, key)
    except ValueError as error:
      errors.append(f"{name}: {error}")
  if errors:
    raise ValueError("; ".join(errors))
  return decisions, states


def init(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  policy_states: dict[str, Any],
  mesh: jax.sharding.Mesh,
  seed: int,
) -> TrainState:
  """Returns a fresh state, every array created where it belongs on the mesh."""
  create = _creator(model, optimizer, policy_states)
  shapes = abstract(model, optimizer, policy_states, mesh)
  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  return jax.jit(create, out_shardings=shardings)(jax.random.key(seed))


def abstract(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  policy_states: dict[str, Any],
  mesh: jax.sharding.Mesh,
) -> TrainState:
  """Returns the shapes and shardings of a state, as a target to restore into."""
  shapes = jax.eval_shape(_creator(model, optimizer, policy_states), jax.random.key(0))
  shardings = state_shardings(shapes, model, optimizer, mesh)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


def _creator(
  model: LanguageModel, optimizer: optax.GradientTransformation, policy_states: dict[str, Any]
) -> Callable[[jax.Array], TrainState]:
  def create(key: jax.Array) -> TrainState:
    params = model.init(key)
    return TrainState(
      step=jnp.int32(0),
      params=params,
      opt_state=optimizer.init(params),
      policies=policy_states,
      key=jax.random.fold_in(key, 1),
      skipped=jnp.int32(0),
      skipped_in_row=jnp.int32(0),
    )

  return create


def state_shardings(
  state: TrainState,
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
) -> Any:
  """Returns a `TrainState` of shardings for one of arrays or shapes."""
  specs = model.partition_specs(state.params)
  params = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
  everywhere = sharding.replicated(mesh)
  return jax.tree.map(lambda _: everywhere, state)._replace(
    params=params,
    opt_state=sharding.optimizer_shardings(optimizer, state.params, params, mesh),
  )


def _stable_hash(name: str) -> int:
  # Python's own hash differs between processes.
  return int.from_bytes(name.encode()[:4].ljust(4, b"\0"), "little")
