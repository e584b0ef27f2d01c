"""What one optimizer step on a row alone does to the loss of a target set."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jdc.data.batch import RowInputs
from jdc.models.base import LanguageModel
from jdc.stats.losses import full_params, make_example_losses, make_loss_sum

FIELDS = frozenset({"probe_id", "probe_label"})


def probe_labels(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  state: Any,
  rows: RowInputs,
  target: RowInputs,
) -> jax.Array:
  r"""Returns the loss of the target after one step on each row by itself, f32[P], nats.

  With U the update of the optimizer in its state, moments and step count included,

    label_p = L(theta + U(grad l_p(theta))),

  l_p the mean loss of row p and L that of all tokens of the target rows, both without the noise
  of training and without the balance loss of experts. Every row starts from the same state,
  which stays as it is. The rows are taken one after the other, so that a second copy of what is
  trained and of the optimizer's state exists at a time; the cost is a forward and a backward
  pass of each row and, for each, a forward pass of all target rows.

  Args:
    model: the network.
    optimizer: with its schedule and clipping.
    state: anything with `params`, `frozen` (or `None`) and `opt_state`, such as a
      `jdc.train.state.TrainState`.
    rows: P rows, each an example. One without target tokens has gradient 0.
    target: rows of the target set in chunks of b, [C, b, T], as `target.split_rows` makes them.

  References:
    Yu et al., "MATES: Model-Aware Data Selection for Efficient Pretraining with Data Influence
    Models", 2024, arXiv 2406.06046, for the labels of an influence model.
  """
  example_losses, loss_sum = make_example_losses(model), make_loss_sum(model)

  def loss(trained: Any, row: RowInputs) -> jax.Array:
    return example_losses(full_params((trained, state.frozen)), row)[0]

  def label(row: RowInputs) -> jax.Array:
    one = jax.tree.map(lambda x: x[None], row)
    grads = jax.grad(loss)(state.params, one)
    updates, _ = optimizer.update(grads, state.opt_state, state.params)
    stepped: Any = optax.apply_updates(state.params, updates)
    full = full_params((stepped, state.frozen))
    add = lambda total, part: (jax.tree.map(jnp.add, total, loss_sum(full, part)), None)
    (total, tokens), _ = jax.lax.scan(add, (jnp.float32(0), jnp.float32(0)), target)
    return total / jnp.maximum(tokens, 1)

  return jax.lax.map(label, jax.tree.map(jnp.asarray, rows))
