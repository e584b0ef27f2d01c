"""ADAPT: examples count by how much their embeddings resemble those of the target set."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.weighting import directions

Embedding = Literal["position_weighted_embedding", "embedding", "last_token_embedding"]
_MIN_TEMPERATURE = 1e-8


def adapt(
  temperature: float = 1.0, embedding: Embedding = "position_weighted_embedding"
) -> DataPolicy:
  r"""Weights each example by the sigmoid of its mean cosine to the target examples.

  With phi the embeddings of the examples i and of the target examples v, the anchors,

    s_i = mean_v cos(phi_i, phi_v),    w_i = sigmoid(s_i / max(tau, 1e-8)).

  A cosine with an embedding of norm 0 is 0. An example without target tokens has w = 1/2, and
  one whose embedding is not finite has w = 0 and is counted as `num_nonfinite`. Anchors that
  are not finite are left out of the mean and counted as `num_nonfinite_anchors`; without any
  anchor s = 0.

  The weights are absolute, as in the paper: w depends on no other example of the batch. As s is
  in [-1, 1], they lie in [0.27, 0.73] at tau = 1, so the policy is close to a factor of 1/2 on
  the learning rate, which the metric `mean_weight` shows; a smaller tau tells examples apart.

  Args:
    temperature: tau >= 0.
    embedding: phi. The paper's is weighted by position, over the last layer's hidden states
      h_1 .. h_n of the example: sum_t t h_t / sum_t t.

  Returns:
    A pointwise step-scope policy that observes the embedding, of the examples and of `target`,
    and `num_tokens`; its decision holds `weights` f32[B] in [0, 1].

  Raises:
    ValueError: if an argument is unknown or out of range; in `init`, if the run has no batch
      size or no target set.

  References:
    Zhao et al., "ADAPT", 2026, arXiv 2605.05227. The paper applies sum_i w_i grad l_i; the loss
    here is the mean over the batch.

  Example:
    >>> from jdc.policies import TargetStats
    >>> spec = RunSpec(9, 1, ("web",), (9,), (1.0,), batch_size=2, num_targets=1)
    >>> policy = adapt(temperature=0.5)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(
    ...   position_weighted_embedding=jnp.array([[3.0, 0.0], [-1.0, 0.0]]),
    ...   num_tokens=jnp.array([5, 5]),
    ...   target=TargetStats(position_weighted_embedding=jnp.array([[2.0, 0.0]])),
    ... )
    >>> [round(w, 3) for w in policy.update(stats, state)[0].weights.tolist()]
    [0.881, 0.119]
  """
  checks.require(
    (
      checks.is_finite(temperature) and temperature >= 0,
      f"temperature must be finite and at least 0, got {temperature}",
    ),
    (
      embedding in get_args(Embedding),
      f"embedding must be in {get_args(Embedding)}, got {embedding!r}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    del key  # deterministic
    checks.require(
      (spec.batch_size > 0, f"batch_size must be positive, got {spec.batch_size}"),
      (spec.num_targets > 0, f"adapt needs num_targets > 0, got {spec.num_targets}"),
    )
    weights_B = jnp.full(spec.batch_size, 0.5, jnp.float32)
    metrics = {
      "num_nonfinite": jnp.int32(0),
      "num_nonfinite_anchors": jnp.int32(0),
      "mean_weight": jnp.float32(0.5),
    }
    return Decision(weights=weights_B, metrics=metrics), ()

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    phi_BxD = getattr(stats, embedding)
    anchors_MxD = getattr(stats.target, embedding)
    valid_B, finite_M = stats.num_tokens > 0, directions.finite(anchors_MxD)
    nonfinite_B = valid_B & ~directions.finite(phi_BxD)

    num_anchors = jnp.maximum(jnp.sum(finite_M), 1)
    # The mean of inner products with unit vectors is the inner product with their mean.
    mean_D = jnp.sum(directions.unit(anchors_MxD), axis=0) / num_anchors
    cosine_B = directions.dot(directions.unit(phi_BxD), mean_D)
    gate_B = jax.nn.sigmoid(cosine_B / max(temperature, _MIN_TEMPERATURE))
    weights_B = jnp.where(valid_B, jnp.where(nonfinite_B, 0.0, gate_B), 0.5)

    num_valid = jnp.maximum(jnp.sum(valid_B), 1)
    metrics = {
      "num_nonfinite": jnp.sum(nonfinite_B, dtype=jnp.int32),
      "num_nonfinite_anchors": jnp.sum(~finite_M, dtype=jnp.int32),
      "mean_weight": jnp.sum(jnp.where(valid_B, weights_B, 0.0)) / num_valid,
    }
    return Decision(weights=weights_B, metrics=metrics), state

  observes = frozenset({embedding, "num_tokens", "target"})
  return DataPolicy(init, update, observes, scope="step", pointwise=True)
