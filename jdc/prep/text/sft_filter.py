"""What speaks against a record of instruction data."""

import itertools
import re

import numpy as np
import pyarrow as pa

from jdc.prep.text.scripts import words
from jdc.prep.text.sft import messages_of

SIGNALS = ("sft_turns", "sft_response_words", "sft_refusals", "sft_copied")
_START = 300  # characters in which a refusal shows

_NOT_EN = (
  "(?:can ?not|can['’]?t|could ?n[o'’]t|won['’]?t|am unable|am not able|['’]m unable|"
  "['’]m not able)"
)
_AI_EN = r"an? (?:ai|artificial intelligence|large)(?: language)? model\b"
# By language: an apology with a denial, a denial of help, a model that says what it is.
REFUSALS = {
  "en": (
    r"^(?:i['’]?m|i am)? ?(?:very |so |really |terribly )?(?:sorry|afraid)\b.{0,60}"
    rf"\b(?:i|as an ai)\b.{{0,40}}{_NOT_EN}",
    rf"^(?:unfortunately,? )?i ?{_NOT_EN} (?:to )?(?:help|assist|provide|comply|fulfil+|answer|"
    "create|generate|write|engage|support|discuss|offer|give|complete|perform|do that|do this|"
    "access|browse)",
    rf"\bas {_AI_EN}|\bas an ai\b(?! \w+ing)",
    rf"\bi(?:['’]m| am) (?:just |only )?{_AI_EN}",
    rf"\bi apologi[sz]e\b.{{0,40}}\bi {_NOT_EN}",
  ),
  "zh": (
    r"^(?:非常|很|十分)?(?:抱歉|对不起|對不起|不好意思|遗憾).{0,30}(?:无法|不能|無法|没有办法|不可以)",
    r"作为(?:一个|一種|一种|一名)?(?:人工智能|AI|ai|大型|语言|大语言).{0,6}(?:模型|助手|程序)",
    r"我(?:只)?是一个?(?:人工智能|AI|ai|语言|大语言).{0,6}(?:模型|助手)",
    r"^我(?:无法|不能)(?:提供|回答|帮助|完成|执行|访问|生成)",
  ),
  "es": (
    r"^lo (?:siento|lamento)\b.{0,40}\bno (?:puedo|me es posible|soy capaz)",
    r"\bcomo (?:un )?modelo de (?:lenguaje|ia)\b",
    r"\bcomo (?:una )?(?:ia|inteligencia artificial)\b",
  ),
  "fr": (
    r"^(?:je suis )?(?:vraiment )?(?:désolée?)\b.{0,40}\bje ne (?:peux|suis) pas",
    r"\ben tant (?:que modèle de langage|que modèle d['’]ia|qu['’](?:ia|intelligence ar\w+))\b",
  ),
  "de": (
    r"^(?:es )?tut mir (?:sehr )?leid\b.{0,40}\b(?:ich )?kann (?:ich )?.{0,40}nicht",
    r"\bals (?:ki|ai|künstliche intelligenz)\b|\bals (?:ki-|ai-|großes )?sprachmodell\b",
  ),
  "pt": (
    r"^(?:desculpe|sinto muito|lamento)\b.{0,40}\bnão (?:posso|consigo)",
    r"\bcomo (?:um )?modelo de (?:linguagem|ia)\b|\bcomo uma (?:ia|inteligência artificial)\b",
  ),
  "it": (
    r"^(?:mi dispiace|spiacente|purtroppo)\b.{0,40}\bnon (?:posso|sono in grado)",
    r"\b(?:come|in quanto) modello (?:linguistico|di linguaggio)\b",
  ),
  "ru": (
    r"^(?:извините|простите|к сожалению|мне жаль)\b.{0,40}\bне (?:могу|имею возможности)",
    r"\bкак (?:языковая модель|искусственный интеллект|ии)\b",
  ),
  "ja": (
    r"^(?:大変)?(?:申し訳|すみません|恐れ入り).{0,60}(?:できません|できかね|できない|いたしかね)",
    r"(?:AI|ai|人工知能|大規模)(?:言語)?(?:モデル|アシスタント)(?:として|なので|ですので)",
  ),
  "ko": (
    r"^(?:죄송|미안).{0,60}(?:수 없|어렵습니다|못합니다)",
    r"(?:AI|인공지능)(?: 언어)? ?(?:모델|어시스턴트)(?:로서|이므로|이기)",
  ),
}
_REFUSAL = re.compile("|".join(p for patterns in REFUSALS.values() for p in patterns), re.I)


def sft_signals(fields: pa.StringArray) -> dict[str, np.ndarray]:
  """Measures records of instruction data.

  Args:
    fields: n records with the field `messages`, as `sft_normalize` writes them.

  Returns:
    i32[n] each: `sft_turns`, messages of the user; `sft_response_words`, words of the shortest
    response (`scripts.words`), 0 where one is empty; `sft_refusals`, responses whose first 300
    characters match one of `REFUSALS`, in any case of letters; `sft_copied`, responses that
    repeat what was asked: the text before them, or its beginning up to a line break, where
    case and white space do not count.

  Raises:
    ValueError: if a record has no messages.

  Example:
    >>> record = '{"messages": [{"role": "user", "content": "Say hi"}, %s]}'
    >>> answers = ["Hi!", "As an AI language model, I do not.", "say  HI"]
    >>> rows = [record % f'{{"role": "assistant", "content": "{text}"}}' for text in answers]
    >>> signals = sft_signals(pa.array(rows))
    >>> signals["sft_refusals"].tolist(), signals["sft_copied"].tolist()
    ([0, 1, 0], [0, 0, 1])
  """
  table = np.array([_measure(value) for value in fields.to_pylist()], np.int32)
  return dict(zip(SIGNALS, table.reshape(-1, len(SIGNALS)).T.copy(), strict=True))


def sft_filter(
  signals: dict[str, np.ndarray],
  min_response: int = 1,
  drop_refusals: bool = True,
  max_turns: int | None = None,
  drop_copied: bool = True,
) -> np.ndarray:
  """Returns the reason for which each record goes, "" where it stays: the first that applies.

  Args:
    signals: of `sft_signals`.
    min_response: words that every response must have, at least 0.
    drop_refusals: drop records with a refusal.
    max_turns: the most messages of the user, at least 1; `None` for no bound.
    drop_copied: drop records with a response that repeats what was asked.

  Returns:
    reasons U[n]: "response_words", "refusal", "turns" or "copied".

  Raises:
    ValueError: if a bound is out of its range.
  """
  problems = []
  if min_response < 0:
    problems.append(f"min_response must be at least 0, got {min_response}")
  if max_turns is not None and max_turns < 1:
    problems.append(f"max_turns must be at least 1 or None, got {max_turns}")
  if problems:
    raise ValueError("; ".join(problems))
  rules = {
    "response_words": signals["sft_response_words"] < min_response,
    "refusal": drop_refusals & (signals["sft_refusals"] > 0),
    "turns": signals["sft_turns"] > (np.inf if max_turns is None else max_turns),
    "copied": drop_copied & (signals["sft_copied"] > 0),
  }
  return np.select(list(rules.values()), list(rules), "")


def is_refusal(response: str) -> bool:
  """Whether the start of a response matches one of `REFUSALS`.

  Example:
    >>> is_refusal("I'm sorry, but I can't help with that."), is_refusal("I'm sorry for him.")
    (True, False)
  """
  return _REFUSAL.search(response.strip()[:_START]) is not None


def _measure(value: str) -> tuple[int, int, int, int]:
  messages = messages_of(value)
  pairs = [
    (asked["content"], answer["content"])
    for asked, answer in itertools.pairwise(messages)
    if answer["role"] == "assistant"
  ]
  return (
    sum(message["role"] == "user" for message in messages),
    min((len(words(answer)) for _, answer in pairs), default=0),
    sum(is_refusal(answer) for _, answer in pairs),
    sum(_is_copy(asked, answer) for asked, answer in pairs),
  )


def _is_copy(asked: str, answer: str) -> bool:
  answer = _plain(answer)
  if not answer:
    return False
  lines = asked.split("\n")
  return any(_plain("\n".join(lines[:end])) == answer for end in range(1, len(lines) + 1))


def _plain(text: str) -> str:
  return " ".join(text.casefold().split())
