"""Signals: the kernels against a plain-Python oracle, and against counts made by hand."""

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep.kernels import signals, signals_ngrams, tokenise, tokenise_classes
from jdc.prep.kernels import signals_measures as measures
from jdc.prep.kernels import tokenise_stop_words as stop_words
from jdc.prep.kernels.reference import reference
from jdc.prep.text import scripts

ROOT = Path(__file__).parents[3]
DIRTY = Path(os.environ.get("JDC_TEST_DATA", ROOT / "../shared/data")) / "dirty"


def dirty_texts() -> list[str]:
  texts = []
  for path in sorted(DIRTY.glob("*.jsonl.gz")):
    with gzip.open(path) as file:
      for line in file:
        try:
          text = json.loads(line)["text"]
          texts.append(text.encode().decode())  # raises on a lone surrogate
        except (ValueError, KeyError, TypeError, AttributeError):
          continue
  return texts


def assert_agrees(texts: list[str]) -> None:
  found = signals.signals(pa.array(texts, pa.string()))
  expected = [reference(text) for text in texts]
  for name in signals.SIGNALS:
    values = np.array([row[name] for row in expected], np.float64)
    got = found[name].astype(np.float64)
    wrong = np.flatnonzero(~((got == values) | (np.isnan(got) & np.isnan(values))))
    shown = [(texts[i][:200], got[i], values[i]) for i in wrong[:3]]
    assert not wrong.size, f"{name}: {wrong.size} differ: {shown}"


def of(text: str) -> dict[str, float]:
  return {name: values[0] for name, values in signals.signals(pa.array([text])).items()}


@pytest.mark.skipif(not DIRTY.is_dir(), reason=f"no test data in {DIRTY}")
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 12])
def test_dirty_documents_have_the_signals_of_the_oracle(step):
  texts = dirty_texts()
  assert len(texts) > 6900
  assert_agrees(texts[::step])


# Characters that the definitions treat differently, so that short texts meet every rule.
PIECES = st.sampled_from(
  [
    *" \n\t\r\x0b\x85\xa0\u2028\u3000\x1c\x00\u200b",
    *"abLMjé0#.{}*-•…!?\"'”。」İſK",
    *"你好のテスッไทยกำ์ကာខ្",
    *"\u0301\u3099\ufe0f\u200d👩‍🚀שלוםعل",
    *[
      "\r\n",
      "\n\n",
      "...",
      "the",
      "THE",
      "of,",
      "(And)",
      "de",
      "и",
      "的",
      "javascript",
      "JavaScript",
    ],
    *["lorem", "Lorem", "ipsum", " the end", "a b c ", "x" * 40],
  ]
)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(PIECES, max_size=60).map("".join), max_size=8))
def test_random_texts_have_the_signals_of_the_oracle(texts):
  assert_agrees(texts)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=8))
def test_random_unicode_has_the_signals_of_the_oracle(texts):
  assert_agrees(texts)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from("ab"), max_size=120), st.sampled_from([" ", "\n", "\n\n"]))
def test_loops_have_the_signals_of_the_oracle(words, separator):
  assert_agrees([separator.join(words)])


@pytest.mark.parametrize(
  "text",
  [
    "",
    " ",
    " \n\t\u2003\r\n ",
    "\x00",
    "a\r\n\r\nb\r\n",
    "a\x85b\u2028c\u2029d\x1ce",
    "word" * 30_000,
    "a " * 20_000,
    "\u0301 \u0301a",
    "👩‍👩‍👧‍👦 " * 20,
    "שלום עולם. " * 12,
    "e\u0301tude " * 9,
    "ก\u0e34น " * 9,
    "\ud7ff\ue000\U0010ffff",
  ],
)
def test_odd_texts_have_the_signals_of_the_oracle(text):
  assert_agrees([text])


def test_words_of_scripts_without_spaces_are_characters_with_their_marks():
  found = of("C4规则, ok กินข้าว")
  # C4 规 则 , ok, and of the Thai ก+ิ น ข+้ า ว.
  assert found["n_words"] == 10
  assert found["n_nonsym"] == 9
  assert found["mean_len"] == (2 + 2) / 2
  assert found["unspaced"] == 7 / 14  # of 14 characters two are marks, and 7 begin such words


def test_lines_and_paragraphs():
  found = of(" \n one. \r\ntwo\n\n \n\nthree\u2028four\n")
  assert (found["n_lines"], found["n_paras"], found["n_newlines"]) == (3, 2, 7)
  assert found["line_punct"] == 1 / 3


def test_short_lines_have_at_most_30_characters():
  assert of("é" * 30)["short_line"] == 1
  assert of("é" * 31)["short_line"] == 0
  assert of(f"   {'x' * 30}\t")["short_line"] == 1


@pytest.mark.parametrize("mark", [*'.!?…"”’»', "。", "」", "؟", "।", "..."])
def test_terminal_marks_end_lines(mark):
  assert of(f"one{mark} \ntwo{mark}x")["line_punct"] == 1 / 2


def test_bullets():
  assert of("• a\n•b\n- c\n* d\n-e\n**f\n– g\n-\n")["bullet"] == 6 / 8


def test_ellipses_do_not_overlap():
  assert of("a...... b.... c… d..")["ell_ratio"] == 4 / 4
  assert of("a...\nb…\nc ..\nd.")["endell"] == 2 / 4


def test_symbols_are_no_words_of_the_mean():
  found = of("ab | 1234 — ")
  assert (found["n_words"], found["n_nonsym"], found["mean_len"]) == (4, 2, 3)
  assert found["alpha"] == 1 / 4


def test_stop_words_count_once_whatever_their_case():
  found = of('The THE "the," and (AND) then of. Не и')
  assert (found["stop_en"], found["stop_ru"], found["stop"]) == (3, 2, 3)


def test_repeats_of_lines_and_paragraphs():
  found = of("ab cd\nxy\n\nab  cd\nxy\n\nzz")
  # Lines: ab cd, xy, ab  cd again, xy again, zz; paragraphs: the second repeats the first.
  assert found["dup_line"] == 2 / 5
  assert found["dup_line_c"] == (6 + 2) / 23
  assert found["dup_line_c_fineweb"] == 8 / (23 - 6)
  assert found["dup_para"] == 1 / 3
  assert found["dup_para_c"] == 9 / 23


def test_top_ngrams_count_each_character_once():
  # "a a" occurs at words 0, 1 and 2, which lie side by side: 7 of 9 characters.
  assert of("a a a a b")["top2"] == 7 / 9
  # Both pairs occur twice; the first one counts: "ab c" twice, of 16 characters.
  assert of("ab c xyz ab c xyz"[:16] + "z")["top2"] == 8 / 17
  # Nothing repeats.
  assert of("a b c d e f")["top2"] == 0


def test_repeated_ngrams_cover_what_occurs_again():
  five = "one two three four five"
  found = of(f"{five} {five} six")
  assert found["dup5"] == len(five) / len(f"{five} {five} six")
  assert found["dup6"] == 0
  # Words 5 to 11 repeat the first ones with an overlap: 5-grams at 5, 6 and 7, counted once.
  text = "a b c d e f g a b c d e f g h"
  assert of(text)["dup5"] == 13 / len(text)
  assert of(text)["dup7"] == 13 / len(text)
  assert of(text)["dup8"] == 0


def test_boilerplate_counts():
  found = of("Lorem Ipsum {x} {y}\nuses JavaScript and javascript\nlorem\nipsumx")
  assert (found["curly"], found["lorem"], found["js_lines"]) == (2, 2, 1)
  # Nor does a word count that two documents would make together.
  assert signals.signals(pa.array(["a lore", "m ipsum"]), ["lorem"])["lorem"].tolist() == [0, 0]


def test_sentences_end_in_marks_whatever_closes_behind_them():
  assert of('One. "Two!" (Three?) four... five, 6.5 。')["n_sentences"] == 5


def test_undefined_signals():
  empty, blank = of(""), of(" \n ")
  for name in ("bullet", "endell", "dup_line", "dup_para", "line_punct", "short_line"):
    assert math.isnan(empty[name])
    assert math.isnan(blank[name])
  for name in ("mean_len", "hash_ratio", "ell_ratio", "alpha", "nl_ratio", "unspaced"):
    assert math.isnan(blank[name])
  for name in ("top2", "dup5", "dup_line_c", "dup_para_c", "compression"):
    assert math.isnan(empty[name])
  assert blank["top2"] == blank["dup10"] == blank["dup_line_c"] == 0


def test_a_document_has_the_same_signals_in_any_batch():
  texts = ["a b a b a b", "", "你好。\n你好。", "x " * 5000, "one two\n\none two"] * 3
  whole = signals.signals(pa.array(texts))
  array = pa.array(["pad", *texts, "pad"]).slice(1, len(texts))
  sliced = signals.signals(array)
  large = signals.signals(pa.array(texts, pa.large_string()))
  parts = [signals.signals(pa.array(texts[i : i + 2])) for i in range(0, len(texts), 2)]
  for name, values in whole.items():
    np.testing.assert_array_equal(values, sliced[name])
    np.testing.assert_array_equal(values, large[name])
    np.testing.assert_array_equal(values, np.concatenate([part[name] for part in parts]))
    assert values.dtype == parts[0][name].dtype


def test_long_documents_take_the_memory_of_their_words(monkeypatch):
  monkeypatch.setattr(tokenise, "_LONG", 50)
  text = "好" * 60 + " a\x85b" * 90
  assert_agrees([text, "short"])
  offsets, data = tokenise.checked_buffers(pa.array([text, "x" * 5000, "short"]))
  assert tokenise.max_words(offsets, data) >= 240


def test_stop_words_are_found_among_more_words_than_are_remembered():
  words = [f"w{i}" for i in range(3 * measures._KNOWN)]
  stops = [word for words in stop_words.WORDS.values() for word in words if word.isascii()]
  step = len(words) // len(stops)
  mixed = [[*words[i * step : (i + 1) * step], stop] for i, stop in enumerate(stops)]
  texts = [" ".join(stops), " ".join(words), *(" ".join(part) for part in mixed)]
  assert_agrees(texts * 2)


def test_names_choose_signals_and_are_checked():
  text = pa.array(["a"])
  assert list(signals.signals(text, ["dup5", "n_words"])) == ["n_words", "dup5"]
  with pytest.raises(ValueError, match=r"\['n_word', 'x'\]"):
    signals.signals(text, ["n_word", "x"])


def test_what_is_not_utf8_text_is_refused():
  with pytest.raises(ValueError, match="null"):
    signals.signals(pa.array(["a", None]))
  with pytest.raises(ValueError, match="int64"):
    signals.signals(pa.array([1]))
  broken = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xe5\xa5")]
  )
  with pytest.raises(ValueError, match="UTF-8"):
    signals.signals(broken)


def test_the_tables_hold_what_the_definitions_say():
  table = tokenise_classes.table()
  for first, last in scripts.UNSPACED:
    assert not (table[first : last + 1] & tokenise_classes.SPACE).any()
    assert first >= 0x800  # three bytes of UTF-8: the bound on words rests on it
  words = {word for words in stop_words.WORDS.values() for word in words}
  assert all(
    len(ws) == stop_words.PER_LANGUAGE == len(set(ws)) for ws in stop_words.WORDS.values()
  )
  assert max(len(word.encode()) for word in words) <= stop_words.MAX_BYTES
  assert len(stop_words.WORDS) * stop_words.PER_LANGUAGE <= 128
  assert all(word == "".join(map(tokenise_classes.fold, word)) for word in words)


def test_the_table_of_ngrams_keeps_two_slots_an_entry_or_four():
  few = signals_ngrams._FEW
  for entries in (0, 1, 8, 9, 1000, 1024, 1025, few, few + 1, 2 * few + 1):
    slots = int(signals_ngrams.slot_mask(entries)) + 1
    assert slots >= (4 if entries <= few else 2) * entries
    assert all(slots <= signals_ngrams.table_size(entries + more) for more in (0, 1, few))
