"""Adaptive data optimisation: domains whose learning curve falls steeply are sampled more."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks, domains
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.mixture import learning_curves, scaling_laws
from jdc.policies.mixture.learning_curves import LearningCurves
from jdc.policies.mixture.static import constant

Count = Literal["all", "own"]
_MIN_ALPHA = 0.05


class AdoState(NamedTuple):
  curves: LearningCurves
  loss_K: jax.Array  # f32[K], nats per token when last seen; 0 until then
  count_J: jax.Array  # u32[1] or u32[K], examples so far, of all domains or of each
  law_Kx3: jax.Array  # f32[K, 3], (a, e, alpha)
  fitted_K: jax.Array  # bool[K], whether a domain has a law yet
  recent_K: jax.Array  # f32[K], h, moving average of the shares of the batches
  average_K: jax.Array  # f32[K], mean of rho over the steps
  log_base_K: jax.Array  # f32[K]
  cubics_WxW: jax.Array  # f32[W, W], smooths a window of W points
  horizons: dict[str, jax.Array]  # i32[] each, and the floor f32[]


def ado(
  start_steps: int | None = None,
  refit_steps: int | None = None,
  window: int | None = None,
  ignore_steps: int | None = None,
  history: int = 1024,
  floor: float | None = None,
  count: Count = "all",
) -> DataPolicy:
  r"""Samples domains by how fast their learning curves are forecast to fall.

  With mu the base proportions and L_k(n) = exp(e_k) + exp(a_k) n^-alpha_k fitted to the losses
  of domain k so far, after each step, t being the number of steps done,

    slope_k = max(alpha_k, 0.05) (L_k(n) - exp(e_k)) / n
    rho_k   = slope_k mu_k h_k^0.5 / sum,     then max(rho_k, floor) / sum
    p       = 0.1 rho + 0.9 p_avg
    p_avg  <- t / (t + 1) p_avg + rho / (t + 1)
    h      <- 0.9 h + 0.1 (shares of the domains in the batch)

  from h = p_avg = mu. Until `start_steps` steps are done p = mu. Then, and every `refit_steps`
  later, the curves are smoothed by local cubics and all laws fitted; `scaling_laws` tells how.
  The state holds up to `history` losses of each domain, the first and then every `stride`-th;
  when it is full every second one is dropped and the stride doubles.

  L_k is the mean loss per target token in the batch; an absent domain keeps its previous one. A
  fit that is not finite, or has too few points, keeps the old law. A domain without a law has
  rho_k = mu_k, the others share the rest. A domain with mu_k = 0 is never sampled. Rows whose
  loss is not finite are left out and counted.

  Args:
    start_steps: steps before the first fit; by default 1000, or the run's steps / 20, rounded
      up, if that is less.
    refit_steps: steps from fit to fit; by default likewise.
    window: points of a local cubic, odd, at least 5; by default 101, or the largest odd number
      up to start_steps / 4 if that is less, but at least 5.
    ignore_steps: first steps that are not fitted, as losses of the warm-up follow no power law;
      by default start_steps / 2, rounded down.
    history: most points kept of each curve, even, at least twice the window.
    floor: least rho_k; by default 0.01, or 1 / (4 K) if that is less. At most 1 / K.
    count: n is the number of examples seen of "all" domains, or of its "own".

  Returns:
    A step-scope policy that observes `loss`, `num_tokens` and `domain`; its decision holds
    `logits` f32[K] = log p. Metrics: the horizons used, the `stride`, and `num_fitted` domains.

  Raises:
    ValueError: if an argument is out of range; in `init`, if the run has fewer than two
      domains, the floor or the window does not fit, or examples cannot be counted in 32 bits.

  References:
    Jiang, Zhou, Feng, Malladi, Kolter, "Adaptive Data Optimization: Dynamic Sample Selection
    with Scaling Laws", 2024, arXiv 2410.11820; repository yidingjiang/ado. Departures: the
    repository keeps all losses, and fits every tenth smoothed one; here at most 256, evenly
    spaced. It ignores the first 1000 steps, so that its first fit has a single point. It gives
    a domain that was not seen yet the mean loss of the batch; here its curve begins when it is
    seen. Losses are means over tokens, not examples.

  Example:
    >>> policy = ado(start_steps=50)
    >>> spec = RunSpec(10, 2, ("code", "web"), (5, 5), proportions=(0.5, 0.5), num_steps=100)
    >>> decision, state = policy.init(spec, jax.random.key(0))
    >>> jnp.exp(decision.logits).tolist(), int(decision.metrics["window"])
    ([0.5, 0.5], 11)
  """
  _check_arguments(start_steps, refit_steps, window, ignore_steps, history, floor, count)

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, AdoState]:
    del key  # deterministic
    used = _horizons(spec, start_steps, refit_steps, window, ignore_steps, floor)
    _check_run(spec, history, used)
    decision, base = constant(np.asarray(spec.proportions, np.float64))
    num_domains = spec.num_domains
    num_counts = num_domains if count == "own" else 1
    base_K = jnp.exp(base.logits_K)
    state = AdoState(
      curves=learning_curves.start(num_domains, num_counts, history),
      loss_K=jnp.zeros(num_domains, jnp.float32),
      count_J=jnp.zeros(num_counts, jnp.uint32),
      law_Kx3=jnp.zeros((num_domains, 3), jnp.float32),
      fitted_K=jnp.zeros(num_domains, bool),
      recent_K=base_K,
      average_K=base_K,
      log_base_K=base.logits_K,
      cubics_WxW=jnp.asarray(learning_curves.local_cubics(int(used["window"])), jnp.float32),
      horizons={name: _scalar(value) for name, value in used.items()},
    )
    return decision._replace(metrics=_metrics(state, jnp.int32(0))), state

  def update(stats: ExampleStats, state: AdoState) -> tuple[Decision, AdoState]:
    state, num_nonfinite = _learn(stats, state)
    num_steps, horizons = state.curves.num_steps, state.horizons
    since = num_steps - horizons["start_steps"]
    due = (since >= 0) & (since % horizons["refit_steps"] == 0)
    law_Kx3, fitted_K = jax.lax.cond(due, _refit, _keep, state)
    state = state._replace(law_Kx3=law_Kx3, fitted_K=fitted_K)
    rho_K = _instantaneous(state)
    p_K = 0.1 * rho_K + 0.9 * state.average_K
    average_K = state.average_K + (rho_K - state.average_K) / (num_steps + 1)
    logits_K = jnp.where(since >= 0, jnp.log(p_K), state.log_base_K)
    state = state._replace(average_K=jnp.where(since >= 0, average_K, state.average_K))
    return Decision(logits=logits_K, metrics=_metrics(state, num_nonfinite)), state

  return DataPolicy(init, update, frozenset({"loss", "num_tokens", "domain"}), scope="step")


def _learn(stats: ExampleStats, state: AdoState) -> tuple[AdoState, jax.Array]:
  """Returns the state after a batch, and how many rows were left out as not finite."""
  num_domains = state.loss_K.size
  batch = domains.domain_means(stats.loss, stats, num_domains)
  loss_K = jnp.where(batch.present_K, batch.mean_K, state.loss_K)
  rows_K = domains.domain_sums(stats.num_tokens > 0, stats.domain, num_domains)
  num_rows = jnp.sum(rows_K)
  new_J = rows_K if state.count_J.size == num_domains else num_rows[None]
  count_J = state.count_J + new_J.astype(jnp.uint32)
  share_K = rows_K / jnp.maximum(num_rows, 1)
  recent_K = jnp.where(num_rows > 0, 0.9 * state.recent_K + 0.1 * share_K, state.recent_K)
  seen_K = batch.present_K | (state.curves.first_K < learning_curves.NEVER)
  curves = learning_curves.record(state.curves, loss_K, count_J, seen_K)
  state = state._replace(curves=curves, loss_K=loss_K, count_J=count_J, recent_K=recent_K)
  return state, batch.num_nonfinite


def _refit(state: AdoState) -> tuple[jax.Array, jax.Array]:
  ignore_steps, cubics = state.horizons["ignore_steps"], state.cubics_WxW
  return scaling_laws.refit(state.curves, state.law_Kx3, state.fitted_K, ignore_steps, cubics)


def _keep(state: AdoState) -> tuple[jax.Array, jax.Array]:
  return state.law_Kx3, state.fitted_K


def _instantaneous(state: AdoState) -> jax.Array:
  """Returns rho."""
  alpha_K = state.law_Kx3[:, 2]
  log_count = jnp.log(jnp.maximum(state.count_J, 1).astype(jnp.float32))
  log_slope_K = jnp.log(jnp.maximum(alpha_K, _MIN_ALPHA)) + state.law_Kx3[:, 0]
  log_slope_K = log_slope_K - (alpha_K + 1) * log_count
  # A domain that was not drawn for long has h = 0 in float32.
  log_recent_K = jnp.log(jnp.maximum(state.recent_K, jnp.finfo(jnp.float32).tiny))
  score_K = log_slope_K + state.log_base_K + 0.5 * log_recent_K
  base_K = jnp.exp(state.log_base_K)
  ranked_K = state.fitted_K & (base_K > 0)
  kept_K = jnp.where(ranked_K, 0.0, base_K)
  score_K = jnp.where(ranked_K, score_K, -jnp.inf)
  top = jnp.max(score_K, initial=jnp.finfo(jnp.float32).min)
  share_K = jnp.exp(score_K - top)
  rest = jnp.maximum(1 - jnp.sum(kept_K), 0.0) / jnp.maximum(jnp.sum(share_K), 1.0)
  rho_K = kept_K + rest * share_K
  rho_K = jnp.where(base_K > 0, jnp.maximum(rho_K, state.horizons["floor"]), 0.0)
  return rho_K / jnp.sum(rho_K)


def _metrics(state: AdoState, num_nonfinite: jax.Array) -> dict[str, jax.Array]:
  return {
    "num_nonfinite": num_nonfinite,
    "num_fitted": jnp.sum(state.fitted_K, dtype=jnp.int32),
    "stride": state.curves.stride,
    **state.horizons,
  }


def _horizons(
  spec: RunSpec,
  start_steps: int | None,
  refit_steps: int | None,
  window: int | None,
  ignore_steps: int | None,
  floor: float | None,
) -> dict[str, int | float]:
  """Returns the values used: the given ones, else the paper's, scaled to a shorter run."""
  usual = min(1000, -(-spec.num_steps // 20)) if spec.num_steps > 0 else 1000
  start = usual if start_steps is None else start_steps
  odd = (min(101, start // 4) - 1) // 2 * 2 + 1
  return {
    "start_steps": start,
    "refit_steps": usual if refit_steps is None else refit_steps,
    "window": max(odd, 5) if window is None else window,
    "ignore_steps": start // 2 if ignore_steps is None else ignore_steps,
    "floor": min(0.01, 0.25 / spec.num_domains) if floor is None else float(floor),
  }


def _scalar(value: int | float) -> jax.Array:
  return jnp.int32(value) if isinstance(value, int) else jnp.float32(value)


def _check_arguments(
  start_steps: int | None,
  refit_steps: int | None,
  window: int | None,
  ignore_steps: int | None,
  history: int,
  floor: float | None,
  count: Count,
) -> None:
  least = (
    ("start_steps", start_steps, 1),
    ("refit_steps", refit_steps, 1),
    ("ignore_steps", ignore_steps, 0),
  )
  checks.require(
    *(
      (
        value is None or (checks.is_count(value, minimum) and value < 2**31),
        f"{name} must be None or a whole number from {minimum} to 2^31 - 1, got {value}",
      )
      for name, value, minimum in least
    ),
    (
      window is None or (checks.is_count(window, 5) and window % 2 == 1),
      f"window must be None or an odd number >= 5, got {window}",
    ),
    (
      checks.is_count(history, 2) and history % 2 == 0,
      f"history must be an even number >= 2, got {history}",
    ),
    (
      floor is None or (checks.is_finite(floor) and floor >= 0),
      f"floor must be None or at least 0 and finite, got {floor}",
    ),
    (count in get_args(Count), f"count must be in {get_args(Count)}, got {count!r}"),
  )


def _check_run(spec: RunSpec, history: int, used: dict[str, int | float]) -> None:
  num_rows = spec.num_steps * max(spec.batch_size, spec.num_candidates)
  checks.require(
    (spec.num_domains >= 2, f"ado needs at least 2 domains, got {spec.num_domains}"),
    (
      used["floor"] * spec.num_domains <= 1,
      f"floor must be at most 1 / {spec.num_domains} domains, got {used['floor']}",
    ),
    (
      2 * used["window"] <= history,
      f"history must be at least twice the window of {used['window']}, got {history}",
    ),
    (num_rows < 2**32, f"ado counts fewer than 2^32 examples, the run has {num_rows}"),
  )
