"""Rules at and around their thresholds, on documents made for them, and the decision itself."""

import itertools
import typing

import numpy as np
import pyarrow as pa
import pytest

from jdc.prep import predicates, predicates_rules
from jdc.prep.kernels import signals
from jdc.prep.kernels import tokenise_stop_words as stop_words
from jdc.prep.predicates import Bound


def reason(text: str, rule: str, **params) -> str:
  """Returns why a rule drops a document, "" where it keeps it."""
  bounds = predicates.bounds_of({rule: params})
  found = signals.signals(pa.array([text]), predicates.signals_of(bounds))
  decision = predicates.decide(found, bounds)
  first = int(decision.first_reason[0])
  assert decision.keep[0] == (first < 0)
  return "" if first < 0 else bounds[first].reason


def words(number: int, length: int = 4, start: int = 0) -> list[str]:
  """Returns different words of so many letters."""
  letters = itertools.product("abcdefghij", repeat=length)
  return ["".join(word) for word in itertools.islice(letters, start, start + number)]


def prose(number: int, **options) -> str:
  return " ".join(words(number, **options))


def lines(*counts_and_lines: tuple[int, str]) -> str:
  """Returns so many lines of each kind; "@" in a line becomes a word of its own."""
  fresh = iter(words(2000, 5))
  kinds = [line for count, line in counts_and_lines for _ in range(count)]
  return "\n".join(line.replace("@", next(fresh)) for line in kinds)


LONG = "@ is a line of more than thirty characters"
KEPT = ""
CASES = [
  # Gopher's quality rules.
  ("word_count", prose(49), "word_count"),
  ("word_count", prose(49) + " | # —", "word_count"),
  ("word_count", prose(50), KEPT),
  ("word_count", "字" * 49, "word_count"),
  ("word_count", "字" * 50, KEPT),
  ("word_count", "x " * 100_000, KEPT),
  ("word_count", "x " * 100_001, "word_count"),
  ("mean_word_length", "abc abc", KEPT),
  ("mean_word_length", "abc ab", "mean_word_length"),
  ("mean_word_length", "x" * 10 + " " + "y" * 10, KEPT),
  ("mean_word_length", "x" * 10 + " " + "y" * 11, "mean_word_length"),
  ("mean_word_length", "这是一个很短的句子", KEPT),
  ("symbol_ratio", prose(9) + " a#", KEPT),
  ("symbol_ratio", prose(9) + " ##", "symbol_ratio.hash"),
  ("symbol_ratio", prose(9) + " so...", KEPT),
  ("symbol_ratio", prose(9) + " so......", "symbol_ratio.ellipsis"),
  ("symbol_ratio", prose(9) + " so…...", "symbol_ratio.ellipsis"),
  ("bullet_lines", lines((9, "• @"), (1, "@")), KEPT),
  ("bullet_lines", lines((10, "- @"), (1, "@")), "bullet_lines"),
  ("ellipsis_lines", lines((3, "@..."), (7, "@")), KEPT),
  ("ellipsis_lines", lines((4, "@…"), (9, "@")), "ellipsis_lines"),
  ("alpha_words", prose(4) + " 12", KEPT),
  ("alpha_words", prose(7) + " 1 2", "alpha_words"),
  ("stop_words", "The cat. The", "stop_words"),
  ("stop_words", "The cat, and", KEPT),
  ("stop_words", "这是一个很短的句子", "stop_words"),
  # Gopher's repetition rules.
  ("duplicate_lines", lines((1, "x"), (3, "x"), (6, LONG)), KEPT),
  ("duplicate_lines", lines((1, "x"), (4, "x"), (8, LONG)), "duplicate_lines"),
  ("duplicate_lines", "abcd\nabcd\nx1\nx2", "duplicate_lines.characters"),
  ("duplicate_lines", "abc\nabc\nx1\nx234", KEPT),
  ("duplicate_lines", "ab\nab\nx1", "duplicate_lines"),
  ("duplicate_paragraphs", "\n\n".join(["x"] * 4 + words(6, 9)), KEPT),
  ("duplicate_paragraphs", "\n\n".join(["x"] * 5 + words(7, 9)), "duplicate_paragraphs"),
  ("duplicate_paragraphs", "abcd\n\nabcd\n\nc\n\nef", "duplicate_paragraphs.characters"),
  ("duplicate_paragraphs", "abcd\n\nabcd\n\nc\n\nefgh1", KEPT),
  # FineWeb's.
  ("fineweb_lines", lines((3, LONG + "."), (22, LONG)), "fineweb_lines.terminal"),
  ("fineweb_lines", lines((4, LONG + "."), (22, LONG)), KEPT),
  ("fineweb_lines", lines((67, "@ ten more to go."), (33, LONG)), "fineweb_lines.short"),
  ("fineweb_lines", lines((66, "@ ten more to go."), (34, LONG)), KEPT),
  # C4's and ours.
  ("boilerplate", prose(9), KEPT),
  ("boilerplate", prose(9) + " {", "boilerplate.curly"),
  ("boilerplate", prose(9) + " lorem\nipsum", "boilerplate.lorem"),
  ("boilerplate", lines((3, "JavaScript @")), KEPT),
  ("boilerplate", lines((4, "@javascript")), "boilerplate.js_lines"),
  ("sentences", "A. B! C? D.", "sentences"),
  ("sentences", 'A. B! C? D. "E."', KEPT),
  ("sentences", "กินข้าว", KEPT),
]


@pytest.mark.parametrize(("rule", "text", "expected"), CASES)
def test_documents_at_and_around_thresholds(rule, text, expected):
  assert reason(text, rule) == expected


def test_repeated_characters_at_the_threshold():
  # A line of two characters comes again in a text of so many characters, LINE FEEDs aside.
  for total, expected in ((200, "fineweb_lines.dup_chars"), (201, "")):
    rest = total - 4
    text = f"a.\na.\n{'x' * 50}.\n{'y' * (rest - 52)}."
    assert len(text.replace("\n", "")) == total
    assert reason(text, "fineweb_lines", newlines=9.0, short=1.0) == expected
  text = f"ab\nab\n{'x' * 3}"
  assert len(text) == 9
  assert reason(text, "duplicate_lines", max=1.0, max_characters=2 / 9) == ""
  assert reason(text, "duplicate_lines", max=1.0, max_characters=0.22) != ""


def test_newlines_a_word_at_the_threshold():
  text = f"{prose(5, length=8)}.\n{prose(5, length=8, start=5)}."
  assert reason(text + "\n\n", "fineweb_lines") == ""
  assert reason(text + "\n\n\n", "fineweb_lines") == "fineweb_lines.newlines"
  assert reason(text + "\n\n\n", "fineweb_lines", newlines=0.4) == ""


def test_ngrams_of_scripts_without_spaces_are_longer():
  fresh = "".join(map(chr, range(0x4E00, 0x4E00 + 400)))
  again = fresh[:10]
  # Of 100 characters a run of ten comes again, or with 50 more of them, two.
  assert reason(fresh[:90] + again, "dup_ngram") == ""
  assert reason(fresh[:47] + again, "dup_ngram") == "dup_ngram.unspaced"
  assert reason(fresh[:90] + fresh[20:29] * 5, "dup_ngram") == "dup_ngram.unspaced"
  assert reason(fresh[:90] + "".join(fresh[i : i + 9] for i in (0, 20, 40)), "dup_ngram") == ""
  four = fresh[:4]
  assert reason(four + fresh[10:42] + four, "top_ngram") == ""
  assert reason(four + fresh[10:41] + four, "top_ngram") == "top_ngram.unspaced"


@pytest.mark.parametrize(("n", "most"), [(2, 0.20), (3, 0.18), (4, 0.16)])
def test_top_ngrams_at_the_threshold(n, most):
  gram = " ".join("qrst"[:n])
  covered = 2 * len(gram)
  total = round(covered / most)
  wide = {f"top{k}": 1.0 for k in (2, 3, 4) if k != n}
  for size in (total - 1, total, total + 1):
    rest = size - covered - 2
    text = f"{gram} {'x' * rest} {gram}"
    assert len(text) == size
    expected = f"top_ngram.top{n}" if covered / size > most else ""
    assert reason(text, "top_ngram", **wide) == expected
  assert covered / total <= most < covered / (total - 1)


@pytest.mark.parametrize(
  ("n", "most"), list(zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True))
)
def test_repeated_ngrams_at_the_threshold(n, most):
  gram = " ".join("klmnopqrst"[:n])
  total = -(-len(gram) * 100 // round(100 * most))
  wide = {f"dup{k}": 1.0 for k in range(5, n)}
  for size in (total - 1, total, total + 1):
    text = f"{gram} {'x' * (size - 2 * len(gram) - 2)} {gram}"
    assert len(text) == size
    expected = f"dup_ngram.dup{n}" if len(gram) / size > most else ""
    assert reason(text, "dup_ngram", **wide) == expected


def test_compression_at_its_own_value():
  text = prose(60)
  ratio = float(signals.signals(pa.array([text]))["compression"][0])
  assert 0.15 < ratio < 0.9
  assert reason(text, "compression_ratio", max=ratio) == ""
  assert reason(text, "compression_ratio", max=float(np.nextafter(ratio, 0))) != ""
  assert reason(text, "compression_ratio", min=ratio) == ""
  assert reason(text, "compression_ratio", min=float(np.nextafter(ratio, 1))) != ""
  assert reason("so " * 200, "compression_ratio") == "compression_ratio"
  assert reason("q7&", "compression_ratio") == "compression_ratio"


@pytest.mark.parametrize("rule", list(predicates.RULES))
def test_every_bound_accepts_its_threshold_or_not_as_it_says(rule):
  for bound in predicates.bounds_of({rule: {}}):
    share = 1.0 if bound.scripts == "unspaced" else 0.0
    for limit, outward in ((bound.min, -np.inf), (bound.max, np.inf)):
      if limit is None:
        continue
      values = np.array([np.nextafter(limit, outward), limit, np.nextafter(limit, -outward)])
      found = {bound.signal: values, "unspaced": np.full(3, share)}
      keep = predicates.decide(found, [bound]).keep
      assert keep.tolist() == [False, bound.inclusive, True]


def test_published_values():
  limits = {b.reason: (b.min, b.max) for b in predicates.bounds_of({"gopher": {}})}
  assert limits["word_count"] == (50, 100_000)
  assert limits["mean_word_length"] == (3, 10)
  assert limits["symbol_ratio.hash"] == limits["symbol_ratio.ellipsis"] == (None, 0.1)
  assert limits["bullet_lines"] == (None, 0.9)
  assert limits["ellipsis_lines"] == (None, 0.3)
  assert limits["alpha_words"] == (0.8, None)
  assert limits["stop_words"] == (2, None)
  assert limits["duplicate_lines"] == limits["duplicate_paragraphs"] == (None, 0.3)
  assert limits["duplicate_lines.characters"] == (None, 0.2)
  assert limits["duplicate_paragraphs.characters"] == (None, 0.2)
  top = [limits[f"top_ngram.top{n}"][1] for n in (2, 3, 4)]
  assert top == [0.2, 0.18, 0.16]
  assert [limits[f"dup_ngram.dup{n}"][1] for n in range(5, 11)] == [
    0.15, 0.14, 0.13, 0.12, 0.11, 0.10,
  ]  # fmt: skip


def test_bounds_hold_for_the_scripts_that_they_name():
  found = {"mean_len": np.array([1.0, 1.0, 1.0]), "unspaced": np.array([0.5, 0.51, np.nan])}
  for scripts, expected in (
    ("spaced", [False, True, False]),
    ("unspaced", [True, False, True]),
    ("all", [False, False, False]),
  ):
    bound = Bound("mean_len", 3, 10, True, "mean", scripts)
    decision = predicates.decide(found, [bound])
    assert decision.keep.tolist() == expected
    assert not decision.undefined.any()
  text = "。".join(["这是一个很短的句子"] * 9)
  assert reason(text, "stop_words", language="any") == ""
  assert reason(text, "stop_words", language="zh") == ""


def test_lines_of_languages_without_sentence_marks_need_none():
  thai = "ภาษาไทยไม่ใช้เครื่องหมายวรรคตอนเมื่อจบประโยค แต่เว้นวรรคแทน\nประโยคถัดไปอยู่ในบรรทัดใหม่"
  assert reason(thai, "fineweb_lines") == "fineweb_lines.terminal"
  assert not reason(thai, "fineweb_lines", terminal=0.0)
  assert reason(thai, "fineweb_lines", terminal=0.001) == "fineweb_lines.terminal"


def test_undefined_signals_are_out_of_bounds_and_marked():
  bounds = predicates.bounds_of({"word_count": {}, "bullet_lines": {}})
  decision = predicates.decide(signals.signals(pa.array(["", prose(50)])), bounds)
  assert decision.keep.tolist() == [False, True]
  assert decision.first_reason.tolist() == [0, -1]
  assert decision.all_reasons.tolist() == [[True, True], [False, False]]
  assert decision.undefined.tolist() == [[False, True], [False, False]]
  for rule in predicates.RULES:
    assert bool(reason("", rule)) == (rule != "boilerplate"), rule  # which only counts


def test_decide_checks_what_it_is_given():
  bounds = predicates.bounds_of({"mean_word_length": {}})
  with pytest.raises(ValueError, match=r"\['mean_len', 'unspaced'\] are missing"):
    predicates.decide({"n_words": np.zeros(2)}, bounds)
  with pytest.raises(ValueError, match="one length"):
    predicates.decide({"mean_len": np.zeros(2), "unspaced": np.zeros(3)}, bounds)
  kept = predicates.decide({"n_words": np.zeros(2)}, ())
  assert kept.keep.all()
  assert (kept.first_reason == -1).all()


def test_rules_are_named_as_in_a_plan():
  given = {"word_count": {"min": 10}, "dup_ngram": "gopher", "fineweb_lines": {}}
  bounds = predicates.bounds_of(given)
  assert bounds[0] == Bound("n_nonsym", 10, 100_000, True, "word_count")
  assert [bound.signal for bound in bounds[1:7]] == [f"dup{n}" for n in range(5, 11)]
  assert bounds[7] == Bound("dup10", None, 0.15, True, "dup_ngram.unspaced", "unspaced")
  rule = predicates_rules.WordCount(min=3)
  assert predicates.bounds_of({"word_count": rule}) == rule.bounds()


@pytest.mark.parametrize("order", [["gopher", "word_count"], ["word_count", "gopher"]])
def test_a_rule_named_beside_its_group_stands_once(order):
  given = {"gopher": {"alpha_words": {"min": 0.5}}, "word_count": {"min": 7}}
  bounds = predicates.bounds_of({name: given[name] for name in order})
  assert [bound.min for bound in bounds if bound.reason == "word_count"] == [7]
  assert [bound.min for bound in bounds if bound.reason == "alpha_words"] == [0.5]
  assert len(bounds) == len(predicates.bounds_of({"gopher": {}}))


def test_every_problem_of_a_plan_is_named_at_once():
  with pytest.raises(ValueError) as caught:
    predicates.bounds_of(
      {
        "word_counts": {},
        "bullet_lines": {"max": 1.5},
        "alpha_words": {"minimum": 0.5},
        "word_count": {"min": 9, "max": 8},
        "mean_word_length": {"min": "3"},
        "top_ngram": "c4",
        "gopher": {"boilerplate": {}},
        "stop_words": {"language": "tlh"},
      }
    )
  message = str(caught.value)
  for part in (
    "'word_counts'; did you mean 'word_count'?",
    "bullet_lines.max",
    "alpha_words.minimum",
    "word_count: Value error, min must be at most max, got 9 and 8",
    "mean_word_length.min",
    "top_ngram: accepted: parameters ['top2', 'top3', 'top4'], or 'gopher'; got 'c4'",
    "gopher: accepted: parameters by rule",
    "stop_words.language",
  ):
    assert part in message


def test_rules_take_whole_numbers_and_are_not_changed_later():
  assert predicates_rules.MeanWordLength(min=4).bounds()[0].min == 4
  with pytest.raises(ValueError, match="frozen"):
    predicates_rules.WordCount().min = 3


def test_languages_are_those_with_stop_words():
  languages = typing.get_args(predicates_rules.Language)
  assert languages == ("any", *stop_words.LANGUAGES)
  for language in stop_words.LANGUAGES:
    signal = predicates_rules.StopWords(language=language).bounds()[0].signal
    assert signal in signals.SIGNALS


def test_every_rule_bounds_known_signals():
  for rule in predicates.RULES:
    bounds = predicates.bounds_of({rule: {}})
    assert bounds
    assert set(predicates.signals_of(bounds)) <= set(signals.SIGNALS)
    assert all(bound.reason.split(".")[0] == rule for bound in bounds)
  assert {rule for group in predicates.GROUPS.values() for rule in group} <= set(
    predicates.RULES
  )
