"""Influence on tasks: mean cosines, norms of any size, rows and tasks that have none."""

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import RunSpec
from jdc.policies.selection import influence

TASKS, TARGETS, WIDTH = 3, 8, 5
SPEC = RunSpec(
  9, 1, ("web",), (9,), (1.0,), sweep_size=9, num_targets=8, num_tasks=3, feature_size=5
)
task_influence = jax.jit(influence.task_influence, static_argnums=3)


def cosines(x, y):
  """Between all rows of two arrays, in float64, with the floor under each norm."""
  x, y = np.float64(x), np.float64(y)
  norms = [np.maximum(np.linalg.norm(a, axis=1), 1e-12) for a in (x, y)]
  return (x / norms[0][:, None]) @ (y / norms[1][:, None]).T


def reference(x, target, task):
  """The module's docstring; NaN where there is no influence."""
  finite = np.isfinite(target).all(axis=1)
  result = np.full((len(x), TASKS), np.nan)
  for k in range(TASKS):
    if np.any(finite & (task == k)):
      result[:, k] = cosines(x, target[finite & (task == k)]).mean(axis=1)
  result[~np.isfinite(x).all(axis=1)] = np.nan
  return result


def sample(seed):
  """Rows and targets of many norms, some zero, below the floor, or not finite."""
  rng = np.random.default_rng(seed)
  x, target = rng.normal(size=(40, WIDTH)), rng.normal(size=(TARGETS, WIDTH))
  x *= 10.0 ** rng.integers(-16, 19, (40, 1))
  target *= 10.0 ** rng.integers(-16, 19, (TARGETS, 1))
  x[rng.random(40) < 0.1] = 0
  target[rng.random(TARGETS) < 0.1] = 0
  x[rng.random(40) < 0.1, 1] = rng.choice([np.nan, np.inf, -np.inf])
  target[rng.random(TARGETS) < 0.2, 2] = rng.choice([np.nan, np.inf])
  return np.float32(x), np.float32(target), rng.integers(0, TASKS, TARGETS)


def test_is_the_mean_cosine_to_each_task():
  for seed in range(100):
    x, target, task = sample(seed)
    actual = np.asarray(task_influence(x, target, task, TASKS))
    with np.errstate(invalid="ignore"):
      expected = reference(x, target, task)
    finite = np.isfinite(expected)
    np.testing.assert_allclose(actual[finite], expected[finite], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.isfinite(actual), finite)
    usable = np.isfinite(target).all(axis=1)
    sizes = influence.task_sizes(jnp.asarray(target), jnp.asarray(task), TASKS)
    np.testing.assert_array_equal(sizes, np.bincount(task[usable], minlength=TASKS))
    assert influence.num_nonfinite(jnp.asarray(target)) == np.sum(~usable)


def test_vectors_of_any_norm_have_directions():
  for size in (1e-12, 1e-9, 1.0, 1e20, 1.5e38):
    x = np.float32(size) * np.float32([[1, 1, 0, 0, 0], [2, 0, 0, 0, 0]])
    target = np.float32(size) * np.float32([[1, 0, 0, 0, 0]])
    actual = task_influence(x, target, np.array([0]), 1)
    np.testing.assert_allclose(actual[:, 0], [0.5**0.5, 1.0], rtol=1e-6)


def test_the_floor_takes_from_vectors_below_it():
  x = np.float32([[1e-13, 0.0], [1e-30, 0.0], [1e-44, 0.0], [0.0, 0.0]])
  actual = task_influence(x, np.float32([[1.0, 0.0]]), np.array([0]), 1)[:, 0]
  np.testing.assert_allclose(actual, [0.1, 1e-18, 0.0, 0.0], rtol=1e-6, atol=1e-30)


def test_a_row_does_not_depend_on_the_others():
  x, target, task = sample(0)
  whole = task_influence(x, target, task, TASKS)
  np.testing.assert_allclose(task_influence(x[:7], target, task, TASKS), whole[:7], atol=1e-6)


def test_aggregates_leave_out_tasks_without_examples():
  values = jnp.array([[0.5, -jnp.inf, -0.2], [jnp.nan] * 3, [-0.5, 0.9, -0.6]])
  size = jnp.array([3.0, 0.0, 1.0])
  largest = influence.aggregate_tasks(values, size, "submax")
  mean = influence.aggregate_tasks(values, size, "mean")
  np.testing.assert_allclose(largest, [0.5, np.nan, -0.5])
  np.testing.assert_allclose(mean, [(1.5 - 0.2) / 4, np.nan, (-1.5 - 0.6) / 4], rtol=1e-6)
  for rule in ("submax", "mean"):
    assert not np.any(np.isfinite(influence.aggregate_tasks(values, 0 * size, rule)))


def test_names_everything_that_a_run_lacks():
  assert influence.spec_problems("less", SPEC) == []
  problems = influence.spec_problems("less", RunSpec(9, 1, ("web",), (9,), (1.0,)))
  for field, problem in zip(
    ("sweep_size", "num_targets", "num_tasks", "feature_size"), problems, strict=True
  ):
    assert problem == f"less needs {field} > 0, got 0"
