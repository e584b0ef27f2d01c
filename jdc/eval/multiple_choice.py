"""Multiple choice by the likelihood of the options."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jdc.eval.likelihood import Likelihood, Request, too_long
from jdc.eval.means import grouped
from jdc.eval.questions import LETTERS, Question, Subject
from jdc.eval.task import Outcome, Task
from jdc.eval.text_model import TextModel

Score = Literal["letter", "text"]
SCORES = ("letter", "text")


def multiple_choice(
  name: str, subjects: Mapping[str, Subject], num_shots: int = 5, score: Score = "letter"
) -> Task:
  r"""Answers each question with the option of the largest log-likelihood; the first of equals.

  With "letter", after MMLU's prompt,

    The following are multiple choice questions (with answers) about SUBJECT.

    QUESTION
    A. OPTION
    ...
    Answer:

  the options are " A", " B" and so on; before the question stand `num_shots` others with their
  answers, the first of the subject's shots. With "text" a prompt is

    Question: QUESTION
    Answer:

  the options are their texts, and accuracy is also found from the log-likelihood divided by
  the UTF-8 bytes of an option's text (`accuracy_per_byte`), lest short options be preferred.

  Args:
    name: of the task.
    subjects: by name; each has at least `num_shots` shots.
    num_shots: >= 0.
    score: "letter" or "text".

  Returns:
    A task with the metrics `accuracy` (and `accuracy_per_byte`), with standard errors, of every
    subject, macro and micro. Its records have the log-likelihood of every option, in nats.

  Raises:
    ValueError: if an argument is out of range; when prepared, listing prompts that are longer
      than the model's context.

  References:
    Hendrycks et al., "Measuring Massive Multitask Language Understanding", 2020,
      arXiv:2009.03300; their prompt has two spaces before SUBJECT, here one as in lm-eval.
    Brown et al., "Language Models are Few-Shot Learners", 2020, arXiv:2005.14165, for the
      likelihood of an option by its length; there in tokens.
  """
  problems = []
  if num_shots < 0:
    problems.append(f"num_shots must be at least 0, got {num_shots}")
  if score not in SCORES:
    problems.append(f"score must be letter or text, got {score!r}")
  if few := [s for s, subject in subjects.items() if len(subject.shots) < num_shots]:
    problems.append(f"fewer than {num_shots} shots in the subjects {', '.join(few)}")
  if problems:
    raise ValueError("; ".join(problems))
  items = [
    _Item(subject_name, question, *_prompt(subject, question, num_shots, score))
    for subject_name, subject in subjects.items()
    for question in subject.test
  ]
  settings = {"num_shots": num_shots, "score": score, "num_questions": len(items)}
  return Task(name, settings, functools.partial(_prepare, items, score))


class _Item(NamedTuple):
  subject: str
  question: Question
  prompt: str
  options: tuple[str, ...]  # what may follow the prompt


def _prompt(
  subject: Subject, question: Question, num_shots: int, score: Score
) -> tuple[str, tuple[str, ...]]:
  if score == "text":
    ask = lambda q: f"Question: {q.question}\nAnswer:"
    options = lambda q: tuple(f" {choice}" for choice in q.choices)
    head = ""
  else:
    ask = _lettered
    options = lambda q: tuple(f" {letter}" for letter in LETTERS[: len(q.choices)])
    about = f" about {subject.title}" if subject.title else ""
    head = f"The following are multiple choice questions (with answers){about}.\n\n"
  shots = [f"{ask(q)}{options(q)[q.answer]}\n\n" for q in subject.shots[:num_shots]]
  return head + "".join(shots) + ask(question), options(question)


def _lettered(question: Question) -> str:
  lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices)]  # noqa: B905
  return "\n".join([question.question, *lines, "Answer:"])


def _prepare(items: list[_Item], score: Score, model: TextModel) -> Callable[[], Outcome]:
  pairs = [(item.prompt, option) for item in items for option in item.options]
  requests = model.requests(pairs)
  wheres = [item.question.where for item in items for _ in item.options]
  if problem := too_long(requests, wheres, model.context_length):
    raise ValueError(f"{problem}; use fewer shots or a model with a longer context")
  return lambda: _outcome(items, requests, model.log_likelihoods(requests), score)


def _outcome(
  items: list[_Item], requests: list[Request], found: list[Likelihood], score: Score
) -> Outcome:
  records: list[dict[str, Any]] = []
  hits: dict[str, dict[str, list[float]]] = {"accuracy": {}}
  if score == "text":
    hits["accuracy_per_byte"] = {}
  start = 0
  for item in items:
    end = start + len(item.options)
    log_probability = np.array([likelihood.log_probability for likelihood in found[start:end]])
    num_bytes = np.array([len(choice.encode("utf-8")) for choice in item.question.choices])
    record = {
      "where": item.question.where,
      "subject": item.subject,
      "answer": item.question.answer,
      "log_probabilities": log_probability.tolist(),
      "num_tokens": [len(request.continuation) for request in requests[start:end]],
    }
    for metric, of_subject in hits.items():
      by = log_probability / num_bytes if metric == "accuracy_per_byte" else log_probability
      chosen = int(np.argmax(by))
      of_subject.setdefault(item.subject, []).append(float(chosen == item.question.answer))
      record["chosen" if metric == "accuracy" else "chosen_per_byte"] = chosen
    records.append(record)
    start = end
  metrics: dict[str, float] = {}
  for metric, of_subject in hits.items():
    metrics |= grouped(of_subject, metric)
  return Outcome(metrics, records)
