"""Prepares data for training: from raw files to shards, as a plan says.

  python launch/prep.py profile 'raw/*.jsonl.gz' [--output=profile.json]
  python launch/prep.py plan 'clean English web text, no duplicates' \
    --input='raw/*.jsonl.gz' --output=DIR
  python launch/prep.py run pipeline.toml --output=DIR --workers=2
  python launch/prep.py verify pipeline.toml [--input='new/*.jsonl.gz']
  python launch/prep.py feedback --run=RUN --pipeline=pipeline.toml [--output=next.toml]
  python launch/prep.py explain [OPERATOR | pipeline.toml]
  python launch/prep.py diff BEFORE AFTER

`run` leaves in DIR the training data, one folder a domain, in `data/`; what was dropped, and
why, in `dropped/`; records that could not be read in `quarantine/`; `manifest.json`,
`report.json`, `report.html` and `README.md`. The same command goes on where a run was stopped,
and after a change of the plan redoes what depends on the change; `work/` holds what that takes
and may be removed. It ends with 1 if an expectation of the plan does not hold, or nothing is
kept.

`plan` measures a sample of the input, writes DIR/pipeline.toml for a goal in words, English or
Chinese, and tries it on other documents; `--review` asks about each step. `verify` tries any
plan, on new data. Both end with 1 if something that is expected does not hold.

`feedback` reads what a run of launch/train.py learnt about every document of the plan's token
shards (`--config.logging.example_table=True`), and writes the next version of the plan beside
it: what to drop and why, and more of which domains (`jdc/prep/feedback`).

`diff` compares two plans, or the plans and results of two runs.
"""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags
from absl import logging as absl_logging

from jdc.prep import check, manifest, ops, predicates, profile, runner
from jdc.prep.catalog import explain, listing
from jdc.prep.problems import suggestion
from jdc.prep.spec import InputSpec, PlanSpec

if TYPE_CHECKING:
  from jdc.prep.agent import workflow

OUTPUT = flags.DEFINE_string("output", "", "Folder of the run; file of the profile.")
WORKERS = flags.DEFINE_integer("workers", 1, "Processes, or tasks at a time.", lower_bound=1)
ENGINE = flags.DEFINE_enum(
  "engine", "inline", ["inline", "daft", "ray"], "This machine, Daft, or Daft on Ray."
)
KEEP_DROPPED = flags.DEFINE_bool("keep_dropped", False, "Keep the texts of dropped documents.")
REPORT = flags.DEFINE_bool(
  "report", True, "Measure samples and write report.html: some seconds."
)
SAMPLE = flags.DEFINE_integer(
  "sample", 5000, "Documents that a profile measures.", lower_bound=1
)
SEED = flags.DEFINE_integer("seed", 0, "Of the samples of a profile, a plan, a verification.")
INPUT = flags.DEFINE_multi_string("input", [], "Of plan and verify: files, folders or globs.")
HELD = flags.DEFINE_integer("held", 2000, "Documents that plans are tried on.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Most repairs of a plan.", lower_bound=0)
PLANNER = flags.DEFINE_string(
  "planner", "rules", "rules, or llm:MODEL[@URL] of an OpenAI-compatible server."
)
TRAINED = flags.DEFINE_string("run", "", "Of feedback: the workdir of a training run.")
PIPELINE = flags.DEFINE_string("pipeline", "", "Of feedback: the plan of the run's data.")
MAX_DROP = flags.DEFINE_float("max_drop", 0.3, "Of feedback: most of the tokens that go.")
REVIEW = flags.DEFINE_bool("review", False, "Ask about each step of a plan.")
FORMAT = flags.DEFINE_string("format", "auto", "Of a profile or plan: input.format.")
TEXT_COLUMN = flags.DEFINE_string("text_column", "text", "Of a profile: input.text_column.")


def main(argv: list[str]) -> int:
  logging.basicConfig(level=logging.INFO, format="%(message)s")
  commands = {"plan": _plan, "run": _run, "verify": _verify, "profile": _profile}
  commands |= {"explain": _explain, "diff": _diff, "feedback": _feedback}
  if len(argv) < 2:
    raise app.UsageError(f"give a command: {', '.join(commands)}")
  if argv[1] not in commands:
    raise app.UsageError(f"unknown command {argv[1]!r}{suggestion(argv[1], commands)}")
  try:
    return commands[argv[1]](argv[2:])
  except (ValueError, OSError, RuntimeError, ImportError) as error:
    # Of its notes those of a line: others are tracebacks of worker processes.
    notes = [note for note in getattr(error, "__notes__", ()) if "\n" not in note]
    print("\n".join([f"{type(error).__name__}: {error}", *notes]), file=sys.stderr)
    return 2


def _run(arguments: list[str]) -> int:
  if len(arguments) != 1 or not OUTPUT.value:
    raise app.UsageError("run PLAN --output=DIR")
  path = Path(arguments[0])
  plan = PlanSpec.read(path)
  for remark in check.remarks(plan):
    print(f"remark: {remark}")
  run = runner.Run(
    plan,
    OUTPUT.value,
    root=path.parent,
    workers=WORKERS.value,
    engine_name=ENGINE.value,
    keep_dropped=KEEP_DROPPED.value,
    report=REPORT.value,
  )
  made = run.execute()
  print(manifest.summary(made))
  print(f"{run.done} pieces of work done, {run.reused} were there already: {OUTPUT.value}")
  if not made["accounts"]["kept"]:
    print("nothing is kept: see dropped/ and quarantine/ for the reasons", file=sys.stderr)
  failed = [held for held in made["expectations"] if not held["holds"]]
  for held in failed:
    bounds = f"[{held['min']}, {held['max']}]"
    print(f"expected {held['name']} in {bounds}, got {held['value']}", file=sys.stderr)
  return 1 if failed or not made["accounts"]["kept"] else 0


def _plan(arguments: list[str]) -> int:
  if len(arguments) != 1 or not INPUT.value or not OUTPUT.value:
    raise app.UsageError("plan GOAL --input=PATH --output=DIR")
  from jdc.prep.agent import command, planners, workflow

  spec = workflow.input_of(
    INPUT.value, OUTPUT.value, format=FORMAT.value, text_column=TEXT_COLUMN.value
  )
  made = planners.open_planner(PLANNER.value)
  return command.plan(arguments[0], spec, OUTPUT.value, made, _options(), REVIEW.value)


def _verify(arguments: list[str]) -> int:
  if len(arguments) != 1:
    raise app.UsageError("verify PLAN [--input=PATH]")
  from jdc.prep.agent import command

  return command.verify(arguments[0], INPUT.value, OUTPUT.value, _options())


def _options() -> "workflow.Options":
  from jdc.prep.agent import workflow

  return workflow.Options(SAMPLE.value, HELD.value, SEED.value, ROUNDS.value)


def _profile(arguments: list[str]) -> int:
  if not arguments:
    raise app.UsageError("profile PATH...")
  value: dict[str, Any] = {"paths": arguments, "text_column": TEXT_COLUMN.value}
  value["format"] = FORMAT.value
  spec = InputSpec.model_validate_json(json.dumps(value))
  found = profile.profile(spec, sample=SAMPLE.value, seed=SEED.value)
  print(profile.summary(found))
  if OUTPUT.value:
    Path(OUTPUT.value).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
  return 0


def _explain(arguments: list[str]) -> int:
  if not arguments:
    print(listing(ops.OPERATORS))
    return 0
  for name in arguments:
    if name in ops.OPERATORS:
      print(explain(ops.OPERATORS[name]))
    elif name in predicates.GROUPS:
      print(predicates.explain_group(name))
    elif Path(name).suffix == ".toml":
      print(check.describe(PlanSpec.read(name), Path(name).parent))
    else:
      raise ValueError(
        f"no operator {name!r}{suggestion(name, [*ops.OPERATORS, *predicates.GROUPS])}"
      )
  return 0


def _feedback(arguments: list[str]) -> int:
  from jdc.prep.feedback import command, propose, report, table
  from jdc.train import checkpoint

  if arguments or not TRAINED.value or not PIPELINE.value:
    raise app.UsageError("feedback --run=RUN --pipeline=PLAN [--output=next.toml]")
  absl_logging.set_verbosity(absl_logging.WARNING)
  table.read(TRAINED.value)  # before anything else of a run that may have none
  path = Path(PIPELINE.value)
  output = Path(OUTPUT.value or path.with_name(f"{path.stem}.next.toml"))
  _, payload = checkpoint.read_payload(Path(TRAINED.value) / "checkpoints")
  data = payload["host"]["config"]["data"]
  limits = propose.Limits(max_drop=MAX_DROP.value)
  written = command.feedback(TRAINED.value, data, path, output, limits)
  print(report.to_text(written.report))
  print(f"report: {output.with_name(f'{output.stem}.report.json')}")
  if written.plan is not None:
    print(f"next plan: {written.plan}")
  return 0


def _diff(arguments: list[str]) -> int:
  if len(arguments) != 2:
    raise app.UsageError("diff BEFORE AFTER: plans, or folders of runs")
  before, after = (_comparable(Path(name)) for name in arguments)
  lines = manifest.compare(before, after)
  print("\n".join(lines) or "no difference")
  return 0


def _comparable(path: Path) -> dict[str, Any]:
  """Returns of a plan what changes its output; of a run its results, too."""
  if path.is_dir():
    held = manifest.read(path)
    results = {name: held[name] for name in ("accounts", "output_hash")}
    return {**manifest.essence(held), **results}
  return check.essence(PlanSpec.read(path), path.parent)


if __name__ == "__main__":
  app.run(main)
