"""GraNd: rows with a large gradient are preferred."""

from jdc.policies.base import DataPolicy
from jdc.policies.selection.norms import Checkpoints, by_norm


def grand(checkpoints: Checkpoints = "mean") -> DataPolicy:
  r"""Prefers rows by the length of their gradient.

  With l_i the mean loss of the target tokens of row i,

    g_i = |grad_theta l_i|_2,

  and the logit of row i is its mean over the rounds r in which it was swept so far,

    logit_i = 1/R_i sum_r g_ir;        with checkpoints="current", that of the last round.

  The parameters theta are those that `features.parameters` and `features.top_layers` of the
  run's configuration choose, and its provider of features computes the norms: `exact` of any
  parameters, a few rows at a time; `kron` of the matrices of linear maps, at the price of one
  backward pass.

  Draws, rows that are not finite and rows without target tokens are as in `el2n`, which is
  cheaper by the backward pass.

  Args:
    checkpoints: as in `el2n`.

  Returns:
    A round-scope policy that observes `gradient_norm` and `example_id`, and to average
    `score_age` too; all else is as in `el2n`.

  Raises:
    ValueError: if `checkpoints` is unknown; in `init`, if the run sweeps no rows.

  References:
    Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet: Finding Important Examples Early
    in Training", 2021, arXiv 2107.07075, for a classifier. There the mean is over about ten
    runs, early in training, and what is pruned stays so; here it is over the rounds of one run.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jdc.policies import ExampleStats, RunSpec
    >>> spec = RunSpec(3, 1, ("web",), (3,), (1.0,), sweep_size=3)
    >>> policy = grand("current")
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> norm = jnp.array([2.0, 8.0, jnp.inf])
    >>> score = policy.score(ExampleStats(gradient_norm=norm), state)
    >>> swept = ExampleStats(example_id=jnp.arange(3), score=score)
    >>> policy.update(swept, state)[0].logits.tolist()
    [2.0, 8.0, -inf]
  """
  return by_norm("grand", "gradient_norm", checkpoints)
