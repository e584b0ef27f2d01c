"""Runs under an ordering: every row of an epoch once, in the order of its score by then."""

import inspect

import jax
import numpy as np
import pytest

from jdc import metrics, policies
from jdc.data.batch import inputs_and_targets
from jdc.data.loader import Pool
from jdc.models.decoder import decoder
from jdc.policies import mixture, ordering
from jdc.train import assemble

STATIC = mixture.static((0.3, 0.3, 0.4))
ORDERINGS = {
  "folding": ordering.folding(3),
  "zigzag": ordering.zigzag(descending=True),
  "segment": ordering.segment(30, 20),
  "stair": ordering.stair(3, 0.1),
  "saw": ordering.saw(2, 0.2, observes=frozenset({"num_tokens"})),
  "window_shuffle": ordering.window_shuffle(8, ordering.sorting()),
}


@pytest.fixture
def orders(monkeypatch):
  """Collects what is put in order: the step, the parameters, the rows in their new order."""
  made, make_arrange = [], assemble.make_arrange

  def recording(*args):
    arrange = make_arrange(*args)
    current = inspect.signature(make_arrange).bind(*args).arguments["current"]

    def record(ids, stream):
      state, positions = current(), arrange(ids, stream)
      made.append((int(state.step), jax.device_get(state.model_params), ids[positions]))
      return positions

    return record

  monkeypatch.setattr(assemble, "make_arrange", recording)
  return made


def make_row_losses(model_config, pool):
  """Returns the function from parameters to the mean loss of each row, apart from the run."""
  every = np.arange(len(pool))
  tokens, targets, positions, segments, mask = inputs_and_targets(
    *pool.rows(every, np.ones(len(pool), bool))
  )
  token_losses = jax.jit(decoder(model_config).token_losses)

  def row_losses(params):
    losses = np.asarray(token_losses(params, tokens, targets, positions, segments))
    return np.where(mask, losses, 0).sum(1) / mask.sum(1)

  return row_losses


def test_what_an_epoch_has_not_consumed_is_ordered_by_the_current_loss(
  fit, orders, domains, model_config, tmp_path
):
  chosen = policies.combine(ordering=ordering.sorting(descending=True), mixture=STATIC)
  fit(tmp_path, chosen, queue="remainder", steps_per_round=4, num_steps=16)
  pool = Pool([domain.train for domain in domains.values()], 32)
  sizes = [len(table) for table in pool.tables]
  ids = metrics.read_example_ids(tmp_path)
  row_losses, num_remainders, last, num_changed = make_row_losses(model_config, pool), 0, {}, 0
  for step, params, rows in orders:
    (domain,) = set(pool.domain(rows).tolist())
    assert (np.diff(row_losses(params)[rows]) < 1e-5).all()
    seen = ids[:step][pool.domain(ids[:step]) == domain]
    counts = np.bincount(seen, minlength=len(pool))
    counts = counts[pool.starts_K[domain] : pool.starts_K[domain + 1]]
    left = pool.starts_K[domain] + np.flatnonzero(counts == counts.min())
    if step % 4 == 0 and len(left) < sizes[domain]:  # a round begins within an epoch
      assert sorted(rows) == left.tolist()
      num_remainders += 1
      before = [row for row in last[domain] if row in set(rows.tolist())]
      num_changed += before != rows.tolist()
    else:
      assert len(rows) == sizes[domain]
    last[domain] = rows.tolist()
  assert num_remainders >= 6
  assert num_changed >= 3
  for step in range(1, 17):
    counts = np.bincount(ids[:step].ravel(), minlength=len(pool))
    for k in range(3):
      of_domain = counts[pool.starts_K[k] : pool.starts_K[k + 1]]
      assert of_domain.max() - of_domain.min() <= 1


@pytest.mark.parametrize("name", ORDERINGS)
def test_every_ordering_trains(fit, domains, tmp_path, name):
  chosen = policies.combine(ordering=ORDERINGS[name])
  result = fit(tmp_path, chosen, queue="epoch", num_steps=4, steps_per_round=3)
  assert result.stopped == "finished"
  num_rows = sum(len(domain.train) for domain in domains.values())
  assert len(np.unique(metrics.read_example_ids(tmp_path))) == min(4 * 8, num_rows)


def test_an_epoch_needs_an_ordering(fit, tmp_path):
  with pytest.raises(ValueError, match="queue='epoch' needs an ordering"):
    fit(tmp_path, queue="epoch")
