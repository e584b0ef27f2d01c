"""From rewards of sampled responses to their coefficients in a policy gradient."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jdc.policies import checks

Coefficients = Literal["official", "dataflex"]

_TOLERANCE = 1e-5  # by which a response may have less reward than the reference


def coefficients(
  reward: ArrayLike,
  reference_reward: ArrayLike,
  rule: Coefficients = "official",
  baseline: bool = False,
  best: int = 10,
  importance: ArrayLike | None = None,
) -> jax.Array:
  r"""Returns the coefficients a_jk of responses in the direction of a target prompt j.

    G_j = sum_k a_jk grad NLL(y_jk | x_j),

  NLL the *sum* of the losses of a response's tokens, so that a step against G_j raises the
  probability of responses by their reward. With rewards r_jk of S responses y_jk, and r*_j of
  the reference answer, which stands as the last response,

    dataflex  a_jk = r_jk / S, and 0 for the reference;
    official  of the `best` responses of the highest reward, ties to the lower k, those with
              r_jk > r*_j - 1e-5 are kept, n of them: a_jk = r_jk / n, others have 0; where
              none is kept, the reference has r*_j.

  For responses drawn from the model itself, the expectation of the first is that of
  -grad E r, the policy gradient. With `baseline` r_jk - b_j takes the place of r_jk in the
  numerators of responses, b_j the mean of the prompt's rewards; since it holds r_jk itself,
  the expectation for such responses is 1 - 1/S of it, in the same direction. With `importance`
  ratios w_jk of the model's probability to that under which y_jk was drawn, a_jk is
  w_jk (r_jk - b_j) over the same number, and b_j the mean of w_jk r_jk. Without a baseline the
  expectation is that of responses of the model; a baseline takes 1/S E w^2 r grad NLL off, over
  what was drawn, which has another direction where the ratios are not 1.

  Args:
    reward: f[M, S], in [0, 1].
    reference_reward: f[M], r*; "dataflex" does not read it.
    rule: which of the two.
    baseline: whether there is one.
    best: responses that "official" looks at, at least 1.
    importance: w, f[M, S]; `None`: responses of the model itself.

  Returns:
    f32[M, S + 1], the last of the reference.

  Raises:
    ValueError: if an argument is out of range or the shapes do not fit.

  References:
    Wang et al., "NICE Data Selection for Instruction Tuning in LLMs with Non-differentiable
    Evaluation Metric", 2025, and the authors' code; DataFlex.

  Example:
    >>> reward, reference = jnp.array([[1.0, 0.0], [0.2, 0.0]]), jnp.array([1.0, 0.5])
    >>> coefficients(reward, reference, "dataflex").tolist()[0]
    [0.5, 0.0, 0.0]
    >>> coefficients(reward, reference, "official").tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 0.5]]
  """
  reward, reference = jnp.asarray(reward), jnp.asarray(reference_reward)
  weight = jnp.ones_like(reward) if importance is None else jnp.asarray(importance)
  shape = reward.shape
  checks.require(
    (len(shape) == 2 and shape[-1] > 0, f"reward must be [M, S] with S >= 1, got {shape}"),
    (
      reference.shape == shape[:1],
      f"reference_reward must be of shape {shape[:1]}, got {reference.shape}",
    ),
    (weight.shape == shape, f"importance must be of shape {shape}, got {weight.shape}"),
    (
      rule in get_args(Coefficients),
      f"rule must be in {get_args(Coefficients)}, got {rule!r}",
    ),
    (isinstance(baseline, bool), f"baseline must be True or False, got {baseline!r}"),
    (checks.is_count(best, 1), f"best must be a whole number >= 1, got {best}"),
  )
  reward_MxS, weight_MxS = reward.astype(jnp.float32), weight.astype(jnp.float32)
  reference_M = reference.astype(jnp.float32)
  gain_MxS = weight_MxS * reward_MxS
  if baseline:
    gain_MxS = gain_MxS - weight_MxS * jnp.mean(gain_MxS, axis=1, keepdims=True)
  if rule == "dataflex":
    return jnp.pad(gain_MxS / shape[1], ((0, 0), (0, 1)))
  order_MxS = jnp.argsort(-reward_MxS, axis=1, stable=True)
  rank_MxS = jnp.argsort(order_MxS, axis=1)
  kept_MxS = (rank_MxS < best) & (reward_MxS > reference_M[:, None] - _TOLERANCE)
  num_M = jnp.sum(kept_MxS, axis=1)
  of_response_MxS = jnp.where(kept_MxS, gain_MxS, 0.0) / jnp.maximum(num_M, 1)[:, None]
  of_reference_M = jnp.where(num_M == 0, reference_M, 0.0)
  return jnp.concatenate([of_response_MxS, of_reference_M[:, None]], axis=1)


def importance_ratios(
  log_probability: ArrayLike, drawn_log_probability: ArrayLike, largest: float = jnp.inf
) -> jax.Array:
  """Returns w = min(p / q, largest), f32, for responses that a frozen model q wrote.

  Weights without bound (`largest` inf) leave the policy gradient unbiased, of whatever
  variance.

  Args:
    log_probability: f[...], log p of each response, under the model that is trained.
    drawn_log_probability: f[...], log q, under what it was drawn from, at temperature 1.
    largest: positive.

  Example:
    >>> log_q = jnp.array([-1.0, -9.0])
    >>> importance_ratios(jnp.array([-1.0, -2.0]), log_q, largest=5.0).tolist()
    [1.0, 5.0]
  """
  checks.require(
    (checks.is_number(largest) and largest > 0, f"largest must be positive, got {largest}")
  )
  difference = jnp.asarray(log_probability, jnp.float32) - jnp.asarray(
    drawn_log_probability, jnp.float32
  )
  # Bounded before the exponential, which would overflow.
  return jnp.minimum(jnp.exp(jnp.minimum(difference, 80.0)), largest)
