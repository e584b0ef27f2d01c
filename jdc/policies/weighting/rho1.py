"""Rho-1: only tokens whose loss exceeds the reference model's the most count."""

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.weighting.largest import is_fraction, largest, num_kept
from jdc.policies.weighting.token_weights import token_rows


def rho1(fraction: float = 0.6) -> DataPolicy:
  r"""Trains on the tokens of the batch that are learnable but not learnt.

  Of the n tokens of the batch that count and whose excess loss is finite,

    e_t = l_t - l_t^ref,    k = ceil(fraction n),
    u_t = n/k for the k tokens with the largest e_t, 0 for the rest,

  so that the loss is a mean over the tokens kept. Ties go to the lower row, then position. All
  other tokens weigh 0; those that count are counted as `num_nonfinite`.

  Args:
    fraction: in [1e-4, 1].

  Returns:
    A step-scope policy that observes `token_loss`, `reference_token_loss` and `token_mask`; its
    decision holds `token_weights` f32[rows, T].

  Raises:
    ValueError: if `fraction` is out of range; in `init`, if the run has no batch size or
      sequence length.

  References:
    Lin et al., "Rho-1: Not All Tokens Are What You Need", 2024, arXiv 2404.07965. Tokens are
    ranked over the whole batch of an optimizer step.

  Example:
    >>> spec = RunSpec(9, 1, ("web",), (9,), (1.0,), batch_size=2, sequence_length=2)
    >>> policy = rho1(fraction=0.5)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(
    ...   token_loss=jnp.array([[5.0, 3.0], [0.5, 2.0]]),
    ...   reference_token_loss=jnp.array([[5.0, 1.0], [0.5, 1.0]]),
    ...   token_mask=jnp.ones((2, 2)),
    ... )
    >>> policy.update(stats, state)[0].token_weights.tolist()
    [[0.0, 2.0], [0.0, 2.0]]
  """
  checks.require(
    (is_fraction(fraction), f"fraction must be in [1e-4, 1], got {fraction}"),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    del key  # deterministic
    rows, length = token_rows("rho1", spec)
    metrics = {"num_nonfinite": jnp.int32(0), "num_kept": jnp.int32(rows * length)}
    ones_BxT = jnp.ones((rows, length), jnp.float32)
    return Decision(token_weights=ones_BxT, metrics=metrics), ()

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    loss_BxT = stats.token_loss.astype(jnp.float32)
    excess_BxT = loss_BxT - stats.reference_token_loss.astype(jnp.float32)
    counts_BxT = stats.token_mask > 0
    usable_BxT = counts_BxT & jnp.isfinite(excess_BxT)
    num_usable = jnp.sum(usable_BxT, dtype=jnp.int32)
    kept = num_kept(fraction, num_usable)
    is_kept = largest(excess_BxT.reshape(-1), usable_BxT.reshape(-1), kept)
    weights = jnp.where(is_kept, num_usable / jnp.maximum(kept, 1), 0.0)
    metrics = {
      "num_nonfinite": jnp.sum(counts_BxT, dtype=jnp.int32) - num_usable,
      "num_kept": kept,
    }
    weights_BxT = weights.astype(jnp.float32).reshape(loss_BxT.shape)
    return Decision(token_weights=weights_BxT, metrics=metrics), state

  observes = frozenset({"token_loss", "reference_token_loss", "token_mask"})
  return DataPolicy(init, update, observes, scope="step")
