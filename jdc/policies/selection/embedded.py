"""What selections by embeddings share: where embeddings come from, and which rows have one."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jdc.policies import checks, neighbours
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.selection import given
from jdc.policies.weighting import directions

Embedding = Literal["embedding", "position_weighted_embedding", "last_token_embedding"]


class Embedded(NamedTuple):
  """Embeddings of candidates and of the target set, f32, 0 where they are not usable."""

  pool_CxD: jax.Array
  usable_C: jax.Array  # bool
  target_MxD: jax.Array
  usable_M: jax.Array  # bool


class Rule(NamedTuple):
  """A selection by embeddings."""

  name: str
  choose: Callable[[Embedded], jax.Array]  # f32[C], logits
  # (C, M) -> counts that the policy reports besides, and what does not fit the run
  counts: Callable[[int, int], tuple[dict[str, int], list[str]]]


def selection(
  rule: Rule,
  claims: list[tuple[bool, str]],
  embedding: Embedding,
  embeddings: str,
  max_candidates: int,
  normalise: bool = True,
) -> DataPolicy:
  """Returns the policy that chooses by embeddings of a sweep, or by those of a file.

  Args:
    rule: how it chooses.
    claims: about the arguments of the rule.
    embedding: which embedding of a sweep.
    embeddings: path of a file as `given.read` takes it; empty: sweep.
    max_candidates: rows that may be compared at once.
    normalise: whether embeddings are divided by their norm.

  Raises:
    ValueError: listing every claim that does not hold and what is wrong with the file.
  """
  problems = [message for holds, message in claims if not holds]
  if embedding not in get_args(Embedding):
    problems.append(f"embedding must be in {get_args(Embedding)}, got {embedding!r}")
  if not checks.is_count(max_candidates, 1):
    problems.append(f"max_candidates must be a whole number >= 1, got {max_candidates}")
  if not isinstance(normalise, bool):
    problems.append(f"normalise must be True or False, got {normalise!r}")
  held = None
  if not isinstance(embeddings, str):
    problems.append(f"embeddings must be a path, or empty to sweep, got {embeddings!r}")
  elif embeddings:
    try:
      held = given.read(embeddings)
    except ValueError as error:
      problems.append(f"embeddings: {error}")
  checks.raise_all(problems)

  @jax.jit  # once, also where update is called outside jit
  def decide(pool: jax.Array, real: jax.Array, target: jax.Array) -> Decision:
    logits_C, embedded = _choose(rule, pool, real, target, normalise)
    counts, _ = rule.counts(pool.shape[0], target.shape[0])
    metrics = _metrics(logits_C, real, embedded, counts)
    return Decision(logits=logits_C, metrics=metrics)

  if held is not None:
    return _of_file(rule, held, embeddings, max_candidates, decide)
  return _of_sweep(rule, embedding, max_candidates, decide)


def _of_sweep(
  rule: Rule, embedding: Embedding, max_candidates: int, decide: Callable[..., Decision]
) -> DataPolicy:
  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    del key  # deterministic
    sizes = {name: getattr(spec, name) for name in _NEEDED}
    problems = [f"{name} > 0, got {size}" for name, size in sizes.items() if size <= 0]
    problems += _too_many("sweep_size", spec.sweep_size, max_candidates)
    counts, misfits = rule.counts(spec.sweep_size, spec.num_targets)
    checks.raise_all(f"{rule.name} needs {x}" for x in problems + misfits)
    logits_C = jnp.zeros(spec.sweep_size, jnp.float32)
    real_C, ones_M = jnp.ones(spec.sweep_size, bool), jnp.ones(spec.num_targets, bool)
    none = Embedded(logits_C, real_C, ones_M, ones_M)
    return Decision(logits=logits_C, metrics=_metrics(logits_C, real_C, none, counts)), ()

  def score(stats: ExampleStats, state: PolicyState) -> jax.Array:
    del state
    return getattr(stats, embedding).astype(jnp.float32)

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    target_MxD = getattr(stats.target, embedding)
    return decide(stats.score, stats.example_id >= 0, target_MxD), state

  observes = frozenset({embedding, "example_id", "target"})
  return DataPolicy(init, update, observes, scope="round", score=score)


def _of_file(
  rule: Rule,
  held: given.Given,
  path: str,
  max_candidates: int,
  decide: Callable[..., Decision],
) -> DataPolicy:
  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    del key  # deterministic
    num_rows = held.pool_NxD.shape[0]
    problems = _too_many("rows in the pool", num_rows, max_candidates)
    if num_rows != spec.num_examples:
      problems.append(
        f"`pool` in {path} to hold num_examples {spec.num_examples} rows, got {num_rows}"
      )
    problems += rule.counts(num_rows, held.target_MxD.shape[0])[1]
    checks.raise_all(f"{rule.name} needs {x}" for x in problems)
    decision = decide(held.pool_NxD, jnp.ones(num_rows, bool), held.target_MxD)
    return decision, decision

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    del stats
    return state, state

  return DataPolicy(init, update, frozenset(), scope="round")


_NEEDED = ("sweep_size", "num_targets", "embedding_size")


def _too_many(what: str, size: int, max_candidates: int) -> list[str]:
  if size <= max_candidates:
    return []
  return [f"{what} to be at most max_candidates {max_candidates}, got {size}"]


def _choose(
  rule: Rule, pool: jax.Array, real: jax.Array, target: jax.Array, normalise: bool
) -> tuple[jax.Array, Embedded]:
  pool_CxD, target_MxD = pool.astype(jnp.float32), target.astype(jnp.float32)
  if normalise:
    usable_C, usable_M = directions.finite(pool_CxD), directions.finite(target_MxD)
    pool_CxD, target_MxD = directions.unit(pool_CxD), directions.unit(target_MxD)
  else:
    usable_C = neighbours.within_float32(pool_CxD)
    usable_M = neighbours.within_float32(target_MxD)
  usable_C &= real
  pool_CxD = jnp.where(usable_C[:, None], pool_CxD, 0.0)
  target_MxD = jnp.where(usable_M[:, None], target_MxD, 0.0)
  embedded = Embedded(pool_CxD, usable_C, target_MxD, usable_M)
  return rule.choose(embedded), embedded


def _metrics(
  logits_C: jax.Array, real_C: jax.Array, embedded: Embedded, counts: dict[str, int]
) -> dict[str, jax.Array]:
  metrics = {
    "num_nonfinite": jnp.sum(real_C & ~embedded.usable_C, dtype=jnp.int32),
    "num_nonfinite_targets": jnp.sum(~embedded.usable_M, dtype=jnp.int32),
    "num_eligible": jnp.sum(jnp.isfinite(logits_C), dtype=jnp.int32),
  }
  return metrics | {name: jnp.int32(value) for name, value in counts.items()}
