"""Ids and byte starts without offsets: the same as with them."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from jdc.data import byte_level, tokenize

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
CUT = pre_tokenizers.Split(tokenizers.Regex(r"\s+"), "isolated")
KINDS = {
  "byte_level": (None, LEVEL),
  "normalized": (normalizers.NFC(), LEVEL),
  "sequence": (
    None,
    pre_tokenizers.Sequence(
      [CUT, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    ),
  ),
  "prefix": (None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
  "words": (None, pre_tokenizers.Metaspace()),
}
CORPUS = ["the cat sat on the mat", "naïve café", "日本語のテキスト", "a-b c_d e.f 12 345"] * 9


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
  """Tokenizers by kind, with what computes the widths of their tokens."""
  found = {}
  for name, (normalizer, cut) in KINDS.items():
    model = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    model.pre_tokenizer = cut
    if normalizer is not None:
      model.normalizer = normalizer
    trainer = trainers.BpeTrainer(
      vocab_size=330,
      special_tokens=["<unk>"],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    )
    model.train_from_iterator(CORPUS, trainer)
    model.add_tokens(["<café>"])
    path = tmp_path_factory.mktemp(name) / "tokenizer.json"
    model.save(str(path))
    widths = byte_level.token_widths(model, model.get_vocab(with_added_tokens=True))
    found[name] = tokenize.from_file(path), widths
  return found


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(st.lists(TEXT | st.just("cafe\u0301 <café> the<unk>"), min_size=1, max_size=4))
def test_marks_are_the_byte_starts(opened, kind, texts):
  tokenizer, _ = opened[kind]
  pairs = zip(tokenizer.mark_batch(texts), tokenizer.encode_batch(texts), strict=True)
  for text, ((ids, byte_starts), (expected, starts)) in zip(texts, pairs, strict=True):
    np.testing.assert_array_equal(ids, expected)
    assert ids.dtype == np.int32
    marks = byte_starts(range(len(ids)))
    assert byte_starts(list(range(len(ids)))[1::2]) == marks[1::2]
    edges = {0, *np.cumsum([len(letter.encode()) for letter in text]).tolist()}
    assert marks == sorted(marks)
    # Inside of a character each token of a byte-level model has its own bytes.
    for mark, start in zip(marks, starts.tolist(), strict=True):
      assert mark == start or (mark not in edges and start < mark < start + 4)


def test_widths_are_known_where_letters_stand_for_bytes(opened):
  known = {name for name, (_, widths) in opened.items() if widths is not None}
  assert known == {"byte_level", "normalized", "sequence"}
  tokenizer, widths = opened["byte_level"]
  (ids, _), text = tokenizer.encode("naïve <café>"), "naïve <café>"
  assert widths[ids].sum() == len(text.encode())
  assert widths[ids][-1] == len("<café>".encode())
  bare = tokenizers.Tokenizer(models.BPE())
  assert byte_level.token_widths(bare, {"a": 0}) is None


def test_bytes(opened):
  del opened
  ids, byte_starts = tokenize.byte_tokenizer().mark_batch(["né"])[0]
  assert ids.tolist() == [110, 195, 169]
  assert byte_starts([0, 2]) == [0, 2]
