"""Copies of domains with a skew: sizes, splits that share nothing, what they were made of."""

import gzip
import json
from pathlib import Path

import pytest

from jdc.data.skew import write_skewed

NAMES = ("a", "b", "c")


def write(folder: Path, field: str = "text", documents: int = 200) -> Path:
  folder.mkdir()
  for name in NAMES:
    for split, count in (("train", documents), ("val", 9)):
      lines = [json.dumps({field: f"{name} {split} {i:04d} {'x' * 30}"}) for i in range(count)]
      (folder / f"{name}.{split}.jsonl").write_text("\n".join(lines) + "\n")
  return folder


def texts(path: Path, field: str = "text") -> list[str]:
  with gzip.open(path, "rt") as file:
    return [json.loads(line)[field] for line in file]


def test_domains_have_the_stated_ratio(tmp_path):
  sizes = write_skewed(write(tmp_path / "all"), tmp_path / "skewed", 16.0)
  assert list(sizes) == list(NAMES)
  kept = [texts(tmp_path / "skewed" / f"{name}.train.jsonl.gz") for name in NAMES]
  assert [sum(map(len, documents)) for documents in kept] == list(sizes.values())
  total = sizes["a"]
  for name, expected in zip(NAMES, (total, total / 4, total / 16), strict=True):
    assert 0 <= sizes[name] - expected < 50  # the document that crosses the limit is kept


def test_target_and_validation_share_no_document(tmp_path):
  source = write(tmp_path / "all")
  with open(source / "a.val.jsonl", "a") as file:
    file.writelines(json.dumps({"text": "the same twice"}) + "\n" for _ in range(2))
  write_skewed(source, tmp_path / "skewed", 2.0)
  for name in NAMES:
    target, validation = (
      texts(tmp_path / "skewed" / f"{name}.{split}.jsonl.gz") for split in ("target", "val")
    )
    assert not set(target) & set(validation)
    assert len(target) + len(validation) == (11 if name == "a" else 9)


def test_the_copy_keeps_the_name_of_the_field(tmp_path):
  source = write(tmp_path / "all", "content")
  write_skewed(source, tmp_path / "skewed", 2.0, text_field="content")
  assert texts(tmp_path / "skewed" / "b.val.jsonl.gz", "content")


def test_a_copy_of_other_data_is_refused(tmp_path):
  source, folder = write(tmp_path / "all"), tmp_path / "skewed"
  sizes = write_skewed(source, folder, 2.0)
  assert write_skewed(source, folder, 2.0) == sizes
  with pytest.raises(
    ValueError, match=r"made of other data.*ratio: 2\.0 -> 3\.0; seed: 0 -> 1"
  ):
    write_skewed(source, folder, 3.0, seed=1)
  with pytest.raises(ValueError, match=r"made of other data.*files"):
    write_skewed(write(tmp_path / "more", documents=201), folder, 2.0)
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="no copy with a skew"):
    write_skewed(source, tmp_path / "empty", 2.0)


def test_every_fault_is_named(tmp_path):
  source = write(tmp_path / "all")
  (source / "b.val.jsonl").write_text(2 * (json.dumps({"text": "one"}) + "\n"))
  (source / "c.val.jsonl").unlink()
  with pytest.raises(ValueError, match=r"ratio must be 1.*domain b has no two.*domain c has"):
    write_skewed(source, tmp_path / "skewed", 0.5)
  assert not (tmp_path / "skewed").exists()
