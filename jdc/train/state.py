"""Everything that a training step reads and changes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdc.models import subsets
from jdc.models.base import LanguageModel
from jdc.policies.base import Decision, RunSpec
from jdc.policies.combine import Policies
from jdc.train import sharding


class Weights(NamedTuple):
  """Parameters that a run starts from, such as those of a published checkpoint."""

  load: Callable[[Any], Any]  # shapes with shardings, of some that it holds -> arrays
  holds: Callable[[str], bool]  # path, as in "layers/mlp/gate/kernel" -> whether it is there
  fingerprint: str  # of the contents: a resumed run must find the same


class Reference(NamedTuple):
  """A frozen model with whose losses policies compare those of the trained one."""

  model: LanguageModel
  load: Callable[[jax.sharding.Mesh], Any]  # -> its parameters, laid out on the mesh
  fingerprint: str  # of its contents: a resumed run must find the same
  cache: str | None = None  # folder for losses computed once; `None`: computed in each step


class Start(NamedTuple):
  """A model, what its parameters start from, and which of them are trained."""

  model: LanguageModel
  weights: Weights | None = None  # `None`: all are drawn
  # Path of a parameter -> whether it is trained; `None` for all. As for weights, parameters
  # must be a nested dict then.
  trainable: Callable[[str], bool] | None = None


class Params(NamedTuple):
  """The parameters of a model, in two parts."""

  trained: Any
  frozen: Any  # `None` where all are trained


class Fixed(NamedTuple):
  """What a step reads besides and does not change."""

  reference: Any = None  # parameters of the reference model
  target: Any = None  # rows of the target set, `jdc.stats.target.TargetRows`
  target_gradient: Any = None  # by linear maps, in runs that refresh it now and then


def full_params(trained: Any, frozen: Any) -> Any:
  """Returns the parameters of the model."""
  return trained if frozen is None else subsets.join(trained, frozen)


class TrainState(NamedTuple):
  """The state of a run on its devices."""

  step: jax.Array  # i32[], steps taken, skipped ones included
  params: Any  # those that are trained
  frozen: Any  # the others, in no checkpoint; `None` where all are trained
  opt_state: optax.OptState
  policies: dict[str, Any]  # state of each policy by slot, replicated
  key: jax.Array  # key[], of draws inside the step
  skipped: jax.Array  # i32[], steps without an update: nothing finite or nothing to train on
  skipped_in_row: jax.Array  # i32[], of these, the ones up to now without a break
  target: Any = None  # statistics of the target set, `jdc.stats.target.TargetState`
  fixed: Fixed = Fixed()  # in no checkpoint

  @property
  def model_params(self) -> Any:
    """The parameters of the model."""
    return full_params(self.params, self.frozen)

  @property
  def read(self) -> Fixed:
    """What steps read besides, with the target's gradient of the last refresh."""
    if self.target is None or self.target.gradient is None:
      return self.fixed
    return self.fixed._replace(target_gradient=self.target.gradient.maps)

  @property
  def parts(self) -> Params:
    """The same, in two parts."""
    return Params(self.params, self.frozen)


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
  start: Start,
  optimizer: optax.GradientTransformation,
  policy_states: dict[str, Any],
  mesh: jax.sharding.Mesh,
  seed: int,
) -> TrainState:
  """Returns a fresh state, every array created where it belongs on the mesh.

  It has no statistics of a target set yet.
  """
  key, shapes = jax.random.key(seed), abstract(start, optimizer, policy_states, mesh)
  params, frozen = initial_params(start, shapes.params, key), shapes.frozen
  if frozen is not None:
    frozen = initial_params(start, frozen, key)
  rest = shapes._replace(params=None, frozen=None)

  def create(params: Any, key: jax.Array) -> TrainState:
    created = _created(params, None, optimizer, policy_states, key)
    return created._replace(params=None)

  created = jax.jit(create, out_shardings=_shardings(rest))(params, key)
  return created._replace(params=params, frozen=frozen)


def saved_part(state: TrainState) -> TrainState:
  """Returns the state without what no checkpoint holds."""
  return state._replace(frozen=None, fixed=Fixed())


def with_frozen(state: TrainState, shapes: TrainState, start: Start, seed: int) -> TrainState:
  """Returns a restored state with the parameters that no checkpoint holds."""
  if shapes.frozen is None:
    return state
  return state._replace(frozen=initial_params(start, shapes.frozen, jax.random.key(seed)))


def initial_params(start: Start, shapes: Any, key: jax.Array) -> Any:
  """Returns some of a model's parameters: from the weights that hold them, else drawn.

  Args:
    start: the model, and what it starts from.
    shapes: those that are wanted, with shardings.
    key: of the run.
  """
  if start.weights is None:
    held, drawn = None, shapes
  else:
    held, drawn = subsets.split(shapes, start.weights.holds)

  def draw(key: jax.Array) -> Any:
    return _selected(start.model.init(key), drawn)

  loaded = start.weights.load(held) if start.weights is not None and held else None
  if not jax.tree.leaves(drawn):
    return loaded
  created = jax.jit(draw, out_shardings=_shardings(drawn))(key)
  return full_params(created, loaded)


def param_shapes(start: Start) -> Params:
  """Returns the shapes of the parameters, in two parts."""
  shapes = jax.eval_shape(start.model.init, jax.random.key(0))
  if start.trainable is None:
    return Params(shapes, None)
  return Params(*subsets.split(shapes, start.trainable))


def abstract(
  start: Start,
  optimizer: optax.GradientTransformation,
  policy_states: dict[str, Any],
  mesh: jax.sharding.Mesh,
  target_shapes: Callable[[Params], Any] | None = None,
) -> TrainState:
  """Returns the shapes and shardings of a state, as a target to restore into.

  Args:
    start: the model.
    optimizer: of the trained parameters.
    policy_states: of the slots.
    mesh: where the arrays lie.
    target_shapes: shapes of the parameters -> those of the target set's statistics.
  """
  key = jax.random.key(0)
  params, frozen = param_shapes(start)
  specs = start.model.partition_specs(jax.eval_shape(start.model.init, key))
  frozen_specs = None
  if start.trainable is not None:
    specs, frozen_specs = subsets.split(specs, start.trainable)

  def create(key: jax.Array, params: Any, frozen: Any) -> TrainState:
    return _created(params, frozen, optimizer, policy_states, key)

  shapes = jax.eval_shape(create, key, params, frozen)
  if target_shapes is not None:
    shapes = shapes._replace(target=target_shapes(Params(params, frozen)))
  everywhere = sharding.replicated(mesh)
  placed = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), (specs, frozen_specs))
  shardings = jax.tree.map(lambda _: everywhere, shapes)._replace(
    params=placed[0],
    frozen=placed[1],
    opt_state=sharding.optimizer_shardings(optimizer, params, placed[0], mesh),
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


def _created(
  params: Any,
  frozen: Any,
  optimizer: optax.GradientTransformation,
  policy_states: dict[str, Any],
  key: jax.Array,
) -> TrainState:
  return TrainState(
    step=jnp.int32(0),
    params=params,
    frozen=frozen,
    opt_state=optimizer.init(params),
    policies=policy_states,
    key=jax.random.fold_in(key, 1),
    skipped=jnp.int32(0),
    skipped_in_row=jnp.int32(0),
  )


def _shardings(shapes: Any) -> Any:
  return jax.tree.map(lambda x: x.sharding, shapes)


def _selected(params: Any, like: Any) -> Any:
  """The parameters that have a place in `like`; of a nested dict that may be some only."""
  if not isinstance(like, Mapping):
    return params
  return {name: _selected(params[name], part) for name, part in like.items()}


def _stable_hash(name: str) -> int:
  # Python's own hash differs between processes.
  return int.from_bytes(name.encode()[:4].ljust(4, b"\0"), "little")
