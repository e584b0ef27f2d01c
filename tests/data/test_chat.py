"""Tests of the plain templates: the wording, what is predicted, generation's start."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from jdc.data.chat import from_tokenizer
from jdc.data.conversations import Message
from jdc.data.tokenize import byte_tokenizer, from_file

BYTES = byte_tokenizer()
TALK = (
  Message("system", "Be brief."),
  Message("user", "Say <s> é🙂.", "[data]"),
  Message("assistant", "é🙂 </s>"),
  Message("user", "And 三?"),
  Message("assistant", "三, of course."),
)
PLAIN = [
  "System:\nBe brief.\n\nUser:\nSay <s> é🙂.\n[data]\n\nAssistant:\n",
  "é🙂 </s>",
  "\n\nUser:\nAnd 三?\n\nAssistant:\n",
  "三, of course.",
]
ALPACA = [
  "Be brief.\n\n### Instruction:\nSay <s> é🙂.\n\n### Input:\n[data]\n\n### Response:",
  "é🙂 </s>",
  "\n\n### Instruction:\nAnd 三?\n\n### Response:",
  "三, of course.",
]
PIECES = {"plain": PLAIN, "alpaca": ALPACA}


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
  model = tokenizers.Tokenizer(models.BPE())
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=320,
    special_tokens=["<s>", "</s>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )
  model.train_from_iterator([*PLAIN, *ALPACA], trainer)
  path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
  model.save(str(path))
  return path


def by_hand(encode, pieces, bos, eos, last_only=False):
  ids, counts = [bos], [False]
  for k, text in enumerate(pieces):
    piece, counted = encode(text), k % 2 == 1 and (k == len(pieces) - 1 or not last_only)
    ids += piece + [eos] * (k % 2)
    counts += [counted] * (len(piece) + k % 2)
  return ids, counts


@pytest.mark.parametrize("turns", ["all", "last"])
@pytest.mark.parametrize("template", ["plain", "alpaca"])
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_agrees_with_pieces_tokenized_by_hand(bpe, kind, template, turns):
  if kind == "bytes":
    tokenizer, bos, eos, encode = BYTES, 256, 257, lambda text: list(text.encode())
  else:
    tokenizer, bos, eos = from_file(bpe, "<s>", "</s>"), 0, 1
    model = tokenizers.Tokenizer.from_file(str(bpe))
    model.encode_special_tokens = True
    encode = lambda text: model.encode(text).ids
  chat = from_tokenizer(tokenizer, template, turns)
  pieces = PIECES[template]
  ids, counts, num_bytes = chat.encode(TALK)
  expected = by_hand(encode, pieces, bos, eos, turns == "last")
  assert (ids.tolist(), counts.tolist()) == expected
  predicted = pieces[3:] if turns == "last" else pieces[1::2]
  assert num_bytes.sum() == sum(len(text.encode()) for text in predicted)
  assert not num_bytes[~counts].any()
  assert not num_bytes[ids == eos].any()
  # Names of special tokens in a message are text.
  assert (ids == bos).sum() == 1
  assert (ids == eos).sum() == 2
  prompt = chat.encode_prompt(TALK[:-1])
  assert prompt.tolist() == expected[0][: len(prompt)]
  assert ids[len(prompt) :].tolist() == [*encode(pieces[-1]), eos]
  assert chat.decode(ids) == "".join(pieces)
  assert chat.stop_ids == (eos,)
  assert chat.vocab_size == tokenizer.vocab_size
  assert (ids.dtype, counts.dtype, num_bytes.dtype) == (np.int32, bool, np.int32)


def test_the_prompt_of_stanford_alpaca():
  chat = from_tokenizer(BYTES, "alpaca")
  asked = [Message("user", "Add.", "1 + 2"), Message("assistant", "3")]
  assert chat.decode(chat.encode(asked).ids) == (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Input:\n1 + 2\n\n### Response:3"
  )
  assert chat.decode(chat.encode_prompt([Message("user", "Add.")])) == (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\nAdd.\n\n### Response:"
  )


@given(st.lists(st.text(min_size=1).map(lambda text: f".{text}"), min_size=2, max_size=6))
def test_bytes_of_the_responses_are_all_counted(texts):
  texts = [text.encode("utf-8", "replace").decode() for text in texts]
  texts = texts[: len(texts) // 2 * 2]
  talk = [Message(("user", "assistant")[k % 2], text) for k, text in enumerate(texts)]
  ids, counts, num_bytes = from_tokenizer(BYTES).encode(talk)
  assert num_bytes.sum() == sum(len(text.encode()) for text in texts[1::2])
  assert counts.sum() == num_bytes.sum() + len(texts) // 2
  assert not counts[0]
  assert BYTES.decode(ids[counts]) == "".join(texts[1::2])


def test_refuses():
  chat = from_tokenizer(BYTES)
  with pytest.raises(ValueError, match="there is no response"):
    chat.encode(TALK[:2])
  with pytest.raises(ValueError, match="is of role 'assistant'"):
    chat.encode_prompt(TALK)
  with pytest.raises(ValueError, match=r"one of plain, alpaca, got 'x'; turns .*; .*no EOS"):
    from_tokenizer(BYTES._replace(eos_id=None), "x", "first")
  empty = BYTES._replace(encode=lambda text: BYTES.encode(text.strip(".")))
  with pytest.raises(ValueError, match="makes no tokens of the response in message 2"):
    from_tokenizer(empty).encode([Message("user", "a"), Message("assistant", "..")])


def test_fingerprint():
  chats = [
    from_tokenizer(BYTES),
    from_tokenizer(BYTES, "alpaca"),
    from_tokenizer(BYTES, turns="last"),
    from_tokenizer(BYTES._replace(fingerprint="other")),
  ]
  assert len({chat.fingerprint for chat in chats}) == 4
  assert from_tokenizer(BYTES).fingerprint == chats[0].fingerprint


def test_no_bos():
  ids, counts, _ = from_tokenizer(BYTES._replace(bos_id=None)).encode(TALK[1:3])
  assert ids[0] == ord("U")
  assert not counts[0]
