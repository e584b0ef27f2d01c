"""InfoBatch: leaves out a random part of the rows that are learnt well, without bias."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec


class InfoBatchState(NamedTuple):
  key: jax.Array
  loss_N: jax.Array  # f32[N], last seen, nats per token; inf: never, -inf: not finite
  last_step: jax.Array  # f32[], from this step on nothing is pruned


def infobatch(prune_ratio: float = 0.5, anneal: float = 0.875) -> DataPolicy:
  r"""Prunes a random share of the rows below the mean loss; those that stay count for them.

  With l_i the loss of row i when it was last trained on, and n the number of rows whose loss is
  below the mean of those seen, each round keeps of these n

    m = max(1, floor((1 - prune_ratio) n))

  at random, with weight n / m in the loss. All other rows stay, with weight 1: those of higher
  loss and those never seen. So the expected weight of each row is 1 in every round. Where all
  losses are equal, none is below their mean and nothing is pruned, nor is from the step
  `anneal` num_steps on, after which each row counts for itself.

  It costs no pass: the losses are those of the training batches. Rows are kept with logit 0, to
  be drawn by `top_k` with a `top_k_fraction` of 1, or by `gumbel_top_k`, and rounds that end
  when they are exhausted see each kept row once, as the paper's epochs do.

  A row whose last loss was not finite is left out, and counted as `num_nonfinite`.

  Args:
    prune_ratio: share of the rows below the mean that is pruned, in [0, 1). The number kept is
      rounded down, up to one in a million.
    anneal: share of the steps of the run after which nothing is pruned, in [0, 1].

  Returns:
    A round-scope policy that observes `step`, and `loss` and `example_id` of every training
    batch. Its decision holds `logits` f32[N], 0 or -inf, and `weights` f32[N], 0 where the
    logit is not finite; before the first batch 0 and 1 for all. Metrics count the rows with
    finite logits, `num_eligible`, the above, and of the rows seen those below the mean,
    `num_below`, and those pruned, `num_pruned`.

  Raises:
    ValueError: if an argument is out of range; in `init`, if the run's number of steps is not
      known.

  References:
    Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR
    2024, arXiv 2303.04947. The authors start all losses at 3 and weigh by 1 / (1 -
    prune_ratio), which is not n / m where m is rounded; here rows that were never seen are
    neither pruned nor part of the mean.

  Example:
    >>> spec = RunSpec(5, 1, ("web",), (5,), proportions=(1.0,), num_steps=100)
    >>> policy = infobatch()
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> batch = ExampleStats(
    ...   example_id=jnp.array([0, 1, 2, 3]),
    ...   loss=jnp.array([1.0, 5.0, 1.0, 2.0]),
    ...   num_tokens=jnp.array([9, 9, 9, 9]),
    ... )
    >>> state = policy.observe(batch, state)
    >>> decision, _ = policy.update(ExampleStats(step=jnp.int32(10)), state)
    >>> sorted(decision.weights.tolist())  # one of the rows 0, 2 and 3 stays for all three
    [0.0, 0.0, 1.0, 1.0, 3.0]
  """
  checks.require(
    (
      checks.is_number(prune_ratio) and 0 <= prune_ratio < 1,
      f"prune_ratio must be in [0, 1), got {prune_ratio}",
    ),
    (
      checks.is_number(anneal) and 0 <= anneal <= 1,
      f"anneal must be in [0, 1], got {anneal}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, InfoBatchState]:
    if spec.num_steps <= 0:
      raise ValueError(f"infobatch needs num_steps > 0, got {spec.num_steps}")
    size = spec.num_examples
    counts = {"num_nonfinite": 0, "num_eligible": size, "num_below": 0, "num_pruned": 0}
    decision = Decision(
      logits=jnp.zeros(size, jnp.float32),
      weights=jnp.ones(size, jnp.float32),
      metrics={name: jnp.int32(count) for name, count in counts.items()},
    )
    losses = jnp.full(size, jnp.inf, jnp.float32)
    return decision, InfoBatchState(key, losses, jnp.float32(anneal * spec.num_steps))

  def observe(stats: ExampleStats, state: InfoBatchState) -> InfoBatchState:
    # A row without target tokens has no loss to be told.
    id_B = jnp.where(stats.num_tokens > 0, stats.example_id, -1)
    return state._replace(loss_N=_record(state.loss_N, id_B, stats.loss))

  def update(stats: ExampleStats, state: InfoBatchState) -> tuple[Decision, InfoBatchState]:
    key, draw = jax.random.split(state.key)
    below_N = _below_mean(state.loss_N) & (stats.step < state.last_step)
    num_below = jnp.sum(below_N, dtype=jnp.int32)
    share = (1 - prune_ratio) * (1 + 1e-6)
    num_kept = jnp.floor(share * num_below.astype(jnp.float32)).astype(jnp.int32)
    num_kept = jnp.clip(num_kept, 1, jnp.maximum(num_below, 1))
    kept_N = _sample(draw, below_N, num_kept)
    nonfinite_N = state.loss_N == -jnp.inf
    eligible_N = ~nonfinite_N & (kept_N | ~below_N)
    decision = Decision(
      logits=jnp.where(eligible_N, 0.0, -jnp.inf).astype(jnp.float32),
      weights=jnp.where(eligible_N, jnp.where(kept_N, num_below / num_kept, 1.0), 0.0),
      metrics={
        "num_nonfinite": jnp.sum(nonfinite_N, dtype=jnp.int32),
        "num_eligible": jnp.sum(eligible_N, dtype=jnp.int32),
        "num_below": num_below,
        "num_pruned": jnp.sum(below_N & ~kept_N, dtype=jnp.int32),
      },
    )
    return decision, state._replace(key=key)

  return DataPolicy(
    init,
    update,
    frozenset({"step"}),
    scope="round",
    observe=observe,
    observes_batch=frozenset({"loss", "num_tokens", "example_id"}),
  )


def _record(loss_N: jax.Array, id_B: jax.Array, loss_B: jax.Array) -> jax.Array:
  """Returns the last losses, with those of a batch; of copies of a row the highest."""
  place_B = jnp.where(id_B >= 0, id_B, loss_N.shape[0])
  loss_B = loss_B.astype(jnp.float32)
  loss_B = jnp.where(jnp.isfinite(loss_B), loss_B, -jnp.inf)
  return loss_N.at[place_B].set(-jnp.inf, mode="drop").at[place_B].max(loss_B, mode="drop")


def _below_mean(loss_N: jax.Array) -> jax.Array:
  """Returns bool[N], the finite losses below their mean; none where all are equal."""
  seen_N = jnp.isfinite(loss_N)
  lowest = jnp.min(jnp.where(seen_N, loss_N, jnp.inf))
  # Halves cannot overflow, and differences of equal losses are exactly 0.
  above_N = jnp.where(seen_N, loss_N / 2 - lowest / 2, 0.0)
  mean = jnp.sum(above_N / jnp.maximum(jnp.sum(seen_N), 1))
  return seen_N & (above_N < mean)


def _sample(key: jax.Array, from_N: jax.Array, num: jax.Array) -> jax.Array:
  """Returns bool[N], `num` of the rows in `from_N`, any such subset as likely."""
  size = from_N.shape[0]
  order_N = jnp.lexsort((jax.random.bits(key, from_N.shape), ~from_N))
  place_N = jnp.zeros(size, jnp.int32).at[order_N].set(jnp.arange(size, dtype=jnp.int32))
  return from_N & (place_N < num)
