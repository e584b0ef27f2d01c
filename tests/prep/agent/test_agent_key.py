"""What the rule planner's plan does to the lines of the answer key."""

import gzip
import os
from pathlib import Path

import key_measures as key
import pytest
from agent_corpus import GOAL

from jdc.prep import runner
from jdc.prep.agent import rules, workflow
from jdc.prep.spec import PlanSpec

HERE = Path(__file__).parent
DATA = Path(os.environ.get("JDC_TEST_DATA", HERE / "../../../../shared/data")) / "dirty"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}; set JDC_TEST_DATA")
FILES = ("raw-00.jsonl.gz", "raw-01.jsonl.gz", "raw-02.jsonl.gz")
CERTAIN = [record for record in key.KEY if not record["doubtful"]]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
  """A folder with the plan, and with its full run."""
  folder = tmp_path_factory.mktemp("key")
  spec = workflow.input_of([str(DATA.resolve() / "*.jsonl.gz")], folder)
  made = workflow.plan(GOAL, spec, folder, rules.RulePlanner(), workflow.Options(held=800))
  assert made.accepted, made.verification.failures
  plan = PlanSpec.read(folder / "pipeline.toml")
  manifest = runner.run(plan, folder / "run", root=folder)
  assert all(held["holds"] for held in manifest["expectations"])
  return folder


@pytest.fixture(scope="module")
def kept(planned):
  """The output of the full run of the plan."""
  return key.kept_texts(planned / "run")


@pytest.mark.parametrize("records", [key.KEY, CERTAIN], ids=["all", "without doubtful"])
def test_what_goes_is_what_a_reader_would_drop(kept, records):
  found = key.dropping(kept, records)
  assert found["precision"] >= 0.85, found
  assert found["recall"] >= 0.85, found


@pytest.mark.parametrize("records", [key.KEY, CERTAIN], ids=["all", "without doubtful"])
def test_clusters_of_duplicates_collapse(kept, records):
  found = key.clusters(kept, records)
  assert found["collapsed"] >= 0.85, found
  assert found["exactly_one"] >= 0.85, found


def test_personal_data_are_masked(kept):
  raw = {name: gzip.decompress((DATA / name).read_bytes()) for name in FILES}
  found = key.masked(kept, key.KEY, raw)
  total, gone = (sum(held[name] for held in found.values()) for name in ("spans", "gone"))
  assert total == 25
  assert gone / total >= 0.95, found
  shown = sum(held.get("in_kept", 0) for held in found.values())
  assert sum(held.get("masked_in_kept", 0) for held in found.values()) / shown >= 0.95, found


def test_the_plan_changes_nothing_of_its_own_output(planned):
  plan = PlanSpec.read(planned / "pipeline.toml")
  output = {"paths": ("run/data/*/*.parquet",)}
  again = plan.model_copy(update={"input": plan.input.model_copy(update=output), "expect": {}})
  manifest = runner.run(again, planned / "again", root=planned, report=False)
  assert manifest["accounts"]["kept"] == manifest["accounts"]["read"]
  texts = key.kept_texts(planned / "run").values()
  assert sorted(key.all_texts(planned / "again")) == sorted(texts)
