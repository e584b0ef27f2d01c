"""What a plan does to documents that nobody planned with, measured and judged."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from jdc.prep import canaries as canary_lib
from jdc.prep import check, expect, knobs, profile
from jdc.prep.canaries import Canary
from jdc.prep.knobs import Knob
from jdc.prep.spec import PlanSpec
from jdc.prep.trial import Measured, Outcome, Trial

_COLUMNS = ("source", "text", "fields")


class Sample(NamedTuple):
  """Documents to verify on.

  Attributes:
    table: with the columns `source`, `text` and `fields`.
    weights: f64[n], how many documents of the whole each stands for.
    canaries: what is planted beside them.
    extra_loss: share of the documents of the whole that are lost for reasons which a sample
      does not show: bad records, and duplicates of documents outside of the sample.
  """

  table: pa.Table
  weights: np.ndarray
  canaries: tuple[Canary, ...]
  extra_loss: float = 0.0


class Verification(NamedTuple):
  """What was measured.

  Attributes:
    measured: by name, as expectations call it.
    expectations: as `expect.judge` gives them.
    problems: what no plan may do, such as to keep nothing.
    rules: of each reason the share of the documents it drops `first`, of those that break it
      (`all`), and of those that nothing else drops (`only`).
    sources: kept rates.
    canaries: of each kind what was planted, and what went wrong.
    outcome: of each document and, behind them, of each canary.
  """

  measured: dict[str, float]
  expectations: list[dict[str, Any]]
  problems: list[str]
  rules: dict[str, dict[str, float]]
  sources: dict[str, float]
  canaries: dict[str, dict[str, Any]]
  outcome: Outcome

  @property
  def accepted(self) -> bool:
    """Whether all expectations hold, and nothing is wrong besides."""
    return not self.problems and all(held["holds"] for held in self.expectations)

  @property
  def failures(self) -> list[str]:
    """What does not hold, as text."""
    lines = [
      f"expected {held['name']} in [{held['min']}, {held['max']}], got {held['value']}"
      for held in self.expectations
      if not held["holds"]
    ]
    return lines + self.problems

  def to_json(self) -> dict[str, Any]:
    """Returns all but the outcome."""
    held = {k: v for k, v in self._asdict().items() if k != "outcome"}
    return {"accepted": self.accepted, **held}


class Verifier:
  """Tries plans on one sample.

  Args:
    sample: the documents.
    folder: is written to; measures that are there are not taken again.
    root: the folder that paths in steps start at.
  """

  def __init__(self, sample: Sample, folder: Path, root: Path):
    self.sample, self._folder, self._root = sample, folder, root
    self._trial: Trial | None = None

  def verify(self, plan: PlanSpec, *, twice: bool = True) -> Verification:
    """Runs a plan on the sample and judges it.

    Args:
      plan: with its expectations.
      twice: whether it is run again on its own output.

    Raises:
      ValueError: lists what is wrong with the plan, if it cannot run.
    """
    expect.check_names(plan)
    if self._trial is None:
      planted = canary_lib.table(self.sample.canaries)
      table = pa.concat_tables([_plain(self.sample.table), _plain(planted)])
      self._trial = Trial(self._folder / "first", table, plan.input, self._root)
      self._table = table
    outcome = self._trial.run(plan)
    count = self.sample.table.num_rows
    measured, rules, sources = _rates(plan, outcome, self.sample)
    found = _judge_canaries(outcome, self.sample.canaries, count)
    measured |= {f"canary_{name}": held["right"] for name, held in found.items()}
    own = np.flatnonzero(outcome.documents < count)
    if len(own):
      after = profile.measure(outcome.output.take(pa.array(own)))
      measured |= expect.sampled(after, plan.expect)
    measured["schema_faults"] = float(_schema_faults(plan, outcome, self._table))
    measured["failed_cases"] = float(len(failed_cases(plan, self._root)))
    if twice:
      measured["changed_again_rate"] = self._again(plan, outcome)
    return Verification(
      measured,
      _bounded(expect.judge(_judged(plan, twice), measured), measured),
      _problems(outcome, plan, self._root),
      rules,
      sources,
      found,
      outcome,
    )

  def _again(self, plan: PlanSpec, first: Outcome) -> float:
    """Returns the share of the output that a second run changes or drops."""
    if not first.output.num_rows:
      return 0.0
    sources = np.array(self._table.column("source").to_pylist(), object)[first.documents]
    table = first.output.append_column("source", pa.array(sources, pa.string()))
    trial = Trial(self._folder / "again", _plain(table), plan.input, self._root)
    second = trial.run(plan)
    changed = np.ones(table.num_rows, bool)
    same = [
      a == b
      for a, b in zip(
        first.output.column("text").take(pa.array(second.documents)).to_pylist(),
        second.output.column("text").to_pylist(),
        strict=True,
      )
    ]
    changed[second.documents[np.array(same, bool)]] = False
    return float(changed.mean())


def _plain(table: pa.Table) -> pa.Table:
  return table.select(_COLUMNS).cast(pa.schema([(name, pa.string()) for name in _COLUMNS]))


def _judged(plan: PlanSpec, twice: bool) -> dict[str, Any]:
  held = dict(plan.expect)
  if not twice:
    held.pop("changed_again_rate", None)
  return {k: v for k, v in held.items() if k not in ("rows", "text_bytes", "quarantined_rate")}


def _bounded(
  judged: list[dict[str, Any]], measured: Mapping[str, float]
) -> list[dict[str, Any]]:
  """Holds the most that may be kept against the upper estimate, that of the sample."""
  upper = measured["kept_rate_of_sample"]
  return [
    {**held, "value": upper, "holds": False}
    if held["name"] == "kept_rate" and held["max"] is not None and held["holds"]
    and upper > held["max"]
    else held
    for held in judged
  ]  # fmt: skip


def _rates(
  plan: PlanSpec, outcome: Outcome, sample: Sample
) -> tuple[dict[str, float], dict[str, dict[str, float]], dict[str, float]]:
  count = sample.table.num_rows
  fate, weights = outcome.fate[:count], sample.weights / sample.weights.sum()
  kept = fate == ""
  # Rounded, since 90 of 100 documents are 90 %, however their weights add up.
  rate = round(float(weights[kept].sum()), 12)
  measured = {
    "kept_rate": max(0.0, round(rate - sample.extra_loss, 12)),
    "kept_rate_of_sample": rate,
  }
  measured["exact_dup_rate"] = float(weights[fate == "exact_dedup"].sum())
  measured["near_dup_rate"] = float(weights[fate == "minhash_dedup"].sum())
  table, names = broken(outcome)
  table = table[:count]
  only = ~kept & (table.sum(axis=1) == 1)
  rules = {}
  for k, name in enumerate(names):
    shares = {
      "first": float(weights[fate == name].sum()),
      "all": round(float(weights[table[:, k]].sum()), 12),
      "only": float(weights[only & table[:, k]].sum()),
    }
    if any(shares.values()):
      rules[name] = shares
  for name in sorted(set(fate.tolist()) - set(names) - {""}):
    rules[name] = {"first": float(weights[fate == name].sum())}
  open_ = adjustable(plan, outcome)
  bounded = [shares["all"] for name, shares in rules.items() if name in open_]
  measured["most_dropped_by_a_rule"] = max(bounded, default=0.0)
  sources = np.array(sample.table.column("source").to_pylist(), object)
  held = {s: float(kept[sources == s].mean()) for s in sorted(set(sources.tolist()))}
  return measured, rules, held


def broken(outcome: Outcome) -> tuple[np.ndarray, list[str]]:
  """Returns bool[documents, reasons], what each document breaks, and the reasons."""
  names = list(dict.fromkeys(name for held in outcome.measured for name in held.reasons))
  table = np.zeros((len(outcome.fate), len(names)), bool)
  for held in outcome.measured:
    for name, bad in held.reasons.items():
      np.logical_or.at(table[:, names.index(name)], held.documents, bad)
  return table, names


def adjustable(plan: PlanSpec, outcome: Outcome) -> dict[str, tuple[Knob, Measured]]:
  """Returns the thresholds of rules by reason, but those that the goal states.

  The rules that a goal states thresholds of are in the plan's provenance, as `asked`. Of a rule
  with two thresholds it is the one that more documents are beyond.
  """
  asked = set(plan.provenance.get("asked", ()))
  found: dict[str, tuple[Knob, Measured]] = {}
  beyond: dict[str, int] = {}
  for held in outcome.measured:
    for knob in knobs.knobs(held.step):
      values = np.asarray(held.signals[knob.signal], np.float64)[held.reasons[knob.reason]]
      limit = float(knob.value)
      count = int((values <= limit).sum() if knob.side == "min" else (values >= limit).sum())
      if knob.rule not in asked and count > beyond.get(knob.reason, -1):
        found[knob.reason], beyond[knob.reason] = (knob, held), count
  return found


def _judge_canaries(
  outcome: Outcome, planted: Sequence[Canary], first: int
) -> dict[str, dict[str, Any]]:
  """Returns of each kind how many were planted, the share that went right, what did not."""
  kept = outcome.fate[first:] == ""
  found: dict[str, dict[str, Any]] = {}

  def note(name: str, right: bool, what: str) -> None:
    held = found.setdefault(name, {"planted": 0, "right": 0.0, "wrong": []})
    held["planted"] += 1
    if not right:
      held["wrong"].append(what)

  groups: dict[tuple[str, str], int] = {}
  for number, canary in enumerate(planted):
    why = outcome.fate[first + number]
    if canary.kind == "junk":
      note("junk_dropped", not kept[number], f"{canary.group}: kept")
    elif canary.kind in ("clean", "pii"):
      note("clean_kept", bool(kept[number]), f"{canary.kind} {canary.group}: {why}")
    if canary.kind in ("exact", "near"):
      key = (canary.kind, canary.group)
      groups[key] = groups.get(key, 0) + int(kept[number])
    if canary.kind == "pii":
      rows = np.flatnonzero(outcome.documents == first + number)
      texts = outcome.output.column("text").take(pa.array(rows)).to_pylist()
      for secret in canary.secrets:
        masked = bool(texts) and not any(secret in text for text in texts)
        note("pii_masked", masked, f"{canary.group}: {secret}")
  for (kind, group), left in groups.items():
    note(f"{kind}_collapsed", left == 1, f"{group}: {left} left")
    note("clean_kept", left >= 1, f"{kind} {group}: all copies dropped")
  for held in found.values():
    held["right"] = 1 - len(held["wrong"]) / held["planted"]
  return found


def _schema_faults(plan: PlanSpec, outcome: Outcome, table: pa.Table) -> int:
  """Returns how many records of the output have no text, or lost fields on the way."""
  faults = sum(
    not (text and text.strip()) for text in outcome.output.column("text").to_pylist()
  )
  changes = {"select", "rename", "sft_normalize", "chunk_text"}
  if not changes & {step.op for step in plan.step}:
    before = table.column("fields").take(pa.array(outcome.documents)).to_pylist()
    after = outcome.output.column("fields").to_pylist()
    faults += sum(json.loads(a) != json.loads(b) for a, b in zip(before, after, strict=True))
  return faults


def failed_cases(plan: PlanSpec, root: Path) -> list[str]:
  """Returns which test cases that steps bring along do not come out as they say."""
  found = []
  for number, step in enumerate(plan.step, start=1):
    operator = check.find(step.op, root)
    params = operator.make_params(step.params) if operator else None
    cases = getattr(params, "failed_cases", None)
    found += [f"step {number} ({step.op}): {line}" for line in (cases() if cases else [])]
  return found


def _problems(outcome: Outcome, plan: PlanSpec, root: Path) -> list[str]:
  """Returns what no plan may do: keep nothing, drop nothing."""
  found = failed_cases(plan, root)
  if not len(outcome.documents):
    found.append("nothing is kept")
  if not (outcome.fate != "").any():
    found.append("nothing is dropped, planted texts included")
  return found


def summary(value: Mapping[str, Any]) -> str:
  """Returns a verification, as `to_json` gives it, as text for a terminal."""
  measured = value["measured"]
  lines = [f"kept of the sample: {measured['kept_rate_of_sample']:.1%}"]
  lines[0] += f"; of all, at least: {measured['kept_rate']:.1%}"
  ordered = sorted(value["rules"].items(), key=lambda item: -item[1]["first"])
  lines += [f"  {shares['first']:7.2%}  {name}" for name, shares in ordered if shares["first"]]
  for name, held in value["canaries"].items():
    wrong = f"; wrong: {', '.join(held['wrong'])}" if held["wrong"] else ""
    lines.append(f"canaries {name}: {held['right']:.0%} of {held['planted']}{wrong}")
  for held in value["expectations"]:
    sign = "holds" if held["holds"] else "FAILS"
    lines.append(f"{sign}: {held['name']} in [{held['min']}, {held['max']}]: {held['value']}")
  return "\n".join([*lines, *(f"FAILS: {line}" for line in value["problems"])])
