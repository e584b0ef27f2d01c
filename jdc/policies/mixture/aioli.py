"""Aioli: learns in perturbed rounds how each domain lowers the losses, then follows that."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies import checks, domains
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec

_LIMIT = 1e20  # sums of losses below it do not overflow


class AioliState(NamedTuple):
  loss_K: jax.Array  # f32[K], when the last round began; inf where it was not usable
  drops_KxK: jax.Array  # f32[K, K], of loss i in mixture m, sum over this period's sweeps
  counts_KxK: jax.Array  # f32[K, K], how many drops are in that sum
  graph_KxK: jax.Array  # f32[K, K], A of the last solve, or its moving average
  log_p_K: jax.Array  # f32[K]
  position: jax.Array  # i32[], rounds into the period
  num_solves: jax.Array  # i32[]
  key: jax.Array  # of the orders of the perturbed mixtures


def aioli(
  period: int | None = None,
  lp_rounds: int = 4,
  learning_rate: float = 0.2,
  share: float = 0.625,
  normalise: bool = True,
  ema: float | None = None,
) -> DataPolicy:
  r"""Samples domain j with probability p_j, raised by how much it lowers the losses of all.

  The run goes in periods of `period` rounds. The first `lp_rounds` x K rounds of each learn:
  every sweep takes the K mixtures w_m, which give `share` to domain m and the rest equally to
  the others, in random order, each for one round. With D_im the mean over the sweeps of how
  much the loss of domain i on the target split fell in a round of w_m, A solves

    sum_j w_mj A_ij = D_im    for all i and m,

  and the rest of the period's rounds are drawn from

    p_j <- p_j exp(eta sum_i A_ij) / sum,

  from uniform. One learning round stands for the paper's `lp_steps`, and has the run's
  `steps_per_round` steps; the target losses at the start of the next round close it. What the
  batches in flight at the start of a round were drawn from is the mixture before it, so a round
  should be longer than `decision_lag`.

  A loss that is not finite, or beyond 1e20, is counted, and the drops before and after it are
  left out. Where no sweep has D_im, A_i solves the other equations, and A_im is the mean of the
  other A_ij; where domain i has none at all, A_i = 0. Base proportions do not enter.

  Args:
    period: rounds from solve to solve, more than `lp_rounds` x K; by default 4 `lp_rounds` x K,
      so that a quarter of the run learns.
    lp_rounds: sweeps over the perturbed mixtures in a period, at least 1.
    learning_rate: eta > 0; the paper's 0.2. Its unit is 1 / nats, or 1 where A is normalised.
    share: of the one domain in a perturbed mixture, over 1 / K and at most 1.
    normalise: whether A - min(A, 0) replaces A, divided by its sum, as the authors advise;
      drops are largest early in a run.
    ema: b in [0, 1). If given, A <- (1 - b) A + b (the previous one) from the second solve on,
      and p_j is exp(eta sum_i A_ij) / sum without the factor p_j.

  Returns:
    A round-scope policy that observes `domain_target_loss`; its decision holds `logits` f32[K].
    Metrics: `learning`, 1 in a perturbed round, and `num_solves`.

  Raises:
    ValueError: if an argument is out of range; in `init`, if the run has fewer than two
      domains, if share or period do not fit their number, or if the run's rounds are not known
      or too few for one solve.

  References:
    Chen, Hu, Lourie, Cho, Re, "Aioli: A Unified Optimization Framework for Language Model Data
    Mixing", 2024, arXiv 2411.05735; repository HazyResearch/aioli. There, learning
    rounds and periods have lengths of their own, in steps; here all are whole rounds.

  Example:
    >>> policy = aioli(period=3, lp_rounds=1, learning_rate=1.0, normalise=False)
    >>> spec = RunSpec(10, 2, ("code", "web"), (5, 5), proportions=(0.5, 0.5))
    >>> spec = spec._replace(num_steps=30, steps_per_round=10)
    >>> decision, state = policy.init(spec, jax.random.key(0))
    >>> loss = jnp.array([3.0, 3.0])
    >>> for _ in range(3):  # web lowers the loss of code as well
    ...   decision, state = policy.update(ExampleStats(domain_target_loss=loss), state)
    ...   loss = loss - jnp.exp(decision.logits[1])
    >>> state.graph_KxK.round(3).tolist()
    [[0.0, 1.0], [0.0, 1.0]]
    >>> [round(p, 3) for p in jnp.exp(decision.logits).tolist()]
    [0.119, 0.881]
  """
  checks.require(
    (
      period is None or checks.is_count(period, 2),
      f"period must be None or a whole number >= 2, got {period}",
    ),
    (
      checks.is_count(lp_rounds, 1),
      f"lp_rounds must be a whole number >= 1, got {lp_rounds}",
    ),
    (
      checks.is_finite(learning_rate) and 0 < learning_rate < 1e6,
      f"learning_rate must be in (0, 1e6), got {learning_rate}",
    ),
    (checks.is_finite(share) and 0 < share <= 1, f"share must be in (0, 1], got {share}"),
    (isinstance(normalise, bool), f"normalise must be True or False, got {normalise!r}"),
    (
      ema is None or (checks.is_finite(ema) and 0 <= ema < 1),
      f"ema must be None or in [0, 1), got {ema}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, AioliState]:
    _check_run(spec, period, lp_rounds, share)
    num_domains = spec.num_domains
    zeros_KxK = jnp.zeros((num_domains, num_domains), jnp.float32)
    state = AioliState(
      loss_K=jnp.full(num_domains, jnp.inf, jnp.float32),
      drops_KxK=zeros_KxK,
      counts_KxK=zeros_KxK,
      graph_KxK=zeros_KxK,
      log_p_K=jax.nn.log_softmax(zeros_KxK[0]),
      position=jnp.int32(0),
      num_solves=jnp.int32(0),
      key=key,
    )
    return _decide(state, lp_rounds, share, jnp.int32(0)), state

  def update(stats: ExampleStats, state: AioliState) -> tuple[Decision, AioliState]:
    num_learning = lp_rounds * state.loss_K.size
    num_rounds = 4 * num_learning if period is None else period
    state, num_nonfinite = _credit(stats, state, num_learning)
    state = jax.lax.cond(
      state.position == num_learning,
      lambda state: _solve(state, learning_rate, share, normalise, ema),
      lambda state: state,
      state,
    )
    decision = _decide(state, lp_rounds, share, num_nonfinite)
    position = (state.position + 1) % num_rounds
    return decision, state._replace(position=position)

  return DataPolicy(init, update, frozenset({"domain_target_loss"}), scope="round")


def _chosen(state: AioliState, position: jax.Array) -> jax.Array:
  """Returns the domain that a learning round raises: a new order for every sweep."""
  num_domains = state.loss_K.size
  key = jax.random.fold_in(state.key, state.num_solves)
  order_K = jax.random.permutation(
    jax.random.fold_in(key, position // num_domains), num_domains
  )
  return order_K[position % num_domains]


def _credit(
  stats: ExampleStats, state: AioliState, num_learning: int
) -> tuple[AioliState, jax.Array]:
  """Returns the state after the round that these losses close; how many were not finite."""
  loss_K = stats.domain_target_loss.astype(jnp.float32)
  known_K = jnp.abs(loss_K) < _LIMIT  # False for NaN
  loss_K = jnp.where(known_K, loss_K, jnp.inf)
  learnt = (state.position > 0) & (state.position <= num_learning)
  usable_K = learnt & known_K & jnp.isfinite(state.loss_K)
  drop_K = jnp.where(usable_K, state.loss_K - loss_K, 0.0)
  mixture = _chosen(state, jnp.maximum(state.position - 1, 0))
  # Those of the period before are forgotten when a new one begins.
  keep = jnp.where(state.position == 0, 0.0, 1.0)
  state = state._replace(
    loss_K=loss_K,
    drops_KxK=(keep * state.drops_KxK).at[:, mixture].add(drop_K),
    counts_KxK=(keep * state.counts_KxK).at[:, mixture].add(usable_K),
  )
  return state, jnp.sum(~known_K, dtype=jnp.int32)


def _solve(
  state: AioliState,
  learning_rate: float,
  share: float,
  normalise: bool,
  ema: float | None,
) -> AioliState:
  num_domains = state.loss_K.size
  drops_KxK = _mean_drops(state)
  # The mixtures are W = (s - r) I + r, r = (1 - s) / (K - 1), and their rows sum to 1. Then
  # W x = d gives sum x = sum d, and x = (d - r sum d) / (s - r).
  rest = (1 - share) / (num_domains - 1)
  graph_KxK = (drops_KxK - rest * jnp.sum(drops_KxK, axis=1, keepdims=True)) / (share - rest)
  if normalise:
    graph_KxK = graph_KxK - jnp.minimum(jnp.min(graph_KxK), 0.0)
    total = jnp.sum(graph_KxK)
    graph_KxK = graph_KxK / jnp.where(total > 0, total, 1.0)
  first = state.num_solves == 0
  log_p_K = state.log_p_K
  if ema is not None:
    smoothed_KxK = (1 - ema) * graph_KxK + ema * state.graph_KxK
    graph_KxK = jnp.where(first, graph_KxK, smoothed_KxK)
    log_p_K = jax.nn.log_softmax(jnp.zeros_like(log_p_K))
  gain_K = learning_rate * jnp.sum(graph_KxK, axis=0)
  log_p_K = domains.raise_weights(log_p_K, gain_K, jnp.ones_like(gain_K, bool))
  return state._replace(graph_KxK=graph_KxK, log_p_K=log_p_K, num_solves=state.num_solves + 1)


def _mean_drops(state: AioliState) -> jax.Array:
  """Returns D; what is missing is the mean of what is known of the domain."""
  counts_KxK = state.counts_KxK
  known_KxK = counts_KxK > 0
  mean_KxK = state.drops_KxK / jnp.maximum(counts_KxK, 1.0)
  num_known_K = jnp.maximum(jnp.sum(known_KxK, axis=1, keepdims=True), 1)
  # The mean over the mixtures is that of A_i as well: an A_im equal to it is as the others are.
  return jnp.where(known_KxK, mean_KxK, jnp.sum(mean_KxK, axis=1, keepdims=True) / num_known_K)


def _decide(
  state: AioliState, lp_rounds: int, share: float, num_nonfinite: jax.Array
) -> Decision:
  num_domains = state.loss_K.size
  learning = state.position < lp_rounds * num_domains
  raised_K = jnp.arange(num_domains) == _chosen(state, state.position)
  perturbed_K = jnp.where(raised_K, share, (1 - share) / (num_domains - 1))
  logits_K = jnp.where(learning, jnp.log(perturbed_K), state.log_p_K)
  metrics = {
    "num_nonfinite": num_nonfinite,
    "learning": learning.astype(jnp.int32),
    "num_solves": state.num_solves,
  }
  return Decision(logits_K.astype(jnp.float32), metrics=metrics)


def _check_run(spec: RunSpec, period: int | None, lp_rounds: int, share: float) -> None:
  num_domains, num_learning = spec.num_domains, lp_rounds * spec.num_domains
  steps, each = spec.num_steps, spec.steps_per_round
  num_rounds = -(-steps // each) if steps > 0 and each > 0 else 0
  checks.require(
    (num_domains >= 2, f"aioli needs at least 2 domains, got {num_domains}"),
    (
      share * num_domains > 1,
      f"share must be more than 1 / {num_domains} domains, got {share}",
    ),
    (
      period is None or period > num_learning,
      f"period must be more than lp_rounds x domains = {num_learning}, got {period}",
    ),
    (
      num_rounds > num_learning,
      f"aioli needs more than lp_rounds x domains = {num_learning} rounds to solve once, got "
      f"num_steps={steps} with steps_per_round={each}",
    ),
  )
