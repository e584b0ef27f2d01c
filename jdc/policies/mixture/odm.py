"""Online data mixing: domains whose loss is high are sampled more, by a bandit."""

import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks, domains
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.mixture.static import constant

Variant = Literal["batched", "paper"]
Reward = Literal["moving_average", "cumulative", "smoothed_mean"]


class OdmState(NamedTuple):
  reward_K: jax.Array  # f32[K], R_k; 0 until a domain has been seen
  num_updates: jax.Array  # i32[]
  warmup_steps: jax.Array  # i32[], updates that leave the base proportions in force
  base_K: jax.Array  # f32[K], log base proportions


def odm(
  variant: Variant = "batched",
  reward: Reward = "moving_average",
  smoothing: float = 0.9,
  warmup_steps: int | None = None,
) -> DataPolicy:
  r"""Samples domains by an Exp3 bandit whose reward is the training loss.

  After update number t, with eps_t = min(1/K, sqrt(ln K / (K t))) and eps_0 = 1/K,

    pi(k) = (1 - K eps_{t+1}) softmax(eps_t R)_k + eps_{t+1}.

  L_k is the mean loss per target token of domain k in the batch and pi_i the
  `domain_probability` under which row i was drawn. Every domain present in the batch is
  updated; an absent one keeps its R_k. By the rule `reward`, with smoothing a,

    moving_average  R_k <- a R_k + (1 - a) L_k / pi_k
    cumulative      R_k <- R_k + L_k / (10 pi_k)
    smoothed_mean   R_k <- a R_k + (1 - a) exp(L_k)

  where L_k / pi_k is the mean of l_i / pi_i over target tokens. A row whose loss or probability
  is not finite, or which would make R_k not finite, is left out and counted.

  After the warm-up every domain is explored with at least eps_t, as in the paper, also one
  whose base proportion is 0; to exclude a domain, leave it out of the data.

  Args:
    variant: "paper" updates the one domain that a step is drawn from, "batched" all domains of
      a mixed batch. With `smoothed_mean`, "batched" replaces softmax(eps_t R) by R / sum R.
    reward: the rule above.
    smoothing: a in [0, 1); `cumulative` does not use it.
    warmup_steps: number of first updates that leave the base proportions in force while R is
      learnt; by default 1 % of the run's steps, rounded up.

  Returns:
    A step-scope policy that observes `loss`, `num_tokens`, `domain` and, except for
    `smoothed_mean`, `domain_probability`; its decision holds `logits` f32[K] = log pi.

  Raises:
    ValueError: if an argument is unknown or out of range; in `init`, if the variant is "paper"
      but the run mixes domains in a batch (`domain_draw` is not "one").

  References:
    Albalak, Pan, Raffel, Wang, "Efficient Online Data Mixing For Language Model Pre-Training",
    2023, arXiv 2312.02406. `cumulative`, `smoothed_mean` and its use of R / sum R for the
    domains of an accumulated batch follow the authors' repository,
    alon-albalak/online-data-mixing. The default departs from the paper in updating several
    domains at once.

  Example:
    >>> policy = odm(warmup_steps=0)
    >>> spec = RunSpec(10, 2, ("code", "web"), (5, 5), proportions=(0.5, 0.5))
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(
    ...   domain=jnp.array([0, 1]),
    ...   loss=jnp.array([1.0, 3.0]),
    ...   num_tokens=jnp.array([8, 8]),
    ...   domain_probability=jnp.array([0.5, 0.5]),
    ... )
    >>> for _ in range(20):
    ...   decision, state = policy.update(stats, state)
    >>> [round(p, 3) for p in jax.nn.softmax(decision.logits).tolist()]
    [0.416, 0.584]
  """
  checks.require(
    (variant in get_args(Variant), f"variant must be in {get_args(Variant)}, got {variant!r}"),
    (reward in get_args(Reward), f"reward must be in {get_args(Reward)}, got {reward!r}"),
    (
      checks.is_number(smoothing) and 0 <= smoothing < 1,
      f"smoothing must be in [0, 1), got {smoothing}",
    ),
    (
      warmup_steps is None or checks.is_count(warmup_steps),
      f"warmup_steps must be None or a whole number >= 0, got {warmup_steps}",
    ),
  )
  linear = variant == "batched" and reward == "smoothed_mean"

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, OdmState]:
    del key  # deterministic
    if variant == "paper" and spec.domain_draw != "one":
      raise ValueError(f"variant 'paper' needs domain_draw 'one', got {spec.domain_draw!r}")
    decision, base = constant(np.asarray(spec.proportions, np.float64))
    metrics = {"num_nonfinite": jnp.int32(0), "exploration": jnp.float32(1.0)}
    steps = -(-spec.num_steps // 100) if warmup_steps is None else warmup_steps
    state = OdmState(
      reward_K=jnp.zeros(spec.num_domains, jnp.float32),
      num_updates=jnp.int32(0),
      warmup_steps=jnp.int32(steps),
      base_K=base.logits_K,
    )
    return decision._replace(metrics=metrics), state

  def update(stats: ExampleStats, state: OdmState) -> tuple[Decision, OdmState]:
    reward_K, num_nonfinite = _learn(stats, state.reward_K, reward, smoothing)
    num_updates = state.num_updates + 1
    pi_K, exploration = _bandit(reward_K, num_updates, linear)
    warm = state.num_updates >= state.warmup_steps
    logits_K = jnp.where(warm, jnp.log(pi_K), state.base_K)
    metrics = {
      "num_nonfinite": num_nonfinite,
      "exploration": jnp.where(warm, exploration, 1.0),
    }
    state = state._replace(reward_K=reward_K, num_updates=num_updates)
    return Decision(logits=logits_K, metrics=metrics), state

  observes = {"loss", "num_tokens", "domain"}
  if reward != "smoothed_mean":
    observes.add("domain_probability")
  return DataPolicy(init, update, frozenset(observes), scope="step")


def _learn(
  stats: ExampleStats, reward_K: jax.Array, rule: Reward, smoothing: float
) -> tuple[jax.Array, jax.Array]:
  """Returns the new R and how many rows were left out as not finite."""
  num_domains = reward_K.shape[0]
  valid_B = stats.num_tokens > 0
  gain_B = stats.loss.astype(jnp.float32)
  if rule != "smoothed_mean":
    gain_B = gain_B / stats.domain_probability.astype(jnp.float32)
  usable_B = valid_B & jnp.isfinite(gain_B)
  tokens_B = jnp.where(usable_B, stats.num_tokens, 0).astype(jnp.float32)
  tokens_K = domains.domain_sums(tokens_B, stats.domain, num_domains)
  # Shares first: a sum of large losses times tokens would overflow.
  share_B = tokens_B / jnp.where(tokens_K > 0, tokens_K, 1.0)[stats.domain]
  gain_B = jnp.where(usable_B, gain_B, 0.0)
  gain_K = domains.domain_sums(share_B * gain_B, stats.domain, num_domains)

  if rule == "cumulative":
    new_K = reward_K + gain_K / 10
  else:
    gain_K = jnp.exp(gain_K) if rule == "smoothed_mean" else gain_K
    new_K = smoothing * reward_K + (1 - smoothing) * gain_K
  accepted_K = (tokens_K > 0) & jnp.isfinite(new_K)
  used_B = usable_B & accepted_K[stats.domain]
  num_nonfinite = jnp.sum(valid_B, dtype=jnp.int32) - jnp.sum(used_B, dtype=jnp.int32)
  return jnp.where(accepted_K, new_K, reward_K), num_nonfinite


def _bandit(
  reward_K: jax.Array, num_updates: jax.Array, linear: bool
) -> tuple[jax.Array, jax.Array]:
  """Returns pi after `num_updates` updates, and K eps, the share drawn uniformly."""
  num_domains = reward_K.shape[0]

  def exploration(t: jax.Array) -> jax.Array:
    rate = math.log(num_domains) / num_domains
    return jnp.minimum(1 / num_domains, jnp.sqrt(rate / t.astype(jnp.float32)))

  eps = exploration(num_updates + 1)
  if linear:
    greedy_K = reward_K / jnp.max(reward_K, initial=jnp.finfo(jnp.float32).tiny)
    total = jnp.sum(greedy_K)
    greedy_K = jnp.where(
      total > 0, greedy_K / jnp.where(total > 0, total, 1.0), 1 / num_domains
    )
  else:
    greedy_K = jax.nn.softmax(exploration(num_updates) * reward_K)
  uniform = num_domains * eps
  return jnp.maximum(1 - uniform, 0.0) * greedy_K + eps, uniform
