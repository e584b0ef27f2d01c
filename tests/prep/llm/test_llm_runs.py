"""Tests of runs that ask a scripted server: what comes out, and that nothing is lost."""

from jdc.prep import step

ECHO = {"user": "{text}", "fields": ["text"], "quote": False}


def test_map_replaces_the_text(serve, kit, tmp_path):
  echo = lambda body, number: kit.Answer(f"({body['messages'][-1]['content']})", delay=0.01)
  server = serve(echo)
  kit.write_raw(tmp_path, [f"document {i}" for i in range(100)])
  made = step("llm_map", **kit.model(server), **ECHO, keep_as="original")
  manifest = kit.execute(kit.plan(made), tmp_path)
  rows = kit.records(tmp_path / "out")
  assert [row["text"] for row in rows] == [f"(document {i})" for i in range(100)]
  assert [row["original"] for row in rows] == [f"document {i}" for i in range(100)]
  assert manifest["accounts"]["kept"] == 100
  assert len(server.requests) == 100
