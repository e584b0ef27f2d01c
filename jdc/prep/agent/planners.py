"""Planners by name."""

from jdc.prep.agent.planner import Planner


def open_planner(name: str) -> Planner:
  """Returns a planner.

  Args:
    name: `rules`, or `llm:MODEL` with `@URL` behind it for a server other than OpenAI's, such
      as `llm:qwen3@http://localhost:8000/v1`.

  Raises:
    ValueError: if there is no such planner.
    ImportError: if what it needs is not installed.
  """
  if name == "rules":
    from jdc.prep.agent.rules import RulePlanner

    return RulePlanner()
  if name.startswith("llm:") and name != "llm:":
    from jdc.prep.agent.llm import open_llm

    model, _, url = name.removeprefix("llm:").partition("@")
    return open_llm(model, url)
  raise ValueError(f"planner={name!r}; accepted: rules, llm:MODEL, llm:MODEL@URL")
