"""Sampling: edge cases, agreement of NumPy and JAX, and the identities by simulation."""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import sampling

INF = np.inf
BOTH = pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])


def softmax(logits):
  weight = np.exp(logits - np.max(logits))
  return weight / weight.sum()


@BOTH
@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.5])
def test_temper_is_the_power_of_the_probability(as_array, temperature):
  p = softmax(np.random.default_rng(0).normal(size=9))
  expected = p ** (1 / temperature) / np.sum(p ** (1 / temperature))
  tempered = sampling.temper(as_array(np.log(p) + 3.0), temperature)
  np.testing.assert_allclose(softmax(np.asarray(tempered)), expected, rtol=1e-5)


@BOTH
@pytest.mark.parametrize(
  ("temperature", "expected"),
  [
    (0.0, [-INF, 0.0, -INF, 0.0, -INF, -INF]),
    (INF, [0.0, 0.0, -INF, 0.0, -INF, -INF]),
    (2.0, [-1.0, 0.0, -INF, 0.0, -INF, -INF]),
  ],
)
def test_temper_at_its_ends(as_array, temperature, expected):
  logits = as_array(np.array([1.0, 3.0, -INF, 3.0, np.nan, INF], np.float32))
  assert sampling.temper(logits, temperature).tolist() == expected
  traced = jax.jit(sampling.temper)(jnp.asarray(logits), temperature)
  assert traced.tolist() == expected


@BOTH
def test_temper_of_extremes_stays_finite(as_array):
  logits = as_array(np.array([3e38, -3e38, 0.0], np.float32))
  for temperature in (1e-30, 1e-3, 1.0, 1e30):
    tempered = np.asarray(sampling.temper(logits, temperature))
    assert tempered[0] == 0
    assert np.all(np.isfinite(tempered))
  none = as_array(np.array([-INF, np.nan], np.float32))
  assert sampling.temper(none, 1.0).tolist() == [-INF, -INF]


@pytest.mark.parametrize("temperature", [-1.0, np.nan])
def test_temper_rejects(temperature):
  with pytest.raises(ValueError, match="temperature"):
    sampling.temper(np.zeros(2), temperature)


@BOTH
def test_multinomial_inverts_the_cumulative_sum(as_array):
  logits = np.log(
    [0.0, 0.125, 0.5, 0.0, 0.375, 0.0], where=[0, 1, 1, 0, 1, 0], out=np.full(6, -INF)
  )
  uniforms = [0.0, 0.1249, 0.125, 0.6249, 0.625, 1 - 1e-7]
  drawn = sampling.multinomial(as_array(np.float32(uniforms)), as_array(np.float32(logits)))
  assert drawn.tolist() == [1, 1, 2, 2, 4, 4]
  assert drawn.dtype == np.int32


@BOTH
def test_multinomial_never_draws_what_has_no_weight(as_array):
  rng = np.random.default_rng(1)
  logits = np.where(rng.random(5000) < 0.5, rng.normal(size=5000) * 3, -INF)
  logits[-3:] = [-INF, np.nan, INF]
  uniforms = np.r_[rng.random(20000), 0.0, np.nextafter(np.float32(1), np.float32(0))]
  drawn = sampling.multinomial(as_array(np.float32(uniforms)), as_array(np.float32(logits)))
  assert np.all(np.isfinite(logits[np.asarray(drawn)]))


@BOTH
def test_multinomial_of_nothing_is_visible(as_array):
  none = as_array(np.array([-INF, np.nan]))
  assert sampling.multinomial(as_array(np.array([0.2, 0.9])), none).tolist() == [-1, -1]


def test_multinomial_frequencies():
  p = softmax(np.random.default_rng(2).normal(size=6))
  uniforms = jax.random.uniform(jax.random.key(0), (200_000,))
  drawn = jax.jit(sampling.multinomial)(uniforms, jnp.log(jnp.asarray(p)))
  frequency = np.bincount(np.asarray(drawn), minlength=6) / drawn.size
  assert np.all(np.abs(frequency - p) < 5 * np.sqrt(p * (1 - p) / drawn.size))


LOGITS = np.array([0.5, -1.0, -INF, 1.5, 0.0, -0.5])


def draws(k, num, logits=LOGITS):
  keys = jax.random.split(jax.random.key(3), num)
  draw = jax.jit(jax.vmap(lambda key: sampling.gumbel_top_k(key, jnp.float32(logits), k)))
  return tuple(map(np.asarray, draw(keys)))


def test_gumbel_top_k_has_the_plackett_luce_order():
  num, p = 200_000, softmax(LOGITS)
  ids, _ = draws(2, num)
  counts = np.zeros((6, 6))
  np.add.at(counts, (ids[:, 0], ids[:, 1]), 1)
  for i, j in itertools.product(range(6), repeat=2):
    expected = 0.0 if i == j else p[i] * p[j] / (1 - p[i])
    error = 5 * np.sqrt(expected * (1 - expected) / num)
    assert abs(counts[i, j] / num - expected) <= error, (i, j)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_gumbel_weights_are_unbiased(k):
  num, eligible = 100_000, np.isfinite(LOGITS)
  ids, weights = draws(k, num)
  for item in np.flatnonzero(eligible):  # every f is a sum of indicators
    estimates = np.sum(weights * (ids == item), axis=1)
    error = 5 * estimates.std() / np.sqrt(num)
    assert abs(estimates.mean() - 1 / eligible.sum()) <= error + 1e-6


def test_gumbel_top_k_shows_where_it_ran_out():
  ids, weights = draws(6, 100)
  assert np.all(np.sort(ids, axis=1) == [-1, 0, 1, 3, 4, 5])
  assert np.all(ids[:, -1] == -1)
  np.testing.assert_allclose(weights, np.tile([0.2] * 5 + [0.0], (100, 1)), rtol=1e-6)
  nothing = sampling.gumbel_top_k(jax.random.key(0), jnp.full(3, -INF), 2)
  assert [x.tolist() for x in nothing] == [[-1, -1], [0.0, 0.0]]


def test_gumbel_top_k_ignores_a_shift():
  one, other = draws(3, 500), draws(3, 500, LOGITS + 8.0)
  np.testing.assert_array_equal(one[0], other[0])
  np.testing.assert_allclose(one[1], other[1], rtol=1e-5)


@pytest.mark.parametrize("k", [0, 7])
def test_gumbel_top_k_rejects(k):
  with pytest.raises(ValueError, match=r"k must be in \[1, 6\]"):
    sampling.gumbel_top_k(jax.random.key(0), jnp.asarray(LOGITS), k)


@BOTH
@pytest.mark.parametrize("target", [None, [0.1, 0.2, 0.0, 0.7]])
def test_importance_weights_are_unbiased(as_array, target):
  """The expectation over one draw, in closed form."""
  p, f = np.array([0.5, 0.2, 0.0, 0.3]), np.array([1.0, -2.0, 9.0, 4.0])
  given = None if target is None else as_array(np.asarray(target))
  weights = sampling.importance_weights(as_array(np.arange(4)), as_array(p), given)
  expected = np.mean(f[[0, 1, 3]]) if target is None else np.dot(target, f)
  np.testing.assert_allclose(np.sum(p * np.asarray(weights) * f), expected, rtol=1e-6)
  assert weights[2] == 0
  assert sampling.importance_weights(as_array(np.array([-1])), as_array(p)).tolist() == [0.0]


def random_probabilities(num_domains, seed, kind):
  rng = np.random.default_rng(seed)
  p = {
    "dirichlet": lambda: rng.dirichlet(np.ones(num_domains)),
    "sparse": lambda: rng.dirichlet(np.ones(num_domains)) * (rng.random(num_domains) < 0.3),
    "uniform": lambda: np.ones(num_domains),
    "skewed": lambda: rng.random(num_domains) ** 20 + 1e-9,
    "sevenths": lambda: rng.integers(0, 7, num_domains) / 7,
  }[kind]()
  p[rng.integers(num_domains)] += 0.1
  return p / p.sum()


@pytest.mark.parametrize("kind", ["dirichlet", "sparse", "uniform", "skewed", "sevenths"])
@pytest.mark.parametrize("num_domains", [1, 2, 7, 1000, 5000])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_systematic_counts_are_floor_or_ceiling(kind, num_domains, dtype):
  count = sampling.systematic_counts
  if dtype == np.float32:
    count = jax.jit(sampling.systematic_counts, static_argnums=1)
  for seed, num in enumerate([0, 1, 8, 256, 4096]):
    p = random_probabilities(num_domains, seed, kind).astype(dtype)
    quota = p / p.sum() * num if dtype == np.float64 else jnp.asarray(p) / jnp.sum(p) * num
    quota = np.asarray(quota)
    for offset in (0.0, 0.5, float(np.float32(1) - np.float32(2**-24)), 0.1234567):
      counts = np.asarray(count(p if dtype == np.float64 else jnp.asarray(p), num, offset))
      assert counts.sum() == num
      assert np.all((counts == np.floor(quota)) | (counts == np.ceil(quota)))
      assert np.all(counts[p == 0] == 0)
      assert counts.dtype == np.int32


def test_systematic_counts_survive_rounding_of_a_long_sum():
  """Fractions next to 1: in float32 their running sum steps by more than 1."""
  count = jax.jit(sampling.systematic_counts, static_argnums=1)
  rng = np.random.default_rng(0)
  fractions = rng.choice([0.9999995, 0.99999, 0.5, 0.3], 3000, p=[0.5, 0.3, 0.1, 0.1])
  num = int(np.ceil(fractions.sum()))
  fractions[0] += num - fractions.sum()
  p = jnp.float32(fractions)
  quota = np.asarray(p / jnp.sum(p) * num)
  for offset in rng.random(200):
    counts = np.asarray(count(p, num, offset))
    assert counts.sum() == num
    assert np.all((counts == np.floor(quota)) | (counts == np.ceil(quota)))


@BOTH
def test_systematic_counts_put_a_point_in_each_interval(as_array):
  """Against the definition, point by point."""
  rng = np.random.default_rng(4)
  for _ in range(50):
    p, num, offset = rng.dirichlet(np.ones(6)), int(rng.integers(1, 30)), rng.random()
    points = (offset + np.arange(num)) / num
    edges = np.cumsum(p)
    if np.min(np.abs(points[:, None] - edges[:-1])) < 1e-4:
      continue  # rounding decides
    expected = np.bincount(np.searchsorted(edges[:-1], points, side="right"), minlength=6)
    counts = sampling.systematic_counts(as_array(p), num, offset)
    np.testing.assert_array_equal(counts, expected)


def test_systematic_counts_are_unbiased():
  p = random_probabilities(9, 5, "dirichlet")
  offsets = (np.arange(4000) + 0.5) / 4000
  mean = np.mean([sampling.systematic_counts(p, 10, offset) for offset in offsets], axis=0)
  np.testing.assert_allclose(mean, 10 * p, atol=2 / 4000)


@BOTH
def test_apportion_by_largest_remainder(as_array):
  count = lambda p, num: sampling.apportion(as_array(np.asarray(p)), num).tolist()
  assert count([0.1, 0.2, 0.3, 0.4], 5) == [1, 1, 1, 2]  # 0.5 and 1.5 tie
  assert count([1 / 3, 1 / 3, 1 / 3], 10) == [4, 3, 3]
  assert count([0.0, 1.0, 0.0], 7) == [0, 7, 0]
  assert count([0.97, 0.01, 0.01, 0.01], 8) == [8, 0, 0, 0]
  assert count([0.35, 0.15, 0.5], 10) == [4, 1, 5]


def test_apportion_breaks_ties_as_exact_arithmetic_does():
  for seed in range(300):
    rng = np.random.default_rng(seed)
    shares, num = rng.integers(1, 10, 6), int(rng.integers(1, 40))
    quotas = [Fraction(int(s) * num, int(shares.sum())) for s in shares]
    expected = [int(q) for q in quotas]
    order = sorted(range(6), key=lambda i: (-(quotas[i] % 1), i))
    for i in order[: num - sum(expected)]:
      expected[i] += 1
    assert sampling.apportion(shares / 10, num).tolist() == expected


@pytest.mark.parametrize("kind", ["dirichlet", "sparse", "skewed", "sevenths"])
def test_apportion_is_within_one_and_sums(kind):
  for seed, (num_domains, num) in enumerate(itertools.product([1, 5, 3000], [0, 1, 64, 1000])):
    p = random_probabilities(num_domains, seed, kind)
    counts = sampling.apportion(p, num)
    assert counts.sum() == num
    assert np.all(np.abs(counts - num * p) < 1)
    assert np.all(counts[p == 0] == 0)


@pytest.mark.parametrize("bad", [[0.5, -0.5, 1.0], [0.5, np.nan], [np.inf, 1.0], [0.0, 0.0]])
def test_counts_reject(bad):
  with pytest.raises(ValueError, match="probabilities"):
    sampling.systematic_counts(np.array(bad), 4, 0.5)
  with pytest.raises(ValueError, match="probabilities"):
    sampling.apportion(np.array(bad), 4)
  with pytest.raises(ValueError, match="num"):
    sampling.apportion(np.array([1.0]), -1)
