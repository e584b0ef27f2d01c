"""Lists of documents, and texts that must not be read."""

import gzip
import hashlib
import json

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("numba")

from jdc.prep import runner
from jdc.prep.batches import document_id
from jdc.prep.feedback import lists
from jdc.prep.feedback.held_out import HeldOut, text_hash
from jdc.prep.spec import InputSpec, PlanSpec, step


@pytest.fixture
def raw(tmp_path):
  """Four documents, and their ids."""
  texts = ["first of all", "second to none", "third time lucky", "Fourth, at last!"]
  lines = [json.dumps({"text": text}) + "\n" for text in texts]
  (tmp_path / "raw.jsonl").write_text("".join(lines))
  starts = [sum(map(len, lines[:i])) for i in range(4)]
  return [document_id("raw.jsonl", start).hex() for start in starts]


def run(folder, *steps):
  plan = PlanSpec(input=InputSpec(paths=("raw.jsonl",)), step=steps)
  return runner.run(plan, folder / "out", root=folder, report=False)


def test_listed_documents_go_with_their_reasons(raw, tmp_path):
  reasons = {raw[1]: "harmful", raw[3]: "memorised", "0" * 32: "harmful"}
  digest = lists.write(tmp_path / "drop.tsv", reasons, "of a test")
  assert lists.read(tmp_path / "drop.tsv") == reasons
  made = run(tmp_path, step("drop_documents", path="drop.tsv", sha256=digest))
  assert made["accounts"]["dropped"] == {
    "drop_documents.harmful": 1, "drop_documents.memorised": 1
  }  # fmt: skip
  assert made["accounts"]["kept"] == 2
  # The content of the list counts for what is up to date.
  lists.write(tmp_path / "drop.tsv", {raw[0]: "harmful"}, "of a test")
  again = run(tmp_path, step("drop_documents", path="drop.tsv"))
  assert again["accounts"]["dropped"] == {"drop_documents.harmful": 1}


def test_another_list_than_the_plan_names_is_an_error(raw, tmp_path):
  lists.write(tmp_path / "drop.tsv", {raw[0]: "harmful"}, "of a test")
  with pytest.raises(ValueError, match="its sha256 is"):
    run(tmp_path, step("drop_documents", path="drop.tsv", sha256="0" * 64))
  (tmp_path / "drop.tsv").write_text(f"{raw[0]}\tharmful\nnonsense\n{raw[0]}\tharmful\n")
  with pytest.raises(ValueError, match=r"line 2: 'nonsense' is no id.*line 3: .*listed twice"):
    run(tmp_path, step("drop_documents", path="drop.tsv"))


@pytest.fixture
def held(tmp_path):
  folder = tmp_path / "held"
  folder.mkdir()
  content = json.dumps({"text": "fourth AT last"}).encode() + b"\n"
  (folder / "web.jsonl.gz").write_bytes(gzip.compress(content))
  return HeldOut(folder)


def test_a_text_of_the_held_out_set_stops_the_run(raw, held, tmp_path):
  held.write_hashes(tmp_path / "hashes")
  with pytest.raises(
    ValueError, match=r"1 documents have texts of the held-out set.*raw.jsonl@"
  ):
    run(tmp_path, step("refuse_texts", path="hashes"))
  lists.write(tmp_path / "drop.tsv", {raw[3]: "harmful"}, "of a test")
  made = run(
    tmp_path, step("drop_documents", path="drop.tsv"), step("refuse_texts", path="hashes")
  )
  assert made["accounts"]["kept"] == 3
  assert held.texts[0].domain == "web"
  assert held.fingerprint != hashlib.sha256(b"").hexdigest()


def test_paths_into_the_held_out_set_are_refused(held, tmp_path):
  held.refuse_paths({"data": str(tmp_path / "raw"), "mode": "auto", "none": "/no/such/file"})
  (tmp_path / "link").symlink_to(held.folder)
  wrong = {
    "a": str(held.folder), "b": [str(held.folder / "web.jsonl.gz")], "c": str(tmp_path),
    "d": str(tmp_path / "link" / "web.jsonl.gz"),
  }  # fmt: skip
  for name, value in wrong.items():
    with pytest.raises(ValueError, match=f"is held out: {name}="):
      held.refuse_paths({name: value})


def test_a_folder_that_holds_no_texts_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="holds no"):
    HeldOut(tmp_path)
  (tmp_path / "web.jsonl").write_text('{"body": "x"}\n')
  with pytest.raises(ValueError, match=r"web.jsonl:1: no record with a text"):
    HeldOut(tmp_path)


def test_hashes_do_not_see_case_spacing_or_forms():
  assert text_hash("Ａ ﬁne\tday.") == text_hash("a fine day")
  assert text_hash("a fine day") != text_hash("a fine way")
