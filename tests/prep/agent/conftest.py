import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

GOAL = (
  "clean English web text for pre-training, no duplicates, no personal data, keep at least 30 %"
)


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
  """A folder with a small dirty corpus."""
  import corpus

  return corpus.write(tmp_path_factory.mktemp("corpus") / "raw")


@pytest.fixture(scope="session")
def planned(raw):
  """The plan of the rule planner for it, with its folder."""
  from jdc.prep.agent import rules, workflow

  folder = raw.parent / "planned"
  spec = workflow.input_of([str(raw / "*.jsonl")], folder)
  return workflow.plan(GOAL, spec, folder, rules.RulePlanner()), folder
