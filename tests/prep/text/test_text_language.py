"""Tests of language identification against the library whose model it is, and on known text."""

import math
from collections import Counter

import numpy as np
import py3langid.langid
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep.text.language import language

SAMPLES = {
  "en": "All human beings are born free and equal in dignity and rights.",
  "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
  "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
  "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
  "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti.",
  "pt": "Todas as pessoas nascem livres e iguais em dignidade e em direitos.",
  "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
  "zh": "人人生而自由，在尊严和权利上一律平等。",
  "ja": "すべての人間は、生まれながらにして自由であり、尊厳と権利とについて平等である。",
  "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
  "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
  "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतंत्रता और समानता प्राप्त है।",
  "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
  "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
  "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.",
  "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
  "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.",
}
CHINESE = ("zh", "wuu", "yue")


@pytest.fixture(scope="module")
def library():
  return py3langid.langid.LanguageIdentifier.from_model_file(
    py3langid.langid.MODEL_FILE, norm_probs=True
  )


def expected(library, text):
  """(language, probability) of the library, the classes of Chinese together."""
  ranks: dict[str, float] = {}
  for name, score in library.rank(text):
    ranks["zh" if name in CHINESE else name] = (
      ranks.get("zh" if name in CHINESE else name, 0) + score
    )
  return max(ranks.items(), key=lambda item: item[1])


def one(text, **options):
  found = language(pa.array(["x", text])[1:], **options)
  return str(found["lang"][0]), float(found["lang_score"][0])


@pytest.mark.parametrize("code", SAMPLES)
def test_known_languages(code, library):
  for text in (SAMPLES[code], SAMPLES[code].upper()):
    found, score = one(text)
    assert found == code
    name, probability = expected(library, text)
    assert name == code
    assert math.isclose(score, probability, abs_tol=2e-3)


@given(
  st.lists(
    st.sampled_from([*SAMPLES.values(), "OK", "1234", "{}", "Wien", "好"]), max_size=4
  ).map(" ".join)
)
@settings(deadline=None, max_examples=40)
def test_agrees_with_the_library(library, text):
  found, score = one(text, max_bytes=100_000)
  name, probability = expected(library, text)
  if found == "und":
    assert score == 0
  else:
    assert abs(score - probability) < 3e-3
    assert found == name or abs(score - probability) < 1e-3


def test_random_bytes_agree_with_the_library(library):
  """Of lengths in one batch: parts are walked side by side, those left over by themselves."""
  rng = np.random.default_rng(0)
  letters = [
    *map(chr, range(32, 127)),
    *"éüßñøąěčžлдагнеиабשלוםمرحבكनमते你好世界かなカナ한글ไทย",
  ]
  sizes = [*range(20), 63, 64, 65, 200, 511, 513, 700]
  texts = ["".join(rng.choice(letters, size)) + "a" * repeats
           for repeats in (0, 40) for size in rng.permutation(sizes)]  # fmt: skip
  found = language(pa.array(texts), 100_000)
  for text, name, score in zip(texts, found["lang"], found["lang_score"], strict=True):
    wanted, probability = expected(library, text)
    assert (name, score) == (wanted, pytest.approx(probability, abs=1e-3)) or name == "und"


def expected_of_parts(library, text, max_bytes):
  """The model's answer for the parts that are read of a long text, sequence by sequence."""
  data, size = text.encode(), max_bytes // 8
  counts, num_bytes = Counter(), 0
  for k in range(8):
    start = k * (len(data) - size) // 7
    part = data[start : start + size].decode(errors="ignore").encode()
    visits = py3langid.langid.visit_counts(
      library.tk_nextmove, library._rowbase, library.tk_output, part
    )
    counts += visits or Counter()
    num_bytes += len(part)
  scores = np.float64(library.nb_pc)
  for feature, count in counts.items():
    scores = scores + np.log1p(count) * library.nb_ptc[feature].astype(np.float64)
  weights = np.exp((scores - scores.max()) / np.sqrt(num_bytes))
  shares: dict[str, float] = {}
  for name, weight in zip(library.nb_classes, weights / weights.sum(), strict=True):
    name = "zh" if name in CHINESE else name
    shares[name] = shares.get(name, 0.0) + weight
  return max(shares.items(), key=lambda item: item[1])


@pytest.mark.parametrize("max_bytes", [64, 512])
@pytest.mark.parametrize("codes", [("fr", "zh"), ("en", "de"), ("ja", "ja"), ("ru", "en")])
def test_long_documents_are_read_in_eight_parts(codes, max_bytes, library):
  text = SAMPLES[codes[0]] * 7 + " " + SAMPLES[codes[1]] * 31
  name, probability = expected_of_parts(library, text, max_bytes)
  found, score = one(text, max_bytes=max_bytes)
  assert (found, score) == (name, pytest.approx(probability, abs=2e-3))


def test_the_start_alone_does_not_decide():
  assert one(SAMPLES["en"] * 8 + SAMPLES["de"] * 60)[0] == "de"


def test_no_language():
  assert one("") == ("und", 0.0)
  assert (
    one("8BulXHnSpwgeSJfYSWAiwEXLvX3DX95QUhxjeDFfvGBo+Oi6mjiDjdXoI5IalrxTCEnTKYGG")[0] == "zxx"
  )


def test_batches_do_not_matter(dirty):
  part = dirty[:300]
  whole = language(part)
  for start, stop in ((0, 1), (1, 130), (130, 300)):
    found = language(part[start:stop])
    for name, values in found.items():
      np.testing.assert_array_equal(values, whole[name][start:stop])


def test_too_few_bytes_are_refused():
  with pytest.raises(ValueError, match="max_bytes must be at least 64, got 63"):
    language(pa.array(["a"]), 63)


def test_dirty_documents(dirty):
  found = language(dirty)
  names, counts = np.unique(found["lang"], return_counts=True)
  shares = dict(zip(names.tolist(), (counts / len(dirty)).tolist(), strict=True))
  assert shares["en"] > 0.8
  assert {"es", "fr", "it", "ja", "pt", "ru", "zh", "zxx"} <= {
    name for name, share in shares.items() if share > 0.003
  }
  assert ((found["lang_score"] >= 0) & (found["lang_score"] <= 1)).all()


def test_chinese_instructions(pool):
  rows = [row for row in pool if row["source"] == "irrelevant_zh"]
  found = language(pa.array([row["instruction"] + "\n" + row["output"] for row in rows]))
  assert (found["lang"] == "zh").mean() > 0.96
