"""The forward passes of a run, and what they tell of the rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs, inputs_and_targets
from jdc.data.loader import Batch
from jdc.models.base import LanguageModel
from jdc.stats import embeddings
from jdc.stats.alignment import make_products, make_target_gradient
from jdc.stats.directions import moments_of
from jdc.stats.gradients import Features
from jdc.stats.target_rows import sample_rows
from jdc.train.state import Fixed, Params

EMBEDDINGS = frozenset(embeddings.POOLINGS)
_TARGET_ROWS = 2  # a stream of the step's key, beside those in `step`
REFERENCE = frozenset({"reference_loss", "reference_token_loss"})


class Seen(NamedTuple):
  """What the passes over some rows tell, [B, ...] each; `None` where nothing reads it."""

  token_loss: jax.Array  # f32[B, T]
  embeddings: dict[str, jax.Array]  # f32[B, D], or [B, S, D] of packed rows
  reference_token_loss: jax.Array | None = None  # f32[B, T]
  target_alignment: jax.Array | None = None  # f32[B]
  gradient: jax.Array | None = None  # f32[B, R]
  update_direction: jax.Array | None = None  # f32[B, R]
  gradient_norm: jax.Array | None = None  # f32[B]


class Microbatch(NamedTuple):
  """What the losses of some rows are computed from."""

  batch: Batch
  inputs: RowInputs
  key: jax.Array | None = None  # of the noise of training


class Shared(NamedTuple):
  """What the other passes of a step read besides the rows, the same for all of these."""

  direction: Any = None  # the gradient of some target rows
  moments: Any = None  # of the optimizer, where a direction is asked for


class Passes(NamedTuple):
  """The passes of a run; `params` are those of the model, in one tree or in parts."""

  # (params, rows) -> what is seen, and the balance loss of a mixture of experts, or None
  look: Callable[..., tuple[Seen, jax.Array | None]]
  # (params, rows, weights f32[B, T]) -> the weighted sum of losses, and as from `look`
  weighted: Callable[..., tuple[jax.Array, Seen, jax.Array | None]]
  # (params in parts, fixed, opt_state, key) -> `Shared`; without a key no target rows are drawn
  share: Callable[..., Shared]
  # (params in parts, fixed, rows, shared) -> the fields of `Seen` that other passes tell
  besides: Callable[..., dict[str, Any]]
  # (params in parts, fixed, inputs, key) -> those statistics that need all rows at once
  together: Callable[..., dict[str, Any]]


def make_passes(
  model: LanguageModel,
  reference: LanguageModel | None,
  wanted: frozenset[str],
  num_target_rows: int = 0,
  features: Features | None = None,
  products: Callable[..., dict[str, jax.Array]] | None = None,
) -> Passes:
  """Returns the passes that compute losses and the statistics named in `wanted`.

  Hidden states come from the pass that gives the losses. A reference model runs once more,
  unless the batch brings its losses. `target_alignment` is with the gradient of
  `num_target_rows` rows of the target set, drawn anew in each step. `features` computes the
  gradients of single rows, `products` the inner products of all pairs of them; then
  `target_alignment` is one of these too, by the same parameters.
  """
  pooled = sorted(wanted & EMBEDDINGS)
  forward, loss_sum = make_forward(model), make_loss_sum(model)
  reference_forward = make_forward(reference) if reference is not None else None
  whole = bool(pooled) or model.balance_weight > 0

  def look(params: Any, rows: Microbatch) -> tuple[Seen, jax.Array | None]:
    if not whole:
      return Seen(forward(params, rows.inputs, rows.key), {}), None
    assert model.outputs is not None
    noise = {} if rows.key is None else {"key": rows.key}
    tokens, targets, positions, segments, _ = rows.inputs
    found = model.outputs(params, tokens, targets, positions, segments, **noise)
    pools = {
      name: embeddings.POOLINGS[name](found.hidden, segments, rows.batch.max_segments)
      for name in pooled
    }
    balance = None
    if model.balance_weight > 0:
      assert found.balance_loss is not None
      balance = model.balance_weight * found.balance_loss
    return Seen(found.token_loss, pools), balance

  def weighted(
    params: Any, rows: Microbatch, weight_BxT: jax.Array
  ) -> tuple[jax.Array, Seen, jax.Array | None]:
    if whole:
      seen, balance = look(params, rows)
      return jnp.sum(seen.token_loss * weight_BxT), seen, balance
    loss, token_loss = loss_sum(params, rows.inputs, weight_BxT, rows.key)
    return loss, Seen(token_loss, {}), None

  compared = products is not None and "target_alignment" in wanted
  aligned = "target_alignment" in wanted and not compared
  target_gradient, target_products = make_target_gradient(model), make_products(model)

  def share(params: Params, fixed: Fixed, opt_state: Any, key: jax.Array | None) -> Shared:
    moments = moments_of(opt_state) if "update_direction" in wanted else None
    if not aligned or key is None:
      return Shared(None, moments)
    return Shared(target_gradient(params, drawn(fixed, key)), moments)

  def drawn(fixed: Fixed, key: jax.Array) -> RowInputs:
    key = jax.random.fold_in(key, _TARGET_ROWS)
    rows = sample_rows(fixed.target, key, num_target_rows)
    return inputs_and_targets(rows.tokens, rows.segments)

  def besides(params: Params, fixed: Fixed, rows: Microbatch, shared: Shared) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if wanted & REFERENCE:
      losses = rows.batch.reference_token_loss
      if losses is None:
        assert reference_forward is not None
        losses = reference_forward(fixed.reference, rows.inputs)
      told["reference_token_loss"] = losses
    if aligned:
      told["target_alignment"] = target_products(params, rows.inputs, shared.direction)
    if features is not None:
      told |= features.compute(params, shared.moments, rows.inputs)
    return told

  def together(
    params: Params, fixed: Fixed, inputs: RowInputs, key: jax.Array
  ) -> dict[str, Any]:
    if products is None:
      return {}
    return products(params, inputs, drawn(fixed, key) if compared else None)

  return Passes(look, weighted, share, besides, together)


def make_forward(model: LanguageModel) -> Callable[..., jax.Array]:
  """Returns `(params, inputs, key=None) -> f32[B, T]`, the token losses of rows.

  A key draws the noise of training, in models that have it; without one there is none.
  """

  def forward(params: Any, inputs: RowInputs, key: jax.Array | None = None) -> jax.Array:
    noise = {} if key is None else {"key": key}
    return model.token_losses(
      params, inputs.tokens, inputs.targets, inputs.positions, inputs.segments, **noise
    )

  return forward


def make_loss_sum(model: LanguageModel) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Returns `(params, inputs, weights f32[B, T], key=None) -> (f32[], f32[B, T])`.

  The sum of weights times losses, and the losses, which are constants for the gradient.
  """
  forward, offered = make_forward(model), model.weighted_loss

  def plain(
    params: Any, inputs: RowInputs, weight_BxT: jax.Array, key: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    token_loss = forward(params, inputs, key)
    return jnp.sum(token_loss * weight_BxT), jax.lax.stop_gradient(token_loss)

  def own(
    params: Any, inputs: RowInputs, weight_BxT: jax.Array, key: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    assert offered is not None
    noise = {} if key is None else {"key": key}
    tokens, targets, positions, segments, _ = inputs
    return offered(params, tokens, targets, positions, segments, weight_BxT, **noise)

  return plain if offered is None else own
