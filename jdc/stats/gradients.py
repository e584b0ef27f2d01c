"""Gradients of single examples as features: projected, preconditioned, or their norms."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs
from jdc.models import subsets
from jdc.models.base import LanguageModel
from jdc.stats.directions import DIRECTIONS, Adam, Moments
from jdc.stats.losses import full_params
from jdc.stats.probes import num_shards
from jdc.stats.projection import paths_and_leaves, problems_of

FIELDS = frozenset({"gradient", "update_direction", "gradient_norm"})
PROVIDERS = ("exact", "kron", "directional")

LAYERS = "layers/"  # the parameters whose first axis is that of the layers

Params = tuple[Any, Any]  # those that are trained, and the frozen ones or None


class Options(NamedTuple):
  """Which gradients, and how they become features."""

  provider: str = "exact"  # one of `PROVIDERS`
  # Patterns of paths of trained or frozen parameters, as in `jdc.models.subsets.matcher`; none
  # for all that are trained.
  parameters: tuple[str, ...] = ()
  top_layers: int = 0  # only parameters of these last layers; 0: of all
  size: int = 1024  # R
  projection: str = "count_sketch"  # of "exact", one of `projection.PROJECTIONS`
  direction: str = "optimizer"  # of `update_direction`, one of `directions.DIRECTIONS`
  # Examples whose gradients exist at once, over all devices; of "directional" the directions.
  microbatch_size: int = 8


class Features(NamedTuple):
  """What computes features of B examples."""

  size: int  # R
  # (params, moments or None, inputs) -> the wanted fields, f32[B, R], a norm f32[B]; pure, for
  # use inside jit. A row is an example, and has zeros if it has no target tokens.
  compute: Callable[[Params, Moments | None, RowInputs], dict[str, jax.Array]]
  forward: int = 1  # passes over a row
  backward: int = 1


def make_features(
  model: LanguageModel,
  shapes: Params,
  wanted: frozenset[str],
  options: Options,
  key: jax.Array,
  adam: Adam | None = None,
  sharding: jax.NamedSharding | None = None,
) -> Features:
  r"""Returns what computes the wanted features of examples.

  With l_i the mean loss of row i's target tokens, without the noise of training, theta the
  chosen parameters and R a random projection,

    gradient          R grad_theta l_i,
    update_direction  R d(grad_theta l_i), d as `directions.adam_direction` says,
    gradient_norm     |grad_theta l_i|.

  The provider "exact" takes the gradients of `microbatch_size` rows at a time and projects them
  as `projection.make_projection` says. "kron" projects each linear map on both sides before any
  gradient exists, see `jdc.stats.kron`; it knows linear maps only, and no directions of Adam.
  "directional" takes derivatives along random directions in forward mode, see
  `jdc.stats.directional`; it has no norms and no directions of Adam.

  Args:
    model: gives token losses; taps where `top_layers` or "kron" ask for them.
    shapes: of the parameters, a pair such as `jdc.train.state.Params`.
    wanted: a part of `FIELDS`.
    options: which gradients, and how they are projected.
    key: of the projection, key[]. It is the same for the same key, options and shapes, whatever
      is wanted.
    adam: the optimizer's settings, for `update_direction`.
    sharding: of batches; `None` for one device. `microbatch_size` should be a multiple of the
      shards: where it is not, devices do each other's work.

  Raises:
    ValueError: listing every option that is wrong or does not fit the model, as
      `features.size`.

  References:
    Xia et al., "LESS: Selecting Influential Data for Targeted Instruction Tuning", 2024,
      arXiv:2402.04333.

  Example:
    >>> from jdc.data.batch import inputs_and_targets
    >>> from jdc.models.decoder import DecoderConfig, decoder
    >>> config = DecoderConfig(
    ...   vocab_size=8, width=8, num_layers=1, num_heads=1, num_kv_heads=1, mlp_width=8
    ... )
    >>> model = decoder(config)
    >>> params = (model.init(jax.random.key(0)), None)
    >>> wanted = frozenset({"gradient", "gradient_norm"})
    >>> features = make_features(model, params, wanted, Options(size=64), jax.random.key(1))
    >>> tokens = jnp.array([[1, 2, 1, 2], [3, 5, 7, 4]])
    >>> rows = inputs_and_targets(tokens, jnp.ones_like(tokens))
    >>> found = jax.jit(features.compute)(params, None, rows)
    >>> found["gradient"].shape, found["gradient_norm"].shape
    ((2, 64), (2,))
  """
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), tuple(shapes))
  if problems := _problems(model, shapes, wanted, options, adam):
    raise ValueError("; ".join(problems))
  if options.provider == "kron":
    from jdc.stats import kron  # which imports this module

    return kron.make_kron(model, shapes, wanted, options, key, sharding)
  if options.provider == "directional":
    from jdc.stats import directional

    return directional.make_directional(model, shapes, options, key, sharding)
  from jdc.stats import exact

  return exact.make_exact(model, shapes, wanted, options, key, adam, sharding)


def chosen_paths(shapes: Params, options: Options) -> frozenset[str]:
  """Returns the paths of the parameters whose gradients count."""
  if options.parameters:
    accepts = subsets.matcher(options.parameters)
    return frozenset(p for p, _ in paths_and_leaves(full_params(shapes)) if accepts(p))
  trained = (path for path, _ in paths_and_leaves(shapes[0]))
  return frozenset(p for p in trained if not options.top_layers or p.startswith(LAYERS))


def passes(options: Options) -> tuple[int, int]:
  """Returns the forward and backward passes that the features of a row take.

  A derivative along a direction takes each product of a forward pass twice, besides the pass
  that the directions of a microbatch share.
  """
  if options.provider != "directional":
    return 1, 1
  return 2 * options.size + -(-options.size // options.microbatch_size), 0


def microbatches(
  num_rows: int, size: int, sharding: jax.NamedSharding | None
) -> tuple[int, int]:
  """Returns in how many microbatches rows are taken, and the rows of each: as few as suffice.

  10 rows, 8 at most at a time, are 2 microbatches of 5, and not 2 of 8 that are padded. Where
  `size` is a multiple of the shards of the batch, so is what is returned.
  """
  count = -(-num_rows // size)
  step = 1 if sharding is None else math.gcd(num_shards(sharding), size)
  return count, -(-num_rows // (count * step)) * step


def _problems(
  model: LanguageModel,
  shapes: Params,
  wanted: frozenset[str],
  options: Options,
  adam: Adam | None,
) -> list[str]:
  fields = (
    ("provider", f"one of {PROVIDERS}", options.provider in PROVIDERS),
    ("parameters", "a tuple of patterns", isinstance(options.parameters, tuple)),
    ("top_layers", "an integer of at least 0", _is_count(options.top_layers, 0)),
    ("direction", f"one of {DIRECTIONS}", options.direction in DIRECTIONS),
    ("microbatch_size", "an integer of at least 1", _is_count(options.microbatch_size, 1)),
  )
  wrong = {name: accepted for name, accepted, right in fields if not right}
  problems = [
    f"features.{name} must be {accepted}, got {getattr(options, name)!r}"
    for name, accepted in wrong.items()
  ]
  # The others have rules of their own for their size.
  own = options.provider in ("kron", "directional")
  kind = "count_sketch" if own else options.projection
  problems += problems_of(kind, options.size)
  if not wanted or not wanted <= FIELDS:
    accepted = ", ".join(sorted(FIELDS))
    problems.append(f"the wanted features must be some of {accepted}, got {sorted(wanted)}")
  if options.provider == "directional" and "gradient_norm" in wanted:
    problems.append(
      "features.provider 'directional' has no gradient_norm; accepted: 'exact', 'kron'"
    )
  if not {"parameters", "top_layers"} & wrong.keys():
    problems += _choice_problems(model, shapes, options)
    if "update_direction" in wanted:
      problems += _direction_problems(shapes, options, adam)
  return problems


def _choice_problems(model: LanguageModel, shapes: Params, options: Options) -> list[str]:
  """What is wrong with the choice of parameters."""
  leaves, top = dict(paths_and_leaves(full_params(shapes))), options.top_layers
  chosen = chosen_paths(shapes, options)
  without = [p for p in options.parameters if not any(map(subsets.matcher([p]), leaves))]
  elsewhere = sorted(path for path in chosen if not path.startswith(LAYERS))
  from_top = f"{'forward_mode' if options.provider == 'directional' else 'tapped'}_losses"
  has_top = getattr(model, from_top) is not None
  num_layers = next((x.shape[0] for p, x in leaves.items() if p.startswith(LAYERS)), 0)
  rules = (
    (
      not without,
      f"features.parameters {', '.join(map(repr, without))} match no parameter; known: "
      f"{', '.join(leaves)}",
    ),
    (
      not top or has_top,
      f"features.top_layers must be 0 for a model without `{from_top}`, got {top}",
    ),
    (top <= num_layers, f"features.top_layers must be in 0..{num_layers}, got {top}"),
    (
      not top or not elsewhere,
      f"features.parameters must be under {LAYERS} where features.top_layers is {top}, and "
      f"some are not: {', '.join(elsewhere)}",
    ),
    (
      bool(chosen or without),
      f"features.top_layers {top} leaves no trained parameter; name some in "
      "features.parameters",
    ),
  )
  return [message for right, message in rules if not right]


def _direction_problems(shapes: Params, options: Options, adam: Adam | None) -> list[str]:
  """Why there is no direction of an update for these parameters."""
  if options.provider != "exact":
    return [
      f"features.provider {options.provider!r} has no update_direction: Adam's direction is "
      "taken number by number and does not commute with a projection, which comes first there; "
      "accepted: 'exact'"
    ]
  problems = []
  if adam is None:
    problems.append("update_direction needs the settings of Adam, `adam`")
  trained = {path for path, _ in paths_and_leaves(shapes[0])}
  if frozen := sorted(chosen_paths(shapes, options) - trained):
    problems.append(
      "update_direction needs features.parameters that are trained, and these are frozen: "
      f"{', '.join(frozen)}"
    )
  return problems


def _is_count(value: Any, least: int) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= least
