"""Tests of reading questions: MMLU's layout, JSON records, and what is wrong with them."""

import gzip
import json

import pytest

from jdc.eval.questions import Question, read_choices, read_mmlu, read_problems


def write_mmlu(folder, dev=("Q0,a,b,c,d,B",), test=("Q1,w,x,y,z,D",), subject="world_history"):
  for split, rows in (("dev", dev), ("test", test)):
    (folder / split).mkdir(exist_ok=True)
    (folder / split / f"{subject}_{split}.csv").write_text("".join(f"{r}\n" for r in rows))


def write_lines(path, records):
  lines = "".join(json.dumps(record) + "\n" for record in records)
  opened = gzip.open if path.suffix == ".gz" else open
  with opened(path, "wt", encoding="utf-8") as file:
    file.write(lines)
  return path


def test_mmlu(tmp_path):
  write_mmlu(tmp_path, test=('"Why, then?","a ""b""","two\nlines",c,d,A', "Q2,1,2,3,4, C"))
  write_mmlu(tmp_path, subject="art", test=("question,A,B,C,D,answer", "Q3,1,2,3,4,B"))
  found = read_mmlu(tmp_path, num_shots=1)
  assert list(found) == ["art", "world_history"]
  history = found["world_history"]
  assert history.title == "world history"
  where = tmp_path / "test" / "world_history_test.csv"
  assert history.test == (
    Question("Why, then?", ('a "b"', "two\nlines", "c", "d"), 0, f"{where}:2"),
    Question("Q2", ("1", "2", "3", "4"), 2, f"{where}:3"),
  )
  assert [question.answer for question in history.shots] == [1]
  assert [question.question for question in found["art"].test] == ["Q3"]


def test_mmlu_without_shots_needs_no_dev_files(tmp_path):
  write_mmlu(tmp_path)
  (tmp_path / "dev" / "world_history_dev.csv").unlink()
  assert read_mmlu(tmp_path, num_shots=0)["world_history"].shots == ()


def test_mmlu_lists_every_offender(tmp_path):
  write_mmlu(tmp_path, test=("Q1,w,x,y,D", "Q2,w,x,y,z,E", "Q3,w,x,y,z,1"))
  write_mmlu(tmp_path, subject="art", test=())
  write_mmlu(tmp_path, subject="law", dev=("Q,1,2,3,4,A",) * 2)
  write_mmlu(tmp_path, subject="maths")
  (tmp_path / "dev" / "maths_dev.csv").unlink()
  (tmp_path / "test" / "bytes_test.csv").write_bytes(b"Q\xff,1,2,3,4,A\n")
  with pytest.raises(ValueError) as caught:
    read_mmlu(tmp_path, num_shots=2)
  lines = str(caught.value).splitlines()
  for part in [
    "world_history_test.csv:1: needs 6 columns (question, A, B, C, D, answer), has 5",
    "world_history_test.csv:2: the answer must be A, B, C or D, got 'E'",
    "world_history_test.csv:3: the answer must be A, B, C or D, got '1'",
    "art_test.csv: holds no questions",
    "maths_dev.csv: no such file",
    "world_history_dev.csv: 1 questions of world_history for 2 shots",
    "bytes_test.csv:1: 'utf-8' codec",
  ]:
    assert sum(part in line for line in lines) == 1, part
  assert "law" not in str(caught.value)


def test_mmlu_of_another_folder(tmp_path):
  with pytest.raises(ValueError, match=r"holds no test/SUBJECT_test\.csv"):
    read_mmlu(tmp_path, 5)


def test_choices(tmp_path):
  file = write_lines(
    tmp_path / "quiz.jsonl.gz",
    [
      {"question": "Q1", "choices": ["x", "y"], "answer": 1},
      {"question": "Q2", "choices": ["x", "y", "z"], "answer": "C"},
      {"question": "Q3", "choices": ["blue", "red"], "answer": "red"},
    ],
  )
  found = read_choices(file, None, num_shots=0)
  assert list(found) == ["quiz"]
  assert found["quiz"].title == ""
  assert [question.answer for question in found["quiz"].test] == [1, 2, 1]


def test_choices_by_subject_from_the_prompts_of_mmlu(tmp_path):
  prompt = "Is it\nA. or not?\nA. 1\nB. two\nlines\nC. \nD. 4\nAnswer:"
  test = write_lines(
    tmp_path / "a.test.jsonl",
    [
      {"task": "us_law", "instruction": "The following ...", "input": prompt, "output": "B"},
      {"subject": "art", "question": "Q", "choices": ["x", "y"], "answer": "A"},
    ],
  )
  shots = write_lines(
    tmp_path / "a.dev.jsonl",
    [
      {"subject": name, "question": "S", "choices": ["x", "y"], "answer": 0}
      for name in ("art", "us_law", "other")
    ],
  )
  found = read_choices(test, shots, num_shots=1)
  assert list(found) == ["art", "us_law"]
  [question] = found["us_law"].test
  assert question.question == "Is it\nA. or not?"
  assert question.choices == ("1", "two\nlines", "", "4")
  assert question.answer == 1
  assert found["us_law"].title == "us law"
  assert len(found["us_law"].shots) == 1


def test_choices_list_every_offender(tmp_path):
  good = {"question": "Q", "choices": ["x", "y"], "answer": 0}
  file = tmp_path / "quiz.jsonl"
  write_lines(
    file,
    [
      good,
      good | {"answer": 2},
      good | {"answer": "C"},
      good | {"answer": True},
      good | {"choices": ["x"]},
      {"question": "Q"},
      {"input": "Q\nA. 1\nAnswer:", "output": "A"},
      good | {"choices": ["x", "x"], "answer": "x"},
    ],
  )
  file.write_text(file.read_text() + "not JSON\n")
  shots = write_lines(tmp_path / "shots.jsonl", [good | {"subject": "another"}])
  with pytest.raises(ValueError) as caught:
    read_choices(file, shots, num_shots=1)
  lines = str(caught.value).splitlines()
  for number, part in {
    2: "got 2",
    3: "got 'C'",
    4: "got True",
    5: "needs question",
    6: "it has question",
    7: 'lines "A. " to "D. "',
    8: "got 'x'",
    9: "invalid JSON",
  }.items():
    assert any(f"quiz.jsonl:{number}: " in line and part in line for line in lines), part
  assert any("shots.jsonl: 0 questions of no subject for 1 shots" in line for line in lines)
  assert len(lines) == 9


def test_an_empty_file_and_a_missing_one(tmp_path):
  (tmp_path / "empty.jsonl").write_text("\n")
  with pytest.raises(ValueError, match=r"empty.jsonl: holds no records"):
    read_choices(tmp_path / "empty.jsonl", None, 0)
  with pytest.raises(ValueError, match="no such file"):
    read_problems(tmp_path / "absent.jsonl")
  with pytest.raises(ValueError, match="num_shots 3 needs a file of shots"):
    read_choices(write_lines(tmp_path / "a.jsonl", [{}]), None, 3)


def test_a_long_list_of_offenders_is_cut(tmp_path):
  file = write_lines(tmp_path / "quiz.jsonl", [{"question": "Q"}] * 60)
  with pytest.raises(ValueError, match=r"and 10 more$"):
    read_choices(file, None, 0)


def test_problems(tmp_path):
  file = write_lines(
    tmp_path / "gsm.jsonl",
    [
      {"question": "How many?", "answer": "Two.\n#### 2"},
      {"instruction": "Add.", "input": "1, 2", "output": "#### 3"},
      {"instruction": "Say 4.", "input": "", "output": "4"},
    ],
  )
  found = read_problems(file)
  assert [tuple(problem) for problem in found] == [
    ("How many?", "Two.\n#### 2", f"{file}:1"),
    ("Add.\n1, 2", "#### 3", f"{file}:2"),
    ("Say 4.", "4", f"{file}:3"),
  ]


def test_problems_list_every_offender(tmp_path):
  file = write_lines(
    tmp_path / "gsm.jsonl",
    [
      {"question": "Q", "answer": ""},
      {"question": 3, "answer": "x"},
      {"instruction": "Q"},
      {"question": "Q", "answer": "none"},
    ],
  )
  with pytest.raises(ValueError) as caught:
    read_problems(file, lambda answer: "no number" if answer == "none" else "")
  assert [line.split(":")[1] for line in str(caught.value).splitlines()] == list("1234")
