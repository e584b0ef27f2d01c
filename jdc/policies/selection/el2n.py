"""EL2N: rows whose tokens the model predicts with large errors are preferred."""

from jdc.policies.base import DataPolicy
from jdc.policies.selection.norms import Checkpoints, by_norm


def el2n(checkpoints: Checkpoints = "mean") -> DataPolicy:
  r"""Prefers rows by the length of the error vector of their tokens.

  With p_it the model's distribution of target token t of row i, y_it the token and n_i the
  number of target tokens,

    e_i = 1/n_i sum_t |p_it - onehot(y_it)|_2,        in [0, sqrt(2)],

  and the logit of row i is its mean over the rounds r in which it was swept so far,

    logit_i = 1/R_i sum_r e_ir;        with checkpoints="current", that of the last round.

  Logits are meant for `top_k`, which takes the largest, those that are hardest to predict; for
  other draws, `jdc.policies.keep` draws alike from the largest, and `jdc.policies.temperature`
  sharpens them. `jdc.policies.after` draws from all rows in the first rounds, which count in
  the mean already.

  A row whose error is not finite in a round is not drawn, and is counted as `num_nonfinite`;
  its mean goes on without that round. A row without target tokens has error 0.

  Args:
    checkpoints: whether rounds are averaged, as in the paper, or the last alone counts. A mean
      is kept for each of the N rows.

  Returns:
    A round-scope policy that observes `el2n` and `example_id`; to average `score_age` too, so
    that a score kept from an earlier round counts once. `score` returns f32[b], the error of
    each row of a chunk; `update` reads `score` f32[C] and `example_id` i32[C], -1 for padding.
    Its decision holds `logits` f32[C], before the first sweep 0 for all; metrics count the rows
    sampled from, `num_eligible`, and the above.

  Raises:
    ValueError: if `checkpoints` is unknown; in `init`, if the run sweeps no rows.

  References:
    Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet: Finding Important Examples Early
    in Training", 2021, arXiv 2107.07075, for a classifier, with one error vector a row. There
    the mean is over about ten runs, early in training, and what is pruned stays so; here it is
    over the rounds of one run.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jdc.policies import ExampleStats, RunSpec
    >>> spec = RunSpec(3, 1, ("web",), (3,), (1.0,), sweep_size=3)
    >>> policy = el2n()
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> for error in ([0.5, 1.0, 0.25], [0.5, 0.5, jnp.nan]):
    ...   stats = ExampleStats(el2n=jnp.array(error), example_id=jnp.arange(3))
    ...   score, age = policy.score(stats, state), jnp.zeros(3, jnp.int32)
    ...   swept = ExampleStats(example_id=jnp.arange(3), score=score, score_age=age)
    ...   decision, state = policy.update(swept, state)
    >>> decision.logits.tolist()
    [0.5, 0.75, -inf]
  """
  return by_norm("el2n", "el2n", checkpoints)
