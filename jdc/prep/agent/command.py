"""The commands `plan` and `verify` of `launch/prep.py`."""

import json
import sys
import tempfile
from pathlib import Path

from jdc.prep import verify as verify_lib
from jdc.prep.agent import again, workflow
from jdc.prep.agent.planner import Planner
from jdc.prep.spec import InputSpec, PlanSpec


def plan(
  goal: str,
  spec: InputSpec,
  output: str,
  planner: Planner,
  options: workflow.Options,
  review: bool = False,
) -> int:
  """Makes a plan, prints what it does and what was not understood; 0 if it was accepted."""
  result = workflow.plan(goal, spec, output, planner, options)
  if review:
    from jdc.prep.agent import review as review_lib

    result = review_lib.review(result, Path(output))
  print(verify_lib.summary(workflow.report_of(result.verification)))
  for remark in result.remarks:
    print(f"remark: {remark}")
  path = Path(output) / "pipeline.toml"
  if result.accepted:
    print(f"accepted after {len(result.rounds)} repairs: {path}")
    return 0
  print(f"not accepted after {len(result.rounds)} repairs; the best so far: {path}")
  for line in result.verification.failures:
    print(line, file=sys.stderr)
  if result.rounds and "why" in result.rounds[-1]:
    print(result.rounds[-1]["why"], file=sys.stderr)
  return 1


def verify(path: str, inputs: list[str], output: str, options: workflow.Options) -> int:
  """Tries a plan on its input or another one; 0 if all that it expects holds."""
  held = PlanSpec.read(path)
  root = Path(path).parent
  if inputs:
    changed = workflow.input_of(inputs, root).paths
    held = held.model_copy(update={"input": held.input.model_copy(update={"paths": changed})})
  with tempfile.TemporaryDirectory() as folder:
    found = again.verify(held, folder, root, options)
  report = workflow.report_of(found)
  print(verify_lib.summary(report))
  if output:
    Path(output).mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    (Path(output) / "verification.json").write_text(text, encoding="utf-8")
  for line in found.failures:
    print(line, file=sys.stderr)
  return 0 if found.accepted else 1
