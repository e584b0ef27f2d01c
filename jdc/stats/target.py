"""Statistics of a target set: what the model makes of its rows now."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs, inputs_and_targets
from jdc.models.base import LanguageModel
from jdc.policies.base import TargetStats
from jdc.stats.embeddings import POOLINGS
from jdc.stats.probes import num_shards
from jdc.stats.target_rows import TargetRows as TargetRows
from jdc.stats.target_rows import choose_rows as choose_rows
from jdc.stats.target_rows import sample_rows as sample_rows

# What a refresh can tell besides the loss, task and domain of each row.
FIELDS = frozenset({*POOLINGS, "domain_target_loss", "domain_expert_load"})


class TargetState(NamedTuple):
  """Statistics of the target set at one time, replicated; `None` where not asked for."""

  stats: TargetStats
  domain_target_loss: Any = None  # f32[K], mean over the target tokens of a domain's rows, nats
  domain_expert_load: Any = None  # f32[K, E], tokens that the last layer sends to each expert
  reward: Any = None  # f32[M, S], of responses drawn for each row's prompt
  gradient: Any = None  # by linear maps, `jdc.stats.low_rank.LowRankGradient`


def make_refresh(
  model: LanguageModel,
  fields: Iterable[str],
  num_domains: int,
  batch_size: int,
  sharding: jax.NamedSharding | None = None,
) -> Callable[[Any, TargetRows], TargetState]:
  r"""Returns `(params, rows) -> TargetState`, what the model makes of the target set now.

  With n_i the target tokens of row i and l_it their losses,

    loss_i = sum_t l_it / n_i,
    domain_target_loss_k = sum_{i in k} sum_t l_it / sum_{i in k} n_i,
    domain_expert_load_k = sum_{i in k} load_i,

  without the noise of training. Rows are computed `batch_size` at a time; what is summed over
  rows is summed over all of them in one order, on any mesh. A domain without rows has loss and
  loads 0.

  Args:
    model: with `outputs`, where more than losses is asked for.
    fields: of `FIELDS`; those that policies observe.
    num_domains: K.
    batch_size: rows in one pass, over all devices.
    sharding: of batches; `None` for one device.

  Returns:
    A jitted function whose results are replicated; call it inside `jax.set_mesh`. Its
    parameters are those of the model, in one tree.

  Raises:
    ValueError: naming fields that are unknown or that the model cannot tell, and a batch size
      that the mesh does not divide.
  """
  wanted = frozenset(fields)
  _check(model, wanted, batch_size, sharding)

  def refresh(params: Any, rows: TargetRows) -> TargetState:
    chunks = split_rows(rows, batch_size, sharding)
    parts = jax.lax.map(lambda chunk: _sums(model, wanted, params, chunk), chunks)
    num_rows = rows.tokens.shape[0]
    parts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], parts)
    # Sums over rows are of replicated values, so that no mesh changes their order.
    parts = jax.tree.map(lambda x: _split(x, sharding, jax.P()), parts)
    sum_M, tokens_M = parts.pop("sum"), parts.pop("tokens")
    load_MxE = parts.pop("load", None)
    is_in_KxM = rows.domain == jnp.arange(num_domains)[:, None]
    stats = TargetStats(
      loss=sum_M / jnp.maximum(tokens_M, 1), task=rows.task, domain=rows.domain, **parts
    )
    loss_K = load_KxE = None
    if "domain_target_loss" in wanted:
      total_K = jnp.sum(jnp.where(is_in_KxM, sum_M, 0), axis=1)
      loss_K = total_K / jnp.maximum(jnp.sum(jnp.where(is_in_KxM, tokens_M, 0), axis=1), 1)
    if load_MxE is not None:
      # Counts, which float32 holds exactly unless a product rounds its factors.
      load_KxE = jnp.einsum(
        "km,me->ke",
        is_in_KxM.astype(jnp.float32),
        load_MxE.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
      )
    return TargetState(stats, loss_K, load_KxE)

  everywhere = None if sharding is None else jax.NamedSharding(sharding.mesh, jax.P())
  return jax.jit(refresh) if everywhere is None else jax.jit(refresh, out_shardings=everywhere)


def _check(
  model: LanguageModel,
  wanted: frozenset[str],
  batch_size: int,
  sharding: jax.NamedSharding | None,
) -> None:
  problems = []
  if unknown := sorted(wanted - FIELDS):
    problems.append(f"unknown fields {', '.join(unknown)}; accepted: {sorted(FIELDS)}")
  hidden = sorted(wanted & FIELDS - {"domain_target_loss"})
  if hidden and model.outputs is None:
    problems.append(f"{', '.join(hidden)} need a model that offers `outputs`")
  shards = 1 if sharding is None else num_shards(sharding)
  if batch_size < 1 or batch_size % shards:
    problems.append(f"batch_size must be a positive multiple of {shards}, got {batch_size}")
  if problems:
    raise ValueError("; ".join(problems))


def split_rows(
  rows: TargetRows, batch_size: int, sharding: jax.NamedSharding | None
) -> RowInputs:
  """Returns the rows in chunks, [C, batch_size, T]; the last is padded with segment 0."""
  num_rows = rows.tokens.shape[0]
  num_chunks = -(-num_rows // batch_size)

  def split(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, ((0, num_chunks * batch_size - num_rows), (0, 0)))
    return x.reshape(num_chunks, batch_size, -1)

  inputs = inputs_and_targets(jnp.asarray(rows.tokens), jnp.asarray(rows.segments))
  spec = jax.P(None, *([] if sharding is None else sharding.spec))
  return RowInputs(*(_split(split(x), sharding, spec) for x in inputs))


def _split(x: jax.Array, sharding: jax.NamedSharding | None, spec: jax.P) -> jax.Array:
  if sharding is None:
    return x
  return jax.lax.with_sharding_constraint(x, jax.NamedSharding(sharding.mesh, spec))


def _sums(
  model: LanguageModel, wanted: frozenset[str], params: Any, inputs: RowInputs
) -> dict[str, jax.Array]:
  """What is summed over rows later, and the embeddings of one chunk, [B, ...] each."""
  asked = model.asked(inputs.targets, inputs.mask)
  arguments = (params, inputs.tokens, asked, inputs.positions, inputs.segments)
  found: dict[str, jax.Array] = {}
  if wanted - {"domain_target_loss"}:
    assert model.outputs is not None
    outputs = model.outputs(*arguments)
    token_loss = outputs.token_loss
    for name in sorted(wanted & POOLINGS.keys()):
      found[name] = POOLINGS[name](outputs.hidden, inputs.segments)
    if "domain_expert_load" in wanted:
      if outputs.expert_load is None:
        raise ValueError("domain_expert_load needs a mixture of experts; the model has none")
      found["load"] = outputs.expert_load
  else:
    token_loss = model.token_losses(*arguments)
  found["sum"] = jnp.sum(jnp.where(inputs.mask, token_loss, 0), axis=1, dtype=jnp.float32)
  found["tokens"] = jnp.sum(inputs.mask, axis=1, dtype=jnp.float32)
  return found
