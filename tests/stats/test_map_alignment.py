"""Alignment by linear maps: explicit gradients, alone and in the pass that trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.models import subsets
from jdc.stats import linear_taps, map_alignment
from jdc.stats.gradients import Options

B, M = 6, 3


def expected(linear_maps, name, length, num_targets):
  """Inner products in float64 of gradients taken one by one, of trained maps alone."""
  model, params = linear_maps.model(name)
  maps = linear_taps.choose(model, params, Options())
  rows = linear_maps.gradients(name, 0, B, length)
  targets = linear_maps.gradients(name, 50, num_targets, length)
  tokens_M = np.sum(linear_maps.rows(50, num_targets, length).mask, axis=1)
  share_M = tokens_M / tokens_M.sum()
  mean = {path: np.tensordot(share_M, targets[path], 1) for path in maps}
  flat = lambda x: x.reshape(len(x), -1)
  products = sum(flat(rows[path]) @ mean[path].ravel() for path in maps)
  norm = lambda tree: max(np.linalg.norm(x) for x in tree)
  whole = np.concatenate([flat(rows[path]) for path in maps], axis=1)
  target = np.concatenate([mean[path].ravel() for path in maps])
  return products, norm(whole) * np.linalg.norm(target)


# Maps are of 32 x 16 to 32 x 32 numbers: some, all or none take the factors of the gradient.
@pytest.mark.parametrize(
  ("name", "length", "num_targets"),
  [("dense", 9, 3), ("dense", 6, 2), ("lora", 9, 3), ("experts", 6, 3)],
)
def test_agrees_with_explicit_gradients(linear_maps, name, length, num_targets):
  model, params = linear_maps.model(name)
  align = map_alignment.make_map_alignment(model)
  rows = linear_maps.rows(0, B, length)
  target = linear_maps.rows(50, num_targets, length)
  products, scale = expected(linear_maps, name, length, num_targets)

  @jax.jit
  def alone(params, rows, target):
    return align.products(params, rows, align.target_gradient(params, target))

  found = alone(params, rows, target)
  np.testing.assert_allclose(found, products, rtol=0, atol=1e-5 * scale)
  assert np.abs(products).max() > 1e-2 * scale
  assert found[0] == 0  # no target token


@pytest.mark.parametrize("length", [4, 9])
def test_the_pass_that_trains_tells_it_too(linear_maps, length):
  model, (params, _) = linear_maps.model("dense")
  align = map_alignment.make_map_alignment(model)
  rows, target = linear_maps.rows(0, B, length), linear_maps.rows(50, M, length)
  count_B = np.sum(rows.mask, axis=1)

  def loss(params, zeros, constants):
    taps = align.taps(zeros, constants)
    losses = model.tapped_losses(params, taps, *rows[:4])
    return jnp.sum(losses * rows.mask) / jnp.sum(rows.mask)

  @jax.jit
  def both(params):
    constants = align.target_gradient((params, None), target)
    zeros = align.zeros((params, None), B)
    gradient, found = jax.grad(loss, argnums=(0, 1))(params, zeros, constants)
    return gradient, align.total(found)

  gradient, found = both(params)
  products, scale = expected(linear_maps, "dense", length, M)
  share_B = count_B / count_B.sum()
  np.testing.assert_allclose(found, share_B * products, rtol=0, atol=1e-5 * scale)

  def plain(params):
    losses = model.token_losses(params, *rows[:4])
    return jnp.sum(losses * rows.mask) / jnp.sum(rows.mask)

  for one, other in zip(
    *map(jax.tree.leaves, (gradient, jax.jit(jax.grad(plain))(params))), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_names_what_is_left_out(linear_maps):
  model, params = linear_maps.model("dense")
  left = map_alignment.left_out(model, params)
  maps = model.linear_maps(params[0])
  assert set(left) | set(maps) == set(subsets.paths(params[0]))
  assert not set(left) & set(maps)
  assert left
  model, params = linear_maps.model("lora")
  assert map_alignment.left_out(model, params) == ()
