import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep import decontaminate, evaluation_texts

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("JDC_TEST_DATA", ROOT / "../shared/data"))
THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def words(text):
  return re.findall(r"[^\W_]+", text.lower())


def reference(document, texts, ngram):
  """Places of an ASCII document at which the words of a text start, and the first such text."""
  runs = {}
  for number, text in enumerate(texts):
    found = words(text)
    size = ngram if len(found) >= ngram else len(found)
    if size >= decontaminate.MIN_WORDS:
      for i in range(len(found) - size + 1):
        runs.setdefault(tuple(found[i : i + size]), number)
  runs = {run: t for run, t in runs.items() if not all(w[0].isdigit() for w in run)}
  found = words(document)
  sizes = sorted({len(run) for run in runs})
  hits = [
    runs[tuple(found[i : i + size])]
    for i in range(len(found))
    for size in sizes
    if i + size <= len(found) and tuple(found[i : i + size]) in runs
  ]
  return len(hits), hits[0] if hits else None


def find(texts, index, **options):
  return decontaminate.find(pa.array(texts, pa.string()), index, **options)


WORDS = st.sampled_from(["a", "B", "cd", "3", "Ef-"])
TEXTS = st.lists(st.lists(WORDS, max_size=12).map(" ".join), max_size=6)


@settings(deadline=None, max_examples=100)
@given(TEXTS, TEXTS, st.integers(5, 7))
def test_hits_are_those_of_plain_python(documents, texts, ngram):
  texts = ["never in any document at all", *dict.fromkeys(texts)]
  index = decontaminate.make_index([str(i) for i in range(len(texts))], texts, ngram=ngram)
  expected = [reference(document, texts, ngram) for document in documents]
  found = find(documents, index)
  assert found.hits.tolist() == [hits for hits, _ in expected]
  names = [None if text is None else str(text) for _, text in expected]
  assert found.evaluation.to_pylist() == names


@pytest.mark.parametrize(
  ("document", "hits"),
  [
    (THIRTEEN, 1),
    (THIRTEEN.upper().replace(" ", ", "), 1),
    (f"x {THIRTEEN} fourteen. {THIRTEEN}", 3),
    (THIRTEEN.replace("seven ", ""), 0),
    (THIRTEEN.partition(" ")[2], 0),
    (THIRTEEN.replace("thirteen", "thirteenth"), 0),
  ],
)
def test_thirteen_words(document, hits):
  index = decontaminate.make_index(["q"], [f"{THIRTEEN} fourteen"])
  found = find([document], index)
  assert found.hits.tolist() == [hits]
  assert find([document], index, max_hits=2).flagged.tolist() == [hits > 2]


def test_texts_of_fewer_words():
  template = "Complete the following Python function."
  texts = [template, template, template, "What is the sum here?", "Only four words here", "A."]
  ids = ["q1", "q2", "q3", "q3", "q4", "q5"]
  index = decontaminate.make_index(ids, texts)
  assert index.unsearchable == ["q1", "q2", "q4", "q5"]
  found = find([template, "Say, WHAT is the\nsum here", "what is the sum", *texts[4:]], index)
  assert found.evaluation.to_pylist() == [None, "q3", None, None, None]
  twice = decontaminate.make_index(ids[1:3], texts[1:3])  # a question that two sets have
  assert find([template], twice).evaluation.to_pylist() == ["q2"]


def test_numbers_alone_are_no_match():
  numbers = " ".join(map(str, range(1, 30)))
  index = decontaminate.make_index(["q", "r"], [f"Sort the numbers {numbers}", numbers])
  assert index.unsearchable == ["r"]
  assert find([numbers, f"the numbers {numbers}"], index).hits.tolist() == [0, 2]


def test_letters_of_any_script():
  text = "Où est né l’ÉCRIVAIN du Cœur, Ángel Πέτρος? 春天去看花"
  index = decontaminate.make_index(["q"], [text], ngram=15)
  assert find([text.lower(), text.upper(), text.replace("花", "")], index).hits.tolist() == [
    1,
    1,
    0,
  ]
  decomposed = text.replace("é", "e\u0301")
  assert find([decomposed], index).hits.tolist() == [1]


def test_equal_hashes_of_other_words_do_not_count():
  texts = [THIRTEEN]
  index = decontaminate.make_index(["q"], texts)
  other = THIRTEEN.replace("thirteen", "fourteen")
  _, place, length = index.runs
  fake = decontaminate.make_index(["q"], [other])
  # The run keeps the hash of the one text, and is compared with the words of the other.
  forged = type(index)(index.ids, index.text, index.runs, fake.words, index.table, [])
  assert find(texts, index).hits.tolist() == [1]
  assert find(texts, forged).hits.tolist() == [0]
  assert (place.tolist(), length.tolist()) == ([0], [13])


def planted(question, number):
  """A document that quotes a question, with other spacing, case or punctuation."""
  quoted = [question, question.upper(), " ".join(question.split()), question.replace(",", " ,")]
  return f"Posted by user {number}:\n\n> {quoted[number % 4]}\n\nAny ideas? Thanks a lot."


def test_every_planted_exam_question_is_found():
  folder = DATA / "instruct"
  if not folder.exists():
    pytest.skip(f"no {folder}: set JDC_TEST_DATA to the folder with instruct/")
  paths = sorted(folder.glob("target_*.test.jsonl.gz"))
  index = decontaminate.load(paths)
  assert index.unsearchable == []
  records = []
  for path in paths:
    for line in gzip.decompress(path.read_bytes()).splitlines():
      record = json.loads(line)
      question = record["input"] or record["instruction"]
      records.append((f"{path.name}:{record['id']}", question))
  assert len(records) == 500 + 132 + 686
  documents = [planted(question, i) for i, (_, question) in enumerate(records)]
  found = find(documents, index)
  assert found.flagged.all()
  by_question = {}
  for identity, question in records:
    by_question.setdefault(question, set()).add(identity)
  same = [
    identity in by_question[question]
    for identity, (_, question) in zip(found.evaluation.to_pylist(), records, strict=True)
  ]
  assert np.mean(same) > 0.95  # others share their first words with an earlier question
  clean = gzip.decompress((DATA / "corpus/legal.val.jsonl.gz").read_bytes()).splitlines()
  assert not find([json.loads(line)["text"] for line in clean], index).flagged.any()


def test_files_of_every_kind(tmp_path):
  question = {"id": "a", "question": THIRTEEN, "answer": "no column that is read by default"}
  line = json.dumps(question) + "\n\n" + json.dumps({"prompt": THIRTEEN.upper()}) + "\n"
  (tmp_path / "a.jsonl").write_text(line)
  (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line.encode()))
  (tmp_path / "c.json.zst").write_bytes(zstandard.compress(line.encode()))
  pq.write_table(pa.Table.from_pylist([question]), tmp_path / "d.parquet")
  (tmp_path / "e.txt").write_text(f"{THIRTEEN}\nfourteen\n \n\nfifteen\n")
  read = {p.name: list(evaluation_texts.read_texts(p)) for p in sorted(tmp_path.iterdir())}
  for name in ("a.jsonl", "b.jsonl.gz", "c.json.zst"):
    assert read[name] == [(f"{name}:a", THIRTEEN), (f"{name}:3", THIRTEEN.upper())]
  assert read["d.parquet"] == [("d.parquet:a", THIRTEEN)]
  assert read["e.txt"] == [("e.txt:1", f"{THIRTEEN}\nfourteen\n"), ("e.txt:5", "fifteen\n")]
  index = decontaminate.load([tmp_path / "e.txt"])
  assert index.unsearchable == ["e.txt:5"]
  assert find([THIRTEEN], index).evaluation.to_pylist() == ["e.txt:1"]
  answers = decontaminate.load([tmp_path / "a.jsonl"], columns=["answer"])
  assert find([question["answer"]], answers).evaluation.to_pylist() == ["a.jsonl:a"]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.csv", b"x", "a.csv: evaluation files must be .jsonl"),
    ("a.jsonl", b'{"q": "x"}\n', "no text in columns text, .*; it has q"),
    ("a.jsonl", b'{"text": 1}\nx\n', "a.jsonl:2: Expecting value"),
    ("a.jsonl", b"[1]\n", "a.jsonl:1: a record must be an object, got"),
    ("a.jsonl", b'"\xff"', "a.jsonl: 'utf-8' codec"),
    ("a.jsonl.gz", b"x", "a.jsonl.gz: "),
    ("a.txt.zst", b"xxxxxxxx", "a.txt.zst: "),
    ("a.parquet", b"x", "a.parquet: "),
    ("a.txt", b"a few words\n", "none of 1 evaluation texts can be looked for"),
  ],
)
def test_bad_files(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    decontaminate.load([tmp_path / name])


def test_errors():
  with pytest.raises(ValueError, match="ngram must be 5 or more, got 4"):
    decontaminate.make_index(["q"], [THIRTEEN], ngram=4)
  with pytest.raises(ValueError, match="as many, got 2 and 1"):
    decontaminate.make_index(["q", "r"], [THIRTEEN])
  with pytest.raises(ValueError, match="max_hits must be 0 or more, got -1"):
    find(["x"], decontaminate.make_index(["q"], [THIRTEEN]), max_hits=-1)
