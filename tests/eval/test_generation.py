"""Tests of written answers: numbers, prompts, scores."""

from decimal import Decimal
from types import SimpleNamespace

import pytest

from jdc.eval.generation import final_answer, number, number_problem, written_answers
from jdc.eval.questions import Problem


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("#### 42", "42"),
    ("6 * 7\n#### 42\n\nQuestion: 7", "42"),
    ("#### $1,234.50.", "1234.5"),
    ("####-7", "-7"),
    ("#### 18 dollars, not 20", "18"),
    ("first 3\n#### none", "3"),
    ("The answer is 1,000,000.", "1000000"),
    ("She has 5 apples and 12 pears.", "12"),
    ("10-4", "4"),
    ("x = -4", "-4"),
    ("(-$3.25)", "-3.25"),
    ("$-3", "-3"),
    ("3,4", "4"),
    ("1,2345", "2345"),
    (".5 of it", "0.5"),
    ("45.00", "45"),
    ("20%", "20"),
    ("no number", None),
    ("", None),
  ],
)
def test_number(text, expected):
  assert number(text) == (None if expected is None else Decimal(expected))


def test_final_answer():
  assert final_answer("reasons\n####  blue  \nmore #### red") == "blue"
  assert final_answer(" blue\n") == "blue"
  assert final_answer("####") == ""


def test_an_answer_without_a_number_is_a_problem():
  assert number_problem("#### 3") == ""
  assert "holds no number: 'many'" in number_problem("many")


PROBLEMS = [
  Problem("1 + 1?", "One and one.\n#### 2", "gsm:1"),
  Problem("A thousand?", "#### 1,000", "gsm:2"),
  Problem("3?", "#### 3", "gsm:3"),
]


class Writer:
  """Stands in for a model: ids are the bytes of texts, completions are given."""

  context_length = 0

  def __init__(self, *texts):
    self.texts = texts

  def prompts(self, texts):
    return [text.encode() for text in texts]

  def generate(self, prompts, max_new_tokens, stop_texts, **options):
    self.prompts, self.options = [p.decode() for p in prompts], options
    return [
      SimpleNamespace(
        ids=text.encode(), log_probabilities=[-1.0, -0.5], stopped=("stop", "length")[i == 0]
      )
      for i, text in enumerate(self.texts)
    ]

  def text_of(self, completion, stop_texts):
    return completion.ids.decode()


def test_scores():
  model = Writer(" so #### 2", " it is $1000.", " #### 4")
  options = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": 7}
  task = written_answers("gsm", PROBLEMS, PROBLEMS[:1], True, 20, **options)
  outcome = task.prepare(model)()
  shot = "Question: 1 + 1?\nAnswer: One and one.\n#### 2\n\n"
  assert model.prompts[1] == f"{shot}Question: A thousand?\nAnswer:"
  assert model.options == options
  assert outcome.metrics["exact_match"] == pytest.approx(1 / 3)
  assert outcome.metrics["numeric_match"] == pytest.approx(2 / 3)
  assert outcome.metrics["numeric_match_standard_error"] == pytest.approx(1 / 3)
  assert outcome.metrics["share_stopped"] == pytest.approx(2 / 3)
  assert outcome.metrics["count"] == 3
  assert outcome.records[1] == {
    "where": "gsm:2",
    "question": "A thousand?",
    "answer": "#### 1,000",
    "completion": " it is $1000.",
    "num_tokens": 13,
    "log_probability": -1.5,
    "stopped": "stop",
    "exact_match": False,
    "numeric_match": True,
  }


def test_answers_that_are_texts():
  task = written_answers("match", PROBLEMS[:2], [], False, 20)
  outcome = task.prepare(Writer("2", "1000"))()
  assert outcome.metrics["exact_match"] == 0.5
  assert "numeric_match" not in outcome.metrics | outcome.records[0]


def test_lists_prompts_without_room_for_an_answer():
  model = Writer()
  model.context_length = 40
  with pytest.raises(ValueError, match=r"gsm:1 \(24 ids\), gsm:2 \(29 ids\)") as caught:
    written_answers("gsm", PROBLEMS, [], True, 18).prepare(model)
  assert "gsm:3" not in str(caught.value)
