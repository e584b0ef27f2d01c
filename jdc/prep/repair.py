"""Loosens rules of a plan by what a trial measured; no text is read for it.

A document is marginal to a bound if it breaks that bound and nothing else. Of all bounds, the
one with the most marginal documents is loosened first, no further than is needed, by
bisection, and never so far that a planted text which must go would stay.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jdc.prep import knobs
from jdc.prep.knobs import Knob
from jdc.prep.predicates import Bound
from jdc.prep.spec import PlanSpec
from jdc.prep.trial import Measured, Outcome
from jdc.prep.verify import Sample, Verification, adjustable, broken

_HALVINGS = 30


class Change(NamedTuple):
  """A threshold that was moved.

  Attributes:
    reason: of the bound.
    parameter: as `rule.parameter`.
    before, after: its values.
    gained: share of the documents that are no longer dropped.
  """

  reason: str
  parameter: str
  before: float
  after: float
  gained: float


class _Bench:
  """What a trial measured, as arrays over its documents and canaries."""

  def __init__(self, plan: PlanSpec, outcome: Outcome, sample: Sample):
    self.table, self.names = broken(outcome)
    count = sample.table.num_rows
    self.weights = np.zeros(len(outcome.fate))
    self.weights[:count] = sample.weights / sample.weights.sum()
    rules = set(self.names)
    self.elsewhere = np.array([bool(why) and why not in rules for why in outcome.fate])
    self.junk = np.zeros(len(outcome.fate), bool)
    self.good = np.zeros(len(outcome.fate), bool)
    for number, canary in enumerate(sample.canaries):
      self.junk[count + number] = canary.kind == "junk"
      self.good[count + number] = canary.kind != "junk"
    self.knobs = adjustable(plan, outcome)

  def kept(self) -> np.ndarray:
    return ~self.table.any(axis=1) & ~self.elsewhere

  def share(self, chosen: np.ndarray) -> float:
    return round(float(self.weights[chosen].sum()), 12)

  def rate(self) -> float:
    return self.share(self.kept())

  def marginal(self, reason: str) -> np.ndarray:
    """Returns which documents only one bound drops."""
    mine = self.table[:, self.names.index(reason)]
    return mine & (self.table.sum(axis=1) == 1) & ~self.elsewhere

  def values(self, reason: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the signal of a bound for all documents, and where it is known."""
    knob, held = self.knobs[reason]
    values = np.full(len(self.table), np.nan)
    values[held.documents] = np.asarray(held.signals[knob.signal], np.float64)
    return values, ~np.isnan(values)

  def broken_at(self, reason: str, threshold: float | bool) -> np.ndarray:
    """Returns which documents would break a bound with another value of its parameter."""
    knob, held = self.knobs[reason]
    rule = knobs.rules_of(held.step)[knob.rule]
    other = type(rule)(**{**rule.model_dump(), knob.parameter: threshold})
    same = [b for b in other.bounds() if b.reason == reason]
    column = np.zeros(len(self.table), bool)
    if same:
      column[held.documents] = _decide(held, same[0])
    return column

  def set(self, reason: str, column: np.ndarray) -> None:
    self.table[:, self.names.index(reason)] = column


def _decide(held: Measured, bound: Bound) -> np.ndarray:
  from jdc.prep import predicates

  return predicates.decide(held.signals, [bound]).all_reasons[:, 0]


def loosen(
  plan: PlanSpec, found: Verification, sample: Sample, *, margin: float = 0.0
) -> tuple[PlanSpec, list[Change]]:
  """Returns a plan whose rules are as loose as its expectations of kept rates need.

  Looks after `kept_rate`, `most_dropped_by_a_rule` and `canary_clean_kept`.

  Args:
    plan: that was verified.
    found: what was measured.
    sample: on which.
    margin: how much more than `kept_rate` asks for is kept, for what samples vary.

  Returns:
    The plan, and what was changed; nothing, where no threshold helps.
  """
  bench = _Bench(plan, found.outcome, sample)
  changes: list[Change] = []
  most = plan.expect.get("most_dropped_by_a_rule")
  if most is not None and most.max is not None:
    plan = _cap(plan, bench, most.max, changes)
  if "canary_clean_kept" in plan.expect:
    plan = _keep_good(plan, bench, changes)
  wanted = plan.expect.get("kept_rate")
  if wanted is not None and wanted.min is not None:
    least = round(min(wanted.min + margin + sample.extra_loss, 1.0), 12)
    needs = found.measured["kept_rate"] < wanted.min + margin
    plan = _reach(plan, bench, least, changes) if needs else plan
  return plan, changes


def _cap(plan: PlanSpec, bench: _Bench, most: float, changes: list[Change]) -> PlanSpec:
  """Loosens every bound that more than a share of the documents break."""
  for reason in sorted(bench.knobs):
    column = bench.table[:, bench.names.index(reason)]
    if bench.share(column) > most:
      below = lambda c: bench.share(c) <= most
      plan = _turn(plan, bench, reason, below, f"at most {most:.0%} by one rule", changes)
  return plan


def _keep_good(plan: PlanSpec, bench: _Bench, changes: list[Change]) -> PlanSpec:
  """Loosens every bound that planted clean texts break."""
  for reason in sorted(bench.knobs):
    column = bench.table[:, bench.names.index(reason)]
    if (column & bench.good).any():
      clear = lambda c: not (c & bench.good).any()
      plan = _turn(plan, bench, reason, clear, "planted clean texts stay", changes)
  return plan


def _reach(plan: PlanSpec, bench: _Bench, least: float, changes: list[Change]) -> PlanSpec:
  """Loosens bounds, most marginal documents first, until enough is kept."""
  done: set[str] = set()
  while bench.rate() < least:
    open_ = sorted(bench.knobs.keys() - done)
    gains = {reason: bench.share(bench.marginal(reason)) for reason in open_}
    if not gains or max(gains.values()) <= 0:
      break
    reason = max(open_, key=lambda name: gains[name])
    done.add(reason)
    enough = lambda c, reason=reason: _rate_with(bench, reason, c) >= least
    plan = _turn(plan, bench, reason, enough, f"kept_rate >= {least:.3g}", changes)
  return plan


def _rate_with(bench: _Bench, reason: str, column: np.ndarray) -> float:
  others = np.delete(bench.table, bench.names.index(reason), axis=1).any(axis=1)
  return bench.share(~others & ~column & ~bench.elsewhere)


def _turn(
  plan: PlanSpec,
  bench: _Bench,
  reason: str,
  enough: "object",
  why: str,
  changes: list[Change],
) -> PlanSpec:
  """Moves one threshold by bisection, as far as is enough and junk still goes."""
  knob, _ = bench.knobs[reason]
  before = bench.rate()
  value = _bisect(bench, reason, enough)
  if value is None or value == knob.value:
    return plan
  bench.set(reason, bench.broken_at(reason, value))
  gained = bench.rate() - before
  name = f"{knob.rule}.{knob.parameter}"
  changes.append(Change(reason, name, float(knob.value), float(value), round(gained, 6)))
  text = f"repair: {name} {knob.value:g} -> {value:g} ({why})"
  return knobs.turned(plan, knob, value, text)


def _bisect(bench: _Bench, reason: str, enough) -> float | bool | None:  # type: ignore[no-untyped-def]
  """Returns the strictest value that is enough, else the loosest that lets no junk through."""
  knob, _ = bench.knobs[reason]
  if isinstance(knob.value, bool):
    return False if _harmless(bench, reason, False) else None
  values, known = bench.values(reason)
  low, high = float(knob.value), knobs.loosest(knob, values[known])
  if not _valid(bench, reason, knobs.rounded(knob, high)):
    high = 1.0
  tight, loose = low, high
  if not _harmless(bench, reason, knobs.rounded(knob, loose)):
    loose = _halve(low, high, lambda v: _harmless(bench, reason, v), knob, outward=True)
  if not enough(bench.broken_at(reason, knobs.rounded(knob, loose))):
    return knobs.rounded(knob, loose)
  test = lambda v: enough(bench.broken_at(reason, v))
  return knobs.rounded(knob, _halve(tight, loose, test, knob, outward=False))


def _halve(low: float, high: float, holds, knob: Knob, *, outward: bool) -> float:  # type: ignore[no-untyped-def]
  """Bisects between a strict and a loose value.

  Outward: the loosest at which `holds`, which it does at `low`. Else the strictest, which it
  does at `high`.
  """
  good, bad = (low, high) if outward else (high, low)
  for _ in range(_HALVINGS):
    middle = (good + bad) / 2
    if holds(knobs.rounded(knob, middle)):
      good = middle
    else:
      bad = middle
  return good


def _valid(bench: _Bench, reason: str, value: float) -> bool:
  try:
    bench.broken_at(reason, value)
  except ValueError:
    return False
  return True


def _harmless(bench: _Bench, reason: str, value: float | bool) -> bool:
  """Whether all junk that goes now still goes."""
  others = np.delete(bench.table, bench.names.index(reason), axis=1).any(axis=1)
  gone = others | bench.broken_at(reason, value) | bench.elsewhere
  going = bench.table.any(axis=1) | bench.elsewhere
  return bool(gone[bench.junk & going].all())


def summary(changes: Sequence[Change]) -> str:
  """Returns what was changed, as text."""
  return "\n".join(
    f"  {c.parameter}: {c.before:g} -> {c.after:g}, {c.gained:.2%} more kept" for c in changes
  )
