"""GREATS: the greedy choice, the utility it climbs, the edges, the behaviour."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, TargetStats
from jdc.policies.selection import greats

B, K, R, M = 12, 4, 6, 5
SPEC = RunSpec(
  90, 1, ("web",), (90,), (1.0,), batch_size=K, num_candidates=B, num_targets=M, feature_size=R
)
KEY = jax.random.key(0)
FORMS = ["ghost", "gradient", "update_direction"]


@functools.cache
def updater(form, self_term, k=K, size=B):
  policy = greats(form, self_term)
  _, state = policy.init(SPEC._replace(batch_size=k, num_candidates=size), KEY)
  return jax.jit(policy.update), state


def decide(form, fields, learning_rate=0.5, self_term=False, k=K, tokens=None, ids=None):
  fields = {name: jnp.float32(value) for name, value in fields.items()}
  if "target" in fields:
    fields["target"] = TargetStats(gradient=fields["target"])
  size = len(fields.get("target_alignment", fields.get(form)))
  stats = ExampleStats(
    example_id=jnp.arange(size) if ids is None else jnp.asarray(ids),
    num_tokens=jnp.ones(size, int) if tokens is None else jnp.asarray(tokens),
    learning_rate=jnp.float32(learning_rate),
    **fields,
  )
  update, state = updater(form, self_term, k, size)
  return update(stats, state)[0]


def as_fields(form, direction, target):
  """What is observed, of directions and target gradients in float64."""
  if form != "ghost":
    return {form: direction, "target": target}
  direction, mean = np.float64(direction), np.float64(target).mean(axis=0)
  return {"gradient_product": direction @ direction.T, "target_alignment": direction @ mean}


def chosen(decision):
  """The rows kept, in order; the logits are k, k - 1, ..."""
  logits = np.asarray(decision.logits)
  order = np.argsort(-logits, kind="stable")[: np.isfinite(logits).sum()]
  np.testing.assert_array_equal(logits[order], np.arange(K, K - len(order), -1))
  return order.tolist()


def reference(aligned, product, eligible, learning_rate, self_term, k=K):
  """The published loop, scores times eta, with lr / k: the rows, and each choice's margin."""
  eta, rows, margins = learning_rate / k, [], []
  scale = eta * np.abs(aligned[eligible]).max(initial=0.0)
  score = eta * aligned - (eta**2 / 2 * np.diagonal(product) if self_term else 0.0)
  while len(rows) < min(k, eligible.sum()):
    left = [i for i in np.flatnonzero(eligible) if i not in rows]
    ordered = sorted(left, key=lambda i: -score[i])
    rows.append(int(ordered[0]))
    gap = score[ordered[0]] - score[ordered[1]] if len(ordered) > 1 else np.inf
    margins.append(gap / scale)
    score = score - eta**2 * product[ordered[0]]
  return rows, margins


@pytest.mark.parametrize("self_term", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_the_loop(form, self_term):
  compared = 0
  for seed, learning_rate in itertools.product(range(12), (1e-3, 0.7, 8.0)):
    rng = np.random.default_rng(seed)
    direction, target = rng.normal(size=(B, R)), rng.normal(size=(M, R)) + 0.5
    tokens, ids = rng.integers(0, 5, B), np.where(rng.random(B) < 0.1, -1, np.arange(B))
    lost = rng.random(B) < 0.15
    direction[lost, 2] = rng.choice([np.nan, np.inf, -np.inf])
    fields = as_fields(form, np.float32(direction), np.float32(target))
    decision = decide(form, fields, learning_rate, self_term, tokens=tokens, ids=ids)
    valid = (tokens > 0) & (ids >= 0)
    exact = as_fields("ghost", np.where(lost[:, None], 0, direction), target)
    args = exact["target_alignment"], exact["gradient_product"], valid & ~lost
    rows, margins = reference(*args, learning_rate, self_term)
    found = chosen(decision)
    assert len(found) == len(rows)
    clear = list(itertools.takewhile(lambda margin: margin > 1e-4, margins))
    assert found[: len(clear)] == rows[: len(clear)]
    compared += len(clear)
    assert decision.metrics["num_nonfinite"] == np.sum(valid & lost)
    assert decision.metrics["num_eligible"] == np.sum(valid & ~lost)
  assert compared > 0.9 * 36 * K


def test_the_forms_agree_on_the_same_products():
  rng = np.random.default_rng(0)
  for _ in range(10):
    direction, target = rng.normal(size=(B, R)), rng.normal(size=(M, R))
    fields = [as_fields(form, direction, target) for form in FORMS]
    results = [chosen(decide(*each)) for each in zip(FORMS, fields, strict=True)]
    assert results[0] == results[1] == results[2]


def make_gain(theta, optimum, gradient, eta):
  """What a real step on all these rows takes off the target's loss |theta - optimum|^2 / 2."""
  loss = lambda theta: np.sum((theta - optimum) ** 2) / 2
  return lambda rows: loss(theta) - loss(theta - eta * np.sum(gradient[list(rows)], axis=0))


@pytest.mark.parametrize("learning_rate", [0.3, 2.0])
def test_each_choice_adds_most_to_the_utility(learning_rate):
  """With the self term, where the target's loss is quadratic with the identity for Hessian."""
  for seed in range(15):
    rng = np.random.default_rng(seed)
    theta, optimum = rng.normal(size=(2, R))
    gradient = rng.normal(size=(B, R)) + 0.3 * (theta - optimum)
    fields = as_fields("gradient", gradient, (theta - optimum)[None])
    rows = chosen(decide("gradient", fields, learning_rate, self_term=True))
    gain = make_gain(theta, optimum, gradient, learning_rate / K)
    for place, row in enumerate(rows):
      gains = {i: gain([*rows[:place], i]) for i in set(range(B)) - set(rows[:place])}
      assert gains[row] >= max(gains.values()) - 1e-5 * gain(rows)
    best = max(gain(subset) for subset in itertools.combinations(range(B), K))
    assert gain(rows) <= best * (1 + 1e-9)  # one after another need not be the best subset


def test_of_orthogonal_gradients_the_best_subset():
  """None takes from what another gains, so that no subset is better."""
  rng = np.random.default_rng(1)
  for _ in range(10):
    axes, _ = np.linalg.qr(rng.normal(size=(R, R)))
    gradient = axes * rng.uniform(0.2, 2.0, (R, 1))
    theta, optimum = rng.normal(size=(2, R))
    fields = as_fields("gradient", gradient, (theta - optimum)[None])
    rows = chosen(decide("gradient", fields, 2.0, self_term=True))
    gain = make_gain(theta, optimum, gradient, 2.0 / K)
    best = max(gain(subset) for subset in itertools.combinations(range(R), K))
    np.testing.assert_allclose(gain(rows), best, rtol=1e-5)


@pytest.mark.parametrize("self_term", [False, True])
def test_without_a_learning_rate_alignment_decides(self_term):
  rng = np.random.default_rng(2)
  direction, target = rng.normal(size=(B, R)), rng.normal(size=(M, R))
  aligned = direction @ target.mean(axis=0)
  for form in FORMS:
    decision = decide(form, as_fields(form, direction, target), 0.0, self_term)
    assert chosen(decision) == np.argsort(-aligned)[:K].tolist()


def test_top_k_keeps_them_in_order():
  rng = np.random.default_rng(3)
  decision = decide("gradient", as_fields("gradient", rng.normal(size=(B, R)), np.ones((M, R))))
  assert jax.lax.top_k(decision.logits, K)[1].tolist() == chosen(decision)


def test_a_copy_gives_way_to_another_direction():
  """A well-aligned row, its copy, one in a direction of its own, and one that does not help."""
  direction = [[2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
  target = [[1.0, 1.0]]
  for form in FORMS:
    fields = as_fields(form, direction, target)
    # The score of the copy is 2 - 4 eta, that of the other direction 1.
    assert picked(decide(form, fields, 0.6, k=2)) == [0, 2]
    assert picked(decide(form, fields, 0.4, k=2)) == [0, 1]  # a small step may go on
    # The last takes back what the first overshoots.
    assert picked(decide(form, fields, 6.0, k=2)) == [0, 3]


def picked(decision):
  order = np.argsort(-np.asarray(decision.logits), kind="stable")
  return order[: np.isfinite(decision.logits).sum()].tolist()


def regression(seed):
  """Rows on one axis mostly, some with wrong labels; the target needs all axes alike."""
  rng = np.random.default_rng(seed)
  truth, axis = np.array([1.0, -2.0, 1.5]), rng.choice(3, 24, p=[0.8, 0.1, 0.1])
  x = 2.0 * np.eye(3)[axis]
  y = x @ truth * np.where(rng.random(24) < 0.25, -1, 1)
  return x, y, truth


def test_lowers_the_target_loss_faster():
  """Than the same number of rows of highest alignment, or any: over steps of real training."""
  left = dict.fromkeys(("greats", "aligned", "any"), 0.0)
  for seed, method in itertools.product(range(5), left):
    theta = np.zeros(3)
    for step in range(6):
      x, y, truth = regression((seed, step))
      gradient = (x @ theta - y)[:, None] * x
      target = (theta - truth)[None]  # of |theta - truth|^2 / 2
      if method == "greats":
        fields = as_fields("gradient", gradient, target)
        rows = picked(decide("gradient", fields, 0.5, True, k=6))
      else:
        rows = np.argsort(-gradient @ target[0])[:6] if method == "aligned" else range(6)
      theta = theta - 0.5 * gradient[rows].mean(axis=0)
    left[method] += np.sum((theta - truth) ** 2) / 2 / 5
  assert left["greats"] < 0.5 * min(left["aligned"], left["any"])


def test_edges():
  ghost = functools.partial(decide, "ghost")
  same = {"gradient_product": np.zeros((B, B)), "target_alignment": np.ones(B)}
  assert chosen(ghost(same)) == [0, 1, 2, 3]  # ties go to the lower index
  assert chosen(ghost(same, tokens=[0, 1, 0] + [1] * (B - 3))) == [1, 3, 4, 5]
  few = ghost(same, tokens=[0] * (B - 2) + [1, 1])
  assert chosen(few) == [B - 2, B - 1]
  assert few.metrics == {"num_nonfinite": 0, "num_eligible": 2}
  none = ghost(same | {"target_alignment": np.full(B, np.nan)})
  assert chosen(none) == []
  assert none.metrics == {"num_nonfinite": B, "num_eligible": 0}
  # One row is lost, not those that it is multiplied with.
  product = np.eye(B)
  product[2], product[:, 2] = np.nan, np.nan
  assert chosen(ghost(same | {"gradient_product": product})) == [0, 1, 3, 4]
  # Products of two rows that are finite alone.
  product = np.eye(B)
  product[0, 1] = product[1, 0] = np.inf
  lost = ghost(same | {"gradient_product": product})
  assert chosen(lost) == [2, 3, 4, 5]
  assert lost.metrics == {"num_nonfinite": 2, "num_eligible": B - 2}


def test_any_finite_numbers_make_a_choice():
  whole = {"gradient_product": np.full((B, B), 3e38), "target_alignment": np.full(B, -3e38)}
  assert sorted(chosen(decide("ghost", whole, 9.0))) == [0, 1, 2, 3]
  direction = np.ones((B, R))
  direction[3] = 1e20  # of a norm whose square is not finite in float32
  decision = decide("gradient", as_fields("gradient", direction, np.ones((M, R))))
  assert chosen(decision) == [0, 1, 2, 4]
  assert decision.metrics["num_nonfinite"] == 1


@pytest.mark.parametrize("form", ["gradient", "update_direction"])
def test_target_rows_that_are_not_finite_are_left_out(form):
  rng = np.random.default_rng(4)
  direction, target = rng.normal(size=(B, R)), rng.normal(size=(M, R))
  spoilt = target.copy()
  spoilt[1, 2], spoilt[3] = np.nan, 1e20
  decision = decide(form, as_fields(form, direction, spoilt))
  assert decision.metrics["num_nonfinite_targets"] == 2
  rest = decide(form, as_fields(form, direction, target[[0, 2, 4]]))
  assert chosen(decision) == chosen(rest)
  no_target = decide(form, as_fields(form, np.eye(B, R), target * np.nan))
  assert chosen(no_target)[0] == 0
  assert no_target.metrics["num_nonfinite_targets"] == M


def test_before_the_first_batch_all_are_alike():
  decision, state = greats().init(SPEC, KEY)
  assert decision.logits.tolist() == [0.0] * B
  assert state.logit_k.tolist() == [4.0, 3.0, 2.0, 1.0]
  every, _ = greats().init(SPEC._replace(batch_size=B), KEY)
  assert every.logits.shape == (B,)


def test_rejects_arguments():
  with pytest.raises(
    ValueError, match=r"products must be in .*'all'.*self_term must be a bool"
  ):
    greats("all", 1)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"batch_size": 13}, "batch_size 13 must be at most num_candidates 12"),
    ({"num_candidates": 0, "num_targets": 0}, "num_candidates > 0, got 0.*num_targets > 0"),
    ({"batch_size": 0, "feature_size": 0}, "batch_size must be positive.*feature_size > 0"),
  ],
)
def test_rejects_runs(changes, message):
  with pytest.raises(ValueError, match=message):
    greats("gradient").init(SPEC._replace(**changes), KEY)
  greats().init(SPEC._replace(feature_size=0), KEY)  # which needs no features
