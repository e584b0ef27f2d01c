"""Zeroth-order selection: rows whose loss moves with the target's along random directions."""

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.selection.influence import num_nonfinite, spec_problems
from jdc.policies.weighting import directions


def zeroth_order() -> DataPolicy:
  r"""Prefers rows whose loss changes as the target's does where the parameters are perturbed.

  With xi_r, r = 1..R, random directions of the parameters, shared by all examples, and
  d_ir the derivative of the loss of example i along xi_r,

    logit_i = 1/M sum_m 1/R sum_r d_ir d_mr,

  over the M examples of the target set. Its expectation is <g_i, g>, with g_i the gradient of
  row i and g the mean gradient of the target's examples: how much one step of SGD on the row
  lowers their mean loss. Unlike a cosine it prefers rows with large gradients.

  The derivatives are those of the `gradient` features of the provider "directional" (in a
  run's configuration `features.provider`), which take forward passes only; it divides them by
  sqrt(R), and `features.size` is R. Other providers give another estimate of <g_i, g>.

  A row whose derivatives, or whose logit, are not finite is not drawn and is counted as
  `num_nonfinite`. Target examples that are not finite are left out and counted as
  `num_nonfinite_targets`; without any other no row is drawn. Logits have the scale of squared
  gradients: they are meant for `top_k`.

  Returns:
    A round-scope policy that observes `gradient`, `target` and `example_id`. `score` returns
    f32[b]; `update` reads `score` f32[C]. Its decision holds `logits` f32[C], before the first
    sweep 0 for all; metrics count the rows sampled from, `num_eligible`, and the two above.

  Raises:
    ValueError: in `init`, if the run sweeps no rows, or has no target set or features.

  References:
    The rule of the zeroth-order selector of DataFlex, there without a paper, with one direction
    and differences (l(theta + e xi) - l(theta - e xi)) / 2e; here with any number of them, and
    the derivatives to which these tend as e does to 0.

  Example:
    >>> from jdc.policies import TargetStats
    >>> spec = RunSpec(3, 1, ("web",), (3,), (1.0,), sweep_size=3)
    >>> spec = spec._replace(num_targets=2, num_tasks=1, feature_size=2)
    >>> policy = zeroth_order()
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> target = TargetStats(gradient=jnp.array([[1.0, 0.0], [3.0, 2.0]]), task=jnp.zeros(2))
    >>> gradient = jnp.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> score = policy.score(ExampleStats(gradient=gradient, target=target), state)
    >>> swept = ExampleStats(example_id=jnp.arange(3), score=score, target=target)
    >>> policy.update(swept, state)[0].logits.tolist()
    [4.0, 1.0, -2.0]
  """

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    del key  # deterministic
    checks.raise_all(spec_problems("zeroth_order", spec))
    metrics = {
      "num_nonfinite": jnp.int32(0),
      "num_eligible": jnp.int32(spec.sweep_size),
      "num_nonfinite_targets": jnp.int32(0),
    }
    return Decision(logits=jnp.zeros(spec.sweep_size, jnp.float32), metrics=metrics), ()

  def score(stats: ExampleStats, state: PolicyState) -> jax.Array:
    del state
    assert stats.target is not None
    target_MxR = stats.target.gradient.astype(jnp.float32)
    finite_M = directions.finite(target_MxR)
    total_R = jnp.sum(jnp.where(finite_M[:, None], target_MxR, 0.0), axis=0)
    # 0 / 0, no number, where no target example is left.
    mean_R = total_R / jnp.sum(finite_M, dtype=jnp.float32)
    return directions.dot(stats.gradient.astype(jnp.float32), mean_R)

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    assert stats.target is not None
    score_C = stats.score.astype(jnp.float32)
    real_C = stats.example_id >= 0
    eligible_C = real_C & jnp.isfinite(score_C)
    num_eligible = jnp.sum(eligible_C, dtype=jnp.int32)
    metrics = {
      "num_nonfinite": jnp.sum(real_C, dtype=jnp.int32) - num_eligible,
      "num_eligible": num_eligible,
      "num_nonfinite_targets": num_nonfinite(stats.target.gradient),
    }
    return Decision(jnp.where(eligible_C, score_C, -jnp.inf), metrics=metrics), state

  observes = frozenset({"gradient", "target", "example_id"})
  return DataPolicy(init, update, observes, scope="round", score=score)
