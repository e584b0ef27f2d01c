"""Tasks by name and file, as a command line gives them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jdc.eval.domains import domain_perplexity
from jdc.eval.generation import number_problem, written_answers
from jdc.eval.multiple_choice import Score, multiple_choice
from jdc.eval.questions import Problem, read_choices, read_mmlu, read_problems
from jdc.eval.task import Task

KINDS = ("perplexity", "mmlu", "choice", "gsm8k", "match")


class Options(NamedTuple):
  """What all tasks of a command share."""

  num_shots: int = 5
  choice_score: Score = "letter"
  max_new_tokens: int = 256
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0
  sequence_length: int = 0
  max_rows: int | None = None
  text_field: str = "text"
  cache_dir: str = "~/.cache/jdc/rows"


def parse(spec: str, options: Options) -> Task:
  """Reads the files of a task, KIND:PATH or KIND:PATH:SHOTS.

  `perplexity:DIR` are domains of text, `mmlu:DIR` MMLU's CSV files, `choice:FILE` questions
  with options, `gsm8k:FILE` questions with numeric answers, `match:FILE` with any. SHOTS is a
  file like FILE of which the first `num_shots` questions (of each subject) are shown. Where it
  is left out, it is the file beside FILE with "dev" or else "train" in place of "test" in its
  name.

  Raises:
    ValueError: listing what is wrong with the name, the options or the files.
  """
  kind, _, rest = spec.partition(":")
  if kind not in KINDS or not rest:
    raise ValueError(
      f"task {spec!r} must be KIND:PATH or KIND:PATH:SHOTS, KIND one of {', '.join(KINDS)}"
    )
  if options.num_shots < 0:
    raise ValueError(f"num_shots must be at least 0, got {options.num_shots}")
  if kind == "perplexity":
    return domain_perplexity(
      spec,
      rest,
      Path(options.cache_dir).expanduser(),
      options.sequence_length,
      options.max_rows,
      options.text_field,
    )
  if kind == "mmlu":
    subjects = read_mmlu(rest, options.num_shots)
    task = multiple_choice(spec, subjects, options.num_shots, options.choice_score)
    files = [Path(rest, split) for split in ("test", *(["dev"] if options.num_shots else []))]
    return _described(task, (p for folder in files for p in sorted(folder.glob("*.csv"))))
  file, _, shots_file = rest.partition(":")
  shots_file = _shots_file(file, shots_file, options.num_shots)
  if kind == "choice":
    found = read_choices(file, shots_file or None, options.num_shots)
    task = multiple_choice(spec, found, options.num_shots, options.choice_score)
  else:
    task = _written(spec, file, shots_file, kind == "gsm8k", options)
  return _described(task, [Path(p) for p in (file, shots_file) if p])


def _written(spec: str, file: str, shots_file: str, numeric: bool, options: Options) -> Task:
  check = number_problem if numeric else (lambda _: "")
  problems = read_problems(file, check)
  shots: list[Problem] = []
  if options.num_shots:
    shots = read_problems(shots_file, check)
    if len(shots) < options.num_shots:
      raise ValueError(f"{shots_file}: {len(shots)} questions for {options.num_shots} shots")
  return written_answers(
    spec,
    problems,
    shots[: options.num_shots],
    numeric,
    options.max_new_tokens,
    options.temperature,
    options.top_k,
    options.top_p,
    options.seed,
  )


def _shots_file(file: str, given: str, num_shots: int) -> str:
  """Returns the file of shots, "" where none are asked for."""
  if not num_shots or given:
    return given if num_shots else ""
  path = Path(file)
  candidates = [path.with_name(path.name.replace("test", other)) for other in ("dev", "train")]
  for candidate in candidates:
    if candidate != path and candidate.is_file():
      return str(candidate)
  raise ValueError(
    f"{file}: num_shots {num_shots} needs a file of shots, as KIND:FILE:SHOTS; there is no "
    f"{' or '.join(c.name for c in candidates if c != path) or 'file named after it'} beside it"
  )


def _described(task: Task, files: Iterable[Path]) -> Task:
  """The same task, whose settings tell which files it was made of."""
  return task._replace(settings=task.settings | {"files": {str(p): _digest(p) for p in files}})


def _digest(path: Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
