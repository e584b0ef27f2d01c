"""NEAR: the nearest neighbours of the target examples, taken in turns."""

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy
from jdc.policies.neighbours import nearest
from jdc.policies.selection import embedded
from jdc.policies.selection.embedded import Embedded, Embedding

_NEVER = 2**31 - 1


def near(
  count: int,
  neighbours: int = 1000,
  embedding: Embedding = "embedding",
  embeddings: str = "",
  max_candidates: int = 200_000,
) -> DataPolicy:
  r"""Selects the `count` rows that the target examples reach first, each by its neighbours.

  With embeddings of norm 1, each of the M target examples ranks its `neighbours` nearest rows
  by Euclidean distance. The walk visits the nearest row of every target example in order, then
  every second nearest, and so on, skips rows it has seen, and stops at `count`:

    first_i = min over j with n_jr = i of (r M + j),    logit_i = -place_i / count,

  n_jr being the row of rank r of target example j and place_i = 0, 1, ... the place of row i in
  the order of first. So `top_k` keeps the order of the walk, and the sampled draws are nearly
  uniform over what it selected. Rows that are not selected have logit -inf. Where fewer than
  `count` rows are reached, all of them are selected.

  The rows are compared with the target set at once: the embeddings of all C rows swept are kept
  on each device, [C, D], while distances are computed a few target examples at a time.

  Args:
    count: rows to select, at least 1.
    neighbours: rows that a target example may reach, at least 1; of C rows, at most C.
    embedding: the embedding of a sweep.
    embeddings: path of a .npz with the arrays `pool` [N, D] and `target` [M, D], from any
      model; then nothing is swept and the decision, f32[N], is the same in every round. Empty:
      sweep.
    max_candidates: bound of C, or of N, against a sweep that does not fit into memory.

  Returns:
    A round-scope policy that observes the embedding, of the rows and of `target`, and
    `example_id`; nothing where embeddings are given. `score` returns f32[b, D]; `update` reads
    `score` f32[C, D] and decides `logits` f32[C], before the first sweep 0 for all. Metrics
    count the rows selected, `num_eligible`; rows and target examples whose embedding is not
    finite and which are left out, `num_nonfinite` and `num_nonfinite_targets`; and
    `num_neighbours`, min(neighbours, C).

  Raises:
    ValueError: if an argument is out of range or the file is not as described; in `init`, if
      the run has no sweep, target set or embeddings, `count` exceeds the rows, these exceed
      `max_candidates`, or the file holds another number of rows than the pool.

  References:
    The rule of the near selector of DataFlex, there without a paper. Here the neighbours are
    exact, the embeddings are those of the model as it is, so a later round selects other rows,
    and too few neighbours are no error. An embedding of norm 0 is at distance 1 from all
    others.

  Example:
    >>> from jdc.policies import ExampleStats, RunSpec, TargetStats
    >>> sizes = {"sweep_size": 3, "num_targets": 1, "embedding_size": 2}
    >>> spec = RunSpec(3, 1, ("web",), (3,), (1.0,), **sizes)
    >>> policy = near(count=2)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> swept = ExampleStats(
    ...   example_id=jnp.arange(3),
    ...   score=jnp.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]),
    ...   target=TargetStats(embedding=jnp.array([[2.0, 0.0]])),
    ... )
    >>> policy.update(swept, state)[0].logits.tolist()
    [-inf, -0.5, 0.0]
  """
  claims = [
    (checks.is_count(count, 1), f"count must be a whole number >= 1, got {count}"),
    (
      checks.is_count(neighbours, 1),
      f"neighbours must be a whole number >= 1, got {neighbours}",
    ),
  ]

  def choose(given: Embedded) -> jax.Array:
    num_rows = given.pool_CxD.shape[0]
    num = min(neighbours, num_rows)
    found = nearest(given.target_MxD, given.usable_M, given.pool_CxD, given.usable_C, num)
    return walk(found.index_MxK, num_rows, count)

  def counts(num_rows: int, num_targets: int) -> tuple[dict[str, int], list[str]]:
    num, problems = min(neighbours, num_rows), []
    if count > num_rows:
      problems.append(f"count {count} to be at most the {num_rows} rows")
    if num * num_targets > _NEVER:
      problems.append(
        f"neighbours * target examples below 2^31, got {num} * {num_targets}; lower neighbours"
      )
    return {"num_neighbours": num}, problems

  rule = embedded.Rule("near", choose, counts)
  return embedded.selection(rule, claims, embedding, embeddings, max_candidates)


def walk(index_MxK: jax.Array, num_rows: int, count: int) -> jax.Array:
  """Returns logits f32[num_rows], falling with the place at which the walk reaches a row.

  Args:
    index_MxK: i32, the row of each rank, -1 none.
    num_rows: C.
    count: of the rows that are first, the others have -inf.

  Example:
    >>> walk(jnp.array([[0, 1], [0, 2]]), num_rows=4, count=2).tolist()
    [0.0, -0.5, -inf, -inf]
  """
  num_targets, num_ranks = index_MxK.shape
  step_MxK = jnp.arange(num_ranks) * num_targets + jnp.arange(num_targets)[:, None]
  row_MxK = jnp.where(index_MxK >= 0, index_MxK, num_rows)
  first_C = jnp.full(num_rows, _NEVER, jnp.int32)
  first_C = first_C.at[row_MxK].min(step_MxK.astype(jnp.int32), mode="drop")
  order_C = jnp.argsort(first_C)
  place_C = jnp.zeros_like(order_C).at[order_C].set(jnp.arange(num_rows))
  selected_C = (first_C < _NEVER) & (place_C < count)
  logits_C = (-place_C).astype(jnp.float32) / count
  return jnp.where(selected_C, logits_C, -jnp.inf)
