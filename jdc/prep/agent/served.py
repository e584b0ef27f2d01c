"""Wishes whose fulfilment no measure of the output shows: a step must be there for each."""

import math
from collections.abc import Iterable, Mapping

from jdc.prep import ops, predicates
from jdc.prep.agent import contract
from jdc.prep.agent.goal import Goal
from jdc.prep.agent.rules import SINGLE
from jdc.prep.ops.filters import Filter
from jdc.prep.spec import StepSpec

# What else a goal asks for is among the expectations, or is the output's.
_OPERATORS: Mapping[str, tuple[str, ...]] = {
  "sft": ("sft_normalize",),
  "urls": ("strip_urls",),
  "citations": ("strip_citations",),
  "symbols": ("strip_symbol_lines",),
  "furniture": ("drop_lines",),
  "whitespace": ("normalize_whitespace",),
  "dedup_lines": ("dedup_lines",),
  "semantic_dedup": ("semantic_dedup",),
  "blocklist": ("blocklist",),
  "url_blocklist": ("url_blocklist",),
  "decontaminate": ("decontaminate",),
  "chunk": ("chunk_text",),
  "budget": ("sample", "mix"),
}


def unserved(goal: Goal, steps: Iterable[StepSpec]) -> list[str]:
  """Returns a line for each wish of a goal that none of some steps serves.

  Example:
    >>> from jdc.prep.agent import goal
    >>> unserved(goal.read("no links, at least 20 words"), [StepSpec(op="strip_urls")])
    ["nothing serves 'at least 20 words': word_count with min=20"]
  """
  steps = tuple(steps)
  there = {held.op for held in steps} | {b.reason.partition(".")[0] for b in _all_bounds(steps)}
  lines = []
  for wish in goal.intents:
    names = _OPERATORS.get(wish.capability) or SINGLE.get(wish.capability)
    if names and not wish.off and not there & set(names):
      lines.append(f"nothing serves {wish.words!r}: {' or '.join(names)}")
    path = wish.args.get("path")
    if names and path and not any(_names(held, path) for held in steps if held.op in names):
      lines.append(f"nothing serves {wish.words!r}: {names[0]} with {path!r}")
  return list(dict.fromkeys([*lines, *_words(goal, steps)]))


def _words(goal: Goal, steps: tuple[StepSpec, ...]) -> list[str]:
  wishes = goal.all("word_count")
  if not wishes:
    return []
  low, high = contract.word_bounds(goal)
  bounds = [bound for bound in _all_bounds(steps) if bound.reason == "word_count"]
  least = max((b.min for b in bounds if b.min is not None), default=-math.inf)
  most = min((b.max for b in bounds if b.max is not None), default=math.inf)
  missing = [f"min={low:g}"] if least < low else []
  missing += [f"max={high:g}"] if most > high else []
  said = " and ".join(repr(wish.words) for wish in wishes)
  return [f"nothing serves {said}: word_count with {', '.join(missing)}"] if missing else []


def _all_bounds(steps: tuple[StepSpec, ...]) -> list[predicates.Bound]:
  found: list[predicates.Bound] = []
  for held in steps:
    params = ops.OPERATORS[held.op].make_params(held.params)
    if isinstance(params, predicates.Rule):
      found += params.bounds()
    elif isinstance(params, Filter):
      found += predicates.bounds_of(params.rules)
  return found


def _names(held: StepSpec, path: str) -> bool:
  return any(path == v or (isinstance(v, list) and path in v) for v in held.params.values())
