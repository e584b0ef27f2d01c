"""What each operator asks of a model, and what it makes of the answers."""

import hashlib
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from jdc.data.formats import import_extra
from jdc.prep.batches import ID_BYTES
from jdc.prep.llm import asked as asked_lib
from jdc.prep.llm import templates
from jdc.prep.llm.answers import Reply
from jdc.prep.llm.asked import ATTEMPTS, Asked
from jdc.prep.llm.params import Generate, Map, ModelParams, Score

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\d)")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL)


class Malformed(ValueError):
  """An answer of no use; another attempt may give a better one."""


class Document(NamedTuple):
  """A document as operators see it."""

  doc_id: bytes
  text: str
  fields: dict[str, Any]

  @property
  def values(self) -> dict[str, Any]:
    """What prompts may name."""
    return {**self.fields, "text": self.text}


class Work:
  """An operator at work.

  Args:
    params: its parameters, without problems.
  """

  def __init__(self, params: ModelParams):
    self.params = params
    self.asked = asked = asked_lib.resolve(params)
    self.samples = params.samples if isinstance(params, Map) else 1
    self._user = templates.parse(asked.user, quote=params.quote)
    self._system = {"role": "system", "content": asked_lib.system_message(params, asked)}
    self._fixed = asked_lib.fixed_part(params, asked)
    self._check = _checker(asked.schema)
    self._apply = _APPLY[type(params)]
    # What is not sent, and sets requests apart.
    self._likelihood = isinstance(params, Score) and params.by == "likelihood"
    self._apart = (params.version, int(self._likelihood))

  @property
  def options(self) -> list[str]:
    """The answers that likelihoods are compared of."""
    low, high = self.asked.bounds
    return [str(n) for n in range(int(low), int(high) + 1)] if self._likelihood else []

  def messages(self, document: Document) -> list[dict[str, str]]:
    """Returns what is asked of a document; `templates.MissingField` where it lacks a field."""
    user = {"role": "user", "content": self._user.render(document.values)}
    return [self._system, user] if self._system["content"] else [user]

  def body(self, messages: list[dict[str, str]], sample: int, attempt: int) -> bytes:
    """Returns the request of a sample's attempt."""
    sampling = self.params.sampling
    held = {**self._fixed, "messages": messages}
    if sampling.seed is not None:
      held["seed"] = sampling.seed + ATTEMPTS * sample + attempt
    if attempt and sampling.temperature is not None:
      held["temperature"] = max(sampling.temperature, sampling.retry_temperature)
    return orjson.dumps(held, option=orjson.OPT_SORT_KEYS)

  def apart(self, sample: int, attempt: int) -> tuple[int, ...]:
    """Returns what sets a request apart from others that send the same."""
    return (*self._apart, sample, attempt)

  def read(self, reply: Reply) -> Any:
    """Returns the value that an answer holds.

    Raises:
      Malformed: saying why it is of no use.
    """
    if self._likelihood:
      return _mean(orjson.loads(reply.content), int(self.asked.bounds[0])), ""
    if reply.finish == "length":
      most = self.params.sampling.max_tokens
      raise Malformed(f"cut off: the answer is longer than max_tokens={most}")
    if reply.finish == "content_filter":
      raise Malformed("filtered: the server withholds the answer")
    if not reply.content.strip():
      raise Malformed("empty answer")
    if self.asked.schema is None:
      value = (
        _number(reply.content) if isinstance(self.params, Score) else reply.content.strip()
      )
    else:
      value = self._value(reply.content)
    if isinstance(self.params, Score):
      return self._score(value)
    return value

  def _value(self, content: str) -> Any:
    if self.params.response != "json_schema" and (fenced := _FENCE.fullmatch(content.strip())):
      content = fenced[1]
    try:
      value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
      raise Malformed(f"not JSON: {error}") from None
    if wrong := self._check(value):
      raise Malformed(f"not as the schema says: {wrong}")
    return value

  def _score(self, value: Any) -> tuple[float, str]:
    score, reason = (
      (value, "") if self.asked.schema is None else (value["score"], value["reason"])
    )
    low, high = self.asked.bounds
    if not (math.isfinite(score) and low <= score <= high):
      raise Malformed(f"out of range: {score} is not in [{low:g}, {high:g}]")
    if self.asked.whole:
      if score != int(score):
        raise Malformed(f"out of range: {score} is not a whole number")
      score = int(score)
    return score, reason

  def apply(self, document: Document, answers: list[Any]) -> list[Document]:
    """Returns the documents that take the place of one, given an answer for each sample."""
    made: list[Document] = self._apply(self.params, self.asked, document, answers)
    return made


def _checker(schema: dict[str, Any] | None) -> Callable[[Any], str]:
  """Returns a function that says what is wrong with a value, empty where nothing is."""
  if schema is None:
    return lambda value: ""
  jsonschema_rs = import_extra("jsonschema_rs", "llm")
  validator = jsonschema_rs.validator_for(schema)

  def check(value: Any) -> str:
    if validator.is_valid(value):
      return ""
    error = next(iter(validator.iter_errors(value)))
    place = ".".join(map(str, error.instance_path)) or "the answer"
    return f"{place}: {error.message[:200]}"

  return check


def _number(text: str) -> float:
  """Returns the one number in the last line of a text."""
  found = _NUMBER.findall(text.strip().splitlines()[-1])
  if len(found) != 1:
    raise Malformed(f"not a score: {len(found)} numbers in the last line")
  return float(found[0])


def _mean(log_likelihoods: list[float], first: int) -> float:
  """Returns sum_k k p_k / sum_k p_k of whole numbers k from the first one on.

  >>> _mean([0.0, -math.inf, 0.0], 3)
  4.0
  """
  most = max(log_likelihoods)
  weights = [math.exp(value - most) for value in log_likelihoods]
  return sum(w * k for k, w in enumerate(weights, first)) / sum(weights)


def _apply_score(
  params: Score, asked: Asked, document: Document, answers: list[Any]
) -> list[Document]:
  score, reason = answers[0]
  fields = {**document.fields, params.into: score}
  if params.reason_into:
    fields[params.reason_into] = reason
  return [Document(document.doc_id, document.text, fields)]


def _apply_map(
  params: Map, asked: Asked, document: Document, answers: list[Any]
) -> list[Document]:
  targets = asked.outputs if asked.schema is not None else {"": params.into}
  fields = dict(document.fields)
  if params.keep_as:
    fields[params.keep_as] = document.text
  text = document.text
  for name, target in targets.items():
    values = [answer[name] if name else answer for answer in answers]
    if target == "text":
      text = values[0]
    else:
      fields[target] = values[0] if params.samples == 1 else values
  return [Document(document.doc_id, text, fields)]


def _apply_generate(
  params: Generate, asked: Asked, document: Document, answers: list[Any]
) -> list[Document]:
  template = templates.parse(params.text, quote=False) if params.text else None
  found = []
  for part, item in enumerate(answers[0][params.items]):
    made = {target: item[name] for name, target in asked.outputs.items()}
    if template is not None:
      text = template.render(made)
    elif "text" in made:
      text = made.pop("text")
    else:
      text = "\n\n".join(
        v if isinstance(v, str) else orjson.dumps(v).decode() for v in made.values()
      )
    fields = {**document.fields, **({params.keep_as: document.text} if params.keep_as else {})}
    fields |= {**made, "parent_id": document.doc_id.hex(), "parent_part": part}
    found.append(Document(child_id(document.doc_id, part), text, fields))
  return found


_APPLY: dict[type[ModelParams], Callable[..., list[Document]]] = {
  Score: _apply_score,
  Map: _apply_map,
  Generate: _apply_generate,
}


def child_id(parent: bytes, part: int) -> bytes:
  """Returns the id of a document that was made of another.

  >>> child_id(bytes(16), 0).hex()
  'e587b44adcba7c94df1cbe272aeef888'
  """
  return hashlib.blake2b(parent + b"generated\0%d" % part, digest_size=ID_BYTES).digest()
