"""Online hard example mining: only the examples with the highest losses count."""

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.weighting.largest import is_fraction, largest, num_kept


def ohem(fraction: float | None = None, k: int | None = None) -> DataPolicy:
  r"""Trains on the k examples of the batch with the highest loss.

  With B' the number of rows that have target tokens and a finite loss,

    w_i = B'/k for the k rows with the largest l_i, 0 for the rest,

  so that the mean over these rows is 1. Ties go to the lower index. Where B' < k all of them
  are kept, with weight 1, and the metric `num_missing` is k - B'. All other rows weigh 0; those
  with target tokens are counted as `num_nonfinite`.

  Args:
    fraction: in [1e-4, 1]; k = ceil(fraction B').
    k: at least 1. Exactly one of the two is given.

  Returns:
    A step-scope policy that observes `loss` and `num_tokens`; its decision holds `weights`
    f32[B].

  Raises:
    ValueError: if none or both arguments are given, or one is out of range; in `init`, if the
      run has no batch size or k is more than that.

  References:
    Shrivastava, Gupta, Girshick, "Training Region-based Object Detectors with Online Hard
    Example Mining", 2016, arXiv 1604.03540, without the suppression of overlapping regions.

  Example:
    >>> spec = RunSpec(9, 1, ("web",), (9,), (1.0,), batch_size=4)
    >>> policy = ohem(fraction=0.5)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(
    ...   loss=jnp.array([1.0, 5.0, 2.0, 4.0]), num_tokens=jnp.array([3, 3, 3, 3])
    ... )
    >>> policy.update(stats, state)[0].weights.tolist()
    [0.0, 2.0, 0.0, 2.0]
  """
  checks.require(
    (
      (fraction is None) != (k is None),
      f"exactly one of fraction and k must be given, got fraction={fraction}, k={k}",
    ),
    (
      fraction is None or is_fraction(fraction),
      f"fraction must be in [1e-4, 1], got {fraction}",
    ),
    (k is None or checks.is_count(k, 1), f"k must be a whole number >= 1, got {k}"),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    del key  # deterministic
    size = spec.batch_size
    checks.require(
      (size > 0, f"batch_size must be positive, got {size}"),
      (k is None or k <= size, f"k must be at most batch_size {size}, got {k}"),
    )
    metrics = {name: jnp.int32(0) for name in ("num_nonfinite", "num_missing")}
    metrics["num_kept"] = jnp.int32(size)
    return Decision(weights=jnp.ones(size, jnp.float32), metrics=metrics), ()

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    loss_B = stats.loss.astype(jnp.float32)
    valid_B = stats.num_tokens > 0
    usable_B = valid_B & jnp.isfinite(loss_B)
    num_usable = jnp.sum(usable_B, dtype=jnp.int32)
    wanted = jnp.int32(k) if fraction is None else num_kept(fraction, num_usable)
    kept = jnp.minimum(wanted, num_usable)
    is_kept_B = largest(loss_B, usable_B, kept)
    weights_B = jnp.where(is_kept_B, num_usable / jnp.maximum(kept, 1), 0.0)
    metrics = {
      "num_nonfinite": jnp.sum(valid_B, dtype=jnp.int32) - num_usable,
      "num_missing": wanted - kept,
      "num_kept": kept,
    }
    return Decision(weights=weights_B.astype(jnp.float32), metrics=metrics), state

  return DataPolicy(init, update, frozenset({"loss", "num_tokens"}), scope="step")
