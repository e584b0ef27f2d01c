"""Tests of servers that fail: each document ends done or set aside, and no answer is lost."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from jdc.prep import step

ROOT = Path(__file__).parents[3]
ECHO = {"user": "{text}", "fields": ["text"], "quote": False}
SCHEMA = {
  "type": "object",
  "properties": {"word": {"type": "string", "maxLength": 20}},
  "required": ["word"],
  "additionalProperties": False,
}
KEY = "sk-jdc-0123456789/abcdef"


def user_of(body):
  return body["messages"][-1]["content"]


def words(kit, server, count, tmp_path, **options):
  """A plan that maps `count` documents to fields, by JSON."""
  kit.write_raw(tmp_path, [f"word{i}" for i in range(count)])
  held = {"json_schema": SCHEMA, "outputs": {"word": "word"}, **options}
  return kit.plan(step("llm_map", **{**kit.model(server), **ECHO, **held}))


def test_every_document_is_done_or_set_aside(serve, kit, tmp_path):
  """A server with all faults at once; the accounts add up, cause by cause."""
  asked = Counter()

  def script(body, n):
    text = user_of(body)
    asked[text] += 1
    number, attempt = int(text[4:]), asked[text]
    good = kit.Answer(json.dumps({"word": text}), delay=0.001 * (number % 7))
    once = attempt == 1
    faults = {
      0: good,
      1: kit.Answer('{"word": "', finish="length"),
      2: kit.Answer('{"word": 7}') if once else good,
      3: kit.Answer("no JSON at all") if attempt < 3 else good,
      4: kit.Answer("busy", status=503) if once else good,
      5: kit.Answer("wait", status=429, headers={"Retry-After": "0.1"}) if once else good,
      6: kit.Answer(drop="before") if once else good,
      7: kit.Answer(drop="middle") if once else good,
      8: kit.Answer(raw=b'{"choices": [') if once else good,
      9: kit.Answer("your prompt is bad", status=400),
      10: kit.Answer('{"word": "much longer than the schema says"}'),
      11: kit.Answer(None),
      12: kit.Answer("broken", status=500),
      13: kit.Answer("hm", finish="content_filter"),
    }
    return faults[number % 14]

  server = serve(script)
  plan = words(kit, server, 140, tmp_path)
  plan = kit.plan(
    *[s.model_copy(update={"params": {**s.params, "server": {
      "base_url": server.url, "tries": 3}}}) for s in plan.step]
  )  # fmt: skip
  manifest = kit.execute(plan, tmp_path)
  accounts = manifest["accounts"]
  assert accounts["read"] == 140
  assert accounts["kept"] == 80
  assert accounts["quarantined"] == {
    "llm_map: cut off": 10,
    "llm_map: refused": 10,
    "llm_map: not as the schema says": 10,
    "llm_map: empty answer": 10,
    "llm_map: no answer": 10,
    "llm_map: filtered": 10,
  }
  rows = kit.records(tmp_path / "out")
  assert [row["word"] for row in rows] == [row["text"] for row in rows]
  aside = kit.records(tmp_path / "out", "quarantine")
  assert sorted(int(r["text"][4:]) % 14 for r in aside) == sorted([1, 9, 10, 11, 12, 13] * 10)
  assert {r["cause"] for r in aside if int(r["text"][4:]) % 14 == 9} == {
    "refused: HTTP 400: your prompt is bad"
  }
  assert {r["answer"] for r in aside if int(r["text"][4:]) % 14 == 1} == {'{"word": "'}
  assert all(r["fields"]["number"] == int(r["text"][4:]) for r in aside)
  assert {asked[f"word{i}"] for i in range(3, 140, 14)} == {3}
  assert {asked[f"word{i}"] for i in range(9, 140, 14)} == {1}


def test_pauses_that_the_server_asks_for_are_kept(serve, kit, tmp_path):
  times = []

  def script(body, n):
    times.append(time.monotonic())
    if n == 10:
      return kit.Answer("slow down", status=429, headers={"Retry-After": "1.5"})
    return kit.Answer("ok", delay=0.02)

  server = serve(script)
  kit.write_raw(tmp_path, [f"t{i}" for i in range(60)])
  made = step("llm_map", **kit.model(server, concurrency=4), **ECHO)
  assert kit.execute(kit.plan(made), tmp_path)["accounts"]["kept"] == 60
  # Others that were under way aside, nothing came in between, and most of it later.
  assert [t for t in times if times[10] + 0.2 < t < times[10] + 1.4] == []
  assert len([t for t in times if t > times[10] + 1.4]) > 40
  assert len(times) == 61


@pytest.mark.parametrize(
  ("status", "said"),
  [(401, "accept the key"), (403, "allow"), (404, "model"), (307, "elsewhere")],
)
def test_errors_that_are_no_documents_stop_the_run(serve, kit, tmp_path, status, said):
  script = lambda body, n: kit.Answer("told", status=status, headers={"Location": "http://x/"})
  server = serve(lambda body, n: script(body, n) if n >= 30 else kit.Answer("ok"))
  kit.write_raw(tmp_path, [f"t{i}" for i in range(200)])
  made = step("llm_map", **kit.model(server, concurrency=2), **ECHO)
  with pytest.raises(RuntimeError, match=rf"HTTP {status}.*{said}"):
    kit.execute(kit.plan(made), tmp_path)
  assert len(server.requests) < 40
  server.script = lambda body, n: kit.Answer("ok")
  answered = {r.user for r in server.requests if r.answer.status == 200}
  before = len(server.requests)
  assert kit.execute(kit.plan(made), tmp_path)["accounts"]["kept"] == 200
  later = [r.user for r in server.requests[before:]]
  assert not answered & set(later)
  assert len(later) == len(set(later)) == 200 - len(answered)


def test_a_server_that_dies_for_good_stops_the_run_which_goes_on_later(serve, kit, tmp_path):
  server = serve(lambda body, n: kit.Answer("ok", delay=0.01))
  kit.write_raw(tmp_path, [f"t{i}" for i in range(400)])
  made = step("llm_map", **kit.model(server, concurrency=4, patience_s=1.0), **ECHO)
  threading.Timer(0.8, server.stop).start()
  with pytest.raises(
    RuntimeError, match=r"has answered nothing for .* patience_s=1; the last: no"
  ):
    kit.execute(kit.plan(made), tmp_path)
  answered = [r.user for r in server.requests]
  assert 0 < len(answered) < 400
  again = serve(lambda body, n: kit.Answer("ok"), port=server.port)
  assert kit.execute(kit.plan(made), tmp_path)["accounts"]["kept"] == 400
  assert sorted(answered + [r.user for r in again.requests]) == sorted(
    f"t{i}" for i in range(400)
  )


def test_a_server_that_comes_back_is_waited_for(serve, kit, tmp_path):
  server = serve(lambda body, n: kit.Answer("ok", delay=0.01))
  kit.write_raw(tmp_path, [f"t{i}" for i in range(300)])
  made = step("llm_map", **kit.model(server, concurrency=4, patience_s=20), **ECHO)

  def restart():
    server.stop()
    time.sleep(0.7)
    server.start()

  threading.Timer(0.5, restart).start()
  assert kit.execute(kit.plan(made), tmp_path)["accounts"]["kept"] == 300
  assert len({r.user for r in server.requests}) == len(server.requests) == 300


def test_damaged_answers_are_told_before_anything_runs(serve, kit, tmp_path):
  server = serve()
  kit.write_raw(tmp_path, ["a"])
  made = step("llm_map", **kit.model(server), **ECHO)
  (tmp_path / "out").mkdir()
  (tmp_path / "out/run.lock").touch()
  (tmp_path / "out/answers.jsonl").write_text("what is this?\n")
  with pytest.raises(ValueError, match=r"answers.jsonl: damaged at byte 0"):
    kit.execute(kit.plan(made), tmp_path)
  assert server.came == 0


def test_the_last_document_may_be_what_the_server_fails_at(serve, kit, tmp_path):
  """Nothing else is answered meanwhile; a shortest request tells that the server lives."""

  def script(body, n):
    return kit.Answer("boom", status=500) if user_of(body) == "t1" else kit.Answer("ok")

  server = serve(script)
  kit.write_raw(tmp_path, ["t0", "t1"])
  made = step("llm_map", **kit.model(server, tries=2, concurrency=1), **ECHO)
  accounts = kit.execute(kit.plan(made), tmp_path)["accounts"]
  assert accounts["quarantined"] == {"llm_map: no answer": 1}
  assert [r.user for r in server.requests if r.body["max_tokens"] == 1] == ["1"]


def test_missing_fields_are_set_aside(serve, kit, tmp_path):
  server = serve()
  rows = [{"text": "a", "topic": "x"}, {"text": "b"}, {"text": "c", "topic": {"of": 1}}]
  (tmp_path / "raw.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  made = step(
    "llm_map", **kit.model(server), user="{text} {topic}", fields=["text", "topic"], quote=False
  )
  accounts = kit.execute(kit.plan(made), tmp_path)["accounts"]
  assert accounts["quarantined"] == {"llm_map: missing field": 1}
  assert sorted(r.user for r in server.requests) == ["a x", 'c {"of":1}']


def test_on_error_stops_where_that_is_wanted(serve, kit, tmp_path):
  server = serve(lambda body, n: kit.Answer("no JSON"))
  plan = words(kit, server, 3, tmp_path, on_error="error", attempts=1)
  with pytest.raises(RuntimeError, match=r"raw.jsonl at \d+: not JSON.*on_error is 'error'"):
    kit.execute(plan, tmp_path)


def test_answers_of_no_use_are_asked_for_again_with_another_seed(serve, kit, tmp_path):
  server = serve(lambda body, n: kit.Answer("no JSON"))
  plan = words(kit, server, 1, tmp_path, attempts=3, sampling={"seed": 9})
  assert kit.execute(plan, tmp_path)["accounts"]["quarantined"] == {"llm_map: not JSON": 1}
  asked = [(r.body["seed"], r.body["temperature"]) for r in server.requests]
  assert asked == [(9, 0.0), (10, 0.5), (11, 0.5)]


def test_budgets_stop_the_run_which_goes_on_with_more(serve, kit, tmp_path):
  server = serve(lambda body, n: kit.Answer("ok", usage=(10, 5), delay=0.001))
  kit.write_raw(tmp_path, [f"t{i}" for i in range(100)])

  def run(**budget):
    made = step(
      "llm_map", **kit.model(server, concurrency=8), **ECHO, budget=budget,
      sampling={"max_tokens": 20},
    )  # fmt: skip
    return kit.execute(kit.plan(made), tmp_path)

  with pytest.raises(
    RuntimeError, match=r"requests: 30 of 30 used.*01-llm_map, shard 0: \d+ doc"
  ):
    run(requests=30)
  assert len(server.requests) == 30
  with pytest.raises(
    RuntimeError, match="requests: 30 of 30 used"
  ):  # of all runs in the folder
    run(requests=30)
  with pytest.raises(RuntimeError, match=r"completion_tokens: .* of 250 used"):
    run(completion_tokens=250)
  assert 5 * len(server.requests) <= 250
  assert 5 * len(server.requests) > 250 - 20 - 5  # one more request might have been too much
  prices = {"prompt_price": 1e6, "completion_price": 2e6}  # 20 a request
  with pytest.raises(RuntimeError, match=r"money: .* of 1400.0 used"):
    run(money=1400.0, **prices)
  assert 20 * len(server.requests) <= 1400
  manifest = run(money=2000.0 + 400, **prices)
  assert manifest["accounts"]["kept"] == 100
  assert len({r.user for r in server.requests}) == len(server.requests) == 100


def test_a_budget_may_set_the_rest_aside(serve, kit, tmp_path):
  server = serve(lambda body, n: kit.Answer("ok"))
  kit.write_raw(tmp_path, [f"t{i}" for i in range(50)])
  run = lambda requests: kit.execute(
    kit.plan(
      step(
        "llm_map", **kit.model(server), **ECHO,
        budget={"requests": requests, "when_used_up": "quarantine"},
      )
    ),
    tmp_path,
  )  # fmt: skip
  accounts = run(20)["accounts"]
  assert (accounts["kept"], accounts["quarantined"]) == (20, {"llm_map: budget": 30})
  assert run(50)["accounts"]["kept"] == 50
  assert len(server.requests) == 50


def test_the_key_is_sent_and_nowhere_kept(serve, kit, tmp_path, monkeypatch, caplog):
  """Not even by a server that says it back, in answers and in errors."""
  caplog.set_level(logging.DEBUG)
  monkeypatch.setenv("SOME_KEY", KEY)

  def script(body, n):
    said = f"your key is {KEY}, or {json.dumps(KEY)}"
    kinds = [
      kit.Answer(said), kit.Answer(said, status=400), kit.Answer(said, status=500),
      kit.Answer(raw=json.dumps({"choices": KEY}).encode()),
      kit.Answer(raw=said.replace("/", "\\/").encode(), status=422),
    ]  # fmt: skip
    return kinds[n % 5] if n < 60 else kit.Answer(said, status=401)

  server = serve(script)
  kit.write_raw(tmp_path, [f"t{i}" for i in range(100)])
  made = step(
    "llm_map", **kit.model(server, api_key_env="SOME_KEY", tries=2, concurrency=4), **ECHO
  )
  with pytest.raises(RuntimeError, match=r"HTTP 401.*\$SOME_KEY") as caught:
    kit.execute(kit.plan(made), tmp_path)
  script_now = lambda body, n: kit.Answer(f"fine {KEY}")
  server.script = script_now
  kit.execute(kit.plan(made), tmp_path)
  assert {r.headers["authorization"] for r in server.requests} == {f"Bearer {KEY}".lower()}
  seen = [repr(caught.value), str(caught.getrepr(showlocals=False)), caplog.text]
  seen += [p.read_text(errors="replace") for p in (tmp_path / "out").rglob("*") if p.is_file()]
  assert any("[key]" in text for text in seen)
  assert not [text for text in seen if KEY in text or "0123456789" in text]
  monkeypatch.delenv("SOME_KEY")
  with pytest.raises(ValueError, match="the environment has no SOME_KEY"):
    kit.execute(kit.plan(made), tmp_path)
  monkeypatch.setenv("SOME_KEY", f"{KEY}\nX: y")
  with pytest.raises(ValueError, match=r"\$SOME_KEY holds characters") as caught:
    kit.execute(kit.plan(made), tmp_path)
  assert KEY not in str(caught.value)


RUN = """
import sys
from jdc.prep import PlanSpec, runner
runner.Run(PlanSpec.read(sys.argv[1]), sys.argv[2], root=sys.argv[3], report=False).execute()
"""


def start(tmp_path):
  arguments = [tmp_path / "plan.toml", tmp_path / "out", tmp_path]
  return subprocess.Popen(
    [sys.executable, "-c", RUN, *map(str, arguments)],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stderr=subprocess.PIPE,
  )


def test_nothing_that_was_answered_is_asked_again_after_a_kill(serve, kit, tmp_path):
  """In the middle of a shard; the server's log says what was asked twice: nothing."""
  server = serve(lambda body, n: kit.Answer("ok", delay=0.01 if n < 150 else 30))
  kit.write_raw(tmp_path, [f"t{i}" for i in range(400)])
  made = step("llm_map", **kit.model(server, concurrency=16), **ECHO)
  plan = kit.plan(made)
  (tmp_path / "plan.toml").write_text(plan.to_toml())
  process = start(tmp_path)
  deadline = time.monotonic() + 60
  while server.came < 166 and time.monotonic() < deadline:
    time.sleep(0.02)
  time.sleep(0.3)  # what was sent has come; the rest waits at the server
  assert process.poll() is None
  os.kill(process.pid, signal.SIGKILL)
  process.communicate()
  assert not list((tmp_path / "out").glob("data/**/*.zst"))
  assert len(server.requests) == 150
  server.script = lambda body, n: kit.Answer("ok")
  process = start(tmp_path)
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors.decode()
  answered = Counter(r.user for r in server.requests)
  assert set(answered) == {f"t{i}" for i in range(400)}
  assert max(answered.values()) == 1
  killed = kit.records(tmp_path / "out")
  kit.execute(plan, tmp_path, "whole")
  assert killed == kit.records(tmp_path / "whole")
