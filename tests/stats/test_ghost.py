"""Inner products and norms of gradients that are never formed equal those of explicit ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.data.batch import RowInputs
from jdc.stats import ghost
from jdc.stats.gradients import Options

B = 8
CASES = {
  "dense": ("dense", Options()),
  "part": (
    "lora",
    Options(parameters=("*/up/kernel", "*/lora_b"), top_layers=2, microbatch_size=3),
  ),
}


@pytest.fixture(scope="module")
def compiled(linear_maps):
  """Products and norms of the rows, by case; the latter are not compiled for all."""

  def make(case):
    name, options = CASES[case]
    model, params = linear_maps.model(name)
    products = ghost.make_gradient_products(model, params, options)
    norms = ghost.make_gradient_norms(model, params, options)

    def both(params, rows):
      found = products(params, rows)
      return found, jnp.sqrt(jnp.diag(found)) if case == "dense" else norms(params, rows)

    return jax.jit(both)

  return {case: make(case) for case in CASES}


def expected(linear_maps, case, num_rows, length, seed=0):
  """Inner products in float64, f64[B, B]."""
  name, options = CASES[case]
  found = linear_maps.gradients(name, seed, num_rows, length)
  if case == "part":
    found = {path: x for path, x in found.items() if path.endswith(("up/kernel", "lora_b"))}
  rows = [x[:, -options.top_layers :].reshape(num_rows, -1) for x in found.values()]
  flat = np.concatenate(rows, axis=1)
  return flat @ flat.T


def check(products, norms, right):
  size = np.sqrt(np.diag(right))
  assert np.all(np.abs(products - right) <= 1e-5 * np.outer(size, size))
  np.testing.assert_allclose(norms, size, rtol=1e-5)
  assert products.dtype == norms.dtype == jnp.float32
  assert norms[0] == 0  # no target token
  assert np.all(np.abs(size[1:]) > 0)


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_explicit_gradients(case, linear_maps, compiled):
  _, params = linear_maps.model(CASES[case][0])
  for seed in range(2):
    rows = linear_maps.rows(seed, B, 9)
    found = compiled[case](params, rows)
    check(*found, expected(linear_maps, case, B, 9, seed))


# Of rows of 9 tokens the gradients are formed, of those of 3 inner products of tokens.
@pytest.mark.parametrize(("length", "tensor"), [(9, 1), (3, 2)])
def test_devices_do_not_matter(length, tensor, linear_maps):
  name, options = CASES["dense"]
  model, shapes = linear_maps.model(name)
  mesh, batches, params = linear_maps.placed(name, data=4 // tensor, fsdp=2, tensor=tensor)
  products = ghost.make_gradient_products(model, shapes, options, batches)
  rows = jax.device_put(linear_maps.rows(0, B, length), batches)
  with jax.set_mesh(mesh):
    found = jax.jit(products)(params, rows)
  right = expected(linear_maps, "dense", B, length)
  check(found, np.sqrt(np.diag(found)), right)


@pytest.mark.parametrize(("length", "width"), [(4, 128), (256, 8)])
def test_the_cheaper_way_is_taken(length, width):
  """Neither long rows nor large matrices make large arrays, unless both are large."""
  x = jax.ShapeDtypeStruct((4, length, width), jnp.float32)
  for statistic in (ghost._products(None), ghost.squared_norm(None)):
    reduce = jax.jit(lambda x, dy, s=statistic: s.reduce(None, x, dy))
    held = reduce.lower(x, x).compile().memory_analysis().temp_size_in_bytes
    assert held < 4 * max(length, width) ** 2 / 2


def test_a_row_without_a_finite_loss_spoils_its_own_products_only(linear_maps, compiled):
  _, params = linear_maps.model("dense")
  rows = linear_maps.rows(0, B, 9)
  table = params[0]["embedding"]["embedding"].at[23].set(jnp.nan)
  broken = ({**params[0], "embedding": {"embedding": table}}, None)
  tokens = np.where(rows.tokens == 23, 1, rows.tokens)
  tokens[2] = 23
  found, norms = compiled["dense"](broken, RowInputs(tokens, *rows[1:]))
  others = np.delete(np.arange(B), 2)
  assert np.all(np.isnan(np.asarray(found)[2, 1:]))
  assert np.all(np.isfinite(np.asarray(found)[np.ix_(others, others)]))
  np.testing.assert_array_equal(np.isnan(norms), np.arange(B) == 2)
