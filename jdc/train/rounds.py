"""What happens between rounds: sweeps, round-scope updates, and their decisions."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.data import loader, plan
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.combine import Policies
from jdc.policies.holding import sweep_due
from jdc.stats import kept_scores as scores_lib
from jdc.stats import pool as pool_lib
from jdc.train.cost import Cost
from jdc.train.observe import target_fields
from jdc.train.state import TrainState, slots
from jdc.train.sweeps import Sweeps

# What a sweep tells of rows; an update after it reads the rest.
SWEPT = frozenset({
  "example_id", "domain", "num_tokens", "loss", "token_loss", "token_mask",
})  # fmt: skip
PROBED = frozenset({
  "domain_gradient_product", "domain_target_alignment", "probe_id", "probe_label",
})  # fmt: skip
# The statistics by which an ordering can score rows.
ORDERING_SCORES = frozenset({"loss", "num_tokens"})


class RoundStart(NamedTuple):
  """The decisions with which a round begins."""

  state: TrainState
  rows: plan.RoundRows | None  # None: no slot decides about rows
  mixture_logits: np.ndarray | None  # f32[K], of a round-scope mixture
  metrics: dict[str, Any]  # by slot
  cost: Cost  # of sweeps and probes
  shown: dict[str, np.ndarray]  # f32[N] each, statistics of the last sweep; NaN: not swept


def unprobed(num_domains: int, probe_size: int) -> dict[str, np.ndarray]:
  """Returns what stands for the statistics of probes where nobody reads them."""
  halves, num_rows = (num_domains, 2), 2 * num_domains * probe_size
  return {
    "domain_gradient_product": np.full(halves * 2, np.nan, np.float32),
    "domain_target_alignment": np.full(halves, np.nan, np.float32),
    "probe_id": np.full(num_rows, -1, np.int32),
    "probe_label": np.full(num_rows, np.nan, np.float32),
  }


class Probe(NamedTuple):
  """Tells of the gradients of the domains, or of probe rows, at the start of a round."""

  # (state, round) -> the statistics of `PROBED` that policies observe
  compute: Callable[[TrainState, int], dict[str, jax.Array]]
  cost: Cost


def make_round_start(
  policies: Policies,
  spec: RunSpec,
  seed: int,
  pool: loader.Pool,
  sharding: jax.NamedSharding,
  sweeps: Sweeps,
  learning_rate: Callable[[jax.Array], Any],
  probe: Probe | None = None,
  *,
  sweep_rows: int = 0,
  max_age: int = 0,
) -> Callable[[TrainState, int, plan.RoundRows | None], RoundStart] | None:
  """Returns the function that begins a round; `None` where no policy needs it.

  It maps the state, the number of the round and the decision of the last one (`None` before
  the first) to a `RoundStart`.

  Args:
    policies: the slots.
    spec: of the run.
    seed: of the candidates.
    pool: the rows.
    sharding: of batches.
    sweeps: scores rows.
    learning_rate: by optimizer step.
    probe: computes what is observed of the gradients of domains, and of probe rows.
    sweep_rows: candidates of a sweep; 0 for all rows.
    max_age: steps for which scores of rows that a sample left out still count.
  """
  active = {n: p for n, p in slots(policies).items() if p.scope == "round"}
  if not active:
    return None
  everywhere = jax.NamedSharding(sharding.mesh, jax.P())  # every process reads the results
  update = jax.jit(_updater(active), out_shardings=everywhere)
  scored = [n for n, p in active.items() if p.score is not None]
  observed = frozenset[str]().union(*(policy.observes for policy in active.values()))
  # In rounds that hold their decision, nobody reads the products of gradients. They lie where
  # those of a probe do: the update is compiled for both.
  held = {
    name: loader.place(x, everywhere)
    for name, x in unprobed(spec.num_domains, spec.probe_size).items()
    if name in observed
  }

  def round_start(state: TrainState, round_: int, last: plan.RoundRows | None) -> RoundStart:
    spent, facts = Cost(), _facts(state, learning_rate)
    if round_ == 0:
      prepared, spent = sweeps.prepare(state, facts)
      state = state._replace(policies=state.policies | prepared)
    due = {n: bool(sweep_due(state.policies[n])) for n in active}
    ids = {
      n: _sweep_ids(policy, state.policies[n], spec, sweep_rows, seed, round_)
      for n, policy in active.items()
    }
    if "selection" in active and not due["selection"]:
      if last is not None and last.ids_C is not None:
        ids["selection"] = last.ids_C  # the held decision is about these
      elif max_age:
        ids["selection"] = np.arange(len(pool), dtype=np.int32)
    # Where a decision is held, padding tells the shape of the scores that are not needed.
    swept = {n: ids[n] if due[n] else np.full(1, -1, np.int32) for n in scored}
    scores: dict[str, np.ndarray] = {}
    shown: dict[str, np.ndarray] = {}
    for rows in _distinct(list(swept.values())):  # slots that sweep the same rows share a pass
      names = {n for n in scored if np.array_equal(swept[n], rows)}
      found = sweeps.scores(state, facts, rows, round_, names)
      spent = spent.plus(found.cost)
      if np.any(rows >= 0):  # padding tells nothing of rows that another sweep has looked at
        shown |= {n: _spread(x, rows, len(pool), np.nan, False) for n, x in found.shown.items()}
      scores |= {n: found.scores[n] for n in names}
    for name in scored:
      if not due[name]:
        shape = (len(ids[name]), *scores[name].shape[1:])
        scores[name] = np.full(shape, np.nan, np.float32)
    step, kept = int(state.step), _kept(last)
    ages = {name: np.zeros(len(ids[name]), np.int32) for name in scored}
    if max_age:
      told = ids["selection"] if due["selection"] else np.full_like(ids["selection"], -1)
      kept = scores_lib.merged(kept, scores["selection"], told, len(pool), step)
      if due["selection"]:
        ids["selection"], scores["selection"], ages["selection"] = kept.usable(step, max_age)
    host = {
      n: ExampleStats(
        example_id=ids[n],
        domain=pool.domain(ids[n]).astype(np.int32),
        score=scores.get(n),
        score_age=ages.get(n),
      )
      for n in active
    }
    if probe is not None:
      probes = any(due[n] and active[n].observes & PROBED for n in active)
      facts |= probe.compute(state, round_) if probes else held
      spent = spent.plus(probe.cost) if probes else spent
    decisions, states = update(loader.place(host, everywhere), state.policies, facts)
    state = state._replace(policies=state.policies | states)
    fetched = jax.device_get(decisions)
    metrics = {n: d.metrics for n, d in fetched.items() if d.metrics is not None}
    mixture = fetched["mixture"].logits if "mixture" in fetched else None
    decided = _round_rows(fetched, active, ids, len(pool), round_)
    if decided is not None and kept is not None:
      decided = decided._replace(score_N=kept.score_N, score_step_N=kept.step_N)
    return RoundStart(state, decided, mixture, metrics, spent, shown)

  return round_start


def _facts(state: TrainState, learning_rate: Callable[[jax.Array], Any]) -> dict[str, Any]:
  """What policies are told of besides rows."""
  rate = jnp.asarray(learning_rate(state.step - state.skipped), jnp.float32)
  return {"step": state.step, "learning_rate": rate, **target_fields(state.target)}


def _kept(last: plan.RoundRows | None) -> scores_lib.Kept | None:
  if last is None or last.score_N is None or last.score_step_N is None:
    return None
  return scores_lib.Kept(last.score_N, last.score_step_N)


def _updater(active: dict[str, DataPolicy]) -> Callable:
  def update(
    stats: dict[str, ExampleStats], states: dict[str, Any], facts: dict[str, Any]
  ) -> tuple[dict[str, Decision], dict[str, Any]]:
    decisions, new = {}, {}
    for name, policy in active.items():
      observed = {field: x for field, x in facts.items() if field in policy.observes}
      known = dataclasses.replace(stats[name], **observed)
      decisions[name], new[name] = policy.update(known, states[name])
    return decisions, new

  return update


def _sweep_ids(
  policy: DataPolicy, state: Any, spec: RunSpec, sweep_rows: int, seed: int, round_: int
) -> np.ndarray:
  if policy.sweep_ids is not None:
    return np.asarray(policy.sweep_ids(state), np.int32)
  return pool_lib.candidates(spec.domain_sizes, sweep_rows, seed, round_)


def _distinct(arrays: list[np.ndarray]) -> list[np.ndarray]:
  kept: list[np.ndarray] = []
  for array in arrays:
    if not any(np.array_equal(array, other) for other in kept):
      kept.append(array)
  return kept


def _round_rows(
  decisions: dict[str, Decision],
  active: dict[str, DataPolicy],
  ids: dict[str, np.ndarray],
  num_rows: int,
  round_: int,
) -> plan.RoundRows | None:
  """Spreads decisions about swept rows over the pool; rows that were not swept are out."""
  decision = decisions.get("selection")
  if decision is None or decision.logits is None:
    return None
  chosen = active["selection"].sweep_ids is not None
  logits_N = _spread(decision.logits, ids["selection"], num_rows, -np.inf, chosen)
  if not np.any(np.isfinite(logits_N)):
    raise FloatingPointError(
      f"round {round_}: the selection gave none of {len(decision.logits)} rows a finite "
      f"logit; its metrics: {decision.metrics}"
    )
  weights_N = None
  if decision.weights is not None:
    weights_N = _spread(decision.weights, ids["selection"], num_rows, 1.0, chosen)
  return plan.RoundRows(logits_N, weights_N, ids["selection"])


def _spread(
  values: np.ndarray, ids_C: np.ndarray, num_rows: int, absent: float, chosen: bool
) -> np.ndarray:
  """Values of the pool, from those of the pool or of the rows that were swept.

  Of as many rows as the pool has, they are those of the pool where the policy itself has
  `chosen` what to sweep.
  """
  values = np.asarray(jnp.asarray(values, jnp.float32))
  if values.shape == (num_rows,) and (chosen or len(ids_C) != num_rows):
    return values
  if values.shape != ids_C.shape:
    raise ValueError(
      f"a round decision has shape {values.shape}; {ids_C.shape} or ({num_rows},) is expected"
    )
  spread = np.full(num_rows, absent, np.float32)
  spread[ids_C[ids_C >= 0]] = values[ids_C >= 0]
  return spread
