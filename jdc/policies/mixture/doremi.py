"""DoReMi: domains in which a proxy model is behind a reference count more in its loss."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks, domains, tokens
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.mixture.static import constant

Sampling = Literal["uniform", "base"]
OBSERVES = frozenset({
  "token_loss", "reference_token_loss", "token_mask", "token_segment", "num_tokens", "domain",
})  # fmt: skip


class DoremiState(NamedTuple):
  log_alpha_K: jax.Array  # f32[K], log of the domain weights in force
  excess_K: jax.Array  # f32[K], lambda, nats per token; 0 until a domain has been seen
  seen_K: jax.Array  # bool[K]
  mean_alpha_K: (
    jax.Array
  )  # f32[K], mean over the updates; what the target model is trained with
  residue_K: jax.Array  # f32[K], what rounding has added to the mean
  num_updates: jax.Array  # i32[]
  logits_K: jax.Array  # f32[K], log probabilities of sampling


def doremi(
  learning_rate: float = 1.0, smoothing: float = 1e-3, sampling: Sampling = "uniform"
) -> DataPolicy:
  r"""Raises the weight of domains whose loss exceeds a reference's by group DRO.

  The domains are sampled in fixed proportions p; their weights alpha act on the loss. With l
  and l_ref the losses of a target token under the model and the reference, in each step

    lambda_k = mean over the target tokens of domain k in the batch of max(l - l_ref, 0),
    alpha'_k ~ alpha_k exp(eta lambda_k),
    alpha_k  = (1 - c) alpha'_k + c / K,
    w_i      = r_i sum_j n_j / sum_j r_j n_j,    r_i = alpha_d(i) / p_d(i),

  so that the loss is sum_tok r l / sum_tok r, and weight 1 all over when alpha = p. alpha
  starts uniform. An absent domain keeps its lambda; until it is seen, alpha'_k = alpha_k.
  Weights are relative in a batch: of one domain only (`domain_draw="one"`), they are 1.

  An example with a token whose excess loss is not finite, or whose probability is not a
  positive number, weighs 0, is left out of lambda and counted.

  Args:
    learning_rate: eta > 0, per nat.
    smoothing: c in [0, 1).
    sampling: p, "uniform", or "base" for the run's base proportions; then p_d(i) is the
      `domain_probability` under which the row was drawn.

  Returns:
    A step-scope policy that observes `token_loss`, `reference_token_loss`, `token_mask`,
    `token_segment`, `num_tokens`, `domain` and, with "base", `domain_probability`. Its decision
    holds `logits` f32[K] = log p and `weights` f32[B]. Its state holds `mean_alpha_K`, the
    mean of alpha over the updates. Metrics: the entropy in nats of alpha and of the mean, the
    largest entry of the mean, and `excess_loss` = sum_k alpha_k lambda_k.

  Raises:
    ValueError: if an argument is unknown or out of range; in `init`, if the run has no batch
      size, or a base proportion is 0 when they are sampled.

  References:
    Xie et al., "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining", 2023,
    arXiv 2305.10429. The paper samples uniformly and leaves open what a domain without tokens
    does; that it keeps its lambda follows the authors' repository, sangmichaelxie/doremi,
    which starts lambda at the log of the vocabulary size. The batch is that of an optimizer
    step, over all devices.

  Example:
    >>> policy = doremi()
    >>> spec = RunSpec(8, 2, ("code", "web"), (4, 4), proportions=(0.5, 0.5), batch_size=2)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(
    ...   domain=jnp.array([0, 1]),
    ...   num_tokens=jnp.array([2, 2]),
    ...   token_mask=jnp.ones((2, 2)),
    ...   token_loss=jnp.array([[3.0, 2.0], [5.0, 5.0]]),
    ...   reference_token_loss=jnp.array([[1.0, 2.0], [5.0, 6.0]]),
    ... )
    >>> decision, _ = policy.update(stats, state)
    >>> [round(w, 3) for w in decision.weights.tolist()]
    [1.462, 0.538]
  """
  checks.require(
    (
      checks.is_finite(learning_rate) and learning_rate > 0,
      f"learning_rate must be positive and finite, got {learning_rate}",
    ),
    (
      checks.is_number(smoothing) and 0 <= smoothing < 1,
      f"smoothing must be in [0, 1), got {smoothing}",
    ),
    (
      sampling in get_args(Sampling),
      f"sampling must be in {get_args(Sampling)}, got {sampling!r}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, DoremiState]:
    del key  # deterministic
    K, num_rows = spec.num_domains, spec.num_candidates or spec.batch_size
    _check(spec, sampling, num_rows)
    p_K = np.asarray(spec.proportions, np.float64) if sampling == "base" else np.ones(K)
    decision, fixed = constant(p_K)
    zeros_K = jnp.zeros(K, jnp.float32)
    state = DoremiState(
      log_alpha_K=jax.nn.log_softmax(zeros_K),
      excess_K=zeros_K,
      seen_K=jnp.zeros(K, bool),
      mean_alpha_K=jnp.full(K, 1 / K, jnp.float32),
      residue_K=zeros_K,
      num_updates=jnp.int32(0),
      logits_K=fixed.logits_K,
    )
    metrics = _metrics(state, jnp.int32(0))
    return decision._replace(weights=jnp.ones(num_rows, jnp.float32), metrics=metrics), state

  def update(stats: ExampleStats, state: DoremiState) -> tuple[Decision, DoremiState]:
    log_p_B = jnp.zeros(stats.num_tokens.shape, jnp.float32)
    if sampling == "base":
      log_p_B = jnp.log(stats.domain_probability.astype(jnp.float32))
    excess_B = jnp.where(jnp.isfinite(log_p_B), _clipped_excess(stats), jnp.nan)
    batch = domains.domain_means(excess_B, stats, state.excess_K.size)
    state = _average(_learn(batch, state, learning_rate, smoothing))
    log_ratio_B = state.log_alpha_K[stats.domain] - log_p_B
    weights_B = _normalised(log_ratio_B, batch.usable_B, stats.num_tokens)
    metrics = _metrics(state, batch.num_nonfinite)
    return Decision(logits=state.logits_K, weights=weights_B, metrics=metrics), state

  observes = OBSERVES | ({"domain_probability"} if sampling == "base" else set())
  return DataPolicy(init, update, observes, scope="step")


def _check(spec: RunSpec, sampling: Sampling, num_rows: int) -> None:
  named = zip(spec.domain_names, spec.proportions, strict=True)
  never = [name for name, p in named if sampling == "base" and not p > 0]
  checks.require(
    (num_rows > 0, f"batch_size must be positive, got {spec.batch_size}"),
    (not never, f"sampling 'base' needs positive proportions, those of {never} are 0"),
  )


def _clipped_excess(stats: ExampleStats) -> jax.Array:
  """Returns the mean over each example's target tokens of max(l - l_ref, 0), or not finite."""
  excess = stats.token_loss.astype(jnp.float32) - stats.reference_token_loss.astype(jnp.float32)
  clipped = jnp.where(jnp.isfinite(excess), jnp.maximum(excess, 0.0), jnp.nan)
  return tokens.example_means(clipped, stats)


def _learn(
  batch: domains.DomainMeans, state: DoremiState, learning_rate: float, smoothing: float
) -> DoremiState:
  """Returns the state with the new lambda and alpha."""
  excess_K = jnp.where(batch.present_K, batch.mean_K, state.excess_K)
  seen_K = state.seen_K | batch.present_K
  log_alpha_K = domains.raise_weights(state.log_alpha_K, learning_rate * excess_K, seen_K)
  log_alpha_K = domains.mix_with_uniform(log_alpha_K, smoothing)
  return state._replace(excess_K=excess_K, seen_K=seen_K, log_alpha_K=log_alpha_K)


def _average(state: DoremiState) -> DoremiState:
  """Counts the update and adds its alpha to the mean.

  Compensated: after some 10,000 steps the change of a mean is less than its rounding.
  """
  num_updates, mean_K = state.num_updates + 1, state.mean_alpha_K
  change_K = (jnp.exp(state.log_alpha_K) - mean_K) / num_updates - state.residue_K
  mean_alpha_K = mean_K + change_K
  residue_K = (mean_alpha_K - mean_K) - change_K
  return state._replace(mean_alpha_K=mean_alpha_K, residue_K=residue_K, num_updates=num_updates)


def _normalised(
  log_ratio_B: jax.Array, usable_B: jax.Array, num_tokens_B: jax.Array
) -> jax.Array:
  """Returns w, 0 for rows that are not usable."""
  log_ratio_B = jnp.where(usable_B, log_ratio_B, -jnp.inf)
  top = jnp.max(log_ratio_B)
  ratio_B = jnp.exp(log_ratio_B - jnp.where(jnp.isfinite(top), top, 0.0))
  total = jnp.sum(ratio_B * num_tokens_B)
  num_tokens = jnp.sum(num_tokens_B).astype(jnp.float32)
  return ratio_B * num_tokens / jnp.where(total > 0, total, 1.0)


def _metrics(state: DoremiState, num_nonfinite: jax.Array) -> dict[str, jax.Array]:
  alpha_K = jnp.exp(state.log_alpha_K)
  return {
    "num_nonfinite": num_nonfinite,
    "entropy": jnp.sum(jax.scipy.special.entr(alpha_K)),
    "mean_entropy": jnp.sum(jax.scipy.special.entr(jnp.maximum(state.mean_alpha_K, 0.0))),
    "mean_max": jnp.max(state.mean_alpha_K),
    "excess_loss": jnp.sum(alpha_K * state.excess_K),
  }
