import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
  """A folder with a small dirty corpus."""
  import agent_corpus

  return agent_corpus.write(tmp_path_factory.mktemp("corpus") / "raw")


@pytest.fixture(scope="session")
def planned(raw):
  """The plan of the rule planner for it, with its folder."""
  import agent_corpus

  from jdc.prep.agent import rules, workflow

  folder = raw.parent / "planned"
  spec = agent_corpus.spec(raw, folder)
  return workflow.plan(agent_corpus.GOAL, spec, folder, rules.RulePlanner()), folder
