"""Tests of what a model step writes of a shard."""

import json

import pyarrow.parquet as pq

from jdc.prep import step
from jdc.prep.batches import document_id

SCHEMA = {
  "type": "object",
  "properties": {
    "items": {
      "type": "array",
      "items": {
        "type": "object",
        "properties": {"part": {"type": "string"}},
        "required": ["part"],
      },
    }
  },
  "required": ["items"],
}


def test_documents_keep_the_origin_of_what_they_were_made_of(serve, kit, tmp_path):
  """As many as there were, but not one of each; and texts are counted in bytes."""

  def script(body, n):
    parts = [{"part": f"ü{i}"} for i in range(int(body["messages"][-1]["content"][-1]))]
    return kit.Answer(json.dumps({"items": parts}))

  server = serve(script)
  texts = ["é 2", "é 0", "é 1"]
  kit.write_raw(tmp_path, texts)
  made = step(
    "llm_generate", **kit.model(server), user="{text}", fields=["text"], quote=False,
    json_schema=SCHEMA, outputs={"part": "text"},
  )  # fmt: skip
  kit.execute(kit.plan(made, format="parquet"), tmp_path)
  (path,) = (tmp_path / "out/data").rglob("*.parquet")
  rows = pq.read_table(path).to_pylist()
  assert [row["text"] for row in rows] == ["ü0", "ü1", "ü0"]
  for row in rows:
    assert (
      json.loads(row["fields"])["parent_id"] == document_id(row["source"], row["offset"]).hex()
    )
  records = map(json.loads, (tmp_path / "out/commits.jsonl").read_text().splitlines())
  (info,) = [r["info"] for r in records if "model" in r.get("info", {})]
  assert (info["bytes_in"], info["bytes_out"]) == (12, 9)
  assert (info["rows_in"], info["rows_out"]) == (3, 3)
