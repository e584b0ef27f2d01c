"""Tests of instruction data: formats, what is refused, what speaks against a record."""

import json

import pyarrow as pa
import pytest

from jdc.data import conversations
from jdc.prep.text.sft import messages_of, sft_normalize, sft_text
from jdc.prep.text.sft_filter import is_refusal, sft_filter, sft_signals


def normalized(*records):
  return sft_normalize(pa.array([json.dumps(record) for record in records]))


def chat(*contents, system=""):
  roles = ["user", "assistant"] * len(contents)
  turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
  return ([{"role": "system", "content": system}] if system else []) + turns


FORMATS = [
  ({"instruction": "Add.", "input": "1 2", "output": "3"}, chat("Add.\n1 2", "3")),
  ({"instruction": "Add.", "input": "", "output": "3", "system": ""}, chat("Add.", "3")),
  (
    {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"},
    chat("a", "b", "c", "d", system="s"),
  ),
  ({"instruction": "a", "context": "c", "response": "b"}, chat("a\nc", "b")),
  ({"prompt": "a", "response": "b"}, chat("a", "b")),
  ({"prompt": "a", "completion": "b", "system": None}, chat("a", "b")),
  ({"question": "a", "answer": "b"}, chat("a", "b")),
  (
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    chat("a", "b"),
  ),
  (
    {
      "conversations": [{"from": "user", "value": "a"}, {"from": "model", "value": "b"}],
      "system": "s",
    },
    chat("a", "b", system="s"),
  ),
  ({"messages": chat("a", "b", "c", "d", system="s")}, chat("a", "b", "c", "d", system="s")),
  ({"messages": chat("a", "")}, chat("a", "")),
]


@pytest.mark.parametrize(("record", "messages"), FORMATS)
def test_formats(record, messages):
  found = normalized({"id": 7, "kind": "é", **record})
  assert found.problem == [""]
  assert json.loads(found.fields[0].as_py()) == {"id": 7, "kind": "é", "messages": messages}
  again = sft_normalize(found.fields)
  assert again.fields == found.fields


@pytest.mark.parametrize(("record", "messages"), FORMATS)
def test_training_reads_the_same_messages(record, messages):
  if all(message["content"] for message in messages):
    found = conversations.messages_of(json.loads(normalized(record).fields[0].as_py()))
    assert [(turn.role, turn.text) for turn in found] == [
      (message["role"], message["content"]) for message in messages
    ]


@pytest.mark.parametrize(
  ("record", "problem"),
  [
    ({"a": 1}, "no known format: fields ['a']"),
    ({"prompt": "a", "response": "b", "messages": []}, "several formats at once"),
    ({"instruction": "a", "output": None}, "no known format"),
    ({"prompt": 3, "response": "b"}, "field 'prompt' is of type int, not a string"),
    ({"prompt": "a", "response": "\ud800"}, "not valid Unicode"),
    ({"messages": "a"}, "the messages are of type str"),
    ({"messages": ["a"]}, "message 1 is of type str"),
    ({"messages": [{"role": "user"}]}, "message 1 has no ['content']"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "unknown role 'tool'"),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "['tool_calls']"),
    ({"messages": chat("a")}, "roles ['user']"),
    ({"messages": []}, "roles []"),
    ({"messages": chat("a", "b")[::-1]}, "roles ['assistant', 'user']"),
    ({"messages": chat("a", "b") + chat("c")}, "the assistant last"),
    ({"instruction": "a", "output": "b", "history": ["c"]}, "entry 1 of 'history'"),
    ([1], "a JSON list, not an object"),
  ],
)
def test_what_is_refused_is_kept_as_it_was(record, problem):
  found = normalized(record, {"prompt": "a", "response": "b"})
  assert problem in found.problem[0]
  assert found.problem[1] == ""
  assert json.loads(found.fields[0].as_py()) == record


def test_lone_surrogates_beside_the_messages_stay():
  found = normalized({"prompt": "é", "response": "b", "other": "\udc80"})
  assert json.loads(found.fields[0].as_py())["other"] == "\udc80"


def test_another_target_is_refused():
  with pytest.raises(ValueError, match="to must be 'messages', got 'alpaca'"):
    sft_normalize(pa.array(["{}"]), to="alpaca")


def test_text_and_messages():
  fields = normalized({"messages": chat("a", "b", system="s")}).fields
  assert sft_text(fields).to_pylist() == ["s\n\na\n\nb"]
  with pytest.raises(ValueError, match="run sft_normalize first"):
    messages_of("{}")


def signals_of(*contents):
  found = sft_signals(normalized({"messages": chat(*contents)}).fields)
  return {name.removeprefix("sft_"): int(values[0]) for name, values in found.items()}


@pytest.mark.parametrize(
  ("contents", "expected"),
  [
    (("Say hi", "Hi there!"), (1, 2, 0, 0)),
    (("a b", "c", "d", "e f 你好"), (2, 1, 0, 0)),
    (("a", " \n"), (1, 0, 0, 0)),
    (("Say  HI\n", "say hi"), (1, 2, 0, 1)),
    (("Add these.\n1 2", "Add these."), (1, 2, 0, 1)),
    (("Correct it.\nHe goes.", "He goes."), (1, 2, 0, 0)),
    (("a", "I'm sorry, but I can't help with that.", "b", "c d"), (2, 2, 1, 0)),
  ],
)
def test_signals(contents, expected):
  assert tuple(signals_of(*contents).values()) == expected


@pytest.mark.parametrize(
  "response",
  [
    "I'm sorry, but I cannot assist with that request.",
    "I am very sorry, but as an AI I can't.",
    "I can't help with that.",
    "I cannot provide medical advice.",
    "Unfortunately, I am unable to answer.",
    "As an AI language model, I do not have feelings.",
    "I’m just an AI model.",
    "I apologize, but I cannot do this.",
    "对不起，我无法回答这个问题。",
    "抱歉，我不能提供这些信息。",
    "作为一个人工智能语言模型，我没有个人观点。",
    "我无法提供您的位置。",
    "Lo siento, pero no puedo ayudarte con eso.",
    "Como modelo de lenguaje, no tengo opiniones.",
    "Je suis désolé, mais je ne peux pas vous aider.",
    "En tant que modèle de langage, je n'ai pas d'avis.",
    "Es tut mir leid, aber ich kann Ihnen dabei nicht helfen.",
    "Als KI-Sprachmodell habe ich keine Meinung.",
    "Desculpe, mas não posso ajudar.",
    "Mi dispiace, ma non posso aiutarti.",
    "Извините, но я не могу помочь с этим.",
    "Как языковая модель, я не имею мнения.",
    "申し訳ありませんが、そのご要望にはお答えできません。",
    "AI言語モデルとして、意見はありません。",
    "죄송하지만 그 요청은 도와드릴 수 없습니다.",
    "AI 언어 모델로서 의견이 없습니다.",
  ],
)
def test_refusals(response):
  assert is_refusal(response)


@pytest.mark.parametrize(
  "response",
  [
    "I'm sorry to hear that. Try to rest.",
    "You can't divide by zero.",
    "I can help with that.",
    "An AI model is trained on data.",
    "She said: I am afraid of dogs.",
    "无法确定的事情很多。",
    "对不起的英文是 sorry。",
    "No puedo más, dijo ella.",
    "Es tut mir leid.",
    "The language model of the year",
    "def cannot_help(): pass",
    "",
    "x" * 300 + " As an AI language model, I cannot.",
  ],
)
def test_what_is_no_refusal(response):
  assert not is_refusal(response)


def test_the_filter_names_the_first_reason():
  fields = normalized(
    {"prompt": "a", "response": ""},
    {"prompt": "a", "response": "b c"},
    {"prompt": "a", "response": "b c d"},
    {"prompt": "q", "response": "As an AI language model, no."},
    {"prompt": "same words here", "response": "Same words here"},
    {"messages": chat("a", "one two three", "b", "four five six")},
  ).fields
  signals = sft_signals(fields)
  run = lambda **options: sft_filter(signals, **options).tolist()
  assert run() == ["response_words", "", "", "refusal", "copied", ""]
  assert run(min_response=0) == ["", "", "", "refusal", "copied", ""]
  assert run(min_response=3)[:3] == ["response_words", "response_words", ""]
  assert run(drop_refusals=False, drop_copied=False) == ["response_words", *[""] * 5]
  assert run(max_turns=1)[-1] == "turns"
  assert run(max_turns=2)[-1] == ""
  with pytest.raises(ValueError, match=r"min_response .* got -1; max_turns .* got 0"):
    run(min_response=-1, max_turns=0)


def test_the_instruction_pool(pool):
  fields = pa.array([json.dumps(row) for row in pool])
  found = sft_normalize(fields)
  assert set(found.problem) == {""}
  signals = sft_signals(found.fields)
  by_source: dict[str, list[int]] = {}
  for row, copied in zip(pool, signals["sft_copied"].tolist(), strict=True):
    by_source.setdefault(row["source"], []).append(copied)
  assert sum(by_source["noise_copied"]) >= 0.95 * len(by_source["noise_copied"])
  others = [
    copied for name, rows in by_source.items() if name != "noise_copied" for copied in rows
  ]
  assert sum(others) < 0.01 * len(others)
  assert 0 < signals["sft_refusals"].sum() < 0.01 * len(pool)
