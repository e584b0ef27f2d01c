"""Tests of multiple choice: the prompts word by word, and the sums over questions."""

import math

import numpy as np
import pytest

from jdc.eval.likelihood import Likelihood, Request
from jdc.eval.means import grouped, mean_and_error
from jdc.eval.multiple_choice import multiple_choice
from jdc.eval.questions import Question, Subject

SHOT = Question("One plus one?", ("1", "2", "3", "4"), 1, "dev:1")
FIRST = Question("Red and\nblue?", ("pink", "purple", "no", "é"), 1, "test:1")
SECOND = Question("Up?", ("down", "left"), 0, "test:2")
SUBJECTS = {
  "colour_theory": Subject((FIRST,), (SHOT,), "colour theory"),
  "other": Subject((SECOND, SECOND._replace(where="test:3")), (SHOT,)),
}


class Judge:
  """Stands in for a model: a request is a pair of texts, its likelihood given by a function."""

  context_length = 0

  def __init__(self, judge):
    self.judge = judge
    self.pairs = None

  def requests(self, pairs):
    self.pairs = list(pairs)
    return [Request(tuple(a.encode()), tuple(b.encode())) for a, b in pairs]

  def log_likelihoods(self, requests):
    return [Likelihood(self.judge(bytes(r.continuation).decode()), None) for r in requests]


def test_the_prompt_of_mmlu():
  model = Judge(lambda option: 0.0)
  multiple_choice("quiz", SUBJECTS, num_shots=1).prepare(model)
  head = "The following are multiple choice questions (with answers) about colour theory.\n\n"
  shot = "One plus one?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"
  question = "Red and\nblue?\nA. pink\nB. purple\nC. no\nD. é\nAnswer:"
  assert model.pairs[:4] == [(head + shot + question, f" {letter}") for letter in "ABCD"]
  head = "The following are multiple choice questions (with answers).\n\n"
  prompt = head + shot + "Up?\nA. down\nB. left\nAnswer:"
  assert model.pairs[4:6] == [(prompt, " A"), (prompt, " B")]


def test_the_prompt_for_texts():
  model = Judge(lambda option: 0.0)
  multiple_choice("quiz", SUBJECTS, num_shots=1, score="text").prepare(model)
  prompt = "Question: One plus one?\nAnswer: 2\n\nQuestion: Red and\nblue?\nAnswer:"
  assert model.pairs[:4] == [(prompt, f" {text}") for text in FIRST.choices]


def test_accuracy():
  likelihoods = {" A": -2.0, " B": -1.0, " C": -3.0, " D": -1.0}  # B comes first
  outcome = multiple_choice("quiz", SUBJECTS, 0).prepare(Judge(likelihoods.get))()
  assert outcome.metrics["colour_theory/accuracy"] == 1.0
  assert outcome.metrics["other/accuracy"] == 0.0
  assert outcome.metrics["macro_accuracy"] == 0.5
  assert outcome.metrics["micro_accuracy"] == pytest.approx(1 / 3)
  assert outcome.metrics["micro_accuracy_standard_error"] == pytest.approx(1 / 3)
  assert (outcome.metrics["other/count"], outcome.metrics["count"]) == (2, 3)
  assert outcome.records[0] == {
    "where": "test:1",
    "subject": "colour_theory",
    "answer": 1,
    "log_probabilities": [-2.0, -1.0, -3.0, -1.0],
    "num_tokens": [2, 2, 2, 2],
    "chosen": 1,
  }


def test_accuracy_per_byte():
  # -6 nats over 6 bytes beat -4 over 4, and " é" has two bytes.
  likelihoods = {
    " pink": -5.2,
    " purple": -6.0,
    " no": -4.0,
    " é": -2.2,
    " down": -9.0,
    " left": -8.0,
  }
  task = multiple_choice("quiz", SUBJECTS, 0, "text")
  outcome = task.prepare(Judge(likelihoods.get))()
  assert outcome.records[0]["chosen"] == 3
  assert outcome.records[0]["chosen_per_byte"] == 1
  assert outcome.metrics["colour_theory/accuracy"] == 0.0
  assert outcome.metrics["colour_theory/accuracy_per_byte"] == 1.0


def test_lists_prompts_that_are_too_long():
  model = Judge(lambda option: 0.0)
  model.context_length = 110
  with pytest.raises(ValueError, match=r"test:1 \(\d+ positions\).*use fewer shots") as caught:
    multiple_choice("quiz", SUBJECTS, 0).prepare(model)
  assert "test:2" not in str(caught.value)


def test_rejects():
  with pytest.raises(ValueError) as caught:
    multiple_choice("quiz", SUBJECTS, num_shots=2, score="words")
  assert "colour_theory, other" in str(caught.value)
  assert "score must be letter or text, got 'words'" in str(caught.value)
  with pytest.raises(ValueError, match="num_shots must be at least 0, got -1"):
    multiple_choice("quiz", SUBJECTS, num_shots=-1)


def test_standard_errors():
  rng = np.random.default_rng(0)
  groups = {name: (rng.random(n) < 0.4).tolist() for name, n in (("a", 40), ("b", 90))}
  found = grouped(groups, "accuracy")
  errors = []
  for name, values in groups.items():
    p, n = np.mean(values), len(values)
    errors.append(math.sqrt(p * (1 - p) / (n - 1)))  # of a share
    assert found[f"{name}/accuracy_standard_error"] == pytest.approx(errors[-1])
  macro = math.sqrt(errors[0] ** 2 + errors[1] ** 2) / 2
  assert found["macro_accuracy_standard_error"] == pytest.approx(macro)
  # The macro error is what resampling the questions of each group shows.
  draws = [
    np.mean([rng.choice(values, len(values)).mean() for values in groups.values()])
    for _ in range(4000)
  ]
  assert np.std(draws) == pytest.approx(macro, rel=0.1)


def test_a_single_value_has_no_error():
  mean, error = mean_and_error([3.0])
  assert mean == 3.0
  assert math.isnan(error)
  with pytest.raises(ValueError, match="at least one value"):
    mean_and_error([])
