"""`launch/prep.py feedback`: reads a run's table, writes the next version of its plan."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from jdc.data import token_shards
from jdc.prep import check, manifest
from jdc.prep.feedback import evidence as evidence_lib
from jdc.prep.feedback import lists, propose, report, texts
from jdc.prep.feedback import table as table_lib
from jdc.prep.feedback.propose import Limits
from jdc.prep.spec import PlanSpec

_GUARDS = ("refuse_texts",)  # steps that change no data, which a loop adds


class Written(NamedTuple):
  """What feedback left."""

  plan: Path | None  # `None` where nothing is to change
  report: dict[str, Any]


def feedback(
  run: str | Path, data: str | Path, plan: str | Path, output: str | Path, limits: Limits
) -> Written:
  """Proposes the next version of a plan from what a run learnt.

  Beside `output`, NAME.toml, are written `NAME.report.json` and, where documents are dropped,
  `NAME.drop.tsv`. The plan that is written was resolved, with its files; the same inputs give
  the same bytes.

  Args:
    run: the folder of a run with an example table.
    data: the token shards that it read.
    plan: of these.
    output: the file of the next plan; in the folder of the plan, where its paths start.
    limits: of the proposal.

  Raises:
    ValueError: if table, data and plan do not belong together, as far as the manifest beside
      the data tells, or the plan cannot run.
  """
  plan, output = Path(plan), Path(output)
  if output.absolute().parent != plan.absolute().parent:
    raise ValueError(
      f"{output}: must lie in the folder of {plan}, where the paths of both start"
    )
  old, table = PlanSpec.read(plan), table_lib.read(run)
  _check_plan(old, plan, Path(data))
  _check_data(table, data)
  found = evidence_lib.weigh(table, table_lib.documents(table))
  proposal = propose.propose(table, found, limits, data)
  name = output.stem
  provenance = {
    "feedback": {
      "run": Path(run).name,
      "table_sha256": table.sha256,
      "plan_sha256": hashlib.sha256(plan.read_bytes()).hexdigest(),
    }
  }
  files: dict[str, Any] = {
    "table": str(Path(run) / table_lib.NAME), "table_sha256": table.sha256, "data": str(data),
    "plan": str(plan), "plan_sha256": provenance["feedback"]["plan_sha256"],
  }  # fmt: skip
  listed = {}
  if proposal.reasons:
    reasons = {**_dropped_before(old, plan.parent), **proposal.reasons}
    path = output.with_name(f"{name}.drop.tsv")
    digest = lists.write(path, reasons, f"of {Path(run).name}, table {table.sha256[:16]}")
    listed = {"path": path.name, "sha256": digest}
    files |= {"list": str(path), "list_sha256": digest}
  listed_documents = [*report.examples_of(proposal), *report.to_look_at(table, found, proposal)]
  shown = texts.texts_of(data, listed_documents) if listed_documents else {}
  described = report.describe(table, found, proposal, limits, files, shown)
  _write(output.with_name(f"{name}.report.json"), json.dumps(described, indent=1) + "\n")
  if not proposal.changes:
    return Written(None, described)
  made = propose.next_plan(old, proposal, listed, provenance)
  check.resolve(made, plan.parent)
  _write(output, made.to_toml())
  if PlanSpec.read(output) != made:
    raise RuntimeError(f"{output}: is not the plan that was written")
  return Written(output, described)


def _dropped_before(plan: PlanSpec, root: Path) -> dict[str, str]:
  """The documents that the plan's own lists drop already; the run has not seen them."""
  paths = [s.params["path"] for s in plan.step if s.op == "drop_documents"]
  return {doc_id: why for path in paths for doc_id, why in lists.read(root / path).items()}


def _check_plan(plan: PlanSpec, path: Path, data: Path) -> None:
  """Raises a ValueError if the manifest of the data tells of another plan."""
  folder = data.parent
  if not manifest.is_complete(folder):
    return
  made = manifest.plan_of(manifest.read(folder))
  wrong = [
    name
    for name, of in (
      ("input", lambda held: held.input),
      ("step", lambda held: [(s.op, s.params) for s in held.step if s.op not in _GUARDS]),
      ("output", lambda held: held.output),
    )
    if of(made) != of(plan)
  ]
  if wrong:
    raise ValueError(
      f"{path}: is not the plan of {data}, by {folder / manifest.NAME}: {', '.join(wrong)} "
      "differ"
    )


def _check_data(table: table_lib.Table, data: str | Path) -> None:
  """Raises a ValueError unless the shards hold the documents of the table."""
  domains = token_shards.open_folder(data)
  rows = sum(len(domain.train) for domain in domains.values())
  tokens = sum(domain.train.num_target_tokens for domain in domains.values())
  told = len(set(table.pieces.example.tolist())), int(table.pieces.tokens.sum())
  if (rows, tokens) != told or tuple(sorted(domains)) != table.domains:
    raise ValueError(
      f"{data}: {rows} rows, {tokens} target tokens, of domains {sorted(domains)}; the table "
      f"has {told[0]} and {told[1]} of {list(table.domains)}: it is of other data"
    )
  held = {
    piece.doc_id
    for domain in domains.values()
    for row in range(len(domain.train))
    for piece in domain.train.documents(row)
  }
  if strangers := [doc_id for doc_id in table.doc_id if doc_id not in held]:
    raise ValueError(
      f"{data}: lacks {len(strangers)} documents of the table, such as {strangers[0]}: it is "
      "of other data"
    )


def _write(path: Path, text: str) -> None:
  partial = path.with_name(f".{path.name}.partial")
  partial.write_text(text, encoding="utf-8")
  os.replace(partial, path)
