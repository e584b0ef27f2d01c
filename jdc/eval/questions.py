"""Questions with options or answers, read from the layouts of published benchmarks."""

import csv
import re
import string
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jdc.data import formats
from jdc.data.sources import source_problem

LETTERS = string.ascii_uppercase
_HEADER = ["question", "a", "b", "c", "d", "answer"]
_PROMPT = re.compile(r"(.*)\nA\. (.*?)\nB\. (.*?)\nC\. (.*?)\nD\. (.*?)\nAnswer:", re.DOTALL)
_MOST_LISTED = 50
T = TypeVar("T")


class Question(NamedTuple):
  """A question with options, one of which is right."""

  question: str
  choices: tuple[str, ...]
  answer: int  # index of the right one
  where: str  # "file:line"


class Problem(NamedTuple):
  """A question whose answer is written out."""

  question: str
  answer: str
  where: str


class Subject(NamedTuple):
  """The questions of one subject, and those that may be shown before them."""

  test: tuple[Question, ...]
  shots: tuple[Question, ...]
  title: str = ""  # in prompts; empty: not known


def read_mmlu(folder: str | Path, num_shots: int) -> dict[str, Subject]:
  """Reads MMLU's layout: `test/SUBJECT_test.csv`, and `dev/SUBJECT_dev.csv` for shots.

  A file has the columns question, A, B, C, D and answer, and no header (one with just these
  names is accepted).

  Args:
    folder: holds `test` and, where shots are asked for, `dev`.
    num_shots: questions that every subject's `dev` file must hold at least.

  Returns:
    The subjects by name, sorted.

  Raises:
    ValueError: listing every file and every row that is missing or wrong.
  """
  folder = Path(folder)
  files = sorted(folder.glob("test/*_test.csv"))
  if not files:
    raise ValueError(f"{folder}: holds no test/SUBJECT_test.csv")
  problems: list[str] = []
  subjects = {}
  for file in files:
    name = file.name.removesuffix("_test.csv")
    shots: tuple[Question, ...] = ()
    if num_shots:
      shots_file = folder / "dev" / f"{name}_dev.csv"
      shots = _read_csv(shots_file, problems)
      problems += _too_few(shots_file, name, len(shots), num_shots)
    subjects[name] = Subject(_read_csv(file, problems), shots, name.replace("_", " "))
  _raise(problems)
  return subjects


def read_choices(
  file: str | Path, shots_file: str | Path | None, num_shots: int
) -> dict[str, Subject]:
  """Reads questions with options from JSON records.

  A record has `question`, `choices` (at least two) and `answer`: the index of the right one
  from 0, its letter, or its text; and, where there are several subjects, `subject` or `task`.
  Or it has `input`, MMLU's prompt from the question to "Answer:", and `output`, a letter.

  Args:
    file: JSONL, or another format of `jdc.data.formats`.
    shots_file: as `file`, for shots; `None` where there are none.
    num_shots: questions that each subject's shots must hold at least.

  Returns:
    The subjects by name, sorted; one named after the file where records name none.

  Raises:
    ValueError: listing every record that is wrong, and every subject without enough shots.
  """
  problems: list[str] = []
  test = _read_by_subject(file, problems)
  shots = _read_by_subject(shots_file, problems) if num_shots and shots_file else {}
  if num_shots and not shots_file:
    problems.append(f"{file}: num_shots {num_shots} needs a file of shots; none is given")
  subjects = {}
  for name, questions in sorted(test.items()):
    known = shots.get(name, [])
    if num_shots and shots_file:
      problems += _too_few(shots_file, name, len(known), num_shots)
    own_name = name or formats.parse_name(Path(file).name).stem  # type: ignore[union-attr]
    subjects[own_name] = Subject(tuple(questions), tuple(known), name.replace("_", " "))
  _raise(problems)
  return subjects


def read_problems(
  file: str | Path, check: Callable[[str], str] = lambda _: ""
) -> list[Problem]:
  """Reads questions with written answers: `question` and `answer`, as in GSM8K, or
  `instruction` (and `input`) and `output`.

  Args:
    file: JSONL, or another format of `jdc.data.formats`.
    check: says what is wrong with an answer, "" for nothing.

  Raises:
    ValueError: listing every record that is wrong.
  """

  def parse(fields: Mapping[str, Any], where: str) -> Problem:
    question, answer = fields.get("question"), fields.get("answer")
    if question is None and "instruction" in fields:
      parts = [fields["instruction"], fields.get("input") or ""]
      question = "\n".join(part for part in parts if part)
      answer = fields.get("output")
    if not _is_text(question) or not _is_text(answer):
      raise ValueError(
        "needs the texts question and answer, or instruction and output; it has "
        f"{', '.join(sorted(fields)) or 'no fields'}"
      )
    if problem := check(str(answer)):
      raise ValueError(problem)
    return Problem(str(question), str(answer), where)

  problems: list[str] = []
  found = list(_parsed(file, parse, problems))
  _raise(problems)
  return found


def _read_csv(file: Path, problems: list[str]) -> tuple[Question, ...]:
  if not file.is_file():
    problems.append(f"{file}: no such file")
    return ()
  questions = []
  with open(file, encoding="utf-8", newline="") as opened:
    reader = csv.reader(opened, strict=True)
    try:
      for number, row in enumerate(reader, 1):
        if not row or (number == 1 and [cell.strip().lower() for cell in row] == _HEADER):
          continue
        where = f"{file}:{reader.line_num}"
        if len(row) != 6:
          problems.append(
            f"{where}: needs 6 columns (question, A, B, C, D, answer), has {len(row)}"
          )
        elif row[5].strip() not in ("A", "B", "C", "D"):
          problems.append(f"{where}: the answer must be A, B, C or D, got {row[5]!r}")
        else:
          answer = LETTERS.index(row[5].strip())
          questions.append(Question(row[0], tuple(row[1:5]), answer, where))
    except (csv.Error, UnicodeDecodeError) as error:
      problems.append(f"{file}:{reader.line_num + 1}: {error}")
  if not questions and not any(problem.startswith(f"{file}:") for problem in problems):
    problems.append(f"{file}: holds no questions")
  return tuple(questions)


def _read_by_subject(file: str | Path, problems: list[str]) -> dict[str, list[Question]]:
  found: dict[str, list[Question]] = {}

  def parse(fields: Mapping[str, Any], where: str) -> tuple[str, Question]:
    subject = fields.get("subject") or fields.get("task") or ""
    return str(subject), _question(fields, where)

  for subject, question in _parsed(file, parse, problems):
    found.setdefault(subject, []).append(question)
  return found


def _question(fields: Mapping[str, Any], where: str) -> Question:
  if "input" in fields and "output" in fields:
    match = _PROMPT.fullmatch(str(fields["input"]))
    if match is None:
      raise ValueError('input must be a question, lines "A. " to "D. ", and "Answer:"')
    question, *choices = match.groups()
    answer = fields["output"]
  else:
    question, choices, answer = (fields.get(k) for k in ("question", "choices", "answer"))  # type: ignore[assignment]
    if not _is_text(question) or answer is None or not _is_options(choices):
      raise ValueError(
        "needs question (text), choices (2 to 26 texts) and answer, or input and output; it "
        f"has {', '.join(sorted(fields)) or 'no fields'}"
      )
  return Question(str(question), tuple(choices), _index(answer, choices), where)


def _index(answer: Any, choices: list[str]) -> int:
  letters = LETTERS[: len(choices)]
  if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
    return answer
  if isinstance(answer, str):
    if len(answer.strip()) == 1 and answer.strip() in letters:
      return letters.index(answer.strip())
    if choices.count(answer) == 1:
      return choices.index(answer)
  raise ValueError(
    f"the answer must be one of {', '.join(letters)}, an index below {len(choices)} or the "
    f"text of one choice, got {answer!r}"
  )


def _parsed(
  file: str | Path, parse: Callable[[Mapping[str, Any], str], T], problems: list[str]
) -> Iterator[T]:
  """Yields what `parse` makes of each record; what is wrong is added to `problems`."""
  if problem := source_problem(str(file)):
    problems.append(problem)
    return
  count = 0
  for record in formats.records(str(file), None):
    count += 1
    try:
      if record.error:
        raise ValueError(record.error)
      yield parse(record.fields, record.where)
    except ValueError as error:
      problems.append(f"{record.where}: {error}")
  if not count:
    problems.append(f"{file}: holds no records")


def _too_few(file: str | Path, subject: str, count: int, num_shots: int) -> list[str]:
  if count >= num_shots or not Path(file).is_file():
    return []
  return [f"{file}: {count} questions of {subject or 'no subject'} for {num_shots} shots"]


def _is_text(value: object) -> bool:
  return isinstance(value, str) and bool(value.strip())


def _is_options(value: object) -> bool:
  return isinstance(value, list) and 2 <= len(value) <= 26 and all(map(_is_text, value))


def _raise(problems: list[str]) -> None:
  if problems:
    more = len(problems) - _MOST_LISTED
    tail = [f"and {more} more"] if more > 0 else []
    raise ValueError("\n".join(problems[:_MOST_LISTED] + tail))
