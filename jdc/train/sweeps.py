"""Sweeps of a run: the statistics that round-scope policies read of the pool, in one pass."""

import functools
import hashlib
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jdc.data import loader
from jdc.data.batch import inputs_and_targets
from jdc.models.base import LanguageModel
from jdc.policies.base import DataPolicy, ExampleStats
from jdc.policies.combine import Policies
from jdc.stats import pool as pool_lib
from jdc.stats.digest import digest
from jdc.stats.directions import moments_of
from jdc.stats.features_table import FeaturesTable, FeaturesWriter
from jdc.stats.gradients import Features
from jdc.stats.sweep_store import SweepStore, clean
from jdc.train import kept_features
from jdc.train.cost import Cost
from jdc.train.features import FIELDS
from jdc.train.kept_features import KeptFeatures
from jdc.train.observe import example_stats
from jdc.train.passes import EMBEDDINGS, ERRORS, REFERENCE, Microbatch, Shared, make_passes
from jdc.train.state import TrainState, full_params, slots

_FORWARD = frozenset({"loss", "token_loss"}) | EMBEDDINGS | ERRORS
# Statistics of one number a row, which a table can show.
_SHOWN = ("num_tokens", "loss", "reference_loss", "gradient_norm", "el2n")


class Found(NamedTuple):
  """What one sweep found."""

  scores: dict[str, np.ndarray]  # f32[C] or f32[C, S] by slot
  shown: dict[str, np.ndarray]  # [C] each, statistics that policies observe
  cost: Cost


class Sweeps(NamedTuple):
  """Passes over rows of the pool under the current model."""

  scores: Callable[..., Found]  # (state, facts, ids i32[C], round, slots that sweep them)
  # (state, facts) -> the states of the policies that look at the whole pool once, by slot
  prepare: Callable[..., tuple[dict[str, Any], Cost]]


def make_sweeps(
  model: LanguageModel,
  reference: LanguageModel | None,
  policies: Policies,
  pool: loader.Pool,
  batch_size: int,
  sharding: jax.NamedSharding,
  features: Features | None = None,
  folder: str | None = None,
  fingerprint: Any = None,
  kept: KeptFeatures | None = None,
) -> Sweeps:
  """Returns the sweeps for the round-scope policies of a run.

  Args:
    model: looks at rows.
    reference: the frozen model that policies compare with.
    policies: the slots.
    pool: the rows.
    batch_size: full rows per pass.
    sharding: of batches.
    features: computes the gradients that policies observe in rounds.
    folder: where an interrupted sweep leaves what it has; `None`: nowhere.
    fingerprint: JSON that tells the run and its data from others.
    kept: where features are read, or written where they are not; `None`: they are not kept.
  """
  active = {n: p for n, p in slots(policies).items() if p.scope == "round"}
  scored = {n: p for n, p in active.items() if p.score is not None}
  preparing = {n: p for n, p in active.items() if p.prepare is not None}
  everywhere = jax.NamedSharding(sharding.mesh, jax.P())  # every process reads the results
  parts = (model, reference, features)

  @functools.cache
  def scorer(names: frozenset[str], keeps: bool) -> Callable:
    some = {name: policy for name, policy in scored.items() if name in names}
    return jax.jit(_scorer(*parts, some, keeps), out_shardings=everywhere)

  fields = frozenset[str]().union(*(p.observes_pool for p in preparing.values()))
  tell_chunk = jax.jit(_teller(*parts, fields), out_shardings=everywhere)
  prepare_all = jax.jit(_preparer(preparing), out_shardings=everywhere)

  def sweep(
    chunk: Callable, state: TrainState, facts: dict[str, Any], ids: np.ndarray, name: str,
    observed: frozenset[str], table: FeaturesTable | FeaturesWriter | None = None,
  ) -> tuple[dict[str, np.ndarray], Cost]:  # fmt: skip
    directed = features is not None and "update_direction" in observed
    moments = moments_of(state.opt_state) if directed else None
    context = (state.policies, state.fixed, facts, moments)
    store = None
    if folder is not None and len(ids) > batch_size:  # one pass leaves nothing to go on from
      key = {
        "run": fingerprint,
        "sweep": name,
        "step": int(state.step),
        "rows": hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest(),
        "state": digest((state.params, state.frozen, state.policies, facts, moments)),
      }
      store = SweepStore(folder, key)
    swept = pool_lib.sweep(
      chunk, state.parts, context, pool, ids, batch_size, sharding, store=store,
      features=table, name=name,
    )  # fmt: skip
    compares = bool(observed & REFERENCE) and pool.reference is None
    read = frozenset(table.names) if isinstance(table, FeaturesTable) else frozenset()
    observed -= read
    computed = observed & FIELDS
    forward, backward = (
      (features.forward, features.backward) if features and computed else (0, 0)
    )
    forward += bool(observed & _FORWARD) + compares
    rows = int(np.sum(ids >= 0))
    return swept.scores, Cost(forward * rows, backward * rows)

  def table_of(
    observed: frozenset[str], state: TrainState, ids: np.ndarray
  ) -> FeaturesTable | FeaturesWriter | None:
    names = observed & kept_features.NAMES
    return kept.open(names, state, ids) if kept is not None and names else None

  def scores(
    state: TrainState, facts: dict[str, Any], ids: np.ndarray, round_: int, names: Set[str]
  ) -> Found:
    observed = frozenset[str]().union(*(scored[name].observes for name in names))
    table = table_of(observed, state, ids)
    chunk = scorer(frozenset(names), isinstance(table, FeaturesWriter))
    found, cost = sweep(chunk, state, facts, ids, f"round {round_}", observed, table)
    shown = {n: found.pop(f"shown/{n}") for n in _SHOWN if n in observed}
    return Found(found, shown, cost)

  def prepare(state: TrainState, facts: dict[str, Any]) -> tuple[dict[str, Any], Cost]:
    if not preparing:
      return {}, Cost()
    ids = np.arange(len(pool), dtype=np.int32)
    table = table_of(fields, state, ids)
    found, cost = sweep(tell_chunk, state, facts, ids, "preparation", fields, table)
    if isinstance(table, FeaturesWriter):
      assert kept is not None
      table = kept.read(table)
    if table is not None:  # chunks in the store are without what a writer has taken
      found |= {name: table.rows(ids, name) for name in table.names}
    known = found | {"example_id": ids, "domain": pool.domain(ids).astype(np.int32)}
    told = loader.place({n: x for n, x in known.items() if n in fields}, everywhere)
    held = {name: state.policies[name] for name in preparing}
    return prepare_all(told, held, facts), cost

  return Sweeps(scores, prepare)


def forget(folder: str | Path, step: int) -> None:
  """Removes what sweeps before a step have left: no run will go on from there."""
  if jax.process_index() == 0:
    clean(folder, lambda key: key.get("step", -1) >= step)


def _scorer(
  model: LanguageModel,
  reference: LanguageModel | None,
  features: Features | None,
  scored: dict[str, DataPolicy],
  keeps: bool,
) -> Callable:
  """Returns what scores a chunk by computed or known features, and tells those it keeps."""
  wanted = frozenset[str]().union(*(policy.observes for policy in scored.values()))
  look = _looker(model, reference, features, wanted)

  def score_chunk(
    params: Any, context: Any, batch: loader.Batch, known: dict[str, jax.Array] | None = None
  ) -> dict[str, jax.Array]:
    states, _, facts, _ = context
    tell = look(params, context, batch, known or {})
    found = {
      name: policy.score(tell(policy.observes, facts), states[name])
      for name, policy in scored.items()
      if policy.score is not None
    }
    shown = {name for name in _SHOWN if name in wanted}
    kept = wanted & kept_features.NAMES if keeps else frozenset()
    stats = tell(frozenset(shown | kept), {})
    found |= {f"shown/{name}": getattr(stats, name) for name in shown}
    return found | {name: getattr(stats, name) for name in kept}

  return score_chunk


def _teller(
  model: LanguageModel,
  reference: LanguageModel | None,
  features: Features | None,
  fields: frozenset[str],
) -> Callable:
  look = _looker(model, reference, features, fields)

  def tell_chunk(
    params: Any, context: Any, batch: loader.Batch, known: dict[str, jax.Array] | None = None
  ) -> dict[str, jax.Array]:
    stats = look(params, context, batch, known or {})(fields, {})
    return {name: getattr(stats, name) for name in sorted(fields)}

  return tell_chunk


def _looker(
  model: LanguageModel,
  reference: LanguageModel | None,
  features: Features | None,
  wanted: frozenset[str],
) -> Callable:
  """Returns a function that passes over a chunk and then tells of it what is observed."""
  features = features if wanted & FIELDS else None
  passes = make_passes(model, reference, wanted, features=features)

  def look(
    params: Any, context: Any, batch: loader.Batch, known: dict[str, jax.Array]
  ) -> Callable[..., ExampleStats]:
    _, fixed, _, moments = context
    rows = Microbatch(batch, inputs_and_targets(batch.tokens, batch.segments))
    seen, _ = passes.look(full_params(*params), rows)
    told = passes.besides(params, fixed, rows, Shared(None, moments))
    # What is known is not computed: nothing reads it.
    pooled = {name: x for name, x in known.items() if name in EMBEDDINGS}
    told |= {name: x for name, x in known.items() if name not in pooled}
    seen = seen._replace(**told, embeddings=seen.embeddings | pooled)
    return lambda observed, facts: example_stats(*rows[:2], seen, observed, facts)

  return look


def _preparer(preparing: dict[str, DataPolicy]) -> Callable:
  def prepare(
    told: dict[str, jax.Array], states: dict[str, Any], facts: dict[str, Any]
  ) -> dict[str, Any]:
    new = {}
    for name, policy in preparing.items():
      fields = {n: x for n, x in (facts | told).items() if n in policy.observes_pool}
      assert policy.prepare is not None
      new[name] = policy.prepare(ExampleStats(**fields), states[name])
    return new

  return prepare
