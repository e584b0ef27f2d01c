"""Token shards of a few documents, and tables of what a run could have learnt about them."""

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("numba")  # of the extra `prep`

from jdc.data import token_shards  # noqa: E402
from jdc.prep.batches import document_id  # noqa: E402
from jdc.prep.sinks.tokens import TokenOptions, tokenize_pack  # noqa: E402
from jdc.train import example_table  # noqa: E402

WORDS = [f"{a}{b}" for a in ("ba", "do", "fi", "lu") for b in ("", "k", "men", "rose", "tin")]


@pytest.fixture(scope="session")
def make_texts():
  """Returns `make(rng, count, words)`."""
  return lambda rng, count, words=40: [" ".join(rng.choice(WORDS, words)) for _ in range(count)]


@pytest.fixture
def make_shards(tmp_path):
  """Returns `make(texts by domain) -> folder`, of rows with several documents."""

  def make(texts, name="data"):
    inputs = []
    for domain, found in texts.items():
      path = tmp_path / f"{name}-{domain}.parquet"
      ids = [document_id(f"{domain}.jsonl", i) for i in range(len(found))]
      columns = {
        "doc_id": pa.array(ids, pa.binary(16)),
        "source": [f"{domain}.jsonl"] * len(found),
        "offset": pa.array(range(len(found)), pa.int64()),
        "domain": [domain] * len(found),
        "text": found,
        "fields": ["{}"] * len(found),
      }
      pq.write_table(pa.table(columns), path)
      inputs.append(path)
    options = TokenOptions("bytes", seq_len=256, format="parquet", validation_fraction=0.0)
    tokenize_pack(inputs, tmp_path / name, options)
    return tmp_path / name

  return make


@pytest.fixture
def make_table(tmp_path):
  """Returns `make(folder, told) -> folder of a run`.

  `told(doc_id, domain, place, rng)` gives columns of the pieces of a document; the others are
  of one view at a step that grows with the place.
  """

  def make(folder, told, name="run", seed=0):
    rng, rows = np.random.default_rng(seed), []
    example = 0
    for domain, held in token_shards.open_folder(folder).items():
      for row in range(len(held.train)):
        for number, piece in enumerate(held.train.documents(row)):
          values = dict.fromkeys(example_table.COLUMNS)
          values |= {
            "example_id": example, "piece": number, "doc_id": piece.doc_id,
            "source": piece.source, "source_offset": piece.source_offset,
            "token_offset": piece.offset, "tokens": piece.length - 1, "domain": domain,
            "times_seen": 1, "num_nonfinite": 0, "times_offered": 0, "times_selected": 0,
            "weight_sum": 1.0, "influence_count": 0,
          }  # fmt: skip
          values |= told(piece.doc_id, domain, piece.source_offset, rng)
          rows.append(values)
        example += 1
    run = tmp_path / name
    run.mkdir()
    schema = pa.schema(list(example_table._schema(pa)))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), run / example_table.NAME)
    return run

  return make


@pytest.fixture(scope="session")
def view():
  """Returns `view(step, loss, last)`: columns of a piece seen once, or twice with `last`."""

  def make(step, loss, last=None, **more):
    return {
      "loss_first": loss, "step_first": step, "loss_min": loss, "step_min": step,
      "loss_last": loss if last is None else last, "step_last": step if last is None else 1000,
      "loss_mean": loss, "loss_excess": 0.0, "times_seen": 1 if last is None else 2, **more,
    }  # fmt: skip

  return make
