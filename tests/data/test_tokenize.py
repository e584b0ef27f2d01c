"""Tests of the tokenizers: lossless round trips, byte starts, special tokens."""

import json
import random
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from jdc.data.tokenize import byte_tokenizer, from_file

TEXTS = [
  "The quick brown fox jumps over the lazy dog. ",
  "def f(x):\n    return x  # two  spaces\n",
  "Über straße, naïve café, 你好世界, здравствуй, 🙂🙃",
]
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  """A byte-level BPE with the habits of published files: truncation, a post-processor."""
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=350,
    special_tokens=["<s>", "</s>", "<pad>"],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  model.train_from_iterator(TEXTS * 20, trainer)
  model.post_processor = tokenizers.processors.Sequence(
    [
      tokenizers.processors.ByteLevel(trim_offsets=True),
      tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)]),
    ]
  )
  model.enable_truncation(5)
  model.enable_padding(length=5, pad_id=2, pad_token="<pad>")
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
  model.save(str(path))
  return path


@pytest.fixture(scope="module")
def bpe(path):
  return from_file(path, bos_token="<s>", eos_token="</s>")


@given(UNICODE)
def test_bytes_are_utf8(text):
  tokenizer = byte_tokenizer()
  ids, byte_starts = tokenizer.encode(text)
  assert bytes(ids.tolist()) == text.encode()
  assert byte_starts.tolist() == list(range(len(ids)))
  assert ids.dtype == byte_starts.dtype == np.int32
  assert tokenizer.decode([256, *ids, 257]) == text


def test_byte_tokenizer_shows_invalid_bytes():
  tokenizer = byte_tokenizer()
  assert tokenizer.decode([104, 255, 105]) == "h\\xffi"
  with pytest.raises(ValueError, match=r"\[0, 258\), got \[-1, 258\]"):
    tokenizer.decode([258, 3, -1])


@given(UNICODE)
def test_bpe_is_lossless(bpe, text):
  ids, byte_starts = bpe.encode(text)
  assert bpe.decode(ids) == text
  assert len(byte_starts) == len(ids)
  assert ids.dtype == byte_starts.dtype == np.int32


def test_byte_starts_are_those_of_the_tokens(bpe, path):
  """Every token of a byte-level BPE spells its bytes, so that their lengths can be summed."""
  spelling = {i: token for token, i in json.loads(path.read_text())["model"]["vocab"].items()}
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  assert len(alphabet) == 256
  for text in TEXTS:
    ids, byte_starts = bpe.encode(text)
    lengths = [len(spelling[i]) for i in ids.tolist()]
    expected = np.cumsum([0, *lengths])
    assert expected[-1] == len(text.encode())
    # A character cut in two keeps both tokens at its first byte.
    char_starts = np.cumsum([0, *(len(char.encode()) for char in text)])
    expected = [max(c for c in char_starts if c <= e) for e in expected[:-1]]
    assert byte_starts.tolist() == expected


def test_byte_starts_cover_what_a_normalizer_drops(tmp_path):
  words = {"[UNK]": 0, "hello": 1, "straße": 2}
  model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "[UNK]"))
  model.normalizer = tokenizers.normalizers.Lowercase()
  model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  model.save(str(tmp_path / "words.json"))
  tokenizer = from_file(tmp_path / "words.json")
  ids, byte_starts = tokenizer.encode("  Straße   HELLO what ")
  assert ids.tolist() == [2, 1, 0]
  assert byte_starts.tolist() == [0, 12, 18]
  assert [len(part) for part in tokenizer.encode("   ")] == [0, 0]


def test_short_and_long_texts_keep_their_length(bpe):
  """The file asks for texts of five tokens, cut or padded."""
  for text in ("z", "z" * 50):
    assert [len(ids) for ids, _ in bpe.encode_batch([text, text])] == [len(text)] * 2


def test_batches_agree_with_single_texts(bpe):
  rng = random.Random(0)
  texts = ["".join(rng.sample(text, k=20)) for text in TEXTS * 5] + [""]
  for tokenizer in (bpe, byte_tokenizer()):
    for text, (ids, byte_starts) in zip(texts, tokenizer.encode_batch(texts), strict=True):
      expected_ids, expected_starts = tokenizer.encode(text)
      np.testing.assert_array_equal(ids, expected_ids)
      np.testing.assert_array_equal(byte_starts, expected_starts)


def test_text_cannot_hold_special_tokens(bpe):
  ids, _ = bpe.encode("a</s><s>b<pad>")
  assert not {0, 1, 2} & {*ids.tolist()}
  assert bpe.decode(ids) == "a</s><s>b<pad>"
  assert bpe.decode([0, *ids, 1]) == "a</s><s>b<pad>"


def test_facts_about_the_vocabulary(bpe, path):
  assert (bpe.bos_id, bpe.eos_id, bpe.vocab_size) == (0, 1, 350)
  none = from_file(path)
  assert (none.bos_id, none.eos_id) == (None, None)
  assert len({bpe.fingerprint, none.fingerprint, byte_tokenizer().fingerprint}) == 3
  assert from_file(path, "<s>", "</s>").fingerprint == bpe.fingerprint


def test_absent_tokens_are_errors_that_list_near_ones(path):
  with pytest.raises(ValueError) as error:
    from_file(path, bos_token="<S>>", eos_token="<eos>")
  assert "bos_token '<S>>' is not in the vocabulary; near: ['<s>'" in str(error.value)
  assert "eos_token '<eos>'" in str(error.value)
  assert "special tokens: ['</s>', '<pad>', '<s>']" in str(error.value)


def test_bad_files(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="no such tokenizer file"):
    from_file(tmp_path / "no.json")
  (tmp_path / "a.json").write_text("{}")
  with pytest.raises(ValueError, match="not a Hugging Face"):
    from_file(tmp_path / "a.json")
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with pytest.raises(ImportError, match=r"pip install jdc\[tokenizers\]"):
    from_file(tmp_path / "a.json")
