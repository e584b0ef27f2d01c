"""MATES: a regressor learns which rows help the target, from steps on a few of them."""

import jax
import jax.numpy as jnp

from jdc.policies import checks, neighbours
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.selection import ridge


def mates(
  temperature: float = 0.5, strength: float | None = None, max_candidates: int = 200_000
) -> DataPolicy:
  r"""Samples rows by the target's loss that a step on each is predicted to leave.

  At the start of a round y_p is the mean loss of the target set after one step of the optimizer
  on probe row p alone. A ridge regression f of y on the embeddings of these rows, the mean
  hidden states, predicts it for all rows x:

    logit_x = -f(embedding_x) / T.

  `gumbel_top_k` draws without replacement in proportion to exp(-f / T), `top_k` takes the rows
  of the lowest predictions. One step moves a loss by little: differences of logits are those of
  losses, over T.

  Probe rows are `probe.rows` of each half-batch of each domain, drawn anew in each round. Those
  that the sweep leaves out, or whose label or embedding is not finite, are not fitted; without
  any no row is drawn. Rows whose embedding is not finite are never drawn and are counted as
  `num_nonfinite`; so are embeddings and labels whose square overflows.

  Args:
    temperature: T in [1e-30, inf), in nats.
    strength: of the ridge, as `ridge.fit` says; `None` chooses by leave-one-out errors.
    max_candidates: bound of the rows swept, whose embeddings are kept on each device, [C, D].

  Returns:
    A round-scope policy that observes `embedding`, `example_id`, `probe_id` i32[P] and
    `probe_label` f32[P]. `score` returns f32[b, D]; `update` reads `score` f32[C, D] and
    decides `logits` f32[C], before the first sweep 0 for all. Metrics count the rows sampled
    from, `num_eligible`, the above and the probes fitted, `num_probes`, and tell the `strength`
    and the leave-one-out error over the deviation of the labels, `relative_error`: of 1 and
    more the regressor knows nothing.

  Raises:
    ValueError: if an argument is out of range; in `init`, if the run has no sweep, embeddings,
      target set or probes, or sweeps more than `max_candidates` rows.

  References:
    Yu et al., "MATES: Model-Aware Data Selection for Efficient Pretraining with Data Influence
    Models", 2024, arXiv 2406.06046. There a small encoder is trained on the text, here a ridge
    on what the model itself has; the authors' code takes the smallest of pred / T + noise, in
    which the noise has the wrong sign for a sample without replacement.

  Example:
    >>> sizes = {"sweep_size": 3, "num_targets": 1, "embedding_size": 1, "probe_size": 1}
    >>> policy = mates(temperature=1.0, strength=1e-6)
    >>> spec = RunSpec(3, 1, ("web",), (3,), (1.0,), **sizes)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> swept = ExampleStats(
    ...   example_id=jnp.arange(3),
    ...   score=jnp.array([[0.0], [1.0], [2.0]]),
    ...   probe_id=jnp.array([2, 0]),
    ...   probe_label=jnp.array([4.0, 3.0]),
    ... )
    >>> [round(x, 3) for x in policy.update(swept, state)[0].logits.tolist()]
    [-3.0, -3.5, -4.0]
  """
  checks.require(
    (
      checks.is_finite(temperature) and temperature >= 1e-30,
      f"temperature must be in [1e-30, inf), got {temperature}",
    ),
    (
      strength is None or (checks.is_finite(strength) and strength > 0),
      f"strength must be None or positive and finite, got {strength}",
    ),
    (
      checks.is_count(max_candidates, 1),
      f"max_candidates must be a whole number >= 1, got {max_candidates}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    del key  # deterministic
    needed = ("sweep_size", "embedding_size", "num_targets", "probe_size")
    sizes = {name: getattr(spec, name) for name in needed}
    problems = [f"{name} > 0, got {size}" for name, size in sizes.items() if size <= 0]
    if spec.sweep_size > max_candidates:
      problems.append(
        f"sweep_size to be at most max_candidates {max_candidates}, got {spec.sweep_size}"
      )
    checks.raise_all(f"mates needs {x}" for x in problems)
    metrics = {
      "num_nonfinite": jnp.int32(0),
      "num_eligible": jnp.int32(spec.sweep_size),
      "num_probes": jnp.int32(0),
      "strength": jnp.float32(0),
      "relative_error": jnp.float32(0),
    }
    return Decision(logits=jnp.zeros(spec.sweep_size, jnp.float32), metrics=metrics), ()

  def score(stats: ExampleStats, state: PolicyState) -> jax.Array:
    del state
    return stats.embedding.astype(jnp.float32)

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    embedding_CxD = stats.score.astype(jnp.float32)
    label_P = stats.probe_label.astype(jnp.float32)
    real_C = stats.example_id >= 0
    finite_C = real_C & neighbours.within_float32(embedding_CxD)
    embedding_CxD = jnp.where(finite_C[:, None], embedding_CxD, 0.0)
    place_P, found_P = _places(stats.example_id, stats.probe_id)
    # The sum of P such squares is finite too.
    finite_P = jnp.isfinite(jnp.square(label_P) * (4.0 * label_P.shape[0]))
    usable_P = found_P & finite_P & finite_C[place_P]
    model = ridge.fit(embedding_CxD[place_P], label_P, usable_P, strength)
    logits_C = -ridge.predict(model, embedding_CxD) / temperature
    eligible_C = finite_C & jnp.isfinite(logits_C)
    num_eligible = jnp.sum(eligible_C, dtype=jnp.int32)
    num_probes = jnp.sum(usable_P, dtype=jnp.int32)
    residual_P = jnp.where(usable_P, label_P - model.intercept, 0.0)
    deviation = jnp.sqrt(jnp.sum(residual_P**2 / jnp.maximum(num_probes, 1)))
    relative = jnp.where(deviation > 0, model.error / deviation, 1.0)
    metrics = {
      "num_nonfinite": jnp.sum(real_C, dtype=jnp.int32) - num_eligible,
      "num_eligible": num_eligible,
      "num_probes": num_probes,
      "strength": model.strength,
      "relative_error": jnp.where(num_probes > 1, relative, 1.0),
    }
    return Decision(jnp.where(eligible_C, logits_C, -jnp.inf), metrics=metrics), state

  observes = frozenset({"embedding", "example_id", "probe_id", "probe_label"})
  return DataPolicy(init, update, observes, scope="round", score=score)


def _places(id_C: jax.Array, id_P: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns where each probe is among the rows swept, i32[P], and whether it is there."""
  order_C = jnp.argsort(id_C)
  sorted_C = id_C[order_C]
  place_P = jnp.minimum(jnp.searchsorted(sorted_C, id_P), len(id_C) - 1)
  return order_C[place_P], (sorted_C[place_P] == id_P) & (id_P >= 0)
