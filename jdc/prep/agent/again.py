"""Any plan on new data: what it does to a sample, with planted texts."""

from pathlib import Path

from jdc.prep import canaries, expect
from jdc.prep.agent import contract
from jdc.prep.agent import goal as goal_lib
from jdc.prep.agent.survey import survey
from jdc.prep.agent.workflow import Options, extra_loss
from jdc.prep.canaries import Canary
from jdc.prep.spec import Expectation, PlanSpec
from jdc.prep.verify import Sample, Verification, Verifier

# What holds of any plan, whatever it expects.
_ALWAYS = {
  "changed_again_rate": Expectation(max=0),
  "schema_faults": Expectation(max=0),
  "failed_cases": Expectation(max=0),
}


def verify(
  plan: PlanSpec,
  folder: str | Path,
  root: str | Path,
  options: Options = Options(),  # noqa: B008
) -> Verification:
  """Tries a plan on a sample of its input, and judges it by what it expects.

  Args:
    plan: any; expectations that only whole runs can measure are left out.
    folder: for work files.
    root: the folder that relative paths of the plan start at.
    options: sizes and seed; the sample is the one that `plan` holds back.

  Raises:
    ValueError: if the plan or the input is wrong.
  """
  expect.check_names(plan)
  held = plan.model_copy(update={"expect": {**_ALWAYS, **plan.expect}})
  found = survey(
    plan.input,
    root=root,
    sample=options.sample,
    held=options.held,
    seed=options.seed,
    most_mb=options.most_mb,
  )
  loss = extra_loss(found, plan)
  sample = Sample(found.held, found.weights, tuple(planted(plan)), loss)
  return Verifier(sample, Path(folder), Path(root)).verify(held)


def planted(plan: PlanSpec) -> list[Canary]:
  """Returns canaries for a plan: by its goal, or by what its steps say of languages and PII."""
  if plan.goal and (goal := goal_lib.read(plan.goal)).intents:
    return contract.planted(goal)
  languages = [code for s in plan.step if s.op == "language" for code in _kept(s.params)]
  kinds = [
    f"pii_{kind}"
    for s in plan.step
    if s.op == "mask_pii"
    for kind in contract.PII
    if s.params.get("card_luhn" if kind == "card" else kind, True)
  ]
  return canaries.plant(languages, kinds)


def _kept(params: dict[str, list[str]]) -> list[str]:
  return list(params.get("keep", ["en"]))
