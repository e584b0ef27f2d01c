"""PiKE: domains with a large mean gradient and little noise are sampled more."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks, domains
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.mixture import simplex, tilt
from jdc.policies.mixture.products import own_blocks
from jdc.policies.mixture.static import constant

Rule = Literal["update", "exact"]


class PikeState(NamedTuple):
  log_w_K: jax.Array  # f32[K]
  gradient_K: jax.Array  # f32[K], G; 0 until measured
  variance_K: jax.Array  # f32[K], V; likewise
  known_K: jax.Array  # bool[K], whether a domain was ever measured
  batch_size: jax.Array  # f32[], b
  half_batch_size: jax.Array  # f32[], m
  losses: tilt.RoundLosses  # L; empty without `tau`


def pike(
  zeta1: float,
  zeta2: float,
  half_batch_size: int | None = None,
  rule: Rule = "update",
  alignment: float = 0.0,
  tau: float | None = None,
) -> DataPolicy:
  r"""Samples domain k with probability w_k, so that a step lowers the mean of the losses most.

  At the start of every round, from the gradients g_a, g_b of the two half-batches of m examples
  of each domain, and with b examples in a training batch,

    G_k = <g_a, g_b>              unbiased for |grad L_k|^2, so possibly negative
    V_k = (m / 2) |g_a - g_b|^2   unbiased for the variance of an example's gradient

    update  w_k <- w_k exp(zeta1 G_k - zeta2 V_k / (2 b)) / the sum over all domains
    exact   w minimises sum_k w_k lambda_k + w_k^2 kappa_k / 2 over w >= 0, sum w = 1, with
            lambda_k = zeta2 V_k / (2 b) - zeta1 G_k,  kappa_k = zeta2 gamma max(G_k, 0),
            gamma = 1 + c (K - 1): w_k = max(0, -(mu + lambda_k) / kappa_k)

  from the base proportions. Balanced learning, with a `tau`, minimises the tilted loss
  log(sum_k exp(tau L_k)) / tau instead: with y_k = tau softmax(tau L)_k, y_k^2 G_k and
  y_k^2 V_k stand for G_k and V_k, and domain k is sampled with w_k y_k / sum_j w_j y_j. L_k is
  the mean loss per target token of the domain's training rows of the last round.

  A domain that is absent from a round, or not finite, keeps its G, V and L. Until a domain was
  measured it keeps its w, and the others share the rest of 1; until it has a loss its y is
  tau / K, and the others share the rest of tau.

  Args:
    zeta1: weight >= 0 of the gradients. Both weights scale with gradients squared, so the
      paper tunes them; its exact rule has zeta1 = eta beta and zeta2 = L eta^2, for a learning
      rate eta, a smoothness L, and beta = 1 without conflicts between gradients.
    zeta2: weight >= 0 of the noise; positive for `exact`.
    half_batch_size: m >= 1; `None`: the run's `probe_size`.
    rule: of w above. `update` moves gradually; `exact` may jump.
    alignment: c >= 0, how far domains' gradients are aligned, for `exact` only; the paper
      measures nearly 0.
    tau: > 0, in 1 / nats, the paper's 1 to 5; large values follow the highest loss. `None`: all
      losses count alike.

  Returns:
    A round-scope policy that observes `domain_gradient_product` and, with a `tau`, `loss`,
    `num_tokens` and `domain` of every training batch; its decision holds `logits` f32[K].

  Raises:
    ValueError: if an argument is unknown or out of range; in `init`, if the run has no batch
      size, or another probe size.

  References:
    Li, Deng, Zhong, Razaviyayn, Mirrokni, "PiKE: Adaptive Data Mixing for Large-Scale
    Multi-Task Learning Under Low Gradient Conflicts", 2025, arXiv 2502.06244: Algorithm 1,
    equation 9 and lemma 3.6. The paper rounds b w_k to whole examples, which ends the sampling
    of a domain below half an example; here w itself is the proportion, no estimate is taken
    from the b_k training examples, and nothing is divided by b_k. It weighs the loss of domain
    k by y_k, whence the squares; a mixture does not decide that, and w_k y_k has the same
    expected gradient, but for its length.

  Example:
    >>> policy = pike(zeta1=1.0, zeta2=1.0, half_batch_size=4)
    >>> spec = RunSpec(10, 2, ("code", "web"), (5, 5), proportions=(0.5, 0.5), batch_size=8)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> gradient = jnp.array([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, -1.0]]])
    >>> product = jnp.einsum("iad,jbd->iajb", gradient, gradient)
    >>> decision, state = policy.update(ExampleStats(domain_gradient_product=product), state)
    >>> state.gradient_K.tolist(), state.variance_K.tolist()
    ([1.0, 0.0], [0.0, 8.0])
    >>> [round(p, 3) for p in jnp.exp(decision.logits).tolist()]
    [0.818, 0.182]
  """
  checks.require(
    *(
      (
        checks.is_finite(value) and value >= 0,
        f"{name} must be finite and at least 0, got {value}",
      )
      for name, value in (("zeta1", zeta1), ("zeta2", zeta2), ("alignment", alignment))
    ),
    (rule != "exact" or zeta2 != 0, f"zeta2 must be positive for rule 'exact', got {zeta2}"),
    (rule in get_args(Rule), f"rule must be in {get_args(Rule)}, got {rule!r}"),
    (
      half_batch_size is None or checks.is_count(half_batch_size, 1),
      f"half_batch_size must be None or a whole number >= 1, got {half_batch_size}",
    ),
    (
      tau is None or (checks.is_finite(tau) and tau > 0),
      f"tau must be None or positive and finite, got {tau}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PikeState]:
    del key  # deterministic
    probed, given = spec.probe_size, half_batch_size
    checks.require(
      (spec.batch_size > 0, f"batch_size must be positive, got {spec.batch_size}"),
      (bool(probed or given), "half_batch_size is None, and the run has no probe_size"),
      (
        not (probed and given) or probed == given,
        f"half_batch_size must be the run's probe_size={probed}, got {given}",
      ),
    )
    decision, base = constant(np.asarray(spec.proportions, np.float64))
    zeros_K = jnp.zeros(spec.num_domains, jnp.float32)
    state = PikeState(
      log_w_K=base.logits_K,
      gradient_K=zeros_K,
      variance_K=zeros_K,
      known_K=jnp.zeros(spec.num_domains, bool),
      batch_size=jnp.float32(spec.batch_size),
      half_batch_size=jnp.float32(given or probed),
      losses=tilt.start(spec.num_domains),
    )
    return decision._replace(metrics={"num_nonfinite": jnp.int32(0)}), state

  def update(stats: ExampleStats, state: PikeState) -> tuple[Decision, PikeState]:
    num_rows, losses = state.losses.num_nonfinite, tilt.close(state.losses)
    log_y_K = jnp.zeros_like(state.log_w_K) if tau is None else tilt.log_tilt(losses, tau)
    square_K = jnp.exp(2 * log_y_K)
    state, nonfinite_K = _measure(stats, state._replace(losses=losses))
    gain_K = zeta1 * square_K * state.gradient_K
    gain_K = gain_K - zeta2 * square_K * state.variance_K / (2 * state.batch_size)
    gamma = 1 + alignment * (gain_K.size - 1)
    kappa_K = zeta2 * gamma * square_K * jnp.maximum(state.gradient_K, 0.0)
    # Products may be finite and what they are multiplied to not.
    usable_K = jnp.isfinite(gain_K) & jnp.isfinite(kappa_K)
    known_K = state.known_K & usable_K
    if rule == "update":
      log_w_K = domains.raise_weights(state.log_w_K, gain_K, known_K)
    else:
      log_w_K = _exact(gain_K, kappa_K, known_K, state.log_w_K)
    num_domains = jnp.sum(nonfinite_K | ~usable_K, dtype=jnp.int32)
    metrics = {"num_nonfinite": num_rows + num_domains}
    product_K = log_w_K + log_y_K
    # Where only domains of weight 0 have a loss to speak of, w alone decides.
    product_K = jnp.where(jnp.any(jnp.isfinite(product_K)), product_K, log_w_K)
    logits_K = jax.nn.log_softmax(product_K)
    return Decision(logits_K, metrics=metrics), state._replace(log_w_K=log_w_K)

  def observe(stats: ExampleStats, state: PikeState) -> PikeState:
    return state._replace(losses=tilt.add(state.losses, stats))

  observes = frozenset({"domain_gradient_product"})
  if tau is None:
    return DataPolicy(init, update, observes, scope="round")
  batch = frozenset({"loss", "num_tokens", "domain"})
  return DataPolicy(
    init, update, observes, scope="round", observe=observe, observes_batch=batch
  )


def _measure(stats: ExampleStats, state: PikeState) -> tuple[PikeState, jax.Array]:
  """Returns the state with this round's G and V, and the domains that were not finite."""
  product_Kx2xKx2 = stats.domain_gradient_product.astype(jnp.float32)
  own_Kx2x2, measured_K, nonfinite_K = own_blocks(product_Kx2xKx2)
  # Halves first: a sum of large products would overflow.
  gradient_K = 0.5 * own_Kx2x2[:, 0, 1] + 0.5 * own_Kx2x2[:, 1, 0]
  mean_norm_K = 0.5 * own_Kx2x2[:, 0, 0] + 0.5 * own_Kx2x2[:, 1, 1]
  variance_K = state.half_batch_size * jnp.maximum(mean_norm_K - gradient_K, 0.0)
  finite_K = jnp.isfinite(variance_K)
  fresh_K = measured_K & finite_K
  state = state._replace(
    gradient_K=jnp.where(fresh_K, gradient_K, state.gradient_K),
    variance_K=jnp.where(fresh_K, variance_K, state.variance_K),
    known_K=state.known_K | fresh_K,
  )
  return state, nonfinite_K | ~finite_K


def _exact(
  gain_K: jax.Array, kappa_K: jax.Array, known_K: jax.Array, log_w_K: jax.Array
) -> jax.Array:
  """Returns log w of the exact rule; domains that are not known keep theirs."""
  kept = jnp.sum(jnp.where(known_K, 0.0, jnp.exp(log_w_K)))
  w_K = jnp.maximum(1 - kept, 0.0) * simplex.minimise(-gain_K, kappa_K, known_K)
  return jnp.where(known_K, jnp.log(w_K), log_w_K)
