"""Target sets: which rows are taken, and statistics that equal those of one row at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.data.batch import inputs_and_targets
from jdc.models.base import LanguageModel, Outputs
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.stats import target
from jdc.train import sharding

T, V, E = 12, 40, 3
CONFIG = DecoderConfig(
  vocab_size=V, width=16, num_layers=1, num_heads=2, num_kv_heads=2, mlp_width=32
)


class Rows:
  """A table whose tokens tell table and row; some rows have no target token."""

  def __init__(self, number, size, without=()):
    self.number, self.size = number, size
    self.num_targets = np.ones(size, np.int32)
    self.num_targets[list(without)] = 0

  def rows(self, ids):
    tokens = np.repeat(np.asarray(ids)[:, None], 5, axis=1).astype(np.int32)
    tokens[:, 0] = self.number
    return tokens, np.ones_like(tokens)


def test_rows_are_evenly_spaced_and_the_same_number_for_each():
  tables = {"a": Rows(0, 100), "b": Rows(1, 3), "c": Rows(2, 8, without=(0, 1, 5))}
  found = target.choose_rows(tables, 4)
  assert found.tokens[:, 1].tolist() == [0, 25, 50, 75, 0, 1, 2, 2, 3, 4, 6]
  assert found.tokens[:, 0].tolist() == found.domain.tolist() == found.task.tolist()
  assert found.domain.tolist() == [0] * 4 + [1] * 3 + [2] * 4
  assert {x.dtype for x in found} == {np.dtype(np.int32)}


def test_a_seed_draws_without_replacement():
  tables = {"a": Rows(0, 100), "b": Rows(1, 100)}
  draws = [target.choose_rows(tables, 30, seed=seed).tokens[:, 1] for seed in (0, 0, 1)]
  np.testing.assert_array_equal(draws[0], draws[1])
  assert (draws[0] != draws[2]).any()
  assert (draws[0][:30] != draws[0][30:]).any()
  assert len({*draws[0][:30].tolist()}) == 30


def test_tasks_have_the_domain_of_their_name():
  tables = {"gsm8k": Rows(0, 2), "web": Rows(1, 2)}
  found = target.choose_rows(tables, 2, domain_names=("books", "web"))
  assert found.task.tolist() == [0, 0, 1, 1]
  assert found.domain.tolist() == [0, 0, 1, 1]
  found = target.choose_rows(tables, 2, domain_names=("books", "code", "web"))
  assert found.domain.tolist() == [0, 0, 2, 2]


def test_all_problems_of_the_tables_come_together():
  tables = {"a": None, "b": Rows(1, 2), "c": None, "d": Rows(2, 2, without=(0, 1))}
  with pytest.raises(ValueError, match=r"got 0.*domains a, c.*no target tokens in d"):
    target.choose_rows(tables, 0)
  with pytest.raises(ValueError, match="at least one domain or task"):
    target.choose_rows({}, 4)


def test_rows_of_a_task_without_target_tokens_are_named():
  tables = {"gsm8k": Rows(0, 3, without=(1,)), "web": Rows(1, 2)}
  with pytest.raises(ValueError, match="task gsm8k: 1 of 3 rows have no target token"):
    target.choose_rows(tables, 2, domain_names=("web",))
  assert len(target.choose_rows(tables, 3).task) == 4


def test_samples_are_drawn_without_replacement():
  rows = target.choose_rows({"a": Rows(0, 20), "b": Rows(1, 20)}, 10)
  draw = jax.jit(functools.partial(target.sample_rows, count=8))
  placed = jax.tree.map(jnp.asarray, rows)
  seen = [draw(placed, jax.random.key(i)) for i in range(5)]
  for drawn in seen:
    found = {*zip(drawn.task.tolist(), drawn.tokens[:, 1].tolist(), strict=True)}
    assert len(found) == 8
    np.testing.assert_array_equal(drawn.tokens[:, 0], drawn.task)
  assert len({tuple(drawn.tokens[:, 1].tolist()) for drawn in seen}) == 5
  assert target.sample_rows(rows, jax.random.key(0), 20) is rows


def random_rows(seed, num_rows=13, num_domains=4):
  """Rows of one or two segments, some with a prompt; the last domain has none."""
  rng = np.random.default_rng(seed)
  segments = np.zeros((num_rows, T + 1), np.int32)
  for row in segments:
    first, both = sorted(rng.integers(1, T + 2, 2))
    row[:both], row[:first] = 2, 1
    row[: rng.integers(0, first)] = -1
  domain = rng.integers(0, num_domains - 1, num_rows).astype(np.int32)
  tokens = rng.integers(0, V, (num_rows, T + 1)).astype(np.int32)
  return target.TargetRows(tokens, segments, domain, domain + 1)


def with_experts(model: LanguageModel) -> LanguageModel:
  """Pretends that each token goes to the expert that its number tells."""

  def outputs(params, tokens, targets, positions, segments):
    found = model.outputs(params, tokens, targets, positions, segments)
    is_sent = (tokens[:, :, None] % E == jnp.arange(E)) & (segments > 0)[:, :, None]
    return Outputs(
      found.token_loss, found.hidden, expert_load=jnp.sum(is_sent, 1, dtype=jnp.float32)
    )

  return model._replace(outputs=outputs)


MODEL = with_experts(decoder(CONFIG))
PARAMS = MODEL.init(jax.random.key(0))


@functools.cache
def reference(seed, num_domains=4):
  """One row at a time, sums in float64."""
  rows, outputs = random_rows(seed), jax.jit(MODEL.outputs)
  losses, counts, pools, loads = [], [], [], []
  for tokens, segments in zip(rows.tokens, rows.segments, strict=True):
    inputs = inputs_and_targets(tokens[None], segments[None])
    found = outputs(PARAMS, *inputs[:4])
    mask, read = inputs.mask[0], inputs.segments[0] > 0
    losses.append(np.asarray(found.token_loss, np.float64)[0][mask].sum())
    counts.append(mask.sum())
    hidden = np.asarray(found.hidden, np.float64)[0][read]
    weights = np.arange(1, len(hidden) + 1)
    pools.append([hidden.mean(0), weights @ hidden / weights.sum(), hidden[-1]])
    loads.append(np.asarray(found.expert_load)[0])
  losses, counts, loads = map(np.array, (losses, counts, loads))
  of = [rows.domain == k for k in range(num_domains)]
  return {
    "loss": losses / np.maximum(counts, 1),
    "pools": [np.stack(x) for x in zip(*pools, strict=True)],
    "domain_loss": [losses[k].sum() / max(counts[k].sum(), 1) for k in of],
    "domain_load": [loads[k].sum(0) for k in of],
  }


@pytest.mark.parametrize("axes", [None, {"data": 8}, {"data": 2, "fsdp": 4}])
def test_statistics_are_those_of_one_row_at_a_time(axes):
  model, params = MODEL, PARAMS
  mesh = None if axes is None else sharding.make_mesh(**axes)
  placed, batches = params, None
  if mesh is not None:
    specs = model.partition_specs(params)
    placed = jax.tree.map(
      lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec)), params, specs
    )
    batches = sharding.batch_sharding(mesh)
  refresh = target.make_refresh(model, target.FIELDS, 4, 8, batches)
  for seed in range(2):
    rows = random_rows(seed)
    if mesh is None:
      found = refresh(placed, rows)
    else:
      with jax.set_mesh(mesh):
        found = refresh(placed, jax.device_put(rows, sharding.replicated(mesh)))
      assert all(x.is_fully_replicated for x in jax.tree.leaves(found))
    expected = reference(seed)
    np.testing.assert_allclose(found.stats.loss, expected["loss"], rtol=2e-6)
    for name, pooled in zip(target.POOLINGS, expected["pools"], strict=True):
      np.testing.assert_allclose(getattr(found.stats, name), pooled, atol=5e-6)
    np.testing.assert_allclose(found.domain_target_loss, expected["domain_loss"], rtol=2e-6)
    np.testing.assert_array_equal(found.domain_expert_load, expected["domain_load"])
    np.testing.assert_array_equal(found.stats.domain, rows.domain)
    np.testing.assert_array_equal(found.stats.task, rows.task)
  assert refresh._cache_size() == 1


def test_only_what_is_asked_for_is_there():
  model, params, rows = MODEL, PARAMS, random_rows(0)
  plain = model._replace(outputs=None)
  found = target.make_refresh(plain, {"domain_target_loss"}, 4, 5)(params, rows)
  assert found.domain_expert_load is None
  assert found.domain_target_loss.shape == (4,)
  assert {name for name, x in vars(found.stats).items() if x is not None} == {
    "loss", "task", "domain"
  }  # fmt: skip
  whole = target.make_refresh(model, {"embedding"}, 4, 13)(params, rows)
  assert whole.domain_target_loss is None
  np.testing.assert_allclose(whole.stats.loss, found.stats.loss, rtol=1e-6)


def test_a_loss_that_is_not_finite_stays_in_its_domain():
  model = decoder(CONFIG)
  rows = random_rows(0)

  def token_losses(params, tokens, *others):
    return jnp.where(tokens == rows.tokens[0, 0], jnp.nan, 1.0)

  rows.tokens[:, :-1] = np.where(rows.domain == rows.domain[0], rows.tokens[0, 0], 39)[:, None]
  rows.tokens[0, 0] = rows.tokens[0, 1]
  broken = model._replace(token_losses=token_losses)
  found = target.make_refresh(broken, {"domain_target_loss"}, 4, 4)({}, rows)
  nan = np.isnan(found.domain_target_loss)
  assert nan.tolist() == [k == rows.domain[0] for k in range(4)]


def test_wrong_arguments_come_together():
  plain = decoder(CONFIG)._replace(outputs=None)
  batches = sharding.batch_sharding(sharding.make_mesh())
  fields = {"embedding", "el2n", "domain_expert_load", "domain_target_loss"}
  with pytest.raises(ValueError) as error:
    target.make_refresh(plain, fields, 4, 12, batches)
  for part in ("unknown fields el2n", "domain_expert_load, embedding need", "of 8, got 12"):
    assert part in str(error.value)
  refresh = target.make_refresh(decoder(CONFIG), {"domain_expert_load"}, 4, 4)
  with pytest.raises(ValueError, match="needs a mixture of experts"):
    refresh(PARAMS, random_rows(0))
