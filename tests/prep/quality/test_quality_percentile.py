"""Tests of percentiles over all documents, and of importance weights and draws by them."""

import itertools
import math

import numpy as np
import pytest

from jdc.data import dsir
from jdc.prep import importance, percentile


def random_ids(n, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, 16), dtype=np.uint8)


def table(values, domains):
  names = sorted(set(domains))
  codes = np.array([names.index(name) for name in domains], np.int32)
  return percentile.Keys(np.array(values, float), codes, np.array([n.encode() for n in names]))


def plain(values, domains, ids, low, high, by_domain):
  kept = set()
  for name in sorted(set(domains)) if by_domain else [None]:
    rows = [i for i, v in enumerate(values) if math.isfinite(v) and name in (None, domains[i])]
    rows.sort(key=lambda i: (values[i], bytes(ids[i])))
    kept |= {i for r, i in enumerate(rows) if low * len(rows) <= 100 * r < high * len(rows)}
  return kept


@pytest.mark.parametrize("by_domain", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0, 100), (5, 95), (70, 100), (33, 34), (0, 0.1)])
def test_what_stays_is_what_a_plain_program_says(low, high, by_domain):
  rng = np.random.default_rng(1)
  values = rng.integers(0, 40, 500).astype(float)  # many ties
  values[::50], values[7] = np.nan, np.inf
  domains, ids = rng.choice(["web", "code", "qa"], 500).tolist(), random_ids(500)
  options = {"low": low, "high": high, "by_domain": by_domain}
  cuts = [0, 100, 100, 333, 500]
  parts = list(itertools.pairwise(cuts))
  tables = [table(values[a:b], domains[a:b]) for a, b in parts]
  row, why, counts = percentile.decide(tables, [ids[a:b] for a, b in parts], **options)
  kept = plain(values, domains, ids, low, high, by_domain)
  assert sorted(set(range(500)) - kept) == row.tolist()
  assert counts["undefined"] == 11
  bounds = counts["bounds"]
  for place, reason in zip(row.tolist(), why.tolist(), strict=True):
    held = bounds.get(domains[place] if by_domain else "all")
    assert (reason == 2) == (not math.isfinite(values[place]))
    if held and reason < 2:
      assert values[place] <= held[0] if reason == 0 else values[place] >= held[1]


def test_percentiles_out_of_order_are_refused():
  for low, high in [(5, 5), (-1, 50), (0, 101)]:
    with pytest.raises(ValueError, match="0 <= low < high <= 100"):
      percentile.decide([], [], low=low, high=high)


POOL = ["red figs and red plums", "loud engines", "", "ripe figs " * 9, "engines of iron"] * 40


def test_weights_are_those_of_the_recipe(monkeypatch):
  target = dsir.hash_ngrams(["ripe red figs", "plums and figs"])
  expected = dsir.log_importance(dsir.hash_ngrams(POOL), target)
  for words in (1, 37, 1 << 20):
    monkeypatch.setattr(importance, "_WORDS", words)
    keys = [importance.keys(part) for part in (POOL[:77], [], POOL[77:])]
    found = importance.log_weights([importance.join(keys[:2]), keys[2]], target)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
  with pytest.raises(ValueError, match="target have none"):
    importance.log_weights(keys, dsir.hash_ngrams(["!"]))


def test_draws_follow_weights_and_not_the_order():
  weight, ids = np.log(np.arange(1, 6.0)), random_ids(5)
  count = np.zeros(5)
  for seed in range(4000):
    count += importance.draw(weight, [ids], count=1, seed=seed)
  np.testing.assert_allclose(count / 4000, np.arange(1, 6) / 15, atol=0.025)
  weight, ids = np.linspace(-3, 3, 200), random_ids(200)
  taken = importance.draw(weight, [ids[:90], ids[90:]], count=60, seed=5)
  order = np.random.default_rng(0).permutation(200)
  moved = importance.draw(weight[order], [ids[order]], count=60, seed=5)
  assert taken.sum() == 60
  np.testing.assert_array_equal(taken[order], moved)
  assert weight[taken].mean() > 1
  with pytest.raises(ValueError, match=r"count must be in \[0, 200\], got 201"):
    importance.draw(weight, [ids], count=201, seed=0)
