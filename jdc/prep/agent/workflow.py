"""From a goal to a plan that was tried: survey, plan, check, trial, verification, repair."""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdc.prep import check, ops, repair, store
from jdc.prep.agent import contract, suggest
from jdc.prep.agent import goal as goal_lib
from jdc.prep.agent.goal import Goal
from jdc.prep.agent.planner import Planner, Proposal, Task
from jdc.prep.agent.survey import Survey, duplicate_rates, survey
from jdc.prep.readers import streams
from jdc.prep.spec import InputSpec, PlanSpec, canonical_json
from jdc.prep.verify import Sample, Verification, Verifier

_LOG = logging.getLogger(__name__)
ROUNDS = 3
_EXCERPT = 1000  # characters of a document that planners may see
_DEVIATIONS = 2.0  # standard errors of the sample by which a repair keeps more than asked


@dataclasses.dataclass(frozen=True)
class Options:
  """How a plan is made.

  Attributes:
    sample: most documents that are profiled.
    held: about how many the plan is verified on.
    seed: of both draws.
    rounds: most repairs.
    most_mb: most MiB of the input that are read.
  """

  sample: int = 5000
  held: int = 2000
  seed: int = 0
  rounds: int = ROUNDS
  most_mb: float = 1024.0

  def __post_init__(self) -> None:
    least = {"sample": 1, "held": 1, "seed": 0, "rounds": 0}
    wrong = [
      f"{name} must be {low} or more, got {getattr(self, name)}"
      for name, low in least.items()
      if getattr(self, name) < low
    ]
    if not self.most_mb > 0:
      wrong.append(f"most_mb must be above 0, got {self.most_mb}")
    if wrong:
      raise ValueError("; ".join(wrong))


@dataclasses.dataclass
class Result:
  """What `plan` made.

  Attributes:
    plan: the best one, with its provenance.
    verification: of it.
    goal: as it was read.
    remarks: what a user should know.
    rounds: repairs that were made.
    verifier: on which further plans can be tried.
  """

  plan: PlanSpec
  verification: Verification
  goal: Goal
  remarks: list[str]
  rounds: list[dict[str, Any]]
  verifier: Verifier

  @property
  def accepted(self) -> bool:
    """Whether all expectations hold on the held sample."""
    return self.verification.accepted


def plan(
  text: str,
  spec: InputSpec,
  output: str | Path,
  planner: Planner,
  options: Options = Options(),
) -> Result:
  """Makes a plan for a goal and tries it; writes `pipeline.toml` and what it rests on.

  Args:
    text: the goal.
    spec: what is read; relative paths start at `output`.
    output: the folder; gets `pipeline.toml`, `profile.json`, `verification.json` and `work/`.
    planner: proposes; what the plan must achieve, the goal alone says.
    options: sizes and seeds.

  Raises:
    ValueError: if the goal or the input leaves nothing to plan.
  """
  folder = Path(output).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  goal = goal_lib.read(text)
  found = _survey(spec, folder, options)
  work = folder / "work"
  shutil.rmtree(work, ignore_errors=True)  # trials of another goal or seed
  profiled = Verifier(_profiled(found, goal), work / "profiled", folder)
  task = Task(
    goal=goal,
    input=spec,
    profile=found.profile,
    expect=contract.expectations(goal),
    root=folder,
    measure=lambda proposed: _effects(profiled.verify(proposed, twice=False)),
    excerpts=lambda count: [
      value[:_EXCERPT] for value in found.sample.column("text").slice(0, count).to_pylist()
    ],
  )
  _LOG.info("goal: %s", goal.text)
  proposal = planner.plan(task)
  first = _capped(_checked(_held_to(proposal.plan, task), folder), profiled)
  verifier = Verifier(_held(found, goal, first), work / "held", folder)
  best, verification, rounds = _improve(first, planner, task, verifier, options)
  # What a planner tells of itself last covers all that it was asked.
  told = [made.pop("provenance") for made in rounds if "provenance" in made]
  proposal = dataclasses.replace(proposal, provenance=[proposal.provenance, *told][-1])
  remarks = [*_doubts(goal), *proposal.remarks]
  result = Result(best, verification, goal, remarks, rounds, verifier)
  result.plan = _with_provenance(result, proposal, found, folder, options)
  write(result, folder)
  return result


def _survey(spec: InputSpec, folder: Path, options: Options) -> Survey:
  found = survey(
    spec,
    root=folder,
    sample=options.sample,
    held=options.held,
    seed=options.seed,
    most_mb=options.most_mb,
  )
  _write_json(folder / "profile.json", found.profile)
  streams.close_resting()
  return found


def _profiled(found: Survey, goal: Goal) -> Sample:
  weights = np.ones(found.sample.num_rows)
  return Sample(found.sample, weights, tuple(contract.planted(goal)))


def _held(found: Survey, goal: Goal, plan: PlanSpec) -> Sample:
  return Sample(
    found.held,
    found.weights,
    tuple(contract.planted(goal)),
    extra_loss(found, plan),
  )


def extra_loss(found: Survey, plan: PlanSpec) -> float:
  """Returns the share of an input that is lost to bad records and to far duplicates.

  These are duplicates of documents outside of a sample, as steps of the plan find them.
  """
  bad = sum(held["count"] for held in found.profile["bad_lines"].values())
  rate = bad / max(bad + found.profile["read"]["documents"], 1)
  used = {s.params.get("ngram", 5) for s in plan.step if s.op == "minhash_dedup"}
  own = duplicate_rates(found.held.column("text"))
  far = [found.profile[f"all_dup_rate_{n}_unverified"] - own[n] for n in own if n in used]
  return rate + sum(max(0.0, share) for share in far)


def _effects(found: Verification) -> dict[int, dict[str, float]]:
  effects: dict[int, dict[str, float]] = {}
  for held in found.outcome.measured:
    shares = {name: found.rules[name]["all"] for name in held.reasons if name in found.rules}
    effects.setdefault(held.step.number, {}).update(shares)
  return effects


def _held_to(plan: PlanSpec, task: Task) -> PlanSpec:
  """Returns a plan with what no planner decides: goal, input and expectations."""
  asked = list(contract.asked_rules(task.goal))
  return plan.model_copy(
    update={
      "goal": task.goal.text,
      "input": task.input,
      "expect": dict(task.expect),
      "provenance": {"asked": asked} if asked else {},
    }
  )


def _checked(plan: PlanSpec, root: Path) -> PlanSpec:
  check.resolve(plan, root)
  return plan


def _capped(plan: PlanSpec, profiled: Verifier) -> PlanSpec:
  """Returns a plan none of whose rules takes more than its share of the profiled sample."""
  found = profiled.verify(plan, twice=False)
  capped, changes = repair.loosen(
    plan.model_copy(
      update={"expect": {k: v for k, v in plan.expect.items() if k != "kept_rate"}}
    ),
    found,
    profiled.sample,
  )
  if changes:
    _LOG.info("published thresholds moved on the profiled sample:\n%s", repair.summary(changes))
  return capped.model_copy(update={"expect": plan.expect})


def _improve(
  plan: PlanSpec, planner: Planner, task: Task, verifier: Verifier, options: Options
) -> tuple[PlanSpec, Verification, list[dict[str, Any]]]:
  """Verifies, and repairs until everything holds or the budget is spent; returns the best."""
  found = verifier.verify(plan)
  best, rounds = (plan, found), []
  for number in range(1, options.rounds + 1):
    if found.accepted:
      break
    _LOG.info("round %d:\n  %s", number, "\n  ".join(found.failures))
    revised, note = _revised(plan, found, planner, task, verifier)
    if revised is None:
      rounds.append({"failures": found.failures, **note})
      break
    plan = revised
    before, found = found, verifier.verify(plan)
    rounds.append({"failures": before.failures, **note, "texts_read": found.outcome.texts_made})
    if _rank(found) >= _rank(best[1]):
      best = (plan, found)
  return *best, rounds


def _revised(
  plan: PlanSpec, found: Verification, planner: Planner, task: Task, verifier: Verifier
) -> tuple[PlanSpec | None, dict[str, Any]]:
  """Returns a plan with looser rules, else another one of the planner."""
  margin = _margin(found, verifier.sample)
  loosened, changes = repair.loosen(plan, found, verifier.sample, margin=margin)
  if changes:
    _LOG.info("%s", repair.summary(changes))
    return loosened, {"by": "rules", "changes": [change._asdict() for change in changes]}
  proposal = planner.revise(task, plan, report_of(found))
  if proposal is None:
    return None, {"by": "nobody", "why": _helpless(found)}
  return _checked(_held_to(proposal.plan, task), task.root), {
    "by": proposal.provenance["planner"],
    "provenance": proposal.provenance,
  }


def _helpless(found: Verification) -> str:
  """Returns why there is no next round."""
  why = "no looser threshold helps, and the planner has no other plan"
  most = next((h["max"] for h in found.expectations if h["name"] == "kept_rate"), None)
  if most is not None and found.measured["kept_rate_of_sample"] > most:
    why += "; too much is kept, and no threshold is made stricter than a goal or a source says"
  return why


def _margin(found: Verification, sample: Sample) -> float:
  rate, size = found.measured["kept_rate_of_sample"], sample.table.num_rows
  return _DEVIATIONS * float(np.sqrt(rate * (1 - rate) / size))


def _rank(found: Verification) -> tuple[int, int, float]:
  """Orders verifications: problems, expectations that fail, then what is kept."""
  failing = sum(not held["holds"] for held in found.expectations)
  return (-len(found.problems), -failing, found.measured["kept_rate"])


def report_of(found: Verification) -> dict[str, Any]:
  """Returns what planners and users are told of a verification."""
  return found.to_json()


def _doubts(goal: Goal) -> list[str]:
  lines = [f"goal: {doubt}" for doubt in goal.doubts]
  near = suggest.suggestions(goal.unknown, ops.OPERATORS)
  for word in goal.unknown:
    hint = f"; perhaps {', '.join(near[word])}" if near[word] else ""
    lines.append(f"goal: not understood: {word!r}{hint}")
  missing = contract.without_canaries(goal)
  if missing:
    lines.append(f"no clean text to plant in {', '.join(missing)}: that such stays is untested")
  return lines


def _with_provenance(
  result: Result, proposal: Proposal, found: Survey, folder: Path, options: Options
) -> PlanSpec:
  held = hashlib.sha256()
  for value in found.held.column("text").to_pylist():
    held.update(value.encode() + b"\0")
  provenance = {
    **proposal.provenance,
    **result.plan.provenance,
    "profile_sha256": store.hash_file(folder / "profile.json"),
    "held_sha256": held.hexdigest(),
    "held_documents": found.held.num_rows,
    "seed": options.seed,
    "accepted": result.accepted,
    "failures": result.verification.failures,
    "remarks": result.remarks,
    "not_understood": list(result.goal.unknown),
    "rounds": [
      json.loads(canonical_json({k: v for k, v in made.items() if v is not None}))
      for made in result.rounds
    ],
  }
  return result.plan.model_copy(update={"provenance": provenance})


def write(result: Result, folder: Path) -> None:
  """Writes the plan, and the verification that it rests on."""
  _write_json(folder / "verification.json", report_of(result.verification))
  store.replace_text(folder / "pipeline.toml", result.plan.to_toml())


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
  store.replace_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def input_of(paths: Sequence[str], output: str | Path, **options: Any) -> InputSpec:
  """Returns an input of paths seen from here, as a plan in `output` names them.

  >>> input_of(["raw/*.jsonl"], "plans").paths
  ('../raw/*.jsonl',)
  """
  seen = tuple(
    path if os.path.isabs(path) else Path(os.path.relpath(path, output)).as_posix()
    for path in paths
  )
  return InputSpec(paths=seen, **options)
