"""Instruction data: records of the usual formats as lists of messages."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pyarrow as pa

To = Literal["messages"]

ACCEPTED = (
  "alpaca (instruction, output; input, system, history), sharegpt (conversations of from and "
  "value; system), messages (of role and content), prompt and response or completion, question "
  "and answer, instruction and response (with context, system)"
)
# The fields that ask, stand beside the question, and answer.
_PAIRS = (
  ("instruction", "input", "output"),
  ("instruction", "context", "response"),
  ("prompt", "", "response"),
  ("prompt", "", "completion"),
  ("question", "", "answer"),
)
_LISTS = {"conversations": ("from", "value"), "messages": ("role", "content")}
_ROLES = {
  "system": "system",
  **dict.fromkeys(("user", "human", "prompter"), "user"),
  **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
}
_UNSUPPORTED = ("tool_calls", "function_call", "weight")


class Normalized(NamedTuple):
  """Records with the field `messages`; those that could not be read are as they were."""

  fields: pa.StringArray
  problem: list[str]  # "" where the record was read, else what is wrong with it


def sft_normalize(fields: pa.StringArray, to: To = "messages") -> Normalized:
  """Rewrites records of the usual formats as a list of messages of role and content.

  The field `messages` takes the place of the fields that it was made of; others stay. The
  messages are a system message or none, then user and assistant in turn, the assistant last;
  contents may be empty, which `sft_signals` tells. An alpaca record's `input` follows its
  instruction after a line break.

  Args:
    fields: n records as JSON objects.
    to: "messages".

  Returns:
    The n records and what is wrong with those of no known format, an unknown role, contents
    that are no strings, or another order of roles.

  Raises:
    ValueError: if `to` is unknown.

  Example:
    >>> done = sft_normalize(pa.array(['{"id": 7, "prompt": "1+1?", "response": "2"}']))
    >>> print(done.fields[0].as_py(), done.problem)
    {"id": 7, "messages": [{"role": "user", "content": "1+1?"},
     {"role": "assistant", "content": "2"}]} ['']
  """
  if to != "messages":
    raise ValueError(f"to must be 'messages', got {to!r}")
  records, problems = [], []
  for value in fields.to_pylist():
    try:
      records.append(_dumps(_normalize(json.loads(value))))
      problems.append("")
    except ValueError as error:
      records.append(value)
      problems.append(str(error))
  return Normalized(pa.array(records, pa.string()), problems)


def sft_text(fields: pa.StringArray) -> pa.StringArray:
  """Returns the contents of each record's messages, blank lines between, as one text.

  It is what operators on text read of instruction data.

  Args:
    fields: n records with the field `messages`.
  """
  return pa.array([joined(messages_of(value)) for value in fields.to_pylist()], pa.string())


def joined(messages: Sequence[Mapping[str, str]]) -> str:
  """Returns the contents of messages, blank lines between."""
  return "\n\n".join(turn["content"] for turn in messages)


def messages_of(value: str) -> list[dict[str, str]]:
  """Returns the messages of a record that `sft_normalize` wrote.

  Raises:
    ValueError: if the record has no messages.
  """
  messages = json.loads(value).get("messages")
  if not isinstance(messages, list):
    raise ValueError(f"a record without messages, run sft_normalize first: {value[:80]}")
  return messages


def are_messages(value: Any) -> bool:
  """Whether a field is what `sft_normalize` makes of it, not another one of its name."""
  return (
    isinstance(value, list)
    and bool(value)
    and all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in value)
  )


def _dumps(record: Any) -> str:
  text = json.dumps(record, ensure_ascii=False)
  # Lone surrogates, which JSON can hold and UTF-8 cannot, stay escaped.
  return text if _is_unicode(text) else json.dumps(record)


def _is_unicode(text: str) -> bool:
  try:
    text.encode("utf-8")
  except UnicodeEncodeError:
    return False
  return True


def _normalize(record: Any) -> dict[str, Any]:
  if not isinstance(record, dict):
    raise ValueError(f"a JSON {type(record).__name__}, not an object")
  present = {name: value for name, value in record.items() if value is not None}
  messages, used = _read(present)
  _check(messages)
  rest = {name: value for name, value in record.items() if name not in used}
  return {**rest, "messages": messages}


def _read(record: Mapping[str, Any]) -> tuple[list[dict[str, str]], set[str]]:
  lists = [name for name in _LISTS if name in record]
  pairs = [pair for pair in _PAIRS if pair[0] in record and pair[2] in record]
  if len(lists) + len(pairs) != 1:
    what = "several formats at once" if lists or pairs else "no known format"
    raise ValueError(f"{what}: fields {sorted(record)}; accepted: {ACCEPTED}")
  messages = []
  if record.get("system", "") != "" and lists != ["messages"]:
    messages.append(_message("system", record["system"], "field 'system'"))
  if lists:
    return messages + _from_list(record[lists[0]], *_LISTS[lists[0]]), {lists[0], "system"}
  for number, pair in enumerate(record.get("history", []), start=1):
    if not isinstance(pair, list) or len(pair) != 2:
      raise ValueError(f"entry {number} of 'history' is no pair of question and answer")
    for role, content in zip(("user", "assistant"), pair, strict=True):
      messages.append(_message(role, content, f"entry {number} of 'history'"))
  ask, beside, answer = pairs[0]
  question = _message("user", record[ask], f"field {ask!r}")
  if beside and record.get(beside, "") != "":
    question["content"] += "\n" + _message("", record[beside], f"field {beside!r}")["content"]
  messages += [question, _message("assistant", record[answer], f"field {answer!r}")]
  return messages, {ask, beside, answer, "system", "history"}


def _from_list(turns: Any, role_field: str, text_field: str) -> list[dict[str, str]]:
  if not isinstance(turns, list):
    raise ValueError(f"the messages are of type {type(turns).__name__}, not a list")
  messages = []
  for number, turn in enumerate(turns, start=1):
    where = f"message {number}"
    if not isinstance(turn, dict):
      raise ValueError(f"{where} is of type {type(turn).__name__}, not an object")
    if given := [name for name in _UNSUPPORTED if turn.get(name) not in (None, [], {})]:
      raise ValueError(f"{where}: fields {given} are not supported")
    if missing := [name for name in (role_field, text_field) if turn.get(name) is None]:
      raise ValueError(f"{where} has no {missing}; fields present: {sorted(turn)}")
    role = _ROLES.get(turn[role_field]) if isinstance(turn[role_field], str) else None
    if role is None:
      raise ValueError(f"{where}: unknown role {turn[role_field]!r}; accepted: {list(_ROLES)}")
    messages.append(_message(role, turn[text_field], where))
  return messages


def _message(role: str, content: Any, where: str) -> dict[str, str]:
  if not isinstance(content, str):
    raise ValueError(f"{where} is of type {type(content).__name__}, not a string")
  if not _is_unicode(content):
    raise ValueError(f"{where} is not valid Unicode: it holds a lone surrogate")
  return {"role": role, "content": content}


def _check(messages: list[dict[str, str]]) -> None:
  roles = [message["role"] for message in messages]
  turns = roles[1:] if roles[:1] == ["system"] else roles
  if not turns or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
    raise ValueError(
      f"roles {roles}; accepted: a system message first or none, then user and assistant in "
      "turn, the assistant last"
    )
