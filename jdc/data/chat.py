"""From conversations to tokens, and which of them are to be predicted."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jdc.data.conversations import Message, check, check_prompt
from jdc.data.tokenize import Tokenizer

Turns = Literal["all", "last"]


class Example(NamedTuple):
  """A conversation as n tokens."""

  ids: np.ndarray  # i32[n]
  counts: np.ndarray  # bool[n], True where the token is to be predicted; never the first
  num_bytes: np.ndarray  # i32[n], UTF-8 bytes of a counted token's text, 0 of special ones


class Chat(NamedTuple):
  """Functions between conversations and token ids.

  To be predicted are the tokens of the responses and what ends each of them, so that a model
  learns to stop. Names of special tokens in a message never become these tokens.
  """

  encode: Callable[[Sequence[Message]], Example]  # ValueError: what is wrong with the messages
  encode_prompt: Callable[[Sequence[Message]], np.ndarray]  # i32[n], a response may follow
  decode: Callable[[Sequence[int] | np.ndarray], str]  # without special tokens
  vocab_size: int  # ids are below it
  stop_ids: tuple[int, ...]  # each ends a response
  fingerprint: str  # of everything that decides an example


# (system message or "", user message, whether it is the first) -> the prompt up to the response
_Layout = Callable[[str, Message, bool], str]


def from_tokenizer(tokenizer: Tokenizer, template: str = "plain", turns: Turns = "all") -> Chat:
  r"""Writes conversations in a named plain template, with any tokenizer.

  `plain` heads each message with its role; `alpaca` is the prompt of Stanford Alpaca, in which
  a system message takes the place of the sentence that describes the task, and later turns
  repeat the part from "### Instruction:" on. A response follows its prompt and ends with EOS.

  Prompts and responses are tokenized apart, each as a text of its own, so that the tokens of a
  prompt are those that generation starts from. BOS is put first where the tokenizer has one.

  Args:
    tokenizer: has an EOS token.
    template: "plain" or "alpaca".
    turns: "all" predicts every response, "last" the last one only.

  Raises:
    ValueError: if the template or `turns` is unknown or the tokenizer has no EOS token.

  References:
    Taori et al., Stanford Alpaca: An Instruction-following LLaMA Model, 2023 (its train.py:
    no line break after "### Response:").

  Example:
    >>> from jdc.data.tokenize import byte_tokenizer
    >>> chat = from_tokenizer(byte_tokenizer())
    >>> ids, counts, num_bytes = chat.encode(
    ...   [Message("user", "1+1?"), Message("assistant", "2")]
    ... )
    >>> chat.decode(ids)
    'User:\n1+1?\n\nAssistant:\n2'
    >>> ids[counts].tolist(), int(num_bytes.sum())
    ([50, 257], 1)
  """
  problems = []
  if template not in _LAYOUTS:
    problems.append(f"template must be one of {', '.join(_LAYOUTS)}, got {template!r}")
  if turns not in ("all", "last"):
    problems.append(f"turns must be 'all' or 'last', got {turns!r}")
  if tokenizer.eos_id is None:
    problems.append("the tokenizer has no EOS token to end responses with; name its eos_token")
  if problems:
    raise ValueError("; ".join(problems))
  layout, eos_id = _LAYOUTS[template], tokenizer.eos_id
  assert eos_id is not None

  def encode(messages: Sequence[Message]) -> Example:
    check(messages)
    return _joined(_pieces(tokenizer, layout, messages, eos_id, turns))

  def encode_prompt(messages: Sequence[Message]) -> np.ndarray:
    check_prompt(messages)
    return _joined(_pieces(tokenizer, layout, messages, eos_id, turns)).ids

  return Chat(
    encode,
    encode_prompt,
    tokenizer.decode,
    tokenizer.vocab_size,
    (eos_id,),
    fingerprint_of(template, _samples(layout), turns, tokenizer.fingerprint),
  )


def fingerprint_of(*parts: Any) -> str:
  """Returns a hash of the parts as Python writes them."""
  return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _plain(system: str, user: Message, first: bool) -> str:
  before = "" if first else "\n\n"
  head = f"System:\n{system}\n\n" if system else ""
  return f"{before}{head}User:\n{user.text}\n\nAssistant:\n"


_TASK = "Below is an instruction that describes a task"
_TASKS = {
  False: f"{_TASK}. Write a response that appropriately completes the request.",
  True: f"{_TASK}, paired with an input that provides further context. Write a response that "
  "appropriately completes the request.",
}


def _alpaca(system: str, user: Message, first: bool) -> str:
  context = f"### Input:\n{user.input}\n\n" if user.input else ""
  task = (system or _TASKS[bool(user.input)]) if first else ""
  return f"{task}\n\n### Instruction:\n{user.content}\n\n{context}### Response:"


_LAYOUTS: dict[str, _Layout] = {"plain": _plain, "alpaca": _alpaca}


def _samples(layout: _Layout) -> list[str]:
  users = (Message("user", "u"), Message("user", "u", "i"))
  return [
    layout(s, user, first) for s in ("", "s") for user in users for first in (True, False)
  ]


def _pieces(
  tokenizer: Tokenizer,
  layout: _Layout,
  messages: Sequence[Message],
  eos_id: int,
  turns: Turns,
) -> list[Example]:
  system = messages[0].content if messages[0].role == "system" else ""
  pieces = [] if tokenizer.bos_id is None else [_special(tokenizer.bos_id, False)]
  first = True
  for number, message in enumerate(messages):
    if message.role == "user":
      ids, _ = tokenizer.encode(layout(system if first else "", message, first))
      pieces.append(Example(ids, np.zeros(len(ids), bool), np.zeros(len(ids), np.int32)))
      first = False
    elif message.role == "assistant":
      counted = turns == "all" or number == len(messages) - 1
      pieces += [_response(tokenizer, message.text, counted, number), _special(eos_id, counted)]
  return pieces


def _response(tokenizer: Tokenizer, text: str, counted: bool, number: int) -> Example:
  ids, byte_starts = tokenizer.encode(text)
  if not len(ids):
    raise ValueError(f"the tokenizer makes no tokens of the response in message {number + 1}")
  num_bytes = np.diff(byte_starts, append=np.int32(len(text.encode("utf-8"))))
  return Example(ids, np.full(len(ids), counted), num_bytes if counted else 0 * num_bytes)


def _special(token: int, counted: bool) -> Example:
  return Example(np.array([token], np.int32), np.array([counted]), np.zeros(1, np.int32))


def _joined(pieces: Sequence[Example]) -> Example:
  return Example(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))
