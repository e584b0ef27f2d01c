"""NICE: rows whose training step would raise the rewards of responses to target prompts."""

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.selection.influence import Aggregate, Direction
from jdc.policies.selection.less import Checkpoints, LessState, less


def nice(
  direction: Direction = "update_direction",
  aggregate: Aggregate = "submax",
  checkpoints: Checkpoints = "current",
) -> DataPolicy:
  r"""Prefers rows whose training step points to where the expected reward of the target rises.

  LESS with another direction of each target prompt x_j: responses y_jk to it are drawn, a
  reward function says how good they are, be it differentiable or not, and

    G_j = sum_k a_jk grad NLL(y_jk | x_j),   NLL the sum over the tokens of the response,

  takes the place of the gradient of the loss of a right answer. `coefficients` says how
  rewards become a_jk; with a_jk = r_jk / S, G_j is an estimate of -grad E r, without bias for
  draws at temperature 1 from all tokens. The rest is as `less` says: with x_i the projected
  `direction` of row i, the influence on a task is the mean of cos(x_i, R G_j) over its prompts,
  and rows are scored by the largest over tasks, or by the mean over all prompts.

  A run draws the responses from the model as it is at each refresh of its target set, or from
  a frozen one, as its configuration `responses` says, and tells of `target_reward`; then
  `target.gradient` is R G. A prompt whose coefficients are all 0 has no direction: its cosines
  are 0 to all rows. Where no prompt has one, now or in the rounds that are summed, no row is
  preferred: all logits are -inf, and a run stops, as its model earns no reward to learn from.

  Args:
    direction: of a row; `update_direction` is Adam's, as the authors have it, `gradient` the
      step of SGD.
    aggregate: over tasks, see `less`.
    checkpoints: whether rounds are summed, see `less`.

  Returns:
    A round-scope policy that observes `target_reward` besides what `less` does. Its decision
    is that of `less`; metrics also tell the mean reward, `mean_reward`, and the prompts
    without a direction, `num_undirected_targets`.

  Raises:
    ValueError: if an argument is unknown; in `init`, as `less`, and if no responses are drawn.

  References:
    Wang et al., "NICE Data Selection for Instruction Tuning in LLMs with Non-differentiable
    Evaluation Metric", 2025 (ICML). DataFlex computes Adam's direction and then matches the
    plain gradient; here `update_direction` is Adam's.

  Example:
    >>> from jdc.policies import TargetStats
    >>> sizes = {"sweep_size": 2, "num_targets": 1, "num_tasks": 1, "feature_size": 2}
    >>> spec = RunSpec(2, 1, ("web",), (2,), (1.0,), num_responses=3, **sizes)
    >>> policy = nice("gradient")
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> target = TargetStats(gradient=jnp.array([[5.0, 0.0]]), task=jnp.array([0]))
    >>> gradient = jnp.array([[-2.0, 0.0], [0.1, 0.0]])
    >>> score = policy.score(ExampleStats(gradient=gradient, target=target), state)
    >>> reward = jnp.array([[1.0, 0.0, 0.5]])
    >>> decision, _ = policy.update(
    ...   ExampleStats(
    ...     example_id=jnp.arange(2), score=score, target=target, target_reward=reward
    ...   ),
    ...   state,
    ... )
    >>> decision.logits.tolist(), float(decision.metrics["mean_reward"])
    ([-1.0, 1.0], 0.5)
  """
  matching = less(direction, aggregate, checkpoints)

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, LessState]:
    problems = []
    if spec.num_responses <= 0:
      problems.append(f"nice needs num_responses > 0, got {spec.num_responses}")
    try:
      decision, state = matching.init(spec, key)
    except ValueError as error:
      problems.append(str(error).replace("less needs", "nice needs"))
    checks.raise_all(problems)
    told = {"mean_reward": jnp.float32(0), "num_undirected_targets": jnp.int32(0)}
    return decision._replace(metrics=decision.metrics | told), state

  def update(stats: ExampleStats, state: LessState) -> tuple[Decision, LessState]:
    assert stats.target is not None
    decision, state = matching.update(stats, state)
    reward_MxS, gradient_MxR = stats.target_reward.astype(jnp.float32), stats.target.gradient
    zero_M = jnp.all(gradient_MxR == 0, axis=-1)
    told = {
      "mean_reward": jnp.mean(jnp.where(jnp.isfinite(reward_MxS), reward_MxS, 0.0)),
      "num_undirected_targets": jnp.sum(zero_M, dtype=jnp.int32),
    }
    assert decision.logits is not None
    # Equal logits would leave the choice to the order of the pool.
    equal = jnp.all((decision.logits == 0) | ~jnp.isfinite(decision.logits))
    logits_N = jnp.where(jnp.all(zero_M) & equal, -jnp.inf, decision.logits)
    return decision._replace(logits=logits_N, metrics=decision.metrics | told), state

  return matching._replace(
    init=init, update=update, observes=matching.observes | {"target_reward"}
  )
