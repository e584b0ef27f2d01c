"""Tests of the recipes, with a server that answers some things wrongly on purpose."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import jdc.prep
from jdc.data import conversations
from jdc.prep import PlanSpec, check
from jdc.prep.llm.prompts import PROMPTS

RECIPES = Path(jdc.prep.__file__).parent / "recipes"
FILLER = " and so on, as texts of some length go" * 10


def recipe(name, server):
  text = (RECIPES / f"{name}.toml").read_text()
  assert "http://127.0.0.1:8000/v1" in text
  return PlanSpec.from_toml(text.replace("http://127.0.0.1:8000/v1", server.url))


def prompt_of(body):
  system = body["messages"][0]["content"]
  (name,) = [name for name, prompt in PROMPTS.items() if system.startswith(prompt.system)]
  return name


def inside(body):
  """Returns the material of a request, by field."""
  user = body["messages"][-1]["content"]
  return dict(re.findall(r"<([a-z]+)-[0-9a-f]{8}>\n(.*?)\n</\1-[0-9a-f]{8}>", user, re.DOTALL))


def write(folder, texts):
  folder.mkdir()
  (folder / "part.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_recipes_are_plans_in_an_order_that_nothing_is_remarked_on(path, tmp_path):
  plan = PlanSpec.read(path)
  assert check.resolve(plan, tmp_path)
  assert not check.remarks(plan)


def test_question_answers(serve, kit, tmp_path):
  """Of each text one answer is confirmed, one is not."""

  def script(body, n):
    held = inside(body)
    if prompt_of(body) == "question_answer":
      (topic,) = re.findall(r"city(\d+)", held["text"])
      items = [
        {"question": f"What is the river of city{topic}?", "answer": f"the river {topic}"},
        {"question": f"Who founded city{topic}?", "answer": f"King {topic}"},
      ]
      return kit.Answer(json.dumps({"items": items}))
    number = re.findall(r"\d+", held["question"])[0]
    assert f"city{number}" in held["context"]
    said = f"River {number}." if "river" in held["question"] else "unknown"
    return kit.Answer(json.dumps({"reasoning": "as the text says", "answer": said}))

  server = serve(script)
  write(tmp_path / "raw", [f"About city{i}{FILLER}" for i in range(20)] + ["too short"])
  manifest = kit.execute(recipe("question_answers", server), tmp_path)
  accounts = manifest["accounts"]
  assert (accounts["read"], accounts["made"], accounts["kept"]) == (21, 20, 20)
  assert accounts["dropped"]["field_range.agreement"] == 20
  assert accounts["quarantined"] == {}
  rows = kit.records(tmp_path / "out")
  assert {tuple(m["role"] for m in row["messages"]) for row in rows} == {("user", "assistant")}
  # What training reads of it.
  found = [conversations.messages_of(row, "auto") for row in rows]
  assert sorted(messages[1].content for messages in found) == sorted(
    f"the river {i}" for i in range(20)
  )


def test_math_problems(serve, kit, tmp_path):
  """Problems 0 and 1 of each seed: right; and one whose given answer is wrong."""

  def script(body, n):
    held = inside(body)
    if prompt_of(body) == "math_problems":
      seed = int(re.findall(r"\d+", held["text"])[0])
      word = chr(ord("a") + seed) * 5
      items = [
        {"question": f"{word} has {seed}, gets {k} {'more ' * k}?", "solution": "", "answer": a}
        for k, a in ((1, str(seed + 1)), (2, f"${seed + 2}.00"), (3, "1000"))
      ]  # fmt: skip
      for item in items:
        item["solution"] = "by addition"
      return kit.Answer(json.dumps({"items": items}))
    a, b = map(int, re.findall(r"\d+", held["question"]))
    wrong = body["seed"] == 0 and b == 1  # one solution of four, the first
    return kit.Answer(f"{a} + {b}\n#### {a + b + wrong}")

  server = serve(script)
  write(tmp_path / "seeds", [f"seed {i}" for i in range(5)])
  manifest = kit.execute(recipe("math_problems", server), tmp_path)
  rows = kit.records(tmp_path / "out")
  assert len(rows) == 10
  for row in rows:
    user, assistant = row["messages"]
    a, b = map(int, re.findall(r"\d+", user["content"]))
    assert assistant["content"] == f"{a} + {b}\n#### {a + b}"  # the first that is right
    assert row["agreement"] == (0.75 if b == 1 else 1.0)
  assert manifest["accounts"]["dropped"] == {"answers_agree.none": 5}


def test_rewrite(serve, kit, tmp_path):
  def script(body, n):
    held = inside(body)
    if prompt_of(body) == "rewrite":
      return kit.Answer(held["text"].replace("hard", "clear"))
    assert held["original"].replace("hard", "clear") == held["text"]
    score = 2 if "3" in held["text"] else 5
    return kit.Answer(json.dumps({"reason": "hm", "score": score}))

  server = serve(script)
  write(tmp_path / "raw", [f"hard text {i}" for i in range(10)])
  manifest = kit.execute(recipe("rewrite", server), tmp_path)
  (path,) = (tmp_path / "out/data").rglob("*.parquet")
  texts = pq.read_table(path)["text"].to_pylist()
  assert texts == [f"clear text {i}" for i in range(10) if i != 3]
  assert manifest["accounts"]["dropped"] == {"field_range.faithfulness": 1}
