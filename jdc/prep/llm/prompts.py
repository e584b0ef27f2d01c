"""Prompts by name, for what the papers on synthesis and model-based selection do."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Prompt(NamedTuple):
  """What is asked, and what the answer looks like.

  Attributes:
    operator: what it is for: `llm_score`, `llm_map` or `llm_generate`.
    system: who answers, and how.
    user: with places for `fields`.
    fields: of the document.
    schema: of the answer, as JSON; `None` for plain text.
    outputs: of a schema, property -> field of the document.
    bounds: of scores, least and greatest.
    whole: of scores, whether they are whole numbers.
  """

  operator: str
  system: str
  user: str
  fields: tuple[str, ...] = ("text",)
  schema: dict[str, Any] | None = None
  outputs: Mapping[str, str] = MappingProxyType({})
  bounds: tuple[float, float] = (0.0, 10.0)
  whole: bool = True


def _object(**properties: Any) -> dict[str, Any]:
  return {
    "type": "object",
    "properties": properties,
    "required": list(properties),
    "additionalProperties": False,
  }


_TEXT = {"type": "string", "minLength": 1}


def _items(**properties: Any) -> dict[str, Any]:
  return _object(items={"type": "array", "items": _object(**properties)})


PROMPTS: dict[str, Prompt] = {
  "educational_value": Prompt(
    "llm_score",
    "You judge how much a text teaches. 0: nothing, such as advertising, lists of links or "
    "broken text. 1: some facts among much else. 2: facts, poorly presented. 3: coherent, "
    "useful at school. 4: clear and well organised, close to a textbook. 5: outstanding "
    "teaching material. Give a reason of one sentence, then the score.",
    "Judge this text.\n\n{text}",
    bounds=(0, 5),
  ),
  "faithfulness": Prompt(
    "llm_score",
    "You compare a rewritten text with its original. 5: it says the same, nothing added and "
    "nothing that matters left out. 3: small additions or omissions. 0: it contradicts the "
    "original or says something else. Name the worst difference in one sentence, then give the "
    "score.",
    "The original:\n\n{original}\n\nThe rewritten text:\n\n{text}",
    ("original", "text"),
    bounds=(0, 5),
  ),
  "rewrite": Prompt(
    "llm_map",
    "You rewrite texts in clear, well organised prose, in their own language. Keep every fact, "
    "number and name. Add nothing. Answer with the rewritten text only.",
    "Rewrite this text.\n\n{text}",
  ),
  "answer": Prompt(
    "llm_map",
    "You answer questions from a given text alone. Think first, then give the answer in as few "
    "words as are needed. If the text does not answer the question, the answer is: unknown",
    "The text:\n\n{context}\n\nThe question:\n\n{question}",
    ("context", "question"),
    _object(reasoning={"type": "string"}, answer=_TEXT),
    {"answer": "checked"},
  ),
  "solve": Prompt(
    "llm_map",
    "You solve problems of mathematics. Reason step by step, and write the final number alone "
    "on the last line, after ####",
    "Solve this problem.\n\n{question}",
    ("question",),
  ),
  "chain_of_thought": Prompt(
    "llm_map",
    "You explain how to come to an answer. Reason step by step from the question to the given "
    "answer, using nothing that the question or common knowledge does not hold. End with the "
    "answer.",
    "The question:\n\n{question}\n\nThe answer:\n\n{answer}",
    ("question", "answer"),
  ),
  "question_answer": Prompt(
    "llm_generate",
    "You write questions for an examination. Each can be answered from the given text alone, "
    "and understood without seeing it; the answers are short and occur in the text. Write up "
    "to five questions on different facts; none if the text holds no facts.",
    "Write questions and answers for this text.\n\n{text}",
    schema=_items(question=_TEXT, answer=_TEXT),
    outputs={"question": "question", "answer": "answer"},
  ),
  "evolve": Prompt(
    "llm_generate",
    "You make tasks harder. From a given task write up to three new ones of the same field, "
    "each different: add a constraint, ask for a deeper reason, make the case more concrete. "
    "Each must be complete, reasonable and answerable without the given task.",
    "The task:\n\n{question}",
    ("question",),
    _items(question=_TEXT),
    {"question": "question"},
  ),
  "math_problems": Prompt(
    "llm_generate",
    "You write problems of mathematics. From a given text or problem write up to three new "
    "problems, each complete, each with a single number as its answer. Solve each with care "
    "before you give its answer.",
    "The text:\n\n{text}",
    schema=_items(
      question=_TEXT, solution=_TEXT, answer={"type": "string", "pattern": "[0-9]"}
    ),
    outputs={"question": "question", "solution": "solution", "answer": "answer"},
  ),
}  # fmt: skip
