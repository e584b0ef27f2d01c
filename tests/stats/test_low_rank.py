"""Gradients of low rank: the singular values of explicit ones, and products with them."""

import jax
import numpy as np
import pytest

from jdc.stats import linear_taps, low_rank, map_alignment
from jdc.stats.gradients import Options
from jdc.stats.target_rows import TargetRows

B, M, LENGTH = 6, 5, 9


def target_rows(linear_maps, num_rows=M, length=LENGTH):
  tokens, segments = linear_maps.tokens(50, num_rows, length)
  numbers = np.zeros(num_rows, np.int32)
  return TargetRows(tokens, segments, numbers, numbers)


def explicit(linear_maps, name, num_rows=M, length=LENGTH):
  """The target's gradient by each trained map, f64."""
  model, params = linear_maps.model(name)
  maps = linear_taps.choose(model, params, Options())
  rows = linear_maps.gradients(name, 50, num_rows, length)
  tokens_M = np.sum(linear_maps.rows(50, num_rows, length).mask, axis=1)
  return {path: np.tensordot(tokens_M / tokens_M.sum(), rows[path], 1) for path in maps}


def matrix(found):
  """What factors, or a whole matrix, stand for."""
  found = {name: np.asarray(x, np.float64) for name, x in found.items()}
  if "matrix" in found:
    return found["matrix"]
  return np.swapaxes(found["x"], -1, -2) @ found["dy"]


@pytest.mark.parametrize("name", ["dense", "lora", "experts"])
def test_nothing_is_lost_where_the_rank_suffices(linear_maps, name):
  """Six positions make gradients of rank six at most."""
  model, params = linear_maps.model(name)
  rows = target_rows(linear_maps, 2, 3)
  found = jax.jit(low_rank.make_low_rank_gradient(model, 6, 2))(params, rows)
  expected = explicit(linear_maps, name, 2, 3)
  assert found.maps.keys() == expected.keys()
  if name != "lora":
    assert any("x" in x for x in found.maps.values())
  for path, gradient in expected.items():
    scale = np.linalg.norm(gradient)
    np.testing.assert_allclose(matrix(found.maps[path]), gradient, rtol=0, atol=1e-5 * scale)
  np.testing.assert_allclose(found.share, 1, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_is_close_to_the_leading_singular_values(linear_maps, rank):
  model, params = linear_maps.model("dense")
  found = jax.jit(low_rank.make_low_rank_gradient(model, rank, 2))(
    params, target_rows(linear_maps)
  )
  expected = explicit(linear_maps, "dense")
  held = whole = best = 0.0
  for path, gradient in expected.items():
    approximate = matrix(found.maps[path])
    values = np.linalg.svd(gradient, compute_uv=False)
    whole += np.sum(values**2)
    held += np.sum(approximate**2)
    if "matrix" in found.maps[path]:
      np.testing.assert_allclose(
        approximate, gradient, rtol=0, atol=1e-5 * np.linalg.norm(gradient)
      )
      best += np.sum(values**2)
      continue
    best += np.sum(values[:, :rank] ** 2)
    # A projection: what is left out is orthogonal to it.
    product = np.sum(approximate * (gradient - approximate))
    assert abs(product) < 1e-5 * np.sum(gradient**2)
  np.testing.assert_allclose(found.share, held / whole, rtol=1e-4)
  assert held <= best * (1 + 1e-5)
  assert best - held < 0.003 * whole
  assert rank == 8 or best < 0.98 * whole


def test_products_are_those_with_what_it_stands_for(linear_maps):
  model, params = linear_maps.model("dense")
  found = jax.jit(low_rank.make_low_rank_gradient(model, 4, 2))(
    params, target_rows(linear_maps)
  )
  align = map_alignment.make_map_alignment(model)
  products = jax.jit(align.products)(params, linear_maps.rows(0, B, LENGTH), found.maps)
  rows = linear_maps.gradients("dense", 0, B, LENGTH)
  flat = lambda x: x.reshape(len(x), -1)
  expected = sum(flat(rows[p]) @ matrix(x).ravel() for p, x in found.maps.items())
  scale = max(np.linalg.norm(flat(x), axis=1).max() for x in rows.values()) * np.sqrt(
    sum(np.sum(matrix(x) ** 2) for x in found.maps.values())
  )
  np.testing.assert_allclose(products, expected, rtol=0, atol=1e-5 * scale)
  assert np.abs(expected).max() > 1e-2 * scale


def test_devices_do_not_matter(linear_maps):
  model, params = linear_maps.model("dense")
  rows = target_rows(linear_maps)
  alone = jax.jit(low_rank.make_low_rank_gradient(model, 3, 2))(params, rows)
  mesh, batches, placed = linear_maps.placed("dense", data=4, fsdp=2)
  with jax.set_mesh(mesh):
    compute = jax.jit(low_rank.make_low_rank_gradient(model, 3, 8, batches))
    together = compute(placed, rows)
  np.testing.assert_allclose(together.share, alone.share, rtol=1e-4)
  for path, factors in alone.maps.items():
    expected, scale = matrix(factors), np.linalg.norm(matrix(factors))
    np.testing.assert_allclose(matrix(together.maps[path]), expected, rtol=0, atol=1e-3 * scale)


def test_no_target_token_makes_no_gradient(linear_maps):
  model, params = linear_maps.model("dense")
  rows = target_rows(linear_maps)
  rows = rows._replace(segments=-np.abs(rows.segments))
  found = jax.jit(low_rank.make_low_rank_gradient(model, 2, M))(params, rows)
  assert found.share == 1
  for factors in found.maps.values():
    assert not np.any(matrix(factors))


def test_a_gradient_that_is_not_finite_has_no_share(linear_maps):
  model, params = linear_maps.model("dense")
  broken = jax.tree.map(lambda x: x * np.nan, params)
  found = jax.jit(low_rank.make_low_rank_gradient(model, 2, M))(
    broken, target_rows(linear_maps)
  )
  assert np.isnan(found.share)


@pytest.mark.parametrize("rank", [0, -1, 2.0, True])
def test_refuses_ranks(linear_maps, rank):
  model, _ = linear_maps.model("dense")
  with pytest.raises(ValueError, match="alignment_rank must be an integer of 1 or more, got"):
    low_rank.make_low_rank_gradient(model, rank, 1)
