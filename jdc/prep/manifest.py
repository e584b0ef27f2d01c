"""What a run made and of what: the manifest, the accounts, the plan beside it."""

import importlib.metadata
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jdc.prep import check, commits, ops, plan_step, report, store
from jdc.prep.accounts import accounts, where
from jdc.prep.catalog import Params
from jdc.prep.readers import files
from jdc.prep.spec import PlanSpec, content_hash

if TYPE_CHECKING:
  from jdc.prep.runner import Run

NAME = "manifest.json"
FORMAT = 1
Record = dict[str, Any]


def is_complete(folder: Path) -> bool:
  """Whether a folder has the manifest of a run that came to its end."""
  try:
    return json.loads((folder / NAME).read_text(encoding="utf-8"))["status"] == "complete"
  except (OSError, ValueError, KeyError):
    return False


def mark_running(folder: Path) -> None:
  """Says that the data of a folder are not whole."""
  store.replace_text(folder / NAME, json.dumps({"format": FORMAT, "status": "running"}) + "\n")


def finish(
  run: "Run", indexes: Sequence[files.FileIndex], outputs: Sequence[Record], seconds: float
) -> dict[str, Any]:
  """Checks the accounts, writes manifest and report, removes what other plans left."""
  counts = accounts(run.records, outputs)
  kept = {file[0] for record in [*run.records, *outputs] for file in record["files"].values()}
  if run.plan.output.format == "tokens":
    if not counts["kept"]:
      raise ValueError(f"nothing is left to make token shards of:\n{where(counts)}")
    kept |= _write_token_manifest(run, outputs)
  value = {
    "format": FORMAT,
    "status": "complete",
    "plan_hash": check.plan_hash(run.plan, run.root),
    "plan": run.plan.to_dict(),
    "versions": versions(),
    "engine": {"name": run.engine_name, "workers": run.workers},
    "operators": {
      f"{step.number} {step.op}": {
        "code": plan_step.step_code(step),
        "params": json.loads(step.params),
        **_rules(step),
      }
      for step in run.steps
    },
    "accounts": counts,
    "input": _inputs(indexes, run.records),
    "output": _outputs(outputs),
    "dropped": _visible([*run.records, *outputs], "dropped"),
    "quarantine": _visible(run.records, "quarantine"),
    "stages": _stages(run.records, outputs),
    "output_hash": _output_hash(outputs),
  }
  store.replace_text(run.folder / "pipeline.toml", run.plan.to_toml())
  found = report.write(run, value, seconds)
  value["expectations"] = found["expectations"]
  store.replace_text(run.folder / NAME, json.dumps(value, indent=1, sort_keys=True) + "\n")
  commits.remove_others(run.folder, kept)
  return value


def _rules(step: plan_step.Step) -> dict[str, Any]:
  """Returns the predicates of a filter with all their parameters."""
  held = {part.op: json.loads(part.params) for part in plan_step.parts(step) if part != step}
  return {"rules": held} if held else {}


def read(folder: Path) -> dict[str, Any]:
  """Returns the manifest of a run that came to its end; ValueError if there is none."""
  try:
    value = json.loads((folder / NAME).read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(f"{folder}: holds no manifest of a run: {error}") from error
  if value["status"] != "complete":
    raise ValueError(f"{folder}: a run is under way there, or was stopped")
  return value


def plan_of(value: Mapping[str, Any]) -> PlanSpec:
  """Returns the plan of a run."""
  return PlanSpec.from_dict(value["plan"], "manifest.json")


def essence(value: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what determined the output of a run as `check.essence` gives it of a plan.

  Files that the plan names need not be there any more.
  """
  plan, steps = plan_of(value), {}
  for number, given in enumerate(plan.step, start=1):
    path, _, name = given.op.rpartition(":")
    params = value["operators"][f"{number} {name}"]["params"]
    held = None if path else ops.OPERATORS[name].make_params(params)
    steps[f"{number} {name}"] = held.essence() if isinstance(held, Params) else params
  return {
    "jdc_pipeline": plan.jdc_pipeline,
    "input": plan.input.model_dump(mode="json"),
    "steps": steps,
    "output": plan.output.model_dump(mode="json"),
  }


def summary(value: Mapping[str, Any]) -> str:
  """Returns where the documents went, as text for a terminal."""
  size = sum(file["text_bytes"] for file in value["output"])
  return f"{where(value['accounts'])}, {size / 1e6:.1f} MB of text"


def versions() -> dict[str, str]:
  """Returns the versions of jdc and of what its output depends on."""
  names = ("jdc", "pyarrow", "numpy", "numba", "zstandard", "orjson")
  return {name: importlib.metadata.version(name) for name in names}


def _inputs(
  indexes: Sequence[files.FileIndex], records: Sequence[Record]
) -> list[dict[str, Any]]:
  counts: dict[str, list[int]] = {}
  for record in records:
    for source, (rows, bad) in record["info"].get("sources", {}).items():
      held = counts.setdefault(source, [0, 0])
      counts[source] = [held[0] + rows, held[1] + bad]
  return [
    {
      "source": held.file.source,
      "domain": held.file.domain,
      "format": held.file.format,
      "size": held.size,
      "mtime_ns": held.mtime_ns,
      "sha256": held.sha256,
      "rows": counts[held.file.source][0],
      "bad_records": counts[held.file.source][1],
      **({"damage": held.damage} if held.damage else {}),
    }
    for held in indexes
  ]


def _outputs(outputs: Sequence[Record]) -> list[dict[str, Any]]:
  """Returns the files of the output; of several of one task the first has its documents."""
  found = []
  for record in outputs:
    info = record["info"]
    for number, name in enumerate(sorted(record["files"].keys() - {"dropped"})):
      path, digest, size = record["files"][name]
      rows, length = (info["rows_out"], info["bytes_out"]) if number == 0 else (0, 0)
      found.append(
        {
          "path": path,
          "sha256": digest,
          "size": size,
          "domain": info["domain"],
          "rows": rows,
          "text_bytes": length,
        }
      )
  return found


def _write_token_manifest(run: "Run", outputs: Sequence[Record]) -> set[str]:
  """Makes token shards a folder that `jdc.data` opens; returns the files that say so."""
  from jdc.data import token_manifest
  from jdc.prep.sinks import tokens

  shards = []
  for record in outputs:
    info = record["info"]
    splits = {name: token_manifest.ShardFile(**held) for name, held in info["splits"].items()}
    shards.append(tokens.PackedShard({info["domain"]: splits}, []))
  options = tokens.TokenOptions(**check.output_at(run.plan.output, run.root).tokens)
  tokens.write_manifest(run.folder / "data", shards, options)
  return {f"data/{token_manifest.FILE}", f"data/{token_manifest.TOKENIZER}"}


def _visible(records: Sequence[Record], name: str) -> list[str]:
  return sorted(r["files"][name][0] for r in records if name in r["files"])


def _output_hash(outputs: Sequence[Record]) -> str:
  held = [
    [r["info"]["domain"], sorted(f[1] for name, f in r["files"].items() if name != "dropped")]
    for r in outputs
  ]
  return content_hash(held)


def _stages(records: Sequence[Record], outputs: Sequence[Record]) -> list[dict[str, Any]]:
  """Returns the sums over all shards of each link, in the order of the plan."""
  sums: dict[str, dict[str, Any]] = {}
  reasons: dict[str, Counter[str]] = defaultdict(Counter)
  for record in [*records, *({**r, "link_kind": "output"} for r in outputs)]:
    info = record["info"]
    name = f"{record['name']}/{record['link_kind']}"
    held = sums.setdefault(name, {"name": name, "tasks": 0, "cpu_s": 0.0, "bytes_written": 0})
    held["tasks"] += 1
    held["cpu_s"] = round(held["cpu_s"] + record["cpu_s"], 4)
    held["bytes_written"] += sum(file[2] for file in record["files"].values())
    for key in ("rows_in", "rows_out", "bytes_in", "bytes_out"):
      if key in info:
        held[key] = held.get(key, 0) + info[key]
    if "counts" in info:
      held["counts"] = info["counts"]
    if "model" in info:
      counts = held.setdefault("counts", {})
      for key, value in info["model"].items():
        counts[key] = round(counts.get(key, 0) + value, 6)
    reasons[name].update(info.get("dropped", {}))
  for name, held in sums.items():
    if reasons[name]:
      held["dropped"] = dict(sorted(reasons[name].items()))
  return list(sums.values())


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
  """Returns what differs between two nested values, one line each.

  >>> compare({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}, "d": 4})
  ['b.c: 2 -> 3', 'd: nothing -> 4']
  """
  lines = []
  for key in dict.fromkeys([*before, *after]):
    if key not in before or key not in after:
      lines.append(f"{key}: {before.get(key, 'nothing')} -> {after.get(key, 'nothing')}")
    elif isinstance(before[key], dict) and isinstance(after[key], dict):
      lines += [f"{key}.{line}" for line in compare(before[key], after[key])]
    elif before[key] != after[key]:
      lines.append(f"{key}: {before[key]} -> {after[key]}")
  return lines
