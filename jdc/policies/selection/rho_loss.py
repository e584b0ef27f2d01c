"""RHO-LOSS: trains on what the model can still learn, and a reference has shown learnable."""

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec


def rho_loss(temperature: float = 1.0) -> DataPolicy:
  r"""Prefers candidates by their reducible holdout loss.

  With l_i the loss under the model and l'_i that under a reference trained on held-out data,

    logit_i = (l_i - l'_i) / T.

  It is low for what the model knows already (l small) and for what the reference could not
  learn either, noise above all (l' large). Drawn with `top_k`, the candidates with the largest
  differences are kept, whatever T; with `multinomial` or `gumbel_top_k` it is the paper's
  Boltzmann variant, softmax((l - l') / T), with or without replacement, for which the authors'
  code has T = 0.25.

  Rows without target tokens and rows whose logit is not finite are never kept; the latter are
  counted as `num_nonfinite`.

  Args:
    temperature: T > 0, in nats.

  Returns:
    A pointwise step-scope policy that observes `loss`, `reference_loss`, `num_tokens` and
    `example_id` of the candidates; its decision holds `logits` f32[num_candidates], before the
    first batch 0 for all. The metrics count the rows that may be kept, `num_eligible`.

  Raises:
    ValueError: if `temperature` is out of range; in `init`, if the run has no candidates.

  References:
    Mindermann et al., "Prioritized Training on Points that are Learnable, Worth Learning, and
    Not Yet Learnt", 2022, arXiv 2206.07137. Losses are means over the target tokens of a row.
    The rows kept count alike in the loss.

  Example:
    >>> spec = RunSpec(9, 1, ("web",), (9,), (1.0,), batch_size=1, num_candidates=3)
    >>> policy = rho_loss()
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(
    ...   example_id=jnp.arange(3),
    ...   num_tokens=jnp.array([5, 5, 5]),
    ...   loss=jnp.array([6.0, 4.0, 1.0]),  # noise, new, known
    ...   reference_loss=jnp.array([6.0, 1.5, 1.0]),
    ... )
    >>> policy.update(stats, state)[0].logits.tolist()
    [0.0, 2.5, 0.0]
  """
  checks.require(
    (
      checks.is_finite(temperature) and temperature > 0,
      f"temperature must be positive and finite, got {temperature}",
    )
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    del key  # deterministic
    if spec.num_candidates <= 0:
      raise ValueError(f"rho_loss needs num_candidates > 0, got {spec.num_candidates}")
    metrics = {"num_nonfinite": jnp.int32(0), "num_eligible": jnp.int32(spec.num_candidates)}
    return Decision(logits=jnp.zeros(spec.num_candidates, jnp.float32), metrics=metrics), ()

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    loss_B = stats.loss.astype(jnp.float32)
    logits_B = (loss_B - stats.reference_loss.astype(jnp.float32)) / temperature
    valid_B = (stats.example_id >= 0) & (stats.num_tokens > 0)
    eligible_B = valid_B & jnp.isfinite(logits_B)
    metrics = {
      "num_nonfinite": jnp.sum(valid_B & ~eligible_B, dtype=jnp.int32),
      "num_eligible": jnp.sum(eligible_B, dtype=jnp.int32),
    }
    return Decision(logits=jnp.where(eligible_B, logits_B, -jnp.inf), metrics=metrics), state

  observes = frozenset({"loss", "reference_loss", "num_tokens", "example_id"})
  return DataPolicy(init, update, observes, scope="step", pointwise=True)
