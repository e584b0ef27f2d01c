"""Everything that a training step reads and changes."""

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
  """Returns every slot's initial decision and state; each gets the seed folded with its name."""
  decisions, states = {}, {}
  for name, policy in slots(policies).items():
    key = jax.random.fold_in(jax.random.key(seed), _stable_hash(name))
    decisions[name], states[name] = policy.init(spec, key)
  return decisions, states


def init(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    policy_states: dict[str, Any],
    mesh: jax.sharding.Mesh,
    seed: int,
) -> TrainState:
  """Returns a fresh state, every array created where it belongs on the mesh."""

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

  key = jax.random.key(seed)
  shardings = state_shardings(jax.eval_shape(create, key), model, optimizer, mesh)
  with jax.set_mesh(mesh):
    return jax.jit(create, out_shardings=shardings)(key)


def state_shardings(
    state: TrainState,
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
) -> TrainState:
  """Returns the sharding of every leaf of a state given by arrays or shapes."""
  specs = model.partition_specs(state.params)
  params = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
  everywhere = sharding.replicated(mesh)
  return TrainState(
      step=everywhere,
      params=params,
      opt_state=sharding.optimizer_shardings(optimizer, state.params, params, mesh),
      policies=jax.tree.map(lambda _: everywhere, state.policies),
      key=everywhere,
      skipped=everywhere,
      skipped_in_row=everywhere,
  )


def abstract(state: TrainState, shardings: TrainState) -> TrainState:
  """Returns shapes and shardings, as a target to restore into."""
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
  )


def _stable_hash(name: str) -> int:
  # Python's own hash differs between processes.
  return int.from_bytes(name.encode()[:4].ljust(4, b"\0"), "little")
