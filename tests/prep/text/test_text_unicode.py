"""Tests of the repair of Unicode: what is changed, what is not, fixed points."""

import re
import unicodedata

import ftfy
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep.text.buffers import to_buffers
from jdc.prep.text.mojibake import suspects
from jdc.prep.text.unicode import FORMS, fix_unicode

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ENCODINGS = ("latin-1", "cp1252", "cp1251", "cp1250", "cp1253", "cp1254", "cp1257", "cp437")
WRONG = st.builds(
  lambda text, encoding: text.encode().decode(encoding, "replace"),
  st.text(st.sampled_from("aé ’—я好ñž😀\u00a0"), max_size=12),
  st.sampled_from(ENCODINGS),
)
DROPPED = re.compile(
  "\x1b\\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u2060\ufeff]"
)


def one(text, **options):
  return fix_unicode(pa.array([text]), **options)[0].as_py()


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("donâ€™t", "don’t"),
    ("cafÃ©", "café"),
    ("Ã©tÃ© Ã  Paris", "été à Paris"),
    ("РџСЂРёРІРµС‚", "Привет"),
    ("ÃƒÂ©tÃƒÂ©", "été"),  # twice
    ("voilÃ  le travail", "voilà le travail"),  # U+00A0 had become a space
    ("A\u0303©tA\u0303©", "été"),  # only the normal form shows what is wrong
    ("quotes \x93here\x94", "quotes “here”"),
    ("ä½\xa0å¥½ï¼\x8c", "你好，"),
    ("Brontë, naïve, 20 °C – «état»", "Brontë, naïve, 20 °C – «état»"),
    ("В дом её привёл", "В дом её привёл"),
    ("cafe\u0301", "café"),
    ("\u1112\u1161\u11ab", "한"),
    ("a\x00b\x1b[31mred\x1b[0m\x7f\tc\n", "abred\tc\n"),
    ("un\u00adde\ufeffr\u2060\u200bstand", "understand"),
    ("ภาษา\u200bไทย", "ภาษา\u200bไทย"),
    ("👩\u200d👩\u200d👧 می\u200cخواهم \u200fאב", "👩\u200d👩\u200d👧 می\u200cخواهم \u200fאב"),
    ("a\ufffeb\U0001ffffc", "abc"),
    ("\U0002f804", "\u4f60"),
  ],
)
def test_cases(text, expected):
  assert one(text) == expected


def test_lines_are_read_apart():
  assert one("中文\ndonâ€™t\n日本") == "中文\ndon’t\n日本"


@pytest.mark.parametrize("form", FORMS)
@given(text=ANY)
@settings(deadline=None, max_examples=60)
def test_the_form_is_that_of_unicode(form, text):
  found = one(text, form=form, mojibake=False, drop_controls=False)
  assert found == unicodedata.normalize(form, text)


@given(text=st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x2FFF)))
@settings(deadline=None, max_examples=100)
def test_controls_are_dropped(text):
  found = one(text, mojibake=False)
  text = text.replace("\u200b", "")
  assert found.replace("\u200b", "") == unicodedata.normalize("NFC", DROPPED.sub("", text))


@given(text=st.one_of(ANY, WRONG, st.builds(lambda a, b: a + "\n" + b, ANY, WRONG)))
@settings(deadline=None, max_examples=150)
def test_fixed_points(text):
  once = one(text)
  assert one(once) == once
  once.encode()


@given(text=WRONG)
@settings(deadline=None, max_examples=200)
def test_what_is_not_suspect_would_not_change(text):
  offsets, data = to_buffers(pa.array([text]))
  if not suspects(data, offsets)[0]:
    assert all(ftfy.fix_encoding(line) == line for line in text.split("\n"))


def test_options_that_are_off_change_nothing():
  text = "donâ€™t \x00 cafe\u0301"
  assert one(text, mojibake=False, drop_controls=False) == "donâ€™t \x00 café"
  assert one("donâ€™t", mojibake=False) == "donâ€™t"
  assert one("a\x00b", drop_controls=False) == "a\x00b"


def test_an_unknown_form_is_refused():
  with pytest.raises(ValueError, match="form must be one of NFC, NFKC, NFD, NFKD, got 'nfc'"):
    one("a", form="nfc")


def test_dirty_documents(dirty):
  found = fix_unicode(dirty)
  changed = np.array(dirty.to_pylist()) != np.array(found.to_pylist())
  assert 0.05 < changed.mean() < 0.2
  left = [text for text in found.to_pylist() if "â€" in text or "Ã©" in text]
  assert len(left) <= sum("â€" in text or "Ã©" in text for text in dirty.to_pylist()) // 20
  assert all(unicodedata.is_normalized("NFC", text) for text in found.to_pylist())
  assert not any(DROPPED.search(text) for text in found.to_pylist())
