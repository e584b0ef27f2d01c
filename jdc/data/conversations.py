"""Instruction data: records of the usual formats as conversations."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jdc.data import formats
from jdc.data.sources import OnBadRecord, ReadReport, read_records

Role = Literal["system", "user", "assistant"]
Format = Literal["auto", "alpaca", "sharegpt", "messages"]

ACCEPTED = (
  "alpaca (fields 'instruction' and 'output', optionally 'input', 'system' and 'history'), "
  "sharegpt (field 'conversations' of 'from' and 'value', optionally 'system') and messages "
  "(field 'messages' of 'role' and 'content')"
)
FORMATS = ("auto", "alpaca", "sharegpt", "messages")
_ORDER = (
  "accepted: a system message first or none, then user and assistant in turn, the assistant "
  "last"
)
_PAIR: tuple[Role, Role] = ("user", "assistant")
_MARKS = {"alpaca": "instruction", "sharegpt": "conversations", "messages": "messages"}
_TURN_FIELDS = {"sharegpt": ("from", "value"), "messages": ("role", "content")}
_ROLES: dict[str, dict[str, Role]] = {
  "sharegpt": {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
  },
  "messages": {"system": "system", "user": "user", "assistant": "assistant"},
}
# Fields of a message that change what it means or whether it is trained on.
_UNSUPPORTED = ("tool_calls", "function_call", "weight")


class Message(NamedTuple):
  """One turn of a conversation.

  `input` is the alpaca format's text beside the instruction; prompts without a place for it
  use `text`.
  """

  role: Role
  content: str
  input: str = ""

  @property
  def text(self) -> str:
    """The content, and the input after a line break where there is one."""
    return f"{self.content}\n{self.input}" if self.input else self.content


class Conversation(NamedTuple):
  """Messages, where they stand, and what the source holds there, for a quarantine file."""

  messages: tuple[Message, ...]
  where: str
  raw: Any = None


def read_conversations(
  paths: Iterable[str | Path],
  format: Format = "auto",  # noqa: A002
  on_bad_record: OnBadRecord = "error",
  quarantine: str | Path | None = None,
  report: ReadReport | None = None,
) -> Iterator[Conversation]:
  """Reads conversations one at a time, in the order of the sources.

  The files are those of `sources.read_documents` except text files; lists of messages in
  Parquet are columns of lists of structs. A bad record is one that `messages_of` refuses.

  Args:
    paths: files and TFDS sources.
    format: of every record, or "auto": found record by record.
    on_bad_record: "error" or "quarantine", as in `sources.read_documents`.
    quarantine: the file of bad records.
    report: counts conversations and bad records.

  Raises:
    ValueError: as `sources.read_documents`; or if the format is unknown.
  """
  if format not in FORMATS:
    raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")

  def parse(record: formats.Record) -> tuple[Conversation, str]:
    if record.error:
      return Conversation((), record.where), record.error
    try:
      messages = messages_of(record.fields, format)
    except ValueError as error:
      return Conversation((), record.where), str(error)
    return Conversation(tuple(messages), record.where, record.raw), ""

  accepted = "a conversation" if format == "auto" else f"a conversation in the format {format}"
  return read_records(
    paths, parse, accepted, None, on_bad_record, quarantine, report or ReadReport()
  )


def messages_of(fields: Mapping[str, Any], format: Format = "auto") -> list[Message]:  # noqa: A002
  """Returns the messages of one record, checked by `check`.

  alpaca: `instruction` (and `input`) ask, `output` answers; `history` holds earlier pairs of
  the two, `system` a system message. sharegpt: `conversations`, a list of `from` (human or
  user, gpt, chatgpt or assistant, system) and `value`; `system` may stand beside it.
  messages: `messages`, a list of `role` (user, assistant, system) and `content`. Fields that
  are null count as absent, an empty `system` and `input` too; other fields are left alone.

  Args:
    fields: of the record; strings may be bytes in UTF-8.
    format: "alpaca", "sharegpt" or "messages"; "auto" tells them by `instruction`,
      `conversations` and `messages`.

  Raises:
    ValueError: if the format is not to be told, a field is absent or no string, a role is
      unknown, or `check` refuses the messages.

  Example:
    >>> messages_of({"instruction": "Add.", "input": "1 + 2", "output": "3"})
    [Message(role='user', content='Add.', input='1 + 2'),
     Message(role='assistant', content='3', input='')]
  """
  present = {name: value for name, value in fields.items() if value is not None}
  found = format if format != "auto" else _format_of(present)
  if _MARKS[found] not in present:
    raise ValueError(
      f"field {_MARKS[found]!r} is absent; fields present: {sorted(present)}; accepted: "
      f"{ACCEPTED}"
    )
  messages = _alpaca(present) if found == "alpaca" else _turns(present, found)
  check(messages)
  return messages


def check(messages: Sequence[Message]) -> None:
  """Raises a ValueError unless the roles are in order and no user or assistant is silent."""
  problems = []
  turns = messages[1:] if messages and messages[0].role == "system" else messages
  offset = len(messages) - len(turns) + 1
  for number, message in enumerate(turns, start=offset):
    expected = _PAIR[(number - offset) % 2]
    if message.role != expected:
      problems.append(f"message {number} is of role {message.role!r} where {expected!r} is due")
      break
  if not problems and (not turns or turns[-1].role != "assistant"):
    problems.append("there is no response: the last message is not the assistant's")
  problems = [f"{problem}; {_ORDER}" for problem in problems]
  for number, message in enumerate(turns, start=offset):
    if not message.text.strip():
      name = "the response" if message.role == "assistant" else "the text"
      problems.append(f"{name} of message {number} (role {message.role!r}) is empty")
  if problems:
    raise ValueError("; ".join(problems))


def check_prompt(messages: Sequence[Message]) -> None:
  """Raises a ValueError unless a response of the assistant may follow the messages."""
  check([*messages, Message("assistant", "-")])


def _format_of(present: Mapping[str, Any]) -> str:
  found = [name for name, field in _MARKS.items() if field in present]
  if len(found) != 1:
    what = f"may be any of {', '.join(found)}" if found else "is of no known format"
    raise ValueError(
      f"the record {what}; fields present: {sorted(present)}; accepted: {ACCEPTED}; name the "
      "format where records have several of these fields"
    )
  return found[0]


def _alpaca(fields: Mapping[str, Any]) -> list[Message]:
  messages = _system(fields)
  history = fields.get("history", [])
  if not isinstance(history, list):
    raise ValueError(f"field 'history' is of type {type(history).__name__}, not a list")
  for number, pair in enumerate(history, start=1):
    if not isinstance(pair, list | tuple) or len(pair) != 2:
      raise ValueError(f"entry {number} of 'history' is no pair of instruction and output")
    for role, text in zip(_PAIR, pair, strict=True):
      messages.append(Message(role, _text(text, f"entry {number} of 'history'")))
  if "output" not in fields:
    raise ValueError(
      f"there is no response: field 'output' is absent; fields present: {sorted(fields)}"
    )
  instruction = _text(fields["instruction"], "field 'instruction'")
  context = _text(fields.get("input", ""), "field 'input'")
  messages.append(Message("user", instruction, context))
  messages.append(Message("assistant", _text(fields["output"], "field 'output'")))
  return messages


def _turns(fields: Mapping[str, Any], found: str) -> list[Message]:
  turns = fields[_MARKS[found]]
  if not isinstance(turns, list):
    raise ValueError(f"field {_MARKS[found]!r} is of type {type(turns).__name__}, not a list")
  messages = _system(fields) if found == "sharegpt" else []
  role_field, text_field = _TURN_FIELDS[found]
  for number, turn in enumerate(turns, start=1):
    where = f"message {number}"
    if not isinstance(turn, Mapping):
      raise ValueError(f"{where} is of type {type(turn).__name__}, not an object")
    if given := [name for name in _UNSUPPORTED if turn.get(name) not in (None, [], {})]:
      raise ValueError(f"{where}: fields {given} are not supported")
    if missing := [name for name in (role_field, text_field) if name not in turn]:
      raise ValueError(
        f"{where} has no {missing[0]!r}; fields present: {sorted(turn)}; accepted: {ACCEPTED}"
      )
    role = _text(turn[role_field], f"{role_field!r} of {where}")
    if role not in _ROLES[found]:
      raise ValueError(f"{where}: role {role!r} is unknown; accepted: {list(_ROLES[found])}")
    text = _text(turn[text_field], f"{text_field!r} of {where}")
    messages.append(Message(_ROLES[found][role], text))
  return messages


def _system(fields: Mapping[str, Any]) -> list[Message]:
  text = _text(fields.get("system", ""), "field 'system'")
  return [Message("system", text)] if text else []


def _text(value: Any, name: str) -> str:
  try:
    text = value.decode("utf-8") if isinstance(value, bytes) else value
    if not isinstance(text, str):
      raise ValueError(f"{name} is of type {type(value).__name__}, not a string")
    text.encode("utf-8")
  except UnicodeError as error:
    raise ValueError(f"{name} is not valid Unicode: {error}") from error
  return text
