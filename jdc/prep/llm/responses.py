"""What responses of OpenAI-compatible servers say."""

import email.utils
import re
import time
from typing import Any, NamedTuple

import orjson

from jdc.prep.llm.answers import NOT_TOLD, Reply

_ESCAPED = re.compile(r"\\u00([2-7][0-9a-fA-F])")  # ASCII in JSON
_MOST_TOKENS = 1 << 40  # of a request; a server that tells of more is wrong


class Failure(NamedTuple):
  """A try without an answer."""

  cause: str
  away: bool  # the server cannot answer anything; else this request may be at fault
  wait: float | None = None  # seconds that the server asks for


def parse(data: bytes) -> Reply | Failure:
  """Returns the answer in a response."""
  try:
    value = orjson.loads(data)
    choice = value["choices"][0]
    content = _text(choice["message"].get("content"))
    finish = str(choice.get("finish_reason") or "stop")
  except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
    return Failure(f"a response that is no chat completion: {type(error).__name__}", False)
  if content is not None and not isinstance(content, str):
    return Failure("a response whose content is no text", False)
  usage = value.get("usage")
  told = usage if isinstance(usage, dict) else {}
  prompt, completion = map(_count, (told.get("prompt_tokens"), told.get("completion_tokens")))
  return Reply(content or "", finish, prompt, completion)


def _text(content: Any) -> Any:
  """Returns a content, the texts of one in parts together."""
  if not isinstance(content, list):
    return content
  return "".join(part["text"] for part in content if part["type"] == "text")


def _count(value: Any) -> int:
  """Returns a number of tokens, `NOT_TOLD` where it is none."""
  return value if type(value) is int and 0 <= value <= _MOST_TOKENS else NOT_TOLD


def message(data: bytes) -> str:
  """Returns what an error response says."""
  try:
    value = orjson.loads(data)
    value = value.get("error", value) if isinstance(value, dict) else value
    value = value.get("message", value) if isinstance(value, dict) else value
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
  except ValueError:
    text = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), data.decode("utf-8", "replace"))
  return " ".join(text.split())


def seconds(value: str | None) -> float | None:
  """Returns how long `Retry-After` asks to wait: seconds, or a date."""
  if not value:
    return None
  try:
    return max(0.0, float(value))
  except ValueError:
    pass
  try:
    return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
  except (TypeError, ValueError):
    return None
