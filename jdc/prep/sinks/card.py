"""The card of a data set: README.md with the front matter that the Hugging Face Hub reads."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jdc.prep.store import replace_text

_MOST_INPUTS = 50  # that are listed one by one
# The Hub's classes of sizes, by the number of rows that they stay below.
_SIZES = (
  (10**3, "n<1K"),
  (10**4, "1K<n<10K"),
  (10**5, "10K<n<100K"),
  (10**6, "100K<n<1M"),
  (10**7, "1M<n<10M"),
  (10**8, "10M<n<100M"),
  (10**9, "100M<n<1B"),
  (10**10, "1B<n<10B"),
  (10**11, "10B<n<100B"),
  (10**12, "100B<n<1T"),
)


def write_card(manifest: Mapping[str, Any], report: Mapping[str, Any], folder: Path) -> Path:
  """Writes what a run made, how and of what, so that the folder can be published as it is.

  Front matter (YAML): name, classes of size and task, the languages where a step of the plan
  kept some and no others, and, of Parquet files, a configuration a domain. A licence is not
  stated: it is that of the sources, which a run does not know.

  Args:
    manifest: of the run.
    report: of the run.
    folder: of the run; receives README.md.

  Returns:
    The file. The same manifest and report give the same bytes, but for times they hold.
  """
  path = folder / "README.md"
  replace_text(path, card(manifest, report))
  return path


def card(manifest: Mapping[str, Any], report: Mapping[str, Any]) -> str:
  """Returns the text of the card."""
  domains = _domains(manifest["output"])
  sections: list[tuple[str, Iterable[str]]] = [
    ("Contents", _contents(domains)),
    ("Token shards", _tokens(manifest["plan"])),
    ("How it was made", _made(manifest)),
    ("What was left out", _left_out(manifest["accounts"])),
    ("Expectations", _expectations(report.get("expectations", []))),
    ("Sources", _sources(manifest["input"])),
    ("Make it again", _again(manifest)),
  ]
  parts = [
    _front_matter(manifest, domains),
    f"# {_name(manifest)}",
    _summary(manifest, domains),
  ]
  for title, lines in sections:
    body = "\n".join(lines)
    parts += [f"## {title}", body] if body else []
  return "\n\n".join(parts) + "\n"


def _name(manifest: Mapping[str, Any]) -> str:
  goal = " ".join(str(manifest["plan"].get("goal", "")).split())
  return goal or "Text prepared with jdc"


def _domains(output: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  found: dict[str, dict[str, Any]] = {}
  for file in output:
    held = found.setdefault(file["domain"], {"files": [], "rows": 0, "text_bytes": 0})
    held["files"].append(file["path"])
    held["rows"] += file["rows"]
    held["text_bytes"] += file["text_bytes"]
  return dict(sorted(found.items()))


def _front_matter(manifest: Mapping[str, Any], domains: Mapping[str, Mapping[str, Any]]) -> str:
  rows = sum(held["rows"] for held in domains.values())
  size = next((name for most, name in _SIZES if rows < most), "n>1T")
  lines = ["---", f"pretty_name: {_yaml(_name(manifest))}"]
  if languages := _languages(manifest["operators"]):
    lines += ["language:", *(f"- {_yaml(code)}" for code in languages)]
  lines += ["task_categories:", "- text-generation", "size_categories:", f"- {_yaml(size)}"]
  lines += ["tags:", "- jdc"]
  parquet = {
    name: held
    for name, held in domains.items()
    if all(path.endswith(".parquet") for path in held["files"])
  }
  if parquet:
    lines.append("configs:")
  for name, held in parquet.items():
    folders = sorted({path.rpartition("/")[0] for path in held["files"]})
    lines += [f"- config_name: {_yaml(name)}", "  data_files:", "  - split: train", "    path:"]
    lines += [f"    - {_yaml(f'{folder}/*.parquet')}" for folder in folders]
  return "\n".join([*lines, "---"])


def _languages(operators: Mapping[str, Any]) -> list[str]:
  """The languages that a step kept alone; of several steps those that all kept."""
  kept: list[set[str]] = []
  for name, held in operators.items():
    rules = held.get("rules", {})
    params = held["params"] if name.endswith(" language") else rules.get("language", {})
    if params.get("keep"):
      kept.append(set(params["keep"]))
  return sorted(set.intersection(*kept)) if kept else []


def _yaml(value: str) -> str:
  return json.dumps(value, ensure_ascii=False)  # which is YAML too


def _summary(manifest: Mapping[str, Any], domains: Mapping[str, Mapping[str, Any]]) -> str:
  size = sum(held["text_bytes"] for held in domains.values())
  kept, read = manifest["accounts"]["kept"], manifest["accounts"]["read"]
  return (
    f"{kept:,} documents, {size:,} bytes of text (UTF-8), of {read:,} records that were read. "
    "Each document has a `doc_id`, a hash of its `source` and `offset`: the file that it was "
    "read from, and the byte of its line there after decompression, or its row."
  )


def _contents(domains: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
  yield from _table(
    ("domain", "files", "documents", "bytes of text"),
    (
      (name, len(held["files"]), held["rows"], held["text_bytes"])
      for name, held in domains.items()
    ),
  )


def _tokens(plan: Mapping[str, Any]) -> Iterator[str]:
  output = plan.get("output", {})
  if output.get("format") != "tokens":
    return
  shown = json.dumps(output["tokens"], ensure_ascii=False, sort_keys=True)
  yield f"The documents are tokenized and packed into rows: `{shown}`."
  yield "`data/tokens.json` says by which tokenizer and how, and lists the files;"
  yield "`jdc.data.token_shards` opens `data`, and says which documents each row is made of."


def _made(manifest: Mapping[str, Any]) -> Iterator[str]:
  steps = manifest["plan"].get("step", ())
  if not steps:
    yield "No step changed or dropped documents."
    return
  rows = []
  for number, step in enumerate(steps, start=1):
    params = {k: v for k, v in step.items() if k not in ("op", "why")}
    shown = f"`{json.dumps(params, ensure_ascii=False, sort_keys=True)}`" if params else ""
    rows.append((number, step["op"], shown, step.get("why", "")))
  yield from _table(("step", "operator", "parameters", "why"), rows)
  yield ""
  yield "Parameters that are not shown have their defaults; `manifest.json` holds them all."


def _left_out(accounts: Mapping[str, Any]) -> Iterator[str]:
  rows = [
    (what, reason, count)
    for what in ("dropped", "quarantined")
    for reason, count in sorted(accounts[what].items(), key=lambda item: (-item[1], item[0]))
  ]
  if not rows:
    yield "Nothing."
    return
  yield from _table(("", "reason", "records"), rows)


def _expectations(held: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  if held:
    yield from _table(
      ("quantity", "least", "most", "measured", "holds"),
      (
        (entry["name"], entry["min"], entry["max"], entry["value"], _yes(entry["holds"]))
        for entry in held
      ),
    )


def _yes(value: bool) -> str:
  return "yes" if value else "**no**"


def _sources(inputs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  shown = inputs[:_MOST_INPUTS]
  yield from _table(
    ("file", "domain", "bytes", "sha256"),
    ((f"`{file['source']}`", file["domain"], file["size"], file["sha256"]) for file in shown),
  )
  if len(inputs) > len(shown):
    yield ""
    yield f"And {len(inputs) - len(shown):,} more, which `manifest.json` lists."
  yield ""
  yield "The licence of the texts is that of these sources."


def _again(manifest: Mapping[str, Any]) -> Iterator[str]:
  versions = ", ".join(f"{name} {value}" for name, value in manifest["versions"].items())
  yield "`pipeline.toml` is the plan: `python launch/prep.py run pipeline.toml`."
  yield ""
  yield f"- plan: `{manifest['plan_hash']}`"
  yield f"- output: `{manifest['output_hash']}`"
  yield f"- versions: {versions}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
  """Yields a table; numbers stand to the right."""
  listed = list(rows)
  right = [bool(listed) and _is_number(value) for value in (listed[0] if listed else head)]
  yield f"| {' | '.join(head)} |"
  yield f"|{'|'.join('---:' if to_right else '---' for to_right in right)}|"
  for row in listed:
    yield f"| {' | '.join(map(_cell, row))} |"


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
  if value is None:
    return ""
  if isinstance(value, float):
    return f"{value:.6g}"
  if isinstance(value, int):
    return f"{value:,}"
  return " ".join(str(value).split()).replace("|", "\\|")
