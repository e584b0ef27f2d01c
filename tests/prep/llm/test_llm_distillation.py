"""A dear model labels a sample, and what learns from that scores everything."""

import json
import random

import pytest

from jdc.prep import step

GOOD = ["theorem", "proof", "energy", "history"]
COMMON = ["the", "of", "and", "page", "new", "click", "buy"]


def document(rng, is_good):
  words = [rng.choice(GOOD if is_good and rng.random() < 0.3 else COMMON) for _ in range(30)]
  return " ".join(words)


@pytest.mark.parametrize(("output", "ending"), [("parquet", "parquet"), ("jsonl", "jsonl.zst")])
def test_scores_of_a_sample_teach_the_classifier_of_all(serve, kit, tmp_path, output, ending):
  rng = random.Random(0)
  good = [rng.random() < 0.5 for _ in range(1500)]
  texts = [document(rng, is_good) for is_good in good]
  kit.write_raw(tmp_path, texts)

  def script(body, n):
    found = sum(body["messages"][-1]["content"].count(word) for word in GOOD)
    return kit.Answer(json.dumps({"reason": "as it is", "score": min(5, found // 2 + 1)}))

  server = serve(script)
  some = step("sample", max_tokens=15_000, unit="words", seed=1)
  label = step("llm_score", **kit.model(server), prompt="educational_value")
  labelled = kit.execute(kit.plan(some, label, format=output), tmp_path, "labelled")
  asked = len(server.requests)
  assert asked == labelled["accounts"]["kept"] < 600
  cheap = step(
    "quality_classifier", labels=[f"labelled/data/*/*.{ending}"], label_field="score",
    min_label=3, buckets=1 << 12,
  )  # fmt: skip
  kit.execute(kit.plan(cheap), tmp_path, "all")
  assert len(server.requests) == asked
  kept = {row["number"] for row in kit.records(tmp_path / "all")}
  right = sum((number in kept) == is_good for number, is_good in enumerate(good))
  assert right > 0.9 * len(good)
