"""Tests of a checkpoint's tokenizer and of texts as ids."""

import json

import pytest

from jdc.data.chat import from_tokenizer
from jdc.data.conversations import Message
from jdc.eval.likelihood import Request
from jdc.eval.text_model import TextModel, check_vocabulary
from jdc.eval.tokenizer import open_tokenizer
from jdc.models.generate import Completion

tokenizers = pytest.importorskip("tokenizers")


def save(folder, template=None, config=None, files=None):
  """A word-level tokenizer with special tokens 0 to 2, and config files beside it."""
  words = ["<s>", "</s>", "<end>", "a", "b", "c"]
  model = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="c")
  )
  model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  model.add_special_tokens(words[:3])
  if template:
    model.post_processor = tokenizers.processors.TemplateProcessing(
      single=template, special_tokens=[(word, i) for i, word in enumerate(words[:3])]
    )
  model.enable_padding(length=20)
  model.save(str(folder / "tokenizer.json"))
  for name, content in {"tokenizer_config": config or {}, **(files or {})}.items():
    (folder / f"{name}.json").write_text(json.dumps(content))
  return folder


@pytest.mark.parametrize(
  ("template", "bos_id", "eos_id"),
  [(None, None, None), ("<s> $A", 0, None), ("$A </s>", None, 1), ("<s> $A </s>", 0, 1)],
)
def test_puts_the_tokens_that_the_post_processor_puts(tmp_path, template, bos_id, eos_id):
  own = open_tokenizer("", save(tmp_path, template))
  assert (own.tokenizer.bos_id, own.tokenizer.eos_id) == (bos_id, eos_id)
  assert own.tokenizer.encode("a b")[0].tolist() == [3, 4]
  assert own.source == str(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
  ("config", "files", "stop_ids", "start_id"),
  [
    ({}, {}, (), None),
    ({"eos_token": "</s>"}, {}, (1,), 1),
    ({"bos_token": "<s>", "eos_token": {"content": "</s>"}}, {}, (1,), 0),
    ({"eos_token": "</s>"}, {"generation_config": {"eos_token_id": [2, 1]}}, (1, 2), 1),
    ({}, {"config": {"eos_token_id": 2}, "generation_config": {}}, (2,), None),
    ({}, {"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": 1}}, (1,), None),
  ],
)
def test_what_ends_a_text_and_may_begin_it(tmp_path, config, files, stop_ids, start_id):
  own = open_tokenizer("", save(tmp_path, None, config, files))
  assert (own.stop_ids, own.start_id) == (stop_ids, start_id)


def test_a_file_elsewhere(tmp_path):
  own = open_tokenizer(str(save(tmp_path) / "tokenizer.json"), "another/folder")
  assert own.tokenizer.vocab_size == 6


def test_bytes():
  own = open_tokenizer("bytes", "anywhere")
  assert (own.tokenizer.bos_id, own.tokenizer.eos_id) == (256, 257)
  assert (own.stop_ids, own.start_id, own.source) == ((257,), 256, "bytes")


def test_rejects(tmp_path):
  with pytest.raises(ValueError, match="no such tokenizer file; give --tokenizer=bytes"):
    open_tokenizer("", tmp_path)
  with pytest.raises(ValueError, match=r"eos_token '<stop>' is not in the vocabulary"):
    open_tokenizer("", save(tmp_path, None, {"eos_token": "<stop>"}))
  with pytest.raises(ValueError, match=r"puts \['<s>', '<end>'\] before a text"):
    open_tokenizer("", save(tmp_path, "<s> <end> $A"))
  save(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text("{")
  with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON"):
    open_tokenizer("", tmp_path)
  (tmp_path / "tokenizer_config.json").write_text("[]")
  with pytest.raises(ValueError, match="must hold a JSON object, got list"):
    open_tokenizer("", tmp_path)
  (tmp_path / "tokenizer_config.json").unlink()
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(ValueError, match=r"not a Hugging Face tokenizer\.json"):
    open_tokenizer(str(tmp_path / "tokenizer.json"))


class Vocabulary:
  """As much of a model as texts need."""

  def __init__(self, vocab_size):
    self.vocab_size = vocab_size


def test_a_tokenizer_that_is_too_large(tmp_path):
  own = open_tokenizer("", save(tmp_path))
  check_vocabulary(own, Vocabulary(6))
  with pytest.raises(ValueError, match="has 6 tokens, more than the model's vocabulary of 5"):
    check_vocabulary(own, Vocabulary(5))


def test_requests_and_texts():
  model = TextModel(Vocabulary(258), {}, open_tokenizer("bytes"))
  assert model.encode("ab") == (256, 97, 98)
  [first, second] = model.requests([("ab", " c"), ("ab  ", "c")])
  assert first == ((256, 97, 98), (32, 99))
  assert second == ((256, 97, 98), (32, 32, 99))  # the spaces are the continuation's
  completion = Completion([*b"one stop two", 257], [0.0] * 13, "stop")
  assert model.text_of(completion) == "one stop two"
  assert model.text_of(completion, ["two", " stop"]) == "one"
  assert model.text_of(completion, ["three"]) == "one stop two"


def test_a_chat_asks_as_a_user_and_stops_where_responses_end():
  tokenizer = open_tokenizer("bytes")
  chat = from_tokenizer(tokenizer.tokenizer, "alpaca")._replace(stop_ids=(7,))
  model = TextModel(Vocabulary(258), {}, tokenizer, chat=chat)
  (prompt,) = model.prompts(["1 + 1?"])
  assert prompt == tuple(chat.encode_prompt([Message("user", "1 + 1?")]).tolist())
  text = tokenizer.tokenizer.decode(prompt)
  assert text.startswith("Below is an instruction")
  assert text.endswith("### Instruction:\n1 + 1?\n\n### Response:")
  assert model.requests([("1 + 1?", " 2")]) == [Request(prompt, (50,))]
  assert model.stop_ids == (7, 257)
  plain = TextModel(Vocabulary(258), {}, tokenizer)
  assert plain.prompts(["ab"]) == [(256, 97, 98)]
  assert plain.stop_ids == (257,)
