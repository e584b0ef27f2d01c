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
  ["do not remove duplicates", "not only German", "everything except code", "不要去重"],
)
def test_a_negation_that_is_not_understood_turns_nothing_on(text):
  read = goal.read(text)
  on = [i for i in read.intents if not i.off]
  if text == "不要去重":  # "no" of a thing that is unwanted: away with it
    assert not read.doubts
    return
  assert not on
  assert read.doubts


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
