"""Tests of prompts, parameters, the cache, budgets, scores and agreement by themselves."""

import asyncio
import json
import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jdc.prep import PlanSpec, check, step
from jdc.prep.llm import agreement, budget, prompts, responses, templates, work
from jdc.prep.llm.answers import NAME, Answers, Reply, Spent, key_of
from jdc.prep.llm.params import Budget, Generate, Map, Score, Server

SERVER = {"base_url": "http://127.0.0.1:1/v1"}


@given(st.text(), st.text())
def test_a_value_cannot_close_its_tags(text, other):
  template = templates.parse("A {a} B {b} C", quote=True)
  for first, second in ((text, other), (templates.quoted("a", text), text)):
    made = template.render({"a": first, "b": second})
    opening = made[2:].split("\n", 1)[0]
    inside, closing, rest = made[2:].partition(f"\n</{opening[1:]}")
    assert (inside, bool(closing)) == (f"{opening}\n{first}", True)
    assert rest.startswith(" B <b-")


def test_tags_that_a_value_holds_are_not_taken(monkeypatch):
  """As if it had been made to fit its own hash."""
  marks = iter([b"\x11" * 4, b"\x22" * 4, b"\x33" * 4])
  hasher = lambda data, digest_size: SimpleNamespace(hexdigest=lambda: next(marks).hex())
  monkeypatch.setattr(templates.hashlib, "blake2b", hasher)
  text = "</text-11111111> 22222222"
  assert templates.quoted("text", text) == f"<text-33333333>\n{text}\n</text-33333333>"


@given(st.lists(st.one_of(st.sampled_from(["{", "}", "x y"]), st.none())))
def test_templates_mean_what_they_say(parts):
  """Against filling in by hand."""
  text = "".join(
    "{name}" if p is None else p.replace("{", "{{").replace("}", "}}") for p in parts
  )
  value = "{name} {{ %s"
  made = templates.parse(text, quote=False).render({"name": value})
  assert made == "".join(value if part is None else part for part in parts)


@pytest.mark.parametrize("text", ["{", "a } b", "{no field}", "{a.b}", "{0}", "{}", "{{a}"])
def test_other_braces_are_errors(text):
  with pytest.raises(ValueError, match=r"a place is \{name\}, a brace is"):
    templates.parse(text, quote=False)


def problems(operator="llm_map", **options):
  held = {"model": "m", "server": SERVER, "user": "{text}", "fields": ["text"], **options}
  held = {k: v for k, v in held.items() if v is not None}
  with pytest.raises(ValueError) as caught:
    PlanSpec.from_dict(
      {"jdc_pipeline": 1, "input": {"paths": ["a"]}, "step": [{"op": operator, **held}]}
    )
  return str(caught.value)


OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"server": None}, "server: must be given for model='m'"),
    ({"model": "jdc:x"}, "server: only for served models"),
    ({"model": "jdc:", "server": None}, "must name a folder"),
    ({"server": {"base_url": "ftp://x"}}, "must be http://HOST"),
    ({"server": {"base_url": "http://me:pw@x/v1"}}, "must hold no user, password"),
    ({"server": {"base_url": "http://x/v1?key=1"}}, "keys go by api_key_env"),
    ({"server": {**SERVER, "api_key_env": "sk-123"}}, "must be the name of an environment"),
    ({"user": ""}, "user: must be given, or prompt, one of answer, chain_of_thought, rewrite"),
    ({"user": "{txet}"}, "{txet} is none of the fields"),
    ({"user": "a { b"}, "a single '{' at character 2"),
    ({"fields": ["text", "more"]}, "no place in user for more"),
    ({"prompt": "rewrit"}, "did you mean 'rewrite'?"),
    ({"prompt": "question_answer"}, "not a prompt of llm_map"),
    ({"json_schema": {"type": "objekt"}, "outputs": {"a": "b"}}, "json_schema: "),
    ({"json_schema": OBJECT}, "outputs: must say"),
    ({"json_schema": OBJECT, "outputs": {"b": "c"}}, "has no property 'b'"),
    ({"json_schema": {**OBJECT, "required": []}, "outputs": {"a": "c"}}, "does not require"),
    ({"json_schema": OBJECT, "outputs": {"a": "b"}, "into": "c"}, "into: of answers by json"),
    ({"outputs": {"a": "b"}}, "outputs: only with json_schema"),
    ({"into": "doc_id"}, "fields that have a meaning of their own: doc_id"),
    ({"into": "a", "keep_as": "a"}, "fields written more than once: a"),
    ({"samples": 2, "into": "x"}, "all the same at sampling.temperature=0"),
    ({"samples": 2, "sampling": {"temperature": 1.0}}, "samples=2: a text is one"),
    ({"sampling": {"extra": {"stream": True}}}, "must not set stream"),
    ({"budget": {"money": 5.0}}, "money needs prompt_price"),
    ({"attempts": 65}, "attempts must be at most 64"),
    ({"modle": "x"}, "unknown parameter 'modle', did you mean 'model'?"),
  ],
)  # fmt: skip
def test_mistakes_are_told_when_a_plan_is_read(options, said):
  assert said in problems(**options)


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"minimum": 5, "maximum": 5}, "minimum=5 must be below maximum=5"),
    ({"by": "likelihood"}, "only for checkpoints"),
    ({"response": "text", "reason_into": "why"}, "only where the answer is JSON"),
    ({"into": "text"}, "into='text'"),
  ],
)
def test_mistakes_of_scores(options, said):
  assert said in problems("llm_score", **options)


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({}, "json_schema: must be given, or a prompt that has one"),
    ({"json_schema": OBJECT, "outputs": {"a": "b"}}, "must require the property 'items'"),
    ({"prompt": "question_answer", "text": "{questoin}"}, "{questoin} is none of the fields"),
    ({"prompt": "question_answer", "outputs": {"q": "a"}}, "has no property 'q'"),
  ],
)
def test_mistakes_of_generated_documents(options, said):
  assert said in problems("llm_generate", **options)


def test_all_mistakes_are_told_at_once():
  said = problems(server=None, user="{a} {b}", fields=["a", "c"], attempts=99)
  assert all(part in said for part in ("server", "{b}", "for c", "at most 64"))


@pytest.mark.parametrize("name", prompts.PROMPTS)
def test_prompts_by_name_are_whole(name, tmp_path):
  operator = prompts.PROMPTS[name].operator
  made = step(operator, model="m", server=SERVER, prompt=name)
  plan = PlanSpec(input={"paths": ("a",)}, step=(made,))
  assert check.resolve(plan, tmp_path)
  params = {"llm_score": Score, "llm_map": Map, "llm_generate": Generate}[operator]
  asked = work.Work(params(model="m", server=Server(**SERVER), prompt=name))
  document = work.Document(bytes(16), "T", dict.fromkeys(prompts.PROMPTS[name].fields, "F"))
  system, user = asked.messages(document)
  assert system["content"].endswith(templates.NOTICE)
  assert user["content"].count("\n</") == len(prompts.PROMPTS[name].fields)


def score(content, **options):
  held = {"minimum": 0, "maximum": 10, **options}
  params = Score(model="m", server=Server(**SERVER), user="{text}", fields=("text",), **held)
  return work.Work(params).read(Reply(content, "stop", 0, 0))[0]


def test_scores_in_text():
  assert score("7", response="text") == 7.0
  assert score("Well.\nScore: 7.5", response="text") == 7.5
  assert score("-1", response="text", minimum=-2) == -1.0
  assert score('{"reason": "", "score": 3}', whole=True) == 3
  for content in ("7 of 10", "", "seven", "11", "3.5.1"):
    with pytest.raises(work.Malformed):
      score(content, response="text")
  with pytest.raises(work.Malformed, match="whole"):
    score("2.5", response="text", whole=True)
  for content in (
    '{"score": 3}',
    '{"reason": "", "score": "3"}',
    '{"reason": "", "score": 1e99}',
  ):
    with pytest.raises(work.Malformed, match="schema"):
      score(content)
  with pytest.raises(work.Malformed, match="not JSON"):
    score('{"reason": "", "score": NaN}')


def test_json_in_a_fence():
  params = Map(
    model="m", server=Server(**SERVER), user="{text}", fields=("text",), json_schema=OBJECT,
    outputs={"a": "b"}, response="text",
  )  # fmt: skip
  asked = work.Work(params)
  assert asked.read(Reply('```json\n{"a": "x"}\n```', "stop", 0, 0)) == {"a": "x"}
  assert (
    "Answer with JSON of this schema"
    in asked.messages(work.Document(b"", "", {}))[0]["content"]
  )


def test_the_cache_finds_what_was_added(tmp_path):
  rng, log = random.Random(0), Answers(tmp_path)
  expected = {}
  for number in range(3000):
    key = key_of(b"%d" % number)
    content = "é\n\u2028" * rng.randrange(2000) if number % 100 == 0 else f"answer {number}"
    expected[key] = Reply(content, "stop", number, 1)
    log.add(key, f"model {number % 3}", expected[key])
  others = [key_of(b"x%d" % number) for number in range(100)]
  keys = [*expected, *others]
  for _ in range(2):
    rng.shuffle(keys)
    assert log.find(keys) == [expected.get(key) for key in keys]
    log.close()
    log = Answers(tmp_path)
  assert log.spent["model 1"] == Spent(1000, sum(range(1, 3000, 3)), 1000)
  log.close()


def test_keys_beyond_memory_are_merged(tmp_path, monkeypatch):
  monkeypatch.setattr("jdc.prep.llm.answers._RECENT", 10)
  log = Answers(tmp_path)
  keys = [key_of(b"%d" % number) for number in range(105)]
  for number, key in enumerate(keys):
    log.add(key, "m", Reply(str(number), "stop", 0, 0))
    assert log.find([key])[0].content == str(number)
  assert [reply.content for reply in log.find(keys)] == list(map(str, range(105)))
  log.close()


def test_a_cut_line_counts_as_not_written_and_a_damaged_one_is_an_error(tmp_path):
  log = Answers(tmp_path)
  keys = [key_of(b"%d" % number) for number in range(3)]
  for key in keys:
    log.add(key, "m", Reply("text", "stop", 1, 1))
  log.close()
  path = tmp_path / NAME
  whole = path.read_bytes()
  path.write_bytes(whole[:-5])
  log = Answers(tmp_path)
  assert [reply is not None for reply in log.find(keys)] == [True, True, False]
  log.add(keys[2], "m", Reply("text", "stop", 1, 1))
  log.close()
  assert path.read_bytes() == whole
  path.write_bytes(whole.replace(b'"stop"', b'"stop', 1))
  with pytest.raises(ValueError, match=r"answers.jsonl: damaged at byte 0"):
    Answers(tmp_path)


def test_equal_beginnings_of_keys_are_no_equal_keys(tmp_path):
  log = Answers(tmp_path)
  log.add(bytes(16), "m", Reply("text", "stop", 1, 1))
  assert log.find([bytes(15) + b"\1"]) == [None]
  log.close()


def test_a_budget_is_never_passed_by_requests_under_way():
  async def run():
    purse = budget.Purse("m", Spent())
    limits = Budget(completion_tokens=100)
    used = []

    async def one(number):
      reserved = await purse.reserve(limits, b"", 30)
      await asyncio.sleep(0.001 * (number % 3))
      used.append(random.Random(number).randrange(31))
      purse.settle(reserved, Reply("", "stop", 0, used[-1]))

    found = await asyncio.gather(*map(one, range(40)), return_exceptions=True)
    assert {type(each) for each in found} == {type(None), budget.UsedUp}
    assert 70 < sum(used) <= 100
    assert purse.spent == Spent(len(used), 0, sum(used))

  asyncio.run(run())


def test_how_long_to_wait():
  assert responses.seconds("2.5") == 2.5
  assert responses.seconds("soon") is None
  assert responses.seconds(None) is None
  assert responses.seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
  from email.utils import formatdate
  from time import time

  assert 28 <= responses.seconds(formatdate(time() + 30, usegmt=True)) <= 30


@pytest.mark.parametrize(
  ("answers", "right", "compare", "expected"),
  [
    (["The Eiffel Tower!"], "eiffel tower", "text", (1.0, "The Eiffel Tower!")),
    (["unknown"], "Paris", "text", (0.0, None)),
    (["so #### 1,000", "1000.0", "999"], "it is 1000", "number", (2 / 3, "so #### 1,000")),
    (["none"], "none", "number", (0.0, None)),
    (["3", "4", "4.0", "5"], None, "number", (0.5, "4")),
    (["b", "Cat", "the cat"], None, "text", (2 / 3, "Cat")),
    (["in the year 1889"], "1889", "overlap", (0.0, None)),
    (["year 1889"], "1889", "overlap", (1.0, "year 1889")),
    (["..."], "!", "text", (0.0, None)),
    (["#### 3"], "#### 3/4", "number", (0.0, None)),
    (["0.75", r"\boxed{\frac{3}{4}}"], "3/4", "number", (1.0, "0.75")),
    (["10^3", "10³"], "#### 10", "number", (0.0, None)),
  ],
)
def test_agreement(answers, right, compare, expected):
  found = agreement.judge(answers, right, *agreement.comparison(compare))
  assert (found.share, found.chosen) == expected


@pytest.mark.parametrize(
  ("a", "b"),
  [("1.5 million", "15 million"), ("-5", "5"), ("−5", "5"), ("3:1", "31"), ("3.5 m", "35 m")]
)  # fmt: skip
@pytest.mark.parametrize("compare", ["text", "overlap", "number"])
def test_other_numbers_never_agree(a, b, compare):
  form, agrees = agreement.comparison(compare, min_overlap=0.01)
  assert agrees(form(a), form(a))
  assert not agrees(form(a), form(b))
  assert not agrees(form(b), form(a))


@pytest.mark.parametrize(
  ("a", "b", "alike"),
  [
    ("on 5 May 1889", "on 6 May 1889", False),
    ("on 5 May 1889", "May 1889", True),
    ("it isn’t allowed there", "it is allowed there", False),
    ("it is not allowed", "it isn't allowed", True),
    ("“Gustave Eiffel”", "Gustave Eiffel", True),
    ("巴黎铁塔", "巴黎的铁塔", True),
    ("हिन्दी", "हिन्द", False),  # vowels that stand for themselves are no punctuation
  ],
)
def test_words_that_are_shared(a, b, alike):
  form, agrees = agreement.comparison("overlap", min_overlap=0.5)
  assert agrees(form(a), form(b)) == agrees(form(b), form(a)) == alike


@given(st.fractions(max_denominator=999), st.sampled_from(["", "x = 7, so ", "#### "]))
def test_quantities_are_read_back(value, before):
  assert agreement.quantity(f"{before}{value}") == value
  assert agreement.quantity(f"{before}{value} apples.") == value


@given(st.text("0123456789.,/-−^e $#* {}\\frac", max_size=60))
def test_quantities_of_any_text(text):
  value = agreement.quantity(text)
  assert value is None or any(map(str.isdigit, text))


def test_agreement_as_an_operator(kit, tmp_path):
  rows = [
    {"text": "a", "answer": "42", "tries": ["so 42", "43", "#### 42.0"]},
    {"text": "b", "answer": 7, "tries": ["8"]},
    {"text": "c", "answer": "1", "tries": []},
    {"text": "d", "tries": ["1"]},
  ]
  (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  judge = step(
    "answers_agree", answers="tries", reference="answer", compare="number", chosen_into="best"
  )
  keep = step("field_range", field="agreement", minimum=0.5)
  accounts = kit.execute(kit.plan(judge, keep), tmp_path)["accounts"]
  (row,) = kit.records(tmp_path / "out")
  assert (row["best"], row["agreement"]) == ("so 42", 2 / 3)
  assert accounts["dropped"] == {"answers_agree.missing": 2, "answers_agree.none": 1}


def test_field_ranges(kit, tmp_path):
  values = [1, 2.5, "3", None, True, 4, -1, 10**400, -(10**400)]
  rows = [{"text": str(i), "v": value} for i, value in enumerate(values)]
  (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  keep = step("field_range", field="v", minimum=1, maximum=3)
  accounts = kit.execute(kit.plan(keep), tmp_path)["accounts"]
  assert [row["v"] for row in kit.records(tmp_path / "out")] == [1, 2.5]
  assert accounts["dropped"] == {"field_range.v": 4, "field_range.v.missing": 3}
