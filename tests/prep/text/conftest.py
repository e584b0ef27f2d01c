"""The raw documents that every operator is tried on."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("JDC_TEST_DATA", ROOT / "../shared/data"))


@pytest.fixture(scope="session")
def dirty() -> pa.StringArray:
  """Every text of the dirty corpus that is valid."""
  files = sorted((DATA / "dirty").glob("*.jsonl.gz"))
  if not files:
    pytest.skip(f"no {DATA / 'dirty'}; set JDC_TEST_DATA")
  texts = []
  for path in files:
    for line in gzip.decompress(path.read_bytes()).splitlines():
      try:
        text = json.loads(line.decode())["text"]
        text.encode()
      except (ValueError, KeyError, TypeError, AttributeError):
        continue
      texts.append(text)
  return pa.array(texts)


@pytest.fixture(scope="session")
def pool() -> list[dict[str, str]]:
  """The instruction pool, whose `source` says what each row is."""
  path = DATA / "instruct/pool.jsonl.gz"
  if not path.exists():
    pytest.skip(f"no {path}; set JDC_TEST_DATA")
  return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
