"""What a proposal would change and why, with the figures and the files that they come from."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jdc.prep.feedback.evidence import Evidence
from jdc.prep.feedback.propose import Limits, Proposal
from jdc.prep.feedback.table import Table

_EXAMPLES = 5  # documents shown of each reason
_EXCERPT = 160  # characters
_HIGH = 3.0  # spreads from which on a first loss is high


def describe(
  table: Table,
  evidence: Evidence,
  proposal: Proposal,
  limits: Limits,
  files: Mapping[str, Any],
  texts: Mapping[str, str],
) -> dict[str, Any]:
  """Returns the report as JSON values; every figure is of the files that it names."""
  place = {doc_id: i for i, doc_id in enumerate(table.doc_id)}
  found = evidence.found
  seen = float(found.seen.sum())
  domains = {}
  for name, domain in evidence.domains.items():
    before, after = proposal.shares[name]
    domains[name] = {
      **{key: _number(value) for key, value in domain._asdict().items()},
      "factor": proposal.factors[name],
      "share_before": before,
      "share_after": after,
    }
  drops: dict[str, Any] = {}
  for reason in sorted(set(proposal.reasons.values())):
    chosen = [place[d] for d, why in proposal.reasons.items() if why == reason]
    drops[reason] = {
      "documents": len(chosen),
      "share_of_tokens_seen": float(found.seen[chosen].sum() / seen),
      "by_domain": {
        table.domains[k]: int((table.domain[chosen] == k).sum())
        for k in np.unique(table.domain[chosen]).tolist()
      },
      "examples": [_example(table, evidence, i, texts) for i in chosen[:_EXAMPLES]],
    }
  return {
    "files": dict(files),
    "limits": vars(limits),
    "documents": len(table.doc_id),
    "documents_seen": int((found.seen > 0).sum()),
    "documents_nonfinite": int((found.nonfinite > 0).sum()),
    "domains": domains,
    "drops": drops,
    "held_back": proposal.held_back,
    "to_look_at": _looked_at(table, evidence, proposal, texts),
    "max_tokens": proposal.max_tokens,
    "expected": _expected(evidence, proposal),
  }


def examples_of(proposal: Proposal) -> list[str]:
  """Returns the documents that a report shows."""
  shown: list[str] = []
  for reason in sorted(set(proposal.reasons.values())):
    shown += [d for d, why in proposal.reasons.items() if why == reason][:_EXAMPLES]
  return shown


def to_look_at(table: Table, evidence: Evidence, proposal: Proposal) -> list[str]:
  """Returns some of the documents with high losses that did not fall, the highest first."""
  return [table.doc_id[i] for i in _unlearnt(table, evidence, proposal)[:_EXAMPLES]]


def _unlearnt(table: Table, evidence: Evidence, proposal: Proposal) -> list[int]:
  """Documents seen twice or more whose first loss was high and whose last one is no lower.

  That is noise, or what is hard: nothing is done about it, a reader decides.
  """
  found = evidence.found
  high = (evidence.surprise >= _HIGH) & (found.views >= 2)
  rows = np.flatnonzero(high & (found.loss_last >= found.loss_first))
  rows = rows[np.argsort(-evidence.surprise[rows], kind="stable")]
  return [i for i in rows.tolist() if table.doc_id[i] not in proposal.reasons]


def _looked_at(
  table: Table, evidence: Evidence, proposal: Proposal, texts: Mapping[str, str]
) -> dict[str, Any]:
  rows = _unlearnt(table, evidence, proposal)
  shown = [_example(table, evidence, i, texts) for i in rows[:_EXAMPLES]]
  return {"documents": len(rows), "surprise_from": _HIGH, "examples": shown}


def _example(table: Table, evidence: Evidence, i: int, texts: Mapping[str, str]) -> dict:
  found = evidence.found
  figures = {
    "views": found.views, "loss_first": found.loss_first, "loss_last": found.loss_last,
    "loss_excess": found.loss_excess, "surprise": evidence.surprise,
    "influence": evidence.influence, "influence_error": evidence.influence_error,
  }  # fmt: skip
  return {
    "doc_id": table.doc_id[i],
    "domain": table.domains[table.domain[i]],
    "source": table.source[i],
    **{name: _number(values[i]) for name, values in figures.items()},
    "text": texts.get(table.doc_id[i], "")[:_EXCERPT],
  }


def _expected(evidence: Evidence, proposal: Proposal) -> dict[str, Any]:
  """The mean influence of a token by shares of domains, as if these were all that matters."""
  means = [domain.influence for domain in evidence.domains.values()]
  if not np.all(np.isfinite(means)):
    return {}
  pairs = [proposal.shares[name] for name in evidence.domains]
  before, after = (float(np.dot(column, means)) for column in zip(*pairs, strict=True))
  return {"mean_influence_before": before, "mean_influence_after": after}


def _number(value: Any) -> float | int | None:
  if isinstance(value, int):
    return value
  return float(value) if np.isfinite(value) else None


def to_text(value: Mapping[str, Any]) -> str:
  """Returns a report for the terminal."""
  lines = [
    f"{value['documents_seen']} of {value['documents']} documents were seen",
    f"{'domain':<16} {'tokens':>10} {'loss':>7} {'fall':>7} {'+-':>6} {'influence':>9} "
    f"{'+-':>6} {'share':>6}    next",
  ]
  for name, d in value["domains"].items():
    cells = [
      f"{d['tokens']:>10.0f}",
      *(_cell(d[k], w) for k, w in (("level", 7), ("fall", 7), ("fall_error", 6))),
      *(_cell(d[k], w) for k, w in (("influence", 9), ("influence_error", 6))),
    ]
    lines.append(
      f"{name:<16} {' '.join(cells)} {d['share_before']:6.3f} -> {d['share_after']:.3f}"
    )
  if value["documents_nonfinite"]:
    lines.append(
      f"{value['documents_nonfinite']} documents were in rows whose losses were not finite at "
      "times: these views count for nothing, see num_nonfinite in the table"
    )
  for reason, drop in value["drops"].items():
    share = 100 * drop["share_of_tokens_seen"]
    lines.append(f"drop {drop['documents']} {reason}, {share:.1f} % of the tokens seen:")
    lines += _shown(drop["examples"])
  if look := value["to_look_at"]["documents"]:
    lines.append(f"to look at, {look} whose high losses did not fall, noise perhaps:")
    lines += _shown(value["to_look_at"]["examples"])
  for reason, count in value["held_back"].items():
    lines.append(f"not dropped, beyond max_drop: {count} {reason}")
  if not value["drops"] and not value["max_tokens"]:
    lines.append("nothing to change: the evidence supports no step")
  return "\n".join(lines)


def _shown(examples: Sequence[Mapping[str, Any]]) -> list[str]:
  texts = (" ".join(example["text"].split())[:70] for example in examples)
  return [
    f"  {example['doc_id']} {example['domain']}: {text}"
    for example, text in zip(examples, texts, strict=True)
  ]


def _cell(value: float | None, width: int) -> str:
  return f"{'-':>{width}}" if value is None else f"{value:>{width}.3f}"
