"""From evidence to the next version of a plan: what to drop, and more of what.

*Drop as harmful*: documents whose influence, shrunk as `evidence` says, is below 0 at the upper
end of its interval (`z` standard errors), and which were not learnt: their loss was above that
of their batches, or no lower when last seen than when first seen. Without influence in the
table nothing is dropped as harmful.

*Drop as memorised*: of near duplicates (Jaccard of 5-word shingles) that the model knew before
it first saw them (`surprise` below the bound), all but `cap` of a cluster.

*More, or less, of a domain*: its share times

  f = clip(b / mean b) clip(mu / mean mu),   each to [1 / max_change, max_change],

with means over the tokens of all domains. A factor counts only where it differs from 1 by two
standard errors, that of `mu` only where the table has influence and its mean is positive, so
that without evidence nothing changes. Documents never seen are not judged.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from jdc.prep import near_dedup
from jdc.prep.feedback.evidence import Evidence
from jdc.prep.feedback.table import Table
from jdc.prep.feedback.texts import texts_of
from jdc.prep.spec import PlanSpec, StepSpec, step

HARMFUL, MEMORISED = "harmful", "memorised"
_SAMPLES = ("sample", "mix")
_REPEATS = 2.0  # epochs of a domain whose share grows beyond what there is of it


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a proposal may do.

  Attributes:
    max_drop: most of the tokens seen that documents dropped may have; those with the strongest
      evidence go first.
    z: standard errors that make an interval.
    cap: near duplicates of a memorised cluster that stay.
    surprise: documents at most this much, in spreads, are known before they are seen.
    min_jaccard: of near duplicates.
    max_change: factor by which either kind of evidence may change a domain's share.
  """

  max_drop: float = 0.3
  z: float = 1.645
  cap: int = 1
  surprise: float = -1.0
  min_jaccard: float = 0.7
  max_change: float = 2.0

  def __post_init__(self) -> None:
    wrong = [
      f"{name} must be {accepted}, got {getattr(self, name)}"
      for name, accepted, right in (
        ("max_drop", "in [0, 1)", 0 <= self.max_drop < 1),
        ("z", "at least 0", self.z >= 0),
        ("cap", "at least 1", self.cap >= 1),
        ("surprise", "below 0", self.surprise < 0),
        ("min_jaccard", "in (0, 1]", 0 < self.min_jaccard <= 1),
        ("max_change", "at least 1", self.max_change >= 1),
      )
      if not right
    ]
    if wrong:
      raise ValueError("; ".join(wrong))


class Proposal(NamedTuple):
  """What is to change.

  Attributes:
    reasons: of the documents to drop, by id.
    held_back: documents with evidence beyond `max_drop`, by reason.
    factors: of each domain's share.
    shares: of each domain, of the tokens before and after.
    max_tokens: of the mixture, 0 where it stays as it is.
  """

  reasons: dict[str, str]
  held_back: dict[str, int]
  factors: dict[str, float]
  shares: dict[str, tuple[float, float]]
  max_tokens: int

  @property
  def changes(self) -> bool:
    """Whether there is anything to change."""
    return bool(self.reasons) or bool(self.max_tokens)


def propose(table: Table, evidence: Evidence, limits: Limits, data: str | Path) -> Proposal:
  """Returns what the evidence supports.

  Args:
    table: of the run.
    evidence: of it.
    limits: of the proposal.
    data: the token shards that the run read.
  """
  found, size = evidence.found, len(table.doc_id)
  upper = evidence.influence + limits.z * evidence.influence_error
  unlearnt = (found.loss_excess > 0) | (found.loss_last >= found.loss_first)
  harmful = np.flatnonzero((upper < 0) & unlearnt)
  memorised = _memorised(table, evidence, limits, data)
  # The strongest evidence first: by how far the interval is from 0, and copies before all.
  order = [*memorised, *harmful[np.argsort(upper[harmful], kind="stable")].tolist()]
  reason = dict.fromkeys(harmful.tolist(), HARMFUL) | dict.fromkeys(memorised, MEMORISED)
  order = list(dict.fromkeys(order))
  fits = np.cumsum(found.seen[order]) <= limits.max_drop * found.seen.sum()
  dropped = [i for i, kept in zip(order, fits.tolist(), strict=True) if kept]
  held = [reason[i] for i, kept in zip(order, fits.tolist(), strict=True) if not kept]
  gone = np.zeros(size, bool)
  gone[dropped] = True
  factors = {name: _factor(evidence, name, limits) for name in table.domains}
  shares, max_tokens = _shares(table, evidence, gone, factors)
  return Proposal(
    {table.doc_id[i]: reason[i] for i in dropped},
    {name: held.count(name) for name in sorted(set(held))},
    factors,
    shares,
    max_tokens,
  )


def _memorised(table: Table, evidence: Evidence, limits: Limits, data: str | Path) -> list[int]:
  """Near duplicates beyond the cap among documents that were known when first seen."""
  known = np.flatnonzero(evidence.surprise <= limits.surprise)
  ids = [table.doc_id[i] for i in known]
  texts = texts_of(data, ids) if ids else {}
  there = [i for i, doc_id in zip(known.tolist(), ids, strict=True) if doc_id in texts]
  if len(there) < 2:
    return []
  text = pa.array([texts[table.doc_id[i]] for i in there], pa.string())

  def fetch(rows: np.ndarray) -> list[pa.StringArray]:
    return [text.take(pa.array(rows))]

  found, _ = near_dedup.decide(
    [near_dedup.keys(text)], fetch, doc_ids=None, min_jaccard=limits.min_jaccard
  )
  extra: dict[int, list[int]] = {}
  for row, kept in zip(found.row.tolist(), found.kept.tolist(), strict=True):
    extra.setdefault(kept, []).append(row)
  return [there[row] for rows in extra.values() for row in rows[limits.cap - 1 :]]


def _factor(evidence: Evidence, name: str, limits: Limits) -> float:
  """The factor of a domain's share that both kinds of evidence give."""
  domains = evidence.domains
  factor = 1.0
  for value, error in (("fall", "fall_error"), ("influence", "influence_error")):
    known = {n: d for n, d in domains.items() if np.isfinite(getattr(d, value))}
    if name not in known:
      continue
    tokens = np.array([d.tokens for d in known.values()])
    mean = float(tokens @ [getattr(d, value) for d in known.values()] / tokens.sum())
    own, own_error = getattr(domains[name], value), getattr(domains[name], error)
    if mean > 0 and abs(own - mean) > 2 * own_error:
      factor *= float(np.clip(own / mean, 1 / limits.max_change, limits.max_change))
  return factor


def _shares(
  table: Table, evidence: Evidence, gone: np.ndarray, factors: Mapping[str, float]
) -> tuple[dict[str, tuple[float, float]], int]:
  """The tokens of each domain before and after, as shares, and the budget of the mixture."""
  found, domains = evidence.found, np.arange(len(table.domains))
  copies = np.maximum(table.num_copies, 1)
  before = np.bincount(table.domain, found.tokens, len(domains))
  left = np.bincount(table.domain[~gone], found.tokens[~gone], len(domains))
  there = np.bincount(table.domain[~gone], (found.tokens / copies)[~gone], len(domains))
  wanted = left * np.array([factors[name] for name in table.domains])
  after = wanted / max(wanted.sum(), 1.0)
  fits = [_REPEATS * there[k] / after[k] for k in domains if after[k] > 0]
  changed = any(factor != 1 for factor in factors.values())
  # A per cent less: the mixture counts without boundary tokens.
  budget = int(0.99 * min([left.sum(), *fits])) if changed else 0
  shares = {
    name: (float(before[k] / before.sum()), float(after[k]))
    for k, name in enumerate(table.domains)
  }
  return shares, budget


def next_plan(
  plan: PlanSpec, proposal: Proposal, listed: Mapping[str, str], provenance: Mapping[str, Any]
) -> PlanSpec:
  """Returns the plan with the changes of a proposal.

  A list of documents goes before the first step that takes samples, since copies have other
  ids, and takes the place of an earlier list. A mixture, if it changes, takes the place of the
  plan's last one, or comes last.

  Args:
    plan: of the data that the run read.
    proposal: what changes.
    listed: `path` and `sha256` of the list of documents to drop; empty without any.
    provenance: joined to the plan's.
  """
  steps = [s for s in plan.step if not (listed and s.op == "drop_documents")]
  samples = [i for i, s in enumerate(steps) if s.op in _SAMPLES]
  if proposal.max_tokens:
    mixed = _mixture(plan, steps[samples[-1]] if samples else None, proposal)
    steps = [s for i, s in enumerate(steps) if not samples or i != samples[-1]] + [mixed]
    samples = [i for i, s in enumerate(steps) if s.op in _SAMPLES]
  if listed:
    why = f"feedback: {_counted(proposal.reasons)}"
    steps.insert(
      samples[0] if samples else len(steps), step("drop_documents", why=why, **listed)
    )
  return plan.model_copy(
    update={"step": tuple(steps), "provenance": {**plan.provenance, **provenance}}
  )


def _mixture(plan: PlanSpec, old: StepSpec | None, proposal: Proposal) -> StepSpec:
  moved = ", ".join(
    f"{name} {before:.3f} -> {after:.3f}"
    for name, (before, after) in proposal.shares.items()
    if proposal.factors[name] != 1
  )
  tokenizer = plan.output.tokens.get("tokenizer", "bytes")
  unit: dict[str, Any] = {"unit": "bytes"}
  if tokenizer != "bytes":
    unit = {"unit": "tokens", "tokenizer": tokenizer}
  kept = {} if old is None else {k: v for k, v in old.params.items() if k == "seed"}
  weights = {name: round(after, 6) for name, (_, after) in proposal.shares.items()}
  return step(
    "mix", why=f"feedback: {moved}", weights=weights, max_tokens=proposal.max_tokens,
    max_epochs=_REPEATS, **unit, **kept,
  )  # fmt: skip


def _counted(reasons: Mapping[str, str]) -> str:
  names = list(reasons.values())
  return ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names)))
