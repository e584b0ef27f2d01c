"""Samples documents and mixes domains to a budget, by a hash of each document's id.

  keys = [sample_keys.keys(batch, "words") for batch in batches]  # of every shard, in any order
  mix = sample.decide(keys, weights={"web": 2, "code": 1}, max_size=1_000_000)
  taken = [sample.take(batch, mix) for batch in batches]

Which documents are taken depends on their ids, sizes and the seed, not on their order, on
batches or on the number of workers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from jdc.prep.problems import suggestion
from jdc.prep.sample_keys import Keys, join, numbers


class Share(NamedTuple):
  """What is taken of a domain, counted exactly."""

  weight: float  # the share p of the domain in the mixture
  available: int  # in the unit
  available_documents: int
  budget: int  # in the unit
  epochs: float  # budget / available; above 1 documents are taken more than once
  taken: int  # in the unit, never above the budget
  taken_documents: int  # copies counted
  copies: int  # of every document
  threshold: int  # documents whose number is below it are taken once more


class Mix(NamedTuple):
  """A decision about all documents."""

  unit: str
  seed: int
  max_size: int  # the budget of all domains
  shares: dict[str, Share]  # by domain, sorted

  @property
  def taken(self) -> int:
    """What is taken of all domains, in the unit."""
    return sum(share.taken for share in self.shares.values())

  def to_json(self) -> dict[str, Any]:
    """Returns the account for a report."""
    shares = {name: share._asdict() for name, share in self.shares.items()}
    return {**self._asdict(), "taken": self.taken, "shares": shares}


def decide(
  tables: Iterable[Keys],
  weights: Mapping[str, float] | None = None,
  max_size: int | None = None,
  temperature: float = 1.0,
  max_epochs: float = 1.0,
) -> Mix:
  r"""Decides which documents are taken, and how often.

  With A_k the size of domain k and w_k its weight (w_k = A_k without weights), the mixture is
  p_k = w_k^(1/T) / \sum_j w_j^(1/T). Of a budget of M, domain k gets b_k = floor(M p_k), which
  is e_k = b_k / A_k epochs: every document is taken floor(e_k) times, and those with the
  smallest numbers once more, as long as their sizes add up to at most b_k - floor(e_k) A_k.
  So a domain never gets more than its budget, and misses less of it than the next document.

  Without M, it is the largest one that no domain exceeds `max_epochs` for. Nothing is taken
  more than once unless `max_epochs` says so: where a budget needs that, it is an error.

  Args:
    tables: of all shards, in any order.
    weights: by domain, at least 0; `None`: by size.
    max_size: M, in the unit of the tables.
    temperature: T, above 0; above 1 it evens the domains out.
    max_epochs: the most that a domain may be repeated, above 0.

  Raises:
    ValueError: lists what is wrong: tables of different units or seeds, domains without a
      weight, weights without a domain, numbers out of range, a budget that some domains cannot
      fill within `max_epochs`.

  Example:
    >>> from jdc.prep import sample_keys
    >>> batch = pa.record_batch(
    ...   {
    ...     "doc_id": [bytes([i]) * 16 for i in range(6)],
    ...     "domain": ["web", "web", "web", "web", "code", "code"],
    ...     "text": ["one two three"] * 6,
    ...   }
    ... )
    >>> mix = decide([sample_keys.keys(batch, "words")], {"web": 1, "code": 1}, max_size=12)
    >>> {name: (share.taken, share.epochs) for name, share in mix.shares.items()}
    {'code': (6, 1.0), 'web': (6, 0.5)}
  """
  table = join(list(tables))
  order = np.argsort(table.number, kind="stable")  # so that that of the documents is nothing
  number, size, names = table.number[order], table.size[order], table.domains
  of = {name: table.domain[order] == i for i, name in enumerate(names)}
  available = {name: int(size[of[name]].sum()) for name in names}
  problems = _problems(available, weights, max_size, temperature, max_epochs)
  if problems:
    raise ValueError("\n".join(problems))
  share = _proportions(available, weights, temperature)
  most = Fraction(max_epochs)
  total = Fraction(max_size) if max_size is not None else _largest(available, share, most)
  budget = {name: math.floor(total * share[name]) for name in names}
  if over := [n for n in names if budget[n] > most * available[n]]:
    raise ValueError(_too_much(over, budget, available, share, most, table.unit))
  shares = {
    name: _share(share[name], budget[name], number[of[name]], size[of[name]]) for name in names
  }
  return Mix(table.unit, table.seed, math.floor(total), shares)


def copies(batch: pa.RecordBatch, mix: Mix) -> np.ndarray:
  """Returns how often each document of a batch is taken, i64[n].

  Raises:
    ValueError: if a domain was not there when the mixture was decided.
  """
  domain = batch.column("domain").dictionary_encode()
  code = domain.indices.to_numpy(zero_copy_only=False)
  names = tuple(domain.dictionary.to_pylist())
  return _copies(numbers(batch.column("doc_id"), mix.seed), code, names, mix)


def copies_of_keys(table: Keys, mix: Mix) -> np.ndarray:
  """Returns the same for the documents of a table."""
  return _copies(table.number, table.domain, table.domains, mix)


def _copies(number: np.ndarray, code: np.ndarray, names: Sequence[str], mix: Mix) -> np.ndarray:
  if unknown := sorted(set(names) - set(mix.shares)):
    raise ValueError(f"domains {unknown} are not in the mixture; known: {sorted(mix.shares)}")
  whole = np.array([mix.shares[name].copies for name in names], np.int64)[code]
  threshold = np.array([mix.shares[name].threshold for name in names], np.uint64)[code]
  return whole + (number < threshold)


def take(batch: pa.RecordBatch, mix: Mix) -> pa.RecordBatch:
  """Returns the documents that are taken, in their order, copies behind each other."""
  rows = np.repeat(np.arange(batch.num_rows), copies(batch, mix))
  return batch.take(pa.array(rows))


def _problems(
  available: Mapping[str, int],
  weights: Mapping[str, float] | None,
  max_size: int | None,
  temperature: float,
  max_epochs: float,
) -> list[str]:
  problems = []
  numbers_given = {"temperature": temperature, "max_epochs": max_epochs}
  problems += [
    f"{name} must be a finite number above 0, got {value}"
    for name, value in numbers_given.items()
    if not (math.isfinite(value) and value > 0)
  ]
  if max_size is not None and max_size < 1:
    problems.append(f"max_size must be at least 1, got {max_size}")
  if not any(available.values()):
    problems.append("there is nothing to take from")
  for name in sorted(available.keys() - (weights or available).keys()):
    problems.append(f"weights lacks domain {name!r}; 0 leaves it out")
  for name, weight in (weights or {}).items():
    if name not in available:
      problems.append(f"weights names no domain {name!r}{suggestion(name, available)}")
    elif not (math.isfinite(weight) and weight >= 0):
      problems.append(f"weight of {name!r} must be finite and at least 0, got {weight}")
    elif weight and not available[name]:
      problems.append(f"domain {name!r} has weight {weight}, but its documents have size 0")
  if weights and not any(weights.values()):
    problems.append("weights are all 0")
  return problems


def _proportions(
  available: Mapping[str, int], weights: Mapping[str, float] | None, temperature: float
) -> dict[str, Fraction]:
  """The mixture, exactly: a domain that is taken whole must not lose a document to rounding."""
  given = {name: Fraction((weights or available)[name]) for name in available}
  if temperature != 1:
    given = {name: Fraction(float(w) ** (1 / temperature)) for name, w in given.items()}
  total = sum(given.values())
  return {name: weight / total for name, weight in given.items()}


def _largest(
  available: Mapping[str, int], share: Mapping[str, Fraction], most: Fraction
) -> Fraction:
  return min(most * available[name] / p for name, p in share.items() if p)


def _too_much(
  over: list[str],
  budget: Mapping[str, int],
  available: Mapping[str, int],
  share: Mapping[str, Fraction],
  most: Fraction,
  unit: str,
) -> str:
  needed = max(Fraction(budget[name], available[name]) for name in over)
  lines = [
    f"domain {name!r} has {available[name]} {unit}, its budget is {budget[name]}: "
    f"{budget[name] / available[name]:.4g} epochs"
    for name in over
  ]
  fits = math.floor(_largest(available, share, most))
  lines.append(
    f"accepted: max_size of at most {fits}, other weights, or max_epochs of at least "
    f"{math.ceil(needed * 1000) / 1000:g} (now {float(most):g}) to take documents repeatedly"
  )
  return "\n".join(lines)


def _share(p: Fraction, budget: int, number: np.ndarray, size: np.ndarray) -> Share:
  """Takes a domain whose documents are sorted by number."""
  available = int(size.sum())
  whole, rest = divmod(budget, available) if available else (0, 0)
  count = int(np.searchsorted(np.cumsum(size), rest, side="right")) if rest else 0
  if len(number):  # documents of one number go together, all or none
    count = int(np.searchsorted(number, number[count], side="left"))
  return Share(
    weight=float(p),
    available=available,
    available_documents=len(number),
    budget=budget,
    epochs=budget / available if available else 0.0,
    taken=whole * available + int(size[:count].sum()),
    taken_documents=whole * len(number) + count,
    copies=whole,
    threshold=int(number[count]) if len(number) else 0,
  )
