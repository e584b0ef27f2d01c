"""The forward passes of a run, and what they tell of the rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs, inputs_and_targets
from jdc.data.loader import Batch
from jdc.models.base import LanguageModel
from jdc.stats import embeddings, logits
from jdc.stats.alignment import make_curvature, make_products, make_target_gradient
from jdc.stats.directions import moments_of
from jdc.stats.gradients import Features
from jdc.stats.map_alignment import make_map_alignment
from jdc.stats.target_rows import sample_rows
from jdc.train.state import Fixed, Params, full_params

EMBEDDINGS = frozenset(embeddings.POOLINGS)
_TARGET_ROWS = 2  # a stream of the step's key, beside those in `step`
REFERENCE = frozenset({"reference_loss", "reference_token_loss"})
ERRORS = frozenset({"el2n"})  # of the logits that give the losses


class Seen(NamedTuple):
  """What the passes over some rows tell, [B, ...] each; `None` where nothing reads it."""

  token_loss: jax.Array  # f32[B, T]
  embeddings: dict[str, jax.Array]  # f32[B, D], or [B, S, D] of packed rows
  reference_token_loss: jax.Array | None = None  # f32[B, T]
  target_alignment: jax.Array | None = None  # f32[B]
  gradient: jax.Array | None = None  # f32[B, R]
  update_direction: jax.Array | None = None  # f32[B, R]
  gradient_norm: jax.Array | None = None  # f32[B]
  token_error: jax.Array | None = None  # f32[B, T]
  logit_nuclear_norm: jax.Array | None = None  # f32[B]
  logit_projection: jax.Array | None = None  # f32[B, Q]


class Microbatch(NamedTuple):
  """What the losses of some rows are computed from."""

  batch: Batch
  inputs: RowInputs
  key: jax.Array | None = None  # of the noise of training


class Shared(NamedTuple):
  """What the other passes of a step read besides the rows, the same for all of these."""

  direction: Any = None  # the gradient of some target rows
  moments: Any = None  # of the optimizer, where a direction is asked for
  output: logits.OutputSummary | None = None  # where statistics of logits are asked for


class Passes(NamedTuple):
  """The passes of a run; `params` are those of the model, in one tree or in parts."""

  # (params, rows, shared=None) -> what is seen, and the balance loss of a mixture of experts,
  # or None; statistics of logits are told with `shared` only
  look: Callable[..., tuple[Seen, jax.Array | None]]
  # (params, rows, weights f32[B, T]) -> the weighted sum of losses, and as from `look`
  weighted: Callable[..., tuple[jax.Array, Seen, jax.Array | None]]
  # (params in parts, fixed, opt_state, key) -> `Shared`; without a key no target rows are drawn
  share: Callable[..., Shared]
  # (params in parts, fixed, rows, shared, known=frozenset()) -> the fields of `Seen` that other
  # passes tell, but those in `known`
  besides: Callable[..., dict[str, Any]]
  # (params in parts, fixed, inputs, key) -> those statistics that need all rows at once
  together: Callable[..., dict[str, Any]]
  # (params in parts, rows, weights f32[B, T], shared) -> the gradient of the weighted sum of
  # losses by what is trained, this sum, and what is seen, with `target_alignment`. Weights are
  # the same for all target tokens of a row. `None` where another pass has to tell it.
  aligned: Callable[..., tuple[Any, jax.Array, Seen]] | None = None


def make_passes(
  model: LanguageModel,
  reference: LanguageModel | None,
  wanted: frozenset[str],
  num_target_rows: int = 0,
  features: Features | None = None,
  products: Callable[..., dict[str, jax.Array]] | None = None,
  microbatches: int = 1,
  alignment: str = "exact",
) -> Passes:
  """Returns the passes that compute losses and the statistics named in `wanted`.

  Hidden states and errors come from the pass that gives the losses. A reference model runs
  once more, unless the batch brings its losses. `target_alignment` is with the gradient of
  `num_target_rows` rows of the target set, drawn anew in each step. `features` computes the
  gradients of single rows, `products` the inner products of all pairs of them; then
  `target_alignment` is one of these too, by the same parameters. `target_curvature` is of the
  same target rows; it is computed in `microbatches`. With `alignment` "linear_maps",
  `target_alignment` is by these alone; with "low_rank" too, and with the gradient that `Fixed`
  holds.
  """
  pooled = sorted(wanted & EMBEDDINGS)
  forward, loss_sum = make_forward(model), make_loss_sum(model, bool(wanted & ERRORS))
  reference_forward = make_forward(reference) if reference is not None else None
  whole = bool(pooled) or model.balance_weight > 0
  errors = bool(wanted & ERRORS)
  outputs = model.error_outputs if errors else model.outputs

  def look(
    params: Any, rows: Microbatch, shared: Shared | None = None
  ) -> tuple[Seen, jax.Array | None]:
    output = None if shared is None else shared.output
    if not (whole or errors) and output is None:
      return Seen(forward(params, rows.inputs, rows.key), {}), None
    assert outputs is not None
    noise = {} if rows.key is None else {"key": rows.key}
    tokens, targets, positions, segments, mask = rows.inputs
    asked = model.asked(targets, mask)
    found = outputs(params, tokens, asked, positions, segments, **noise)
    pools = {
      name: embeddings.POOLINGS[name](found.hidden, segments, rows.batch.max_segments)
      for name in pooled
    }
    balance = None
    if model.balance_weight > 0:
      assert found.balance_loss is not None
      balance = model.balance_weight * found.balance_loss
    seen = Seen(found.token_loss, pools, token_error=found.token_error)
    if output is not None:
      of_logits = wanted & logits.FIELDS
      seen = seen._replace(**logits.logit_statistics(output, found.hidden, mask, of_logits))
    return seen, balance

  def weighted(
    params: Any, rows: Microbatch, weight_BxT: jax.Array
  ) -> tuple[jax.Array, Seen, jax.Array | None]:
    if whole or (errors and model.weighted_error_loss is None):
      seen, balance = look(params, rows)
      return jnp.sum(seen.token_loss * weight_BxT), seen, balance
    loss, token_loss, *told = loss_sum(params, rows.inputs, weight_BxT, rows.key)
    return loss, Seen(token_loss, {}, token_error=told[0] if told else None), None

  compared = products is not None and "target_alignment" in wanted
  aligned = "target_alignment" in wanted and not compared
  target_gradient, target_products = make_target_gradient(model), make_products(model)
  curvature = make_curvature(model, microbatches)
  by_maps = make_map_alignment(model) if aligned and alignment != "exact" else None
  if by_maps is not None:
    target_gradient, target_products = by_maps.target_gradient, by_maps.products

  def share(params: Params, fixed: Fixed, opt_state: Any, key: jax.Array | None) -> Shared:
    moments = moments_of(opt_state) if "update_direction" in wanted else None
    output = None
    if wanted & logits.FIELDS:
      assert model.output_matrix is not None
      output = logits.summarise(model.output_matrix(full_params(*params)))
    if not aligned or key is None:
      return Shared(None, moments, output)
    if alignment == "low_rank":
      return Shared(fixed.target_gradient, moments, output)
    return Shared(target_gradient(params, drawn(fixed, key)), moments, output)

  def drawn(fixed: Fixed, key: jax.Array) -> RowInputs:
    key = jax.random.fold_in(key, _TARGET_ROWS)
    rows = sample_rows(fixed.target, key, num_target_rows)
    return inputs_and_targets(rows.tokens, rows.segments)

  def besides(
    params: Params,
    fixed: Fixed,
    rows: Microbatch,
    shared: Shared,
    known: frozenset[str] = frozenset(),
  ) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if wanted & REFERENCE:
      losses = rows.batch.reference_token_loss
      if losses is None:
        assert reference_forward is not None
        losses = reference_forward(fixed.reference, rows.inputs)
      told["reference_token_loss"] = losses
    if aligned and "target_alignment" not in known:
      told["target_alignment"] = target_products(params, rows.inputs, shared.direction)
    if features is not None:
      told |= features.compute(params, shared.moments, rows.inputs)
    return told

  def together(
    params: Params, fixed: Fixed, inputs: RowInputs, key: jax.Array
  ) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if products is not None:
      told |= products(params, inputs, drawn(fixed, key) if compared else None)
    if "target_curvature" in wanted:
      told["target_curvature"] = curvature(params, inputs, drawn(fixed, key))
    return told

  def with_alignment(
    params: Params, rows: Microbatch, weight_BxT: jax.Array, shared: Shared
  ) -> tuple[Any, jax.Array, Seen]:
    assert by_maps is not None
    assert model.tapped_losses is not None
    tapped_losses, taps = model.tapped_losses, by_maps.taps
    tokens, targets, positions, segments, mask = rows.inputs
    asked = model.asked(targets, mask)

    def loss(trained: Any, zeros: Any) -> tuple[jax.Array, jax.Array]:
      full = full_params(trained, params.frozen)
      tapped = taps(zeros, shared.direction)
      token_loss = tapped_losses(full, tapped, tokens, asked, positions, segments, 0)
      return jnp.sum(token_loss * weight_BxT), token_loss

    zeros = by_maps.zeros(params, len(tokens))
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (total, token_loss), (grads, found) = gradient(params.trained, zeros)
    weight_B = jnp.sum(weight_BxT, axis=1)
    # Of each row's mean loss; one without target tokens has no gradient.
    aligned_B = by_maps.total(found) / jnp.where(weight_B > 0, weight_B, 1.0)
    return grads, total, Seen(token_loss, {}, target_alignment=aligned_B)

  shares = by_maps is not None and trains_alignment(model, wanted)
  aligned_pass = with_alignment if shares else None
  return Passes(look, weighted, share, besides, together, aligned_pass)


def trains_alignment(model: LanguageModel, observed: frozenset[str]) -> bool:
  """Whether the pass that trains can tell `target_alignment` by linear maps."""
  others = EMBEDDINGS | ERRORS | logits.FIELDS
  return not (model.dropout or model.balance_weight > 0 or observed & others)


def make_forward(model: LanguageModel) -> Callable[..., jax.Array]:
  """Returns `(params, inputs, key=None) -> f32[B, T]`, the token losses of rows.

  A key draws the noise of training, in models that have it; without one there is none.
  """

  def forward(params: Any, inputs: RowInputs, key: jax.Array | None = None) -> jax.Array:
    noise = {} if key is None else {"key": key}
    tokens, targets, positions, segments, mask = inputs
    asked = model.asked(targets, mask)
    return model.token_losses(params, tokens, asked, positions, segments, **noise)

  return forward


def make_loss_sum(model: LanguageModel, errors: bool = False) -> Callable[..., tuple]:
  """Returns `(params, inputs, weights f32[B, T], key=None) -> (f32[], f32[B, T])`.

  The sum of weights times losses, and the losses, which are constants for the gradient. With
  `errors` those of tokens, f32[B, T], come third, if the model offers all three at once.
  """
  forward = make_forward(model)
  offered: Callable[..., tuple[jax.Array, ...]] | None = model.weighted_loss
  if errors and model.weighted_error_loss is not None:
    offered = model.weighted_error_loss

  def plain(
    params: Any, inputs: RowInputs, weight_BxT: jax.Array, key: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    token_loss = forward(params, inputs, key)
    return jnp.sum(token_loss * weight_BxT), jax.lax.stop_gradient(token_loss)

  def own(
    params: Any, inputs: RowInputs, weight_BxT: jax.Array, key: jax.Array | None = None
  ) -> tuple[jax.Array, ...]:
    assert offered is not None
    noise = {} if key is None else {"key": key}
    tokens, targets, positions, segments, mask = inputs
    asked = model.asked(targets, mask)
    return offered(params, tokens, asked, positions, segments, weight_BxT, **noise)

  return plain if offered is None else own
