"""What goals are understood to say, in English and Chinese."""

import pytest

from jdc.prep import ops
from jdc.prep.agent import contract, goal, lexicon, suggest

ENGLISH = (
  "clean English web text for pre-training, no duplicates, no personal data, keep at least 30 %"
)
CHINESE = "用于预训练的干净英文网页文本,没有重复,没有个人信息,至少保留30%"


def said(text):
  return [
    (i.capability, i.args) if not i.off else (f"-{i.capability}", i.args)
    for i in goal.read(text).intents
  ]


def test_english_and_chinese_say_the_same():
  one, two = goal.read(ENGLISH), goal.read(CHINESE)
  assert not one.unknown
  assert not two.unknown
  key = lambda read: sorted((i.capability, sorted(i.args.items())) for i in read.intents)
  assert key(one) == key(two)
  assert contract.expectations(one) == contract.expectations(two)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("keep between 30 and 60 %", [("kept_rate", {"min": 0.3, "max": 0.6})]),
    ("drop no more than 20% of the documents", [("kept_rate", {"min": 0.8})]),
    ("保留至少百分之三十五", [("kept_rate", {"min": 0.35})]),
    ("至少保留七成", [("kept_rate", {"min": 0.7})]),
    ("丢弃不超过20%", [("kept_rate", {"min": 0.8})]),
    ("at least 100 words", [("word_count", {"min": 100})]),
    ("不少于 200 字", [("word_count", {"min": 200})]),
    ("a budget of 2.5 million words", [("budget", {"size": 2_500_000, "unit": "words"})]),
    ("没有近似重复, 相似度 0.8", [("near_dedup", {}), ("similarity", {"min_jaccard": 0.8})]),
    ("keep duplicates", [("-dedup", {})]),
    ("保留代码", [("-code", {})]),
    ("no e-mails or phone numbers", [("pii_email", {}), ("pii_phone", {})]),
    ("去除邮箱和电话号码", [("pii_email", {}), ("pii_phone", {})]),
    (
      "decontaminate against evals/gsm8k.jsonl",
      [("decontaminate", {"path": "evals/gsm8k.jsonl"})],
    ),
    ("去掉网站 bad.txt", [("url_blocklist", {"path": "bad.txt"})]),
    ("in German and French", [("language", {"code": "de"}), ("language", {"code": "fr"})]),
    ("仅中文", [("language", {"code": "zh"})]),
    ("tokenize with llama.json", [("tokens", {"tokenizer": "llama.json"})]),
    ("saved as jsonl", [("format", {"name": "jsonl"})]),
    ("no rule may drop more than 10 %", [("rule_share", {"most": 0.1})]),
  ],
)
def test_a_wish_is_read_with_its_numbers_and_names(text, expected):
  assert said(text) == expected


@pytest.mark.parametrize(
  ("text", "unknown"),
  [
    ("rhymed French poems with a licence", ("rhymed", "poems", "licence")),
    ("clean text about astronomy", ("about", "astronomy")),
    ("干净的天文学文本", ("天文学文本",)),
    ("no duplicates, no toxicity", ("no", "toxicity")),
  ],
)
def test_words_that_are_not_understood_are_listed(text, unknown):
  assert goal.read(text).unknown == unknown


@pytest.mark.parametrize(
  "text",
  ["do not remove duplicates", "not only German", "everything except code"],
)
def test_a_negation_that_is_not_understood_turns_nothing_on(text):
  read = goal.read(text)
  on = [i for i in read.intents if not i.off]
  assert not on
  assert read.doubts


@pytest.mark.parametrize(
  ("text", "on"),
  [
    ("clean Chinese text, no English", ["clean", "language"]),
    ("exclude Spanish pages", []),
    ("no Spanish or English", []),
    ("no duplicates or German text", ["dedup"]),
    ("没有德语的英文文本", ["language"]),
    ("去掉英文", []),
    ("remove documents of at least 100 words", []),
    ("drop documents with e-mail addresses", []),
    ("drop documents containing personal data", []),
    ("去掉含有电子邮件的文档", []),
    ("without removing duplicates", []),
    ("no removal of duplicates", []),
    ("allow some duplicates", []),
    ("clean Python code for training", ["clean"]),
    ("keep only documents with code", []),
  ],
)
def test_a_wish_that_may_mean_its_opposite_is_not_acted_on(text, on):
  read = goal.read(text)
  assert [i.capability for i in read.intents if not i.off] == on
  assert read.doubts


@pytest.mark.parametrize(
  ("text", "on"),
  [
    ("keep clean English text", ["clean", "language"]),
    ("remove text with fewer than 100 words", ["word_count"]),
    ("remove toxic content from English text", ["language"]),
    ("no spam, code or gibberish", ["repetition", "code", "gibberish"]),
    ("keep text without duplicates", ["dedup"]),
    ("remove nasty e-mails", ["pii_email"]),
    ("remove pages of gibberish", ["gibberish"]),
  ],
)
def test_words_of_removal_and_keeping_do_not_turn_clear_wishes_around(text, on):
  read = goal.read(text)
  assert [i.capability for i in read.intents if not i.off] == on
  assert not read.doubts


@pytest.mark.parametrize(
  ("text", "capability"),
  [("不要去重", "dedup"), ("不要脱敏", "pii"), ("no deduplication", "dedup")],
)
def test_no_to_what_is_done_about_a_thing_leaves_it(text, capability):
  read = goal.read(text)
  assert read.refuses(capability)
  assert not read.all(capability)


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ("keep at least 150 %", "'keep at least 150 %' must be a share from 0 to 100 %"),
    ("similarity 0.0", "'similarity 0.0' must be above 0 and at most 1"),
    ("keep between 80 and 20 %", "the least, 0.8, is above the most, 0.2"),
    ("at least 100 words, at most 50 words", "the least, 100, is above the most, 50"),
    ("keep at least 30 %, retain at least 50 %", "say one kept rate"),
    ("as jsonl, in parquet", "say one format"),
  ],
)
def test_numbers_that_cannot_hold_are_errors(text, told):
  with pytest.raises(ValueError, match="goal: ") as caught:
    goal.read(f"clean text, {text}, no rule may drop more than 200 %")
  assert told in str(caught.value)
  assert "200 %" in str(caught.value)  # all are named


def test_wishes_that_contradict_each_other_are_not_acted_on():
  read = goal.read("keep duplicates, remove duplicates, clean")
  assert [i.capability for i in read.intents] == ["clean"]
  assert "contradict" in read.doubts[0]


def test_a_goal_without_words_is_an_error():
  with pytest.raises(ValueError, match="holds no words"):
    goal.read(" ... ")


def test_every_pattern_can_match_and_no_pattern_is_shadowed():
  # About forty, as many languages aside.
  names = {p.capability for p in lexicon.PATTERNS}
  assert len(names) > 40
  for pattern in lexicon.PATTERNS:
    assert pattern.regex.flags & 256  # ASCII: words end where Chinese begins


def test_suggestions_are_of_the_catalogue_or_of_like_words():
  near = suggest.suggestions(["toxicity", "duplcates", "perplexity"], ops.OPERATORS)
  assert near["toxicity"] == []
  assert near["duplcates"] == ["the word 'duplicates'"]
  assert near["perplexity"][0].startswith("perplexity")


def test_expectations_follow_from_words_and_published_defaults():
  found = contract.expectations(goal.read(ENGLISH))
  assert found["kept_rate"].min == 0.3
  assert found["near_dup_rate_after"].max == 0.01
  assert found["language_en_rate_after"].min == 0.99
  assert found["canary_junk_dropped"].min == 1
  plain = contract.expectations(goal.read("no e-mails"))
  assert plain["kept_rate"].min == contract.KEPT
  assert "near_dup_rate_after" not in plain
  assert "pii_phone_per_million" not in plain
  assert plain["pii_email_per_million"].max == 0


def test_what_the_goal_forbids_is_not_expected():
  found = contract.expectations(goal.read("no personal data, keep e-mail addresses"))
  assert "pii_email_per_million" not in found
  assert found["pii_phone_per_million"].max == 0
