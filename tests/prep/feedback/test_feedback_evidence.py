"""Statistics of documents equal plain loops over the table; shrinkage equals a posterior."""

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("numba")

from jdc.prep.feedback import evidence, table  # noqa: E402
from jdc.prep.ops.sampling import copy_id  # noqa: E402


@pytest.fixture
def read(make_shards, make_table, make_texts, view):
  def told(doc_id, domain, place, rng):
    del doc_id, domain
    if place % 7 == 3:
      return {"times_seen": 0}
    step = int(rng.integers(20, 1000))
    return view(
      step, float(rng.normal(3 - 0.3 * np.log(step), 0.1)), float(rng.normal(1, 0.1)),
      loss_excess=float(rng.normal()), influence=float(rng.normal(0.5, 1)),
      influence_std=float(rng.uniform(0.1, 1)), influence_count=2,
    )  # fmt: skip

  rng = np.random.default_rng(0)
  texts = {"a": make_texts(rng, 60), "b": make_texts(rng, 50, words=80)}
  run = make_table(make_shards(texts), told)
  rows = pq.read_table(run / table.NAME).to_pylist()
  found = table.read(run)
  return rows, found, table.documents(found)


def test_documents_are_means_over_their_pieces_by_tokens(read):
  rows, held, found = read
  for i, doc_id in enumerate(held.doc_id):
    own = [row for row in rows if row["doc_id"] == doc_id]
    assert held.domains[held.domain[i]] == own[0]["domain"]
    assert found.tokens[i] == sum(row["tokens"] for row in own)
    seen = [row for row in own if row["times_seen"]]
    assert found.seen[i] == sum(row["tokens"] for row in seen)
    weights = [row["tokens"] for row in seen]
    if not sum(weights):
      assert np.isnan(found.loss_first[i])
      assert np.isnan(found.loss_excess[i])
      continue
    for name in ("loss_first", "step_first", "loss_last", "loss_excess"):
      expected = np.average([row[name] for row in seen], weights=weights)
      assert getattr(found, name)[i] == pytest.approx(expected), name
    views = [(row["influence"], row["influence_std"], row["influence_count"]) for row in seen]
    # Two views of mean m and standard deviation s are m - s and m + s.
    single = np.concatenate([[m - s, m + s] for m, s, _ in views])
    assert found.influence[i] == pytest.approx(single.mean())
    assert found.influence_count[i] == len(single)
    assert found.influence_squares[i] == pytest.approx(((single - single.mean()) ** 2).sum())


def test_the_fall_is_a_weighted_least_squares_fit_of_first_views(read):
  rows, held, found = read
  told = evidence.weigh(held, found)
  last = max(row["step_last"] for row in rows if row["step_last"] is not None)
  for name, domain in told.domains.items():
    use = [r for r in rows if r["domain"] == name and r["times_seen"] and r["tokens"]]
    use = [r for r in use if r["step_first"] > 0.1 * last]
    x = np.log([r["step_first"] for r in use])
    y, w = (np.array([r[n] for r in use], float) for n in ("loss_first", "tokens"))
    slope, level = np.polyfit(x, y, 1, w=np.sqrt(w))
    assert domain.fall == pytest.approx(-slope)
    assert domain.level == pytest.approx(level + slope * np.log(last))
    # What made the losses lies within four standard errors.
    assert abs(domain.fall - 0.3) < 4 * domain.fall_error < 0.4


def test_influence_is_the_mean_of_a_posterior(read):
  _, held, found = read
  told = evidence.weigh(held, found)
  degrees = sum(n - 1 for n in found.influence_count if n > 1)
  sigma2 = found.influence_squares[found.influence_count > 1].sum() / degrees
  for k, name in enumerate(held.domains):
    of = (held.domain == k) & (found.influence_count > 0)
    n, m = found.influence_count[of], found.influence[of]
    mu = np.average(m, weights=n)
    assert told.domains[name].influence == pytest.approx(mu)
    tau2 = (n @ (m - mu) ** 2 - (len(n) - 1) * sigma2) / (n.sum() - (n @ n) / n.sum())
    if tau2 <= 0:
      np.testing.assert_allclose(told.influence[of], mu)
      continue
    # On a grid: the prior N(mu, tau2) times the likelihood of each document's views.
    for count, mean, value in list(zip(n, m, told.influence[of], strict=True))[:10]:
      grid = np.linspace(mu - 12 * np.sqrt(tau2), mu + 12 * np.sqrt(tau2), 20001)
      log = -((grid - mu) ** 2) / (2 * tau2) - count * (mean - grid) ** 2 / (2 * sigma2)
      weight = np.exp(log - log.max())
      assert value == pytest.approx(float(weight @ grid / weight.sum()), rel=1e-4, abs=1e-5)


def test_documents_never_seen_are_not_judged(read):
  _, held, found = read
  told = evidence.weigh(held, found)
  unseen = found.seen == 0
  assert unseen.sum() > 5
  assert np.isnan(told.surprise[unseen]).all()
  assert np.isnan(told.influence[unseen]).all()


def test_copies_are_joined_to_their_document(
  make_shards, make_table, make_texts, view, tmp_path
):
  rng = np.random.default_rng(0)
  folder = make_shards({"a": make_texts(rng, 30)})
  run = make_table(folder, lambda *_: view(500, 2.0))
  original = pq.read_table(run / table.NAME)
  rows = original.to_pylist()
  doc_id = rows[0]["doc_id"]
  copy = copy_id(bytes.fromhex(doc_id), 1).hex()
  more = [
    row | {"doc_id": copy, "example_id": 999, "loss_first": 1.0, "step_first": 700}
    for row in rows
    if row["doc_id"] == doc_id
  ]
  (tmp_path / "copied").mkdir()
  made = pa.Table.from_pylist(rows + more, schema=original.schema)
  pq.write_table(made, tmp_path / "copied" / table.NAME)
  held = table.read(tmp_path / "copied")
  assert copy not in held.doc_id
  at = held.doc_id.index(doc_id)
  assert held.num_copies[at] == 2
  assert held.num_copies.sum() == 31
  found = table.documents(held)
  assert found.loss_first[at] == 2.0  # when the text was new
  assert found.tokens[at] == 2 * sum(row["tokens"] for row in more)


def test_a_run_without_a_table_or_without_ids_is_an_error(
  tmp_path, make_shards, make_table, make_texts
):
  with pytest.raises(ValueError, match="example_table=True"):
    table.read(tmp_path)
  rng = np.random.default_rng(0)
  folder = make_shards({"a": make_texts(rng, 5)})
  run = make_table(folder, lambda *_: {"doc_id": None})
  with pytest.raises(ValueError, match="must read token shards"):
    table.read(run)
