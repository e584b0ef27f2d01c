"""A plan under a user's eyes: each step, what it does, and documents on either side of it."""

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jdc.prep import knobs, verify
from jdc.prep.agent import workflow
from jdc.prep.agent.workflow import Result
from jdc.prep.knobs import Knob
from jdc.prep.spec import PlanSpec
from jdc.prep.trial import Measured
from jdc.prep.verify import Verification, Verifier

SHOWN = 20
_EXCERPT = 160  # characters of a document
_FACTOR = 0.5  # of the way between a threshold and the ends of what was measured
_HELP = (
  "accept [STEP], drop STEP, loosen STEP [RULE], tighten STEP [RULE], documents, done: "
  "STEP is its number, RULE a reason such as word_count; done ends and verifies"
)


@dataclasses.dataclass
class _Review:
  """A review under way."""

  plan: PlanSpec
  found: Verification
  verifier: Verifier
  say: Callable[[str], None]
  decisions: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def review(
  result: Result,
  folder: Path,
  ask: Callable[[str], str] = input,
  say: Callable[[str], None] = print,
) -> Result:
  """Asks about the steps of a plan until the user is done; verifies what they decided.

  Decisions are stored in the plan, as `provenance.decisions`: what was asked for, of which
  step, and what changed. The end of the input counts as done.

  Args:
    result: of `workflow.plan`; is not changed.
    folder: where `pipeline.toml` and `verification.json` are written anew.
    ask: asks a line of the user.
    say: shows a line.

  Returns:
    The plan that was decided on, and its verification.
  """
  now = _Review(result.plan, result.verification, result.verifier, say)
  _show(now)
  documents(now)
  while True:
    try:
      words = shlex.split(ask("review> "))
    except EOFError:
      break
    except ValueError as error:
      say(str(error))
      continue
    if words == ["done"]:
      break
    problem = _obey(now, words)
    if problem:
      say(f"{problem}; {_HELP}")
  return _finished(result, now, folder)


def _finished(result: Result, now: _Review, folder: Path) -> Result:
  provenance = {
    **now.plan.provenance,
    "decisions": now.decisions,
    "accepted": now.found.accepted,
    "failures": now.found.failures,
  }
  plan = now.plan.model_copy(update={"provenance": provenance})
  reviewed = dataclasses.replace(result, plan=plan, verification=now.found)
  workflow.write(reviewed, folder)
  return reviewed


def _obey(now: _Review, words: list[str]) -> str:
  """Does what a line says; returns what is wrong with it."""
  if not words:
    return "nothing was said"
  verb, *rest = words
  if verb == "documents" and not rest:
    documents(now)
    return ""
  if verb == "accept" and not rest:
    _note(now, verb, "all steps", "")
    return ""
  if verb not in ("accept", "drop", "loosen", "tighten") or not rest:
    return f"not understood: {shlex.join(words)}"
  if not rest[0].isdigit() or not 1 <= int(rest[0]) <= len(now.plan.step):
    return f"no step {rest[0]!r}, there are {len(now.plan.step)}"
  number = int(rest[0])
  if verb == "accept":
    _note(now, verb, _name(now, number), "")
    return ""
  if verb == "drop":
    return _drop(now, number)
  return _turn(now, number, rest[1] if len(rest) > 1 else "", loosen=verb == "loosen")


def _name(now: _Review, number: int) -> str:
  return f"{number} {now.plan.step[number - 1].op}"


def _note(now: _Review, verb: str, step: str, change: str) -> None:
  now.decisions.append({"decision": verb, "step": step, "change": change})
  now.say(f"{verb}: {step} {change}".rstrip())


def _drop(now: _Review, number: int) -> str:
  if len(now.plan.step) == 1:
    return "a plan needs a step"
  steps = [s for n, s in enumerate(now.plan.step, start=1) if n != number]
  step = _name(now, number)
  problem = _try(now, now.plan.model_copy(update={"step": tuple(steps)}))
  if not problem:
    _note(now, "drop", step, "")
    _show(now)
  return problem


def _turn(now: _Review, number: int, reason: str, *, loosen: bool) -> str:
  """Moves the threshold of a rule half-way to where it drops nothing, or all but half."""
  held = {
    name: pair
    for name, pair in verify.adjustable(now.plan, now.found.outcome).items()
    if pair[0].step == number
  }
  if not held:
    return f"step {_name(now, number)} has no threshold"
  if reason and reason not in held:
    return f"step {_name(now, number)} has no rule {reason!r}, but {', '.join(sorted(held))}"
  shares = now.found.rules
  chosen = reason or max(sorted(held), key=lambda n: shares.get(n, {}).get("only", 0.0))
  knob, measured = held[chosen]
  value = _moved(knob, measured, loosen)
  if value == knob.value:
    return f"{chosen} cannot be {'looser' if loosen else 'tighter'} than {knob.value}"
  text = f"{knob.rule}.{knob.parameter}: {knob.value} -> {value}"
  step = _name(now, number)
  problem = _try(now, knobs.turned(now.plan, knob, value, f"review: {text}"))
  if not problem:
    _note(now, "loosen" if loosen else "tighten", step, text)
    _show(now)
  return problem


def _moved(knob: Knob, measured: Measured, loosen: bool) -> float | bool:
  if isinstance(knob.value, bool):
    return not loosen
  values = np.asarray(measured.signals[knob.signal], np.float64)
  values = values[~np.isnan(values)]
  if loosen:
    end = knobs.loosest(knob, values)
  else:
    end = float(np.median(values)) if len(values) else float(knob.value)
    inside = end < knob.value if knob.side == "max" else end > knob.value
    end = end if inside else float(knob.value)
  return knobs.rounded(knob, float(knob.value) + _FACTOR * (end - float(knob.value)))


def _try(now: _Review, plan: PlanSpec) -> str:
  """Verifies a plan and takes it over; returns why it cannot run."""
  try:
    now.found = now.verifier.verify(plan)
  except ValueError as error:
    return str(error)
  now.plan = plan
  return ""


def _show(now: _Review) -> None:
  """Shows the steps with what each drops of the held sample."""
  reasons = _reasons_of_steps(now)
  for number, step in enumerate(now.plan.step, start=1):
    share = sum(now.found.rules.get(name, {}).get("first", 0.0) for name in reasons[number])
    effect = f"drops {share:.2%}" if reasons[number] else "changes texts"
    now.say(f"{number}. {step.op}: {effect}; {step.why}")
    for name in reasons[number]:
      held = now.found.rules.get(name)
      if held and held["first"] and len(reasons[number]) > 1:
        only = f", nothing else {held['only']:.2%}" if "only" in held else ""
        now.say(f"     {name}: {held['first']:.2%}{only}")
  for line in now.found.failures:
    now.say(f"FAILS: {line}")


def _reasons_of_steps(now: _Review) -> dict[int, list[str]]:
  found: dict[int, list[str]] = {n: [] for n in range(1, len(now.plan.step) + 1)}
  for held in now.found.outcome.measured:
    found[held.step.number] += [name for name in held.reasons if name in now.found.rules]
  for number, step in enumerate(now.plan.step, start=1):
    if not found[number] and step.op in now.found.rules:
      found[number].append(step.op)
  return found


def documents(now: _Review) -> None:
  """Shows the documents that are kept by the least, and those that are dropped by the least."""
  now.say(f"the {SHOWN} worst that are kept:")
  for line in ranked(now.found, now.verifier, kept=True):
    now.say(f"  {line}")
  now.say(f"the {SHOWN} best that are dropped:")
  for line in ranked(now.found, now.verifier, kept=False):
    now.say(f"  {line}")


def ranked(found: Verification, verifier: Verifier, *, kept: bool) -> list[str]:
  """Returns the kept documents nearest to being dropped, or the dropped nearest to being kept.

  The distance of a document to a bound is that of the ranks of its signal and of the threshold
  among all documents; that of a kept one is to its nearest bound, that of a dropped one to the
  farthest that it breaks.
  """
  distance, reason = _distances(found, verifier)
  texts = verifier.sample.table.column("text").to_pylist()
  fate = found.outcome.fate[: len(texts)]
  names = set(reason.tolist())
  here = (fate == "") if kept else np.array([why in names for why in fate], bool)
  rows = np.flatnonzero(here & np.isfinite(distance))
  order = rows[np.argsort(distance[rows], kind="stable")][:SHOWN]
  return [f"{reason[n]} ({distance[n]:.3f}): {_excerpt(texts[n])}" for n in order.tolist()]


def _distances(found: Verification, verifier: Verifier) -> tuple[np.ndarray, np.ndarray]:
  count = verifier.sample.table.num_rows
  inside, outside = np.full(count, np.inf), np.full(count, -np.inf)
  near, far = np.full(count, "", object), np.full(count, "", object)
  for held in found.outcome.measured:
    for knob in knobs.knobs(held.step):
      mine = held.documents < count
      rows = held.documents[mine]
      values = np.asarray(held.signals[knob.signal], np.float64)[mine]
      ranks = np.searchsorted(np.sort(values), values) / max(len(values), 1)
      place = np.searchsorted(np.sort(values), float(knob.value)) / max(len(values), 1)
      gap = np.abs(ranks - place)
      bad = held.reasons[knob.reason][mine]
      closer = ~bad & (gap < inside[rows])
      inside[rows[closer]], near[rows[closer]] = gap[closer], knob.reason
      farther = bad & (gap > outside[rows])
      outside[rows[farther]], far[rows[farther]] = gap[farther], knob.reason
  broken = np.isfinite(outside)
  return np.where(broken, outside, inside), np.where(broken, far, near)


def _excerpt(text: str) -> str:
  flat = " ".join(text.split())
  return repr(flat[:_EXCERPT]) + ("..." if len(flat) > _EXCERPT else "")
