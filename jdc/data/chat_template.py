"""The chat template that a Hugging Face tokenizer brings along."""

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdc.data import tokenize
from jdc.data.chat import Chat, Example, Turns, fingerprint_of
from jdc.data.conversations import Message, check, check_prompt
from jdc.data.formats import import_extra

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_DATE_FORMAT = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_PROBE = (Message("user", "Which one?"), Message("assistant", "This."))
Span = tuple[int, int]  # characters of a rendered conversation

# (messages, whether to begin the next response) -> text, spans that the template marks
_Render = Callable[[Sequence[Message], bool], tuple[str, list[Span]]]


class _Template(NamedTuple):
  render: _Render
  marked: bool  # the template has {% generation %}
  control: re.Pattern[str]  # any special token
  turns: Turns


def from_folder(
  folder: str | Path,
  turns: Turns = "all",
  arguments: Mapping[str, Any] | None = None,
  today: datetime.date | None = None,
) -> Chat:
  """Opens a Hugging Face tokenizer with its chat template; needs the extra `hf`.

  The rendered conversation is tokenized whole, and a token is to be predicted where its
  characters overlap those of a response. Responses are what the template's `{% generation %}`
  marks enclose; without marks, response k is what messages 1..k add to messages 1..k-1 and the
  generation prompt, each of which must begin what follows it. Either way a response runs to
  the last special token within it (or right behind the marks): the line break that some
  templates write after it is not predicted.

  A message that spells a special token is refused. Templates that write the date are given
  `today` instead, so that a conversation is the same tokens on any day.

  Args:
    folder: holds tokenizer.json and the template in chat_template.jinja or
      tokenizer_config.json.
    turns: "all" predicts every response, "last" the last one only.
    arguments: for the template, such as {"enable_thinking": False}; JSON values.
    today: the day for templates that write one.

  Raises:
    ValueError: if the folder holds no tokenizer or no template; or the template refuses a
      question and its answer, does not end a response with a special token, or begins it with
      one that its generation prompt lacks.
    ImportError: if transformers or jinja2 is not installed.
  """
  if turns not in ("all", "last"):
    raise ValueError(f"turns must be 'all' or 'last', got {turns!r}")
  folder, arguments = Path(folder), dict(arguments or {})
  tokenizer = _open(folder)
  source = _source(folder, tokenizer)
  model, special = _model(folder, tokenizer)
  variables = {**tokenizer.special_tokens_map, **arguments}
  control = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
  marked = _MARK.search(source) is not None
  render = _renderer(_dated(source, today) + source, marked, variables)
  template = _Template(render, marked, control, turns)
  special_ids = np.array(sorted(special.values()), np.int32)

  def encode(messages: Sequence[Message]) -> Example:
    check(messages)
    _refuse_special(control, messages)
    text, spans = _responses(template, messages)
    return _example(text, model.encode(text, add_special_tokens=False), spans, special_ids)

  def encode_prompt(messages: Sequence[Message]) -> np.ndarray:
    check_prompt(messages)
    _refuse_special(control, messages)
    text, _ = render(messages, True)
    return np.array(model.encode(text, add_special_tokens=False).ids, np.int32)

  vocab_size = max(model.get_vocab(with_added_tokens=True).values()) + 1

  def decode(ids: Sequence[int] | np.ndarray) -> str:
    return model.decode(tokenize.checked_ids(ids, vocab_size).tolist())

  try:
    _check_generation_prompt(template)
    probe = encode(_PROBE)
  except ValueError as error:
    raise ValueError(f"{folder}: {error}") from error
  stops = {int(probe.ids[probe.counts][-1]), tokenizer.eos_token_id} - {None}
  options = json.dumps([variables, str(today), turns], sort_keys=True, default=str)
  fingerprint = fingerprint_of(model.to_str(), source, options)
  return Chat(encode, encode_prompt, decode, vocab_size, tuple(sorted(stops)), fingerprint)


def _open(folder: Path) -> Any:
  transformers = import_extra("transformers", "hf")
  import_extra("jinja2", "hf")
  if not folder.is_dir():
    raise ValueError(f"{folder}: no such folder of a tokenizer")
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
  except Exception as error:  # the library raises no narrower type
    raise ValueError(f"{folder}: holds no tokenizer: {error}") from error
  if not tokenizer.is_fast:
    raise ValueError(f"{folder}: the tokenizer gives no offsets; accepted: a tokenizer.json")
  return tokenizer


def _source(folder: Path, tokenizer: Any) -> str:
  try:
    return tokenizer.get_chat_template()
  except ValueError as error:
    raise ValueError(
      f"{folder}: the tokenizer has no chat template; accepted: chat_template.jinja beside it, "
      f"or a named plain template ({error})"
    ) from error


def _model(folder: Path, tokenizer: Any) -> tuple[Any, dict[str, int]]:
  """Returns the tokenizer without truncation, padding and boundaries; its special tokens."""
  model = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
  model.no_truncation()
  model.no_padding()
  model.post_processor = None  # it would also cut spaces off the offsets
  added = model.get_added_tokens_decoder().items()
  special = {token.content: token_id for token_id, token in added if token.special}
  if not special:
    raise ValueError(f"{folder}: the tokenizer has no special token to end a response with")
  return model, special


def _dated(source: str, today: datetime.date | None) -> str:
  """Returns a macro that hides the function by which templates ask for the date."""
  if "strftime_now" not in source:
    return ""
  formats = {match[2] for match in _DATE_FORMAT.finditer(source)} if today else set()
  dates = json.dumps({name: today.strftime(name) for name in sorted(formats) if today})
  what = (
    "the chat template writes the date: give `today` (of a run, corpus.template_date), or the "
    "date among `arguments`"
  )
  return (
    "{%- macro strftime_now(format) -%}"
    f"{{{{ {dates}[format] if format in {dates} else raise_exception({json.dumps(what)}) }}}}"
    "{%- endmacro %}\n"  # this line break goes, so that the template begins a line
  )


def _renderer(source: str, marked: bool, variables: Mapping[str, Any]) -> _Render:
  library = import_extra("transformers.utils.chat_template_utils", "hf")

  def render(messages: Sequence[Message], generation: bool) -> tuple[str, list[Span]]:
    try:
      (text,), spans = library.render_jinja_template(
        [[{"role": message.role, "content": message.text} for message in messages]],
        chat_template=source,
        return_assistant_tokens_mask=marked,
        add_generation_prompt=generation,
        **variables,
      )
    except Exception as error:  # a template is a program
      raise ValueError(f"the chat template refuses the messages: {error}") from error
    return text, spans[0] if marked else []

  return render


def _refuse_special(control: re.Pattern[str], messages: Sequence[Message]) -> None:
  for number, message in enumerate(messages, start=1):
    if match := control.search(message.text):
      raise ValueError(
        f"message {number} (role {message.role!r}) spells the special token {match[0]!r}"
      )


def _responses(template: _Template, messages: Sequence[Message]) -> tuple[str, list[Span]]:
  """Returns the rendered conversation and its responses, each with what ends it."""
  text, marks = template.render(messages, False)
  last = len(messages) - 1
  if not template.marked:
    wanted = [
      k
      for k, message in enumerate(messages)
      if message.role == "assistant" and (template.turns == "all" or k == last)
    ]
    spans = [_added(template, messages, k, text) for k in wanted]
  elif template.turns == "last":
    start = len(_prefix(template, messages[:last], True, text))
    spans = [(max(a, start), b) for a, b in marks if b > start]
  else:
    spans = [(a, b) for a, b in marks if b > a]
  if not spans:
    raise ValueError("the chat template marks no response")
  return text, [(a, _end(template, text, a, b)) for a, b in spans]


def _added(template: _Template, messages: Sequence[Message], k: int, text: str) -> Span:
  start = len(_prefix(template, messages[:k], True, text))
  if k == len(messages) - 1:
    return start, len(text)
  return start, len(_prefix(template, messages[: k + 1], False, text))


def _prefix(
  template: _Template, messages: Sequence[Message], generation: bool, text: str
) -> str:
  prefix, _ = template.render(messages, generation)
  if not text.startswith(prefix):
    what = "and the generation prompt" if generation else "alone"
    raise ValueError(
      f"the chat template writes the first {len(messages)} messages {what} in another way than "
      "at the start of the whole conversation, so that responses cannot be found; accepted: a "
      "template with {% generation %} marks, or turns='last' where that keeps the last "
      "response's prompt as it is"
    )
  return prefix


def _end(template: _Template, text: str, start: int, end: int) -> int:
  """Returns the end of the special token that ends a response."""
  inside = [match.end() for match in template.control.finditer(text, start, end)]
  if inside:
    return inside[-1]
  behind = template.control.match(text, end) if template.marked else None
  if behind is None:
    raise ValueError("the chat template ends a response with no special token")
  return behind.end()


def _check_generation_prompt(template: _Template) -> None:
  text, _ = template.render(_PROBE, False)
  prompt = _prefix(template, _PROBE[:1], True, text)
  answer = text.find(_PROBE[1].content, len(prompt))
  header = text[len(prompt) : answer]
  ignored = prompt == template.render(_PROBE[:1], False)[0] and not template.marked
  if answer < 0 or template.control.search(header) or (ignored and header.strip()):
    raise ValueError(
      f"the chat template writes {header!r} before a response but not when it is asked for a "
      "generation prompt (add_generation_prompt)"
    )


def _example(
  text: str, encoding: Any, spans: Sequence[Span], special_ids: np.ndarray
) -> Example:
  ids, byte_starts = tokenize.encoded(text, encoding)
  special = np.isin(ids, special_ids)
  first, end = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
  end = np.maximum(end, first + 1)  # a token of no characters stands before its place
  bytes_at = tokenize.char_byte_starts(text)
  byte_ends = np.append(byte_starts[1:], bytes_at[-1])
  counts, num_bytes = np.zeros(len(ids), bool), np.zeros(len(ids), np.int64)
  for a, b in spans:
    # A special token may swallow spaces behind it: those of a prompt are still the prompt's.
    inside = (first < b) & np.where(special, first >= a, end > a)
    covered = np.minimum(byte_ends, bytes_at[b]) - np.maximum(byte_starts, bytes_at[a])
    num_bytes += np.where(inside & ~special, np.maximum(covered, 0), 0)
    counts |= inside
  if not counts.any() or counts[0]:
    raise ValueError("the chat template leaves no prompt or no response")
  return Example(ids, counts, num_bytes.astype(np.int32))
