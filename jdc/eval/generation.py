"""Written answers, compared with the right ones as texts or as numbers."""

import functools
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from jdc.eval.means import mean_and_error
from jdc.eval.questions import Problem
from jdc.eval.task import Outcome, Task
from jdc.eval.text_model import TextModel
from jdc.models.batching import listed

MARK = "####"
# Where a model goes on to the next question; lm-eval stops GSM8K there too.
STOP_TEXTS = ("Question:",)
_NUMBER = re.compile(
  r"(?P<sign>(?<![\w)])-)?[$€£]?\s?"
  r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
)


def written_answers(
  name: str,
  problems: Sequence[Problem],
  shots: Sequence[Problem],
  numeric: bool,
  max_new_tokens: int = 256,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  seed: int = 0,
) -> Task:
  r"""Lets a model write an answer after "Question: QUESTION\nAnswer:", and compares it.

  The shots stand before, each as "Question: QUESTION\nAnswer: ANSWER" and an empty line. A
  completion ends with EOS, at "Question:" or after `max_new_tokens`.

  `exact_match`: the final answers are the same text. A final answer is the rest of the line
  after the first "####", or the whole text where there is none, without spaces around it.
  `numeric_match`: they are the same number; see `number`.

  Args:
    name: of the task.
    problems: with their right answers.
    shots: all of them are shown.
    numeric: whether `numeric_match` is a metric too; every answer holds a number then.
    max_new_tokens: of an answer.
    temperature: as in `jdc.models.generate`, as are the following.
    top_k: of the draws.
    top_p: of the draws.
    seed: of the draws.

  Returns:
    A task with the metrics, their standard errors and `share_stopped`, the share of completions
    that ended before `max_new_tokens`. Its records have the completions.

  Raises:
    ValueError: when prepared, listing prompts that leave no room for the answer.

  References:
    Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021, arXiv:2110.14168.
  """
  settings = {
    "num_shots": len(shots),
    "num_questions": len(problems),
    "max_new_tokens": max_new_tokens,
    "temperature": temperature,
    "top_k": top_k,
    "top_p": top_p,
    "seed": seed,
    "stop_texts": list(STOP_TEXTS),
  }
  options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
  head = "".join(f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots)
  prepare = functools.partial(_prepare, problems, head, numeric, max_new_tokens, options)
  return Task(name, settings, prepare)


def final_answer(text: str) -> str:
  """Returns the rest of the line after the first "####", or the whole text; stripped.

  Example:
    >>> final_answer("6 * 7 = 42\\n#### 42 apples\\nQuestion")
    '42 apples'
  """
  _, mark, after = text.partition(MARK)
  return (after.strip().split("\n")[0] if mark else text).strip()


def number(text: str) -> Decimal | None:
  """Returns the first number after the first "####", or else the last number of the text.

  Commas between thousands, a currency sign, leading and trailing zeros and what follows do not
  matter. A minus right after a letter, a digit or a bracket is a subtraction or a hyphen.

  Returns:
    The number; `None` where there is none.

  Example:
    >>> number("so it costs $1,234.50."), number("#### -3 or 4"), number("10-5=5.0")
    (Decimal('1234.50'), Decimal('-3'), Decimal('5.0'))
  """
  _, mark, after = text.partition(MARK)
  found = list(_NUMBER.finditer(after if mark else text))
  if not found:
    return number(text.partition(MARK)[0]) if mark else None
  chosen = found[0] if mark else found[-1]
  value = Decimal(chosen["digits"].replace(",", ""))
  return -value if chosen["sign"] else value


def number_problem(answer: str) -> str:
  """Returns what is wrong with the answer of a problem that is compared as a number."""
  return "" if number(answer) is not None else f"the answer holds no number: {answer[-40:]!r}"


def _prepare(
  problems: Sequence[Problem],
  head: str,
  numeric: bool,
  max_new_tokens: int,
  options: dict[str, Any],
  model: TextModel,
) -> Callable[[], Outcome]:
  texts = [f"{head}Question: {problem.question}\nAnswer:" for problem in problems]
  prompts = model.prompts(texts)
  room = model.context_length - max_new_tokens
  if model.context_length and (bad := [i for i, p in enumerate(prompts) if len(p) > room]):
    found = listed([f"{problems[i].where} ({len(prompts[i])} ids)" for i in bad])
    raise ValueError(
      f"prompts and max_new_tokens {max_new_tokens} must fit the context of "
      f"{model.context_length} positions; too long: {found}"
    )

  def run() -> Outcome:
    completions = model.generate(prompts, max_new_tokens, STOP_TEXTS, **options)
    records = []
    for problem, completion in zip(problems, completions, strict=True):
      text = model.text_of(completion, STOP_TEXTS)
      record = {
        "where": problem.where,
        "question": problem.question,
        "answer": problem.answer,
        "completion": text,
        "num_tokens": len(completion.ids),
        "log_probability": sum(completion.log_probabilities),
        "stopped": completion.stopped,
        "exact_match": final_answer(text) == final_answer(problem.answer),
      }
      if numeric:
        record["numeric_match"] = number(text) == number(problem.answer)
      records.append(record)
    return Outcome(_metrics(records, numeric), records)

  return run


def _metrics(records: list[dict[str, Any]], numeric: bool) -> dict[str, float]:
  metrics: dict[str, float] = {}
  for name in ("exact_match", "numeric_match") if numeric else ("exact_match",):
    mean, error = mean_and_error([record[name] for record in records])
    metrics |= {name: mean, f"{name}_standard_error": error}
  metrics["share_stopped"], _ = mean_and_error([r["stopped"] == "stop" for r in records])
  metrics["count"] = len(records)
  return metrics
