"""The card: front matter that parses, every number of the manifest in its place."""

import copy

import pytest

from jdc.prep.sinks.card import card, write_card

yaml = pytest.importorskip("yaml")

MANIFEST = {
  "plan_hash": "a1b2",
  "output_hash": "c3d4",
  "plan": {
    "goal": 'clean: "English" web text | no e-mails',
    "step": [
      {"op": "fix_unicode"},
      {"op": "filter", "rules": {"word_count": {"min": 50}, "language": {"keep": ["en"]}}},
      {"op": "minhash_dedup", "bands": 14, "why": "near_dup=0.1 | 0.2"},
    ],
  },
  "operators": {
    "1 fix_unicode": {"params": {"form": "NFC"}},
    "2 filter": {
      "params": {"rules": {"word_count": {"min": 50}, "language": {}}},
      "rules": {"filter": {}, "language": {"keep": ["en"], "min_score": 0.65}},
    },
    "3 minhash_dedup": {"params": {"bands": 14}},
  },
  "versions": {"jdc": "0.1.0", "pyarrow": "25.0.1"},
  "accounts": {
    "read": 2000,
    "made": 0,
    "kept": 1500,
    "dropped": {"word_count": 100, "minhash_dedup": 380},
    "quarantined": {"invalid JSON": 20},
  },
  "input": [
    {"source": "raw/a.jsonl.gz", "domain": "web", "size": 12345, "sha256": "ff"},
  ],
  "output": [
    {
      "path": "data/web/part-00000-ab.parquet",
      "domain": "web",
      "rows": 900,
      "text_bytes": 7000,
    },
    {
      "path": "data/web/part-00001-cd.parquet",
      "domain": "web",
      "rows": 500,
      "text_bytes": 3000,
    },
    {
      "path": "data/code/part-00000-ef.parquet",
      "domain": "code",
      "rows": 100,
      "text_bytes": 50,
    },
  ],
}
REPORT = {
  "expectations": [
    {"name": "kept_rate", "min": 0.4, "max": 0.9, "value": 0.75, "holds": True},
    {"name": "rows", "min": 2000.0, "max": None, "value": 1500, "holds": False},
  ]
}


def front_matter(text):
  _, held, _ = text.split("---\n", 2)
  return yaml.safe_load(held)


def test_front_matter():
  held = front_matter(card(MANIFEST, REPORT))
  assert held == {
    "pretty_name": 'clean: "English" web text | no e-mails',
    "language": ["en"],
    "task_categories": ["text-generation"],
    "size_categories": ["1K<n<10K"],
    "tags": ["jdc"],
    "configs": [
      {"config_name": n, "data_files": [{"split": "train", "path": [f"data/{n}/*.parquet"]}]}
      for n in ("code", "web")
    ],
  }


def test_says_where_every_record_went():
  text = card(MANIFEST, REPORT)
  for line in (
    "| web | 2 | 1,400 | 10,000 |",
    "| code | 1 | 100 | 50 |",
    "1,500 documents, 10,050 bytes of text (UTF-8), of 2,000 records that were read.",
    "| dropped | minhash_dedup | 380 |",
    "| quarantined | invalid JSON | 20 |",
    '| 3 | minhash_dedup | `{"bands": 14}` | near_dup=0.1 \\| 0.2 |',
    "| kept_rate | 0.4 | 0.9 | 0.75 | yes |",
    "| rows | 2000 |  | 1,500 | **no** |",
    "| `raw/a.jsonl.gz` | web | 12,345 | ff |",
    "- plan: `a1b2`",
    "- output: `c3d4`",
    "- versions: jdc 0.1.0, pyarrow 25.0.1",
  ):
    assert line in text.splitlines() or line in text, line


def test_says_how_token_shards_were_made():
  assert "## Token shards" not in card(MANIFEST, REPORT)
  manifest = copy.deepcopy(MANIFEST)
  manifest["plan"]["output"] = {"format": "tokens", "tokens": {"tokenizer": "bytes"}}
  assert '`{"tokenizer": "bytes"}`.' in card(manifest, REPORT)


def test_without_steps_or_losses():
  manifest = copy.deepcopy(MANIFEST)
  manifest["plan"] = manifest["operators"] = {}
  manifest["accounts"] |= {"dropped": {}, "quarantined": {}}
  manifest["output"] = [
    {**file, "path": file["path"] + ".array_record"} for file in manifest["output"]
  ]
  manifest["input"] *= 60
  text = card(manifest, {})
  held = front_matter(text)
  assert held["pretty_name"] == "Text prepared with jdc"
  assert "language" not in held
  assert "configs" not in held  # which the Hub only has for formats that it reads
  assert "No step changed or dropped documents." in text
  assert "Nothing." in text
  assert "And 10 more" in text
  assert "## Expectations" not in text


@pytest.mark.parametrize(
  ("rows", "expected"),
  [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**12, "n>1T")],
)
def test_classes_of_size(rows, expected):
  manifest = copy.deepcopy(MANIFEST)
  manifest["output"] = [{**MANIFEST["output"][0], "rows": rows}]
  assert front_matter(card(manifest, REPORT))["size_categories"] == [expected]


def test_languages_are_those_that_all_steps_kept():
  manifest = copy.deepcopy(MANIFEST)
  manifest["operators"]["4 language"] = {"params": {"keep": ["de", "en"]}}
  assert front_matter(card(manifest, REPORT))["language"] == ["en"]
  manifest["operators"]["2 filter"]["rules"].pop("language")
  assert front_matter(card(manifest, REPORT))["language"] == ["de", "en"]


def test_is_written_whole(tmp_path):
  (tmp_path / "README.md").write_text("old")
  path = write_card(MANIFEST, REPORT, tmp_path)
  assert path.read_text() == card(MANIFEST, REPORT)
  assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
