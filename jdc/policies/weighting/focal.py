"""Focal weighting: tokens that the model predicts well count less."""

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.weighting.token_weights import token_rows


def focal(gamma: float = 2.0) -> DataPolicy:
  r"""Weights each token by (1 - p)^gamma, p = exp(-l) its probability under the model.

  Tokens that do not count weigh 0, as does one whose loss is not finite, which is counted as
  `num_nonfinite`. gamma = 0 gives weight 1 to every other token. A loss below 0, which only
  rounding makes, is 0.

  The weights are absolute, as in the paper, and constant for the gradient: they are at most 1
  and are not normalised to mean 1, so the effective learning rate falls as the model learns.
  The metric `mean_weight`, the mean over tokens that count, is the factor. In the paper the
  gradient also goes through the weight.

  Args:
    gamma: finite, at least 0.

  Returns:
    A pointwise step-scope policy that observes `token_loss` and `token_mask`; its decision
    holds `token_weights` f32[rows, T] in [0, 1].

  Raises:
    ValueError: if `gamma` is out of range; in `init`, if the run has no batch size or sequence
      length.

  References:
    Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", 2017,
    arXiv 1708.02002, without the factors alpha of classes.

  Example:
    >>> spec = RunSpec(9, 1, ("web",), (9,), (1.0,), batch_size=1, sequence_length=3)
    >>> policy = focal()
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(
    ...   token_loss=-jnp.log(jnp.array([[0.9, 0.5, 0.1]])), token_mask=jnp.array([[1, 1, 1]])
    ... )
    >>> [round(u, 3) for u in policy.update(stats, state)[0].token_weights[0].tolist()]
    [0.01, 0.25, 0.81]
  """
  checks.require(
    (
      checks.is_finite(gamma) and gamma >= 0,
      f"gamma must be finite and at least 0, got {gamma}",
    )
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    del key  # deterministic
    ones_BxT = jnp.ones(token_rows("focal", spec), jnp.float32)
    metrics = {"num_nonfinite": jnp.int32(0), "mean_weight": jnp.float32(1.0)}
    return Decision(token_weights=ones_BxT, metrics=metrics), ()

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    loss_BxT = stats.token_loss.astype(jnp.float32)
    counts_BxT = stats.token_mask > 0
    usable_BxT = counts_BxT & jnp.isfinite(loss_BxT)
    loss_BxT = jnp.where(usable_BxT, jnp.maximum(loss_BxT, 0.0), 0.0)
    weights_BxT = jnp.where(usable_BxT, (-jnp.expm1(-loss_BxT)) ** gamma, 0.0)
    num_tokens = jnp.maximum(jnp.sum(counts_BxT, dtype=jnp.int32), 1)
    metrics = {
      "num_nonfinite": jnp.sum(counts_BxT & ~usable_BxT, dtype=jnp.int32),
      "mean_weight": jnp.sum(weights_BxT) / num_tokens,
    }
    return Decision(token_weights=weights_BxT, metrics=metrics), state

  observes = frozenset({"token_loss", "token_mask"})
  return DataPolicy(init, update, observes, scope="step", pointwise=True)
