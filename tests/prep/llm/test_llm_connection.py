"""Tests of connections against servers that send bytes by hand."""

import asyncio

import pytest

from jdc.prep.llm import connection as connection_lib
from jdc.prep.llm.connection import Address, Broken, Response

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"


def talk(*says, requests=1, timeout_s=5.0, path="/v1", then_close=False):
  """Returns outcomes, the connection's state after each, and what the server got."""

  async def run():
    got, outcomes = [], []
    script = iter(says)

    async def serve(reader, writer):
      while True:
        try:
          head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
          break
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        got.append(head + await reader.readexactly(length))
        for part in next(script):
          writer.write(part)
          await asyncio.sleep(0.01)
        if then_close:
          break
      writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    address = Address(f"http://127.0.0.1:{port}{path}", {"X-Own": "y"})

    def done(made, future, outcome):
      outcomes.append((outcome, made.is_open))
      future.set_result(outcome)

    made = await address.connect(done)
    for number in range(requests):
      future = asyncio.get_running_loop().create_future()
      made.send(address.request(b"body %d" % number), future, timeout_s)
      await future
    await asyncio.sleep(0.02)
    open_later = made.is_open
    made.close()
    server.close()
    await asyncio.sleep(0.02)
    return outcomes, open_later, got, port

  return asyncio.run(asyncio.wait_for(run(), 20))


def test_requests_are_sent_as_they_should_be_over_one_connection():
  outcomes, _, got, port = talk([OK], [OK], requests=2, path="/a b/é")
  assert outcomes == [(Response(200, "", b"ab"), True)] * 2
  assert got == [
    b"POST /a%%20b/%%C3%%A9 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nX-Own: y\r\n"
    b"Content-Length: 6\r\n\r\nbody %d" % (port, number)
    for number in range(2)
  ]


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n"
BUSY = b"HTTP/1.1 429 Busy\r\nretry-AFTER: 7\r\nContent-Length: 0\r\n\r\n"
CLOSE = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab"
OLD = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab"
NO_BODY = b"HTTP/1.1 204 No\r\n\r\n"


@pytest.mark.parametrize(
  ("sent", "expected", "stays_open"),
  [
    ([OK[i : i + 1] for i in range(len(OK))], Response(200, "", b"ab"), True),
    ([CHUNKED[:50], CHUNKED[50:]], Response(200, "", b"ab"), True),
    ([b"HTTP/1.1 100 Continue\r\nRetry-After: 9\r\n\r\n", OK], Response(200, "", b"ab"), True),
    ([BUSY], Response(429, "7", b""), True),
    ([NO_BODY], Response(204, "", b""), True),
    ([CLOSE], Response(200, "", b"ab"), False),
    ([OLD], Response(200, "", b"ab"), False),
  ],
)
def test_responses_in_all_forms(sent, expected, stays_open):
  outcomes, open_later, _, _ = talk(sent)
  assert (outcomes, open_later) == ([(expected, stays_open)], stays_open)


def test_a_body_may_last_until_the_connection_ends():
  outcomes, _, _, _ = talk([b"HTTP/1.1 200 OK\r\n\r\n", b"ab"], then_close=True)
  assert outcomes == [(Response(200, "", b"ab"), False)]


@pytest.mark.parametrize(
  "sent",
  [
    [],
    [b"HTTP/1.1 200 OK\r\nConten"],
    [OK[:-1]],
    [CHUNKED[:-5]],
    [b"no HTTP at all\r\n\r\n"],
    [OK + OK],
    [b"HTTP/1.1 101 Other\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"],
    [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"],
  ],
)
def test_what_is_no_response_is_an_error(sent):
  ((outcome, is_open),), *_ = talk(sent, then_close=True)
  assert isinstance(outcome, Broken)
  assert not is_open


def test_what_nobody_asked_for_ends_the_connection():
  outcomes, open_later, _, _ = talk([OK, OK])
  assert outcomes == [(Response(200, "", b"ab"), True)]
  assert not open_later


def test_silence_has_a_limit():
  ((outcome, is_open),), *_ = talk([OK[:20]], timeout_s=0.1)
  assert isinstance(outcome, TimeoutError)
  assert not is_open


def test_a_response_may_not_be_of_any_length(monkeypatch):
  monkeypatch.setattr(connection_lib, "_MAX_BYTES", 1 << 20)
  head = b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n"
  ((outcome, is_open),), *_ = talk([head, b"x" * (1 << 20), b"x"])
  assert isinstance(outcome, Broken)
  assert str(outcome) == "the response is longer than 1 MiB"
  assert not is_open


@pytest.mark.parametrize(
  ("url", "host"),
  [
    ("https://example.com/v1", "example.com"),
    ("http://[::1]:80/v1", "[::1]:80"),
    ("http://bücher.example:8000/v1", "xn--bcher-kva.example:8000"),
  ],
)
def test_hosts(url, host):
  assert f"\r\nHost: {host}\r\n".encode() in Address(url, {}).request(b"")
