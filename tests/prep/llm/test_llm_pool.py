"""Tests of how requests reach a server: connections, pauses, tokens that are not told."""

import asyncio
import json
import time
from types import SimpleNamespace

import pytest

from jdc.prep import step
from jdc.prep.llm.answers import Answers
from jdc.prep.llm.connection import Address
from jdc.prep.llm.desk import Desk
from jdc.prep.llm.pool import NotConnected, Pool

ECHO = {"user": "{text}", "fields": ["text"], "quote": False}
BODY = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()


def pooled(server, use):
  """Runs `use(pool)` on a pool of connections to a server."""

  async def run():
    pool = Pool(Address(f"{server.url}/chat/completions", {}))
    try:
      return await asyncio.wait_for(use(pool), 20)
    finally:
      await pool.close()

  return asyncio.run(run())


def test_requests_share_connections_and_never_pass_the_limit(serve, kit):
  server = serve(lambda body, n: kit.Answer("ok", delay=0.001 * (n % 5)))
  most_open = []

  async def use(pool):
    posts = [asyncio.create_task(pool.post(BODY, 4, 5.0)) for _ in range(200)]
    for post in posts:
      assert (await post).status == 200
      most_open.append(len(pool._connections))

  pooled(server, use)
  assert server.came == 200
  assert server.most_under_way == 4
  assert max(most_open) == 4


def test_nothing_is_sent_in_a_pause_that_a_response_asks_for(serve, kit):
  """Not even what waited when the response came."""
  busy = kit.Answer("wait", status=429, headers={"Retry-After": "1"})
  server = serve(lambda body, n: busy if n == 0 else kit.Answer("ok"))

  async def use(pool):
    posts = [asyncio.create_task(pool.post(BODY, 1, 5.0)) for _ in range(5)]
    assert (await posts[0]).status == 429
    pool.hold(0.3)
    pool.go_on()
    begin = time.monotonic()
    await asyncio.sleep(0.25)
    assert server.came == 1
    await asyncio.gather(*posts[1:])
    return time.monotonic() - begin

  assert 0.3 <= pooled(server, use) < 2
  assert server.came == 5


def test_connections_that_the_server_closed_meanwhile_are_not_used(serve, kit):
  server = serve()

  async def use(pool):
    await pool.post(BODY, 1, 5.0)
    await asyncio.to_thread(server.stop)
    await asyncio.sleep(0.05)
    with pytest.raises(NotConnected):
      await pool.post(BODY, 1, 5.0)
    await asyncio.to_thread(server.start)
    return (await pool.post(BODY, 1, 5.0)).status

  assert pooled(server, use) == 200


def test_a_request_whose_asker_is_gone_keeps_no_other_one_back(serve, kit):
  server = serve(lambda body, n: kit.Answer("ok", delay=0.2 if n == 0 else 0))

  async def use(pool):
    posts = [asyncio.create_task(pool.post(BODY, 1, 5.0)) for _ in range(3)]
    await asyncio.sleep(0.1)
    posts[0].cancel()  # under way
    posts[1].cancel()  # waits
    return (await posts[2]).status

  assert pooled(server, use) == 200
  assert server.came == 2


def test_steps_with_the_same_server_share_its_slots(serve, kit, tmp_path):
  """Of several models, and with several limits, each its own."""
  server = serve(lambda body, n: kit.Answer("ok", delay=0.02))
  for name in "ab":
    kit.write_raw(tmp_path, [f"{name}{i} {'x' * 100}" for i in range(60)], f"raw-{name}.jsonl")
  one = step("llm_map", **kit.model(server, concurrency=4), **ECHO, into="one")
  other = kit.model(server, concurrency=4, timeout_s=9.0) | {"model": "other"}
  two = step("llm_map", **other, **ECHO, into="two")
  assert kit.execute(kit.plan(one, two, task_mb=0.004), tmp_path)["accounts"]["kept"] == 120
  assert {r.body["model"] for r in server.requests} == {"m", "other"}
  assert server.most_under_way == 4


def test_a_key_is_not_kept_in_whatever_form_it_comes_back(serve, kit, tmp_path, monkeypatch):
  key = "sk-jdc-0123456789"
  monkeypatch.setenv("SOME_KEY", key)
  escaped = "".join(f"\\u{ord(c):04x}" for c in key).encode()

  def script(body, n):
    said = completion().replace(b'"ok"', b'"%s"' % escaped)
    error = b'{"error": {"message": "bad %s"}}' % escaped
    kinds = [
      kit.Answer(raw=said),
      kit.Answer(raw=said.replace(b'"stop"', b'"%s"' % escaped)),
      kit.Answer(raw=error, status=400),
      kit.Answer(raw=error[:-2], status=422),
    ]
    return kinds[n % 4]

  server = serve(script)
  kit.write_raw(tmp_path, [f"t{i}" for i in range(8)])
  made = step("llm_map", **kit.model(server, api_key_env="SOME_KEY"), **ECHO)
  accounts = kit.execute(kit.plan(made), tmp_path)["accounts"]
  assert (accounts["kept"], accounts["quarantined"]) == (4, {"llm_map: refused": 4})
  seen = [p.read_text(errors="replace") for p in (tmp_path / "out").rglob("*") if p.is_file()]
  assert any("[key]" in text for text in seen)
  assert not [text for text in seen if "0123456789" in text or "u0030" in text]


def test_an_answer_in_parts_is_one(serve, kit, tmp_path):
  parts = b'[{"type": "text", "text": "o"}, {"type": "image"}, {"type": "text", "text": "k"}]'
  server = serve(lambda body, n: kit.Answer(raw=completion().replace(b'"ok"', parts)))
  kit.write_raw(tmp_path, ["a"])
  kit.execute(kit.plan(step("llm_map", **kit.model(server), **ECHO)), tmp_path)
  assert [row["text"] for row in kit.records(tmp_path / "out")] == ["ok"]


def completion(**usage):
  message = {"role": "assistant", "content": "ok"}
  held = {"choices": [{"message": message, "finish_reason": "stop"}], **usage}
  return json.dumps(held).encode()


@pytest.mark.parametrize(
  "usage",
  [
    {},
    {"usage": None},
    {"usage": []},
    {"usage": {"prompt_tokens": 1}},
    {"usage": {"prompt_tokens": -5000, "completion_tokens": -5000}},
    {"usage": {"prompt_tokens": 1e300, "completion_tokens": 2**63}},
    {"usage": {"prompt_tokens": "many", "completion_tokens": True}},
  ],
)
def test_tokens_that_are_not_told_count_as_the_most_they_may_be(serve, kit, tmp_path, usage):
  server = serve(lambda body, n: kit.Answer(raw=completion(**usage)))
  kit.write_raw(tmp_path, [f"t{i}" for i in range(20)])
  budget = {"completion_tokens": 100}
  sampling = {"max_tokens": 20}
  made = step("llm_map", **kit.model(server), **ECHO, budget=budget, sampling=sampling)
  for _ in range(2):  # nor does another run in the folder forget them
    with pytest.raises(RuntimeError, match="completion_tokens: 100 of 100 used"):
      kit.execute(kit.plan(made), tmp_path)
    assert len(server.requests) == 5
  more = {**made.params, "budget": {"completion_tokens": 400}}
  assert kit.execute(kit.plan(step("llm_map", **more)), tmp_path)["accounts"]["kept"] == 20
  assert len(server.requests) == 20


def test_seconds_of_tasks_add_up_to_the_time_in_which_any_was_at_work(tmp_path, monkeypatch):
  """Of two that overlap, one within another, and one after a gap."""
  now = 0
  monkeypatch.setattr("jdc.prep.llm.desk.time", SimpleNamespace(monotonic=lambda: now))
  spans = [(10, 40), (20, 50), (30, 35), (70, 80)]

  async def run():
    nonlocal now
    desk, open_clocks, laps = Desk(Answers(tmp_path)), {}, []
    for now in range(100):
      for span in spans:
        if now == span[0]:
          open_clocks[span] = desk.clock()
          open_clocks[span] = (open_clocks[span], open_clocks[span].__enter__())
        if now == span[1]:
          clock, lap = open_clocks[span]
          laps.append(lap())
          clock.__exit__(None, None, None)
    await desk.close()
    return laps

  assert sum(asyncio.run(run())) == (50 - 10) + (80 - 70)
