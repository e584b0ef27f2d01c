"""TSDS: the distribution of the target examples, transported onto the pool."""

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy
from jdc.policies.neighbours import density, nearest
from jdc.policies.selection import embedded
from jdc.policies.selection.embedded import Embedded, Embedding
from jdc.policies.selection.transport import transport


def tsds(
  alpha: float = 0.5,
  c: float = 5.0,
  sigma: float = 0.75,
  neighbours: int = 5000,
  kde_neighbours: int = 1000,
  embedding: Embedding = "embedding",
  embeddings: str = "",
  normalise: bool = True,
  max_candidates: int = 200_000,
) -> DataPolicy:
  r"""Samples rows like the target examples, near duplicates in the pool as one.

  Each target example j spreads its mass over its nearest rows n_jk, at distances d_jk (L2),
  each row in proportion to 1 / kde,

    kde_i = sum over the rows i' nearest to i of max(0, 1 - |x_i - x_i'|^2 / sigma^2),

  i itself among them, taken over the `kde_neighbours` nearest rows that are a neighbour of some
  target example. So duplicates share what one of them would have. How far the mass is spread is
  a compromise: alpha = 0 spreads it over all neighbours, and the closer alpha is to 1, the
  sooner the cost of moving it that far stops the spreading; see `transport` for the rule. The
  logits are log p, -inf where p = 0; `gumbel_top_k` draws rows without repeating any.

  With K = min(neighbours, max(C // 10, 1)) and likewise for `kde_neighbours`, C being the
  number of rows compared, as in the authors' code. The embeddings of all C rows are kept on
  each device, [C, D], and the densities take C^2 D multiplications, a few rows at a time.

  Args:
    alpha: in [0, 1].
    c: the scale of the cost, positive; in the unit of the distances.
    sigma: radius within which rows count as near duplicates, at least 0; 0 turns this off.
    neighbours: at least 1.
    kde_neighbours: at least 1.
    embedding: the embedding of a sweep.
    embeddings: path of a .npz with the arrays `pool` [N, D] and `target` [M, D], from any
      model; then nothing is swept and the decision, f32[N], is the same in every round. Empty:
      sweep.
    normalise: whether embeddings are divided by their norm, for which the default of `sigma`
      is made; the authors' code takes them as they are.
    max_candidates: bound of C, or of N, against a sweep that does not fit into memory.

  Returns:
    A round-scope policy that observes the embedding, of the rows and of `target`, and
    `example_id`; nothing where embeddings are given. `score` returns f32[b, D]; `update` reads
    `score` f32[C, D] and decides `logits` f32[C], before the first sweep 0 for all. Metrics
    count the rows with p > 0, `num_eligible`; rows and target examples whose embedding is not
    finite (or, not normalised, too large to be squared) and which are left out,
    `num_nonfinite` and `num_nonfinite_targets`; and `num_neighbours` and `num_kde_neighbours`,
    after the bound of C // 10.

  Raises:
    ValueError: if an argument is out of range or the file is not as described; in `init`, if
      the run has no sweep, target set or embeddings, its rows exceed `max_candidates`, or the
      file holds another number of rows than the pool.

  References:
    Liu, Karbasi, Rekatsinas, "TSDS: Data Selection for Task-Specific Model Finetuning", 2024,
    arXiv 2410.11303, and the authors' code, whose neighbours are approximate and whose draw is
    with replacement.

  Example:
    >>> from jdc.policies import ExampleStats, RunSpec, TargetStats
    >>> sizes = {"sweep_size": 3, "num_targets": 1, "embedding_size": 2}
    >>> spec = RunSpec(3, 1, ("web",), (3,), (1.0,), **sizes)
    >>> policy = tsds()
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> swept = ExampleStats(
    ...   example_id=jnp.arange(3),
    ...   score=jnp.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]),
    ...   target=TargetStats(embedding=jnp.array([[2.0, 0.0]])),
    ... )
    >>> policy.update(swept, state)[0].logits.tolist()
    [-inf, -inf, 0.0]
  """
  claims = [
    (checks.is_number(alpha) and 0 <= alpha <= 1, f"alpha must be in [0, 1], got {alpha}"),
    (checks.is_finite(c) and c > 0, f"c must be positive and finite, got {c}"),
    (
      checks.is_finite(sigma) and sigma >= 0,
      f"sigma must be finite and at least 0, got {sigma}",
    ),
    *(
      (checks.is_count(value, 1), f"{name} must be a whole number >= 1, got {value}")
      for name, value in (("neighbours", neighbours), ("kde_neighbours", kde_neighbours))
    ),
  ]

  def choose(given: Embedded) -> jax.Array:
    num, num_kde = _bounded(neighbours, given), _bounded(kde_neighbours, given)
    found = nearest(given.target_MxD, given.usable_M, given.pool_CxD, given.usable_C, num)
    density_C = density_of_found(found.index_MxK, given.pool_CxD, sigma, num_kde)
    return jnp.log(transport(found, density_C, alpha, c))

  def counts(num_rows: int, num_targets: int) -> tuple[dict[str, int], list[str]]:
    del num_targets
    bound = max(num_rows // 10, 1)
    bounded = (min(neighbours, bound), min(kde_neighbours, bound))
    return dict(zip(("num_neighbours", "num_kde_neighbours"), bounded, strict=True)), []

  rule = embedded.Rule("tsds", choose, counts)
  return embedded.selection(rule, claims, embedding, embeddings, max_candidates, normalise)


def density_of_found(
  index_MxK: jax.Array, points_CxD: jax.Array, sigma: float, num: int
) -> jax.Array:
  """Returns the density of neighbours among each other, f32[C]; 1 at rows that are none.

  Args:
    index_MxK: i32, the neighbours, -1 none.
    points_CxD: the rows.
    sigma: radius.
    num: neighbours of a neighbour that count.
  """
  num_points, most = points_CxD.shape[0], min(points_CxD.shape[0], index_MxK.size)
  row_MxK = jnp.where(index_MxK >= 0, index_MxK, num_points)
  found_C = jnp.zeros(num_points, bool).at[row_MxK].set(True, mode="drop")
  row_U = jnp.argsort(~found_C)[:most]  # those found come first
  density_U = density(points_CxD[row_U], found_C[row_U], sigma, min(num, most))
  density_U = jnp.where(found_C[row_U], density_U, 1.0)
  return jnp.ones(num_points, jnp.float32).at[row_U].set(density_U)


def _bounded(num: int, given: Embedded) -> int:
  return min(num, max(given.pool_CxD.shape[0] // 10, 1))
