"""What every operator must hold to, as a function that users can run on theirs, too."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jdc.prep import batches
from jdc.prep.catalog import Operator
from jdc.prep.readers.jsonl import dump

TEXTS = (
  "The ferry leaves twice a day. It carries cars, bicycles and letters to the island.",
  "",
  " \t\n",
  "one",
  "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.\n\nEnde.",
  "渡船冬天每天开两班。夏天每天开五班。",
  "<p>Write to ann@example.org</p> or call +1 415-238-0174",
  "word " * 300,
  "\N{GRINNING FACE}\u200b\u00ad \x07 \ufffd",
)


def problems(
  operator: Operator,
  params: Mapping[str, Any] | None = None,
  *,
  texts: Sequence[str] = TEXTS,
  fields: Mapping[str, Any] | None = None,
) -> list[str]:
  """Returns how an operator breaks the contract; nothing of one that keeps it.

  All: it has help, parameters refuse unknown names and survive JSON. Maps and signals: the same
  documents give the same result, however they are divided into batches, and the batch that was
  given is not changed. Maps leave as many ids as texts, all different. Signals give a value a
  document for each name that they provide. Predicates say of each document whether it goes.

  Args:
    operator: any; of `dedup`, `sample` and `model` only what holds of all is tested.
    params: those that have no default.
    texts: to test on.
    fields: of each record.

  Example:
    >>> from jdc.prep import ops
    >>> problems(ops.OPERATORS["fix_unicode"])
    []
  """
  given = dict(params or {})
  found = []
  if not operator.summary:
    found.append("has no docstring, which is its help")
  unknown = {**given, "no_such_parameter": 1}
  if not operator.check(unknown, "contract"):
    found.append("accepts unknown parameters")
  try:
    values = operator.make_params(given)
  except ValueError as error:
    return [*found, f"parameters: {error}"]
  again = operator.make_params(json.loads(values.model_dump_json()))
  if again != values:
    found.append("parameters change on the way through JSON")
  try:
    return found + _of_kind(operator, values, batch_of(texts, fields or {}))
  except Exception as error:  # whatever a user's function raises
    return [*found, f"raises {type(error).__name__}: {error}"]


def _of_kind(operator: Operator, values: Any, batch: pa.RecordBatch) -> list[str]:
  if operator.kind == "map":
    return _map(operator, values, batch)
  if operator.kind == "signals" and operator.prepare is None:
    return _signals(operator, values, batch)
  if operator.kind == "predicate" and operator.uses is not None:
    return _predicate(operator, values, batch)
  return []


def batch_of(texts: Sequence[str], fields: Mapping[str, Any]) -> pa.RecordBatch:
  """Returns documents as readers make them."""
  size = len(texts)
  columns: dict[str, Any] = {
    "doc_id": [bytes([n]) * batches.ID_BYTES for n in range(size)],
    "source": ["contract.jsonl"] * size,
    "offset": list(range(size)),
    "domain": ["data"] * size,
    "text": list(texts),
    "fields": [dump(dict(fields))] * size,
  }
  arrays = [pa.array(columns[f.name], f.type) for f in batches.SCHEMA]
  return pa.RecordBatch.from_arrays(arrays, schema=batches.SCHEMA)


def _map(operator: Operator, values: Any, batch: pa.RecordBatch) -> list[str]:
  before = batch.to_pydict()
  whole = operator.function(batch, values)
  found = [] if batch.to_pydict() == before else ["changes the batch that it is given"]
  halves = [operator.function(part, values) for part in _halves(batch)]
  joined = {
    name: [value for half in halves for value in half.column(name).to_pylist()]
    for name in before
    if all(name in half.schema.names for half in halves)
  }
  made = {name: whole.column(name).to_pylist() for name in before if name in whole.schema.names}
  if missing := before.keys() - made.keys():
    return [*found, f"loses the columns {sorted(missing)}"]
  if made != joined:
    found.append("depends on how documents are divided into batches")
  if len(set(made["doc_id"])) != whole.num_rows:
    found.append("gives several documents one id")
  if whole.column("text").null_count:
    found.append("makes texts null; a document that cannot be used gets a reason in `drop`")
  return found


def _signals(operator: Operator, values: Any, batch: pa.RecordBatch) -> list[str]:
  before = batch.to_pydict()
  whole = operator.function(batch, values)
  found = [] if batch.to_pydict() == before else ["changes the batch that it is given"]
  if set(whole) != set(operator.provides):
    found.append(f"gives {sorted(whole)}, and says that it provides {list(operator.provides)}")
  halves = [operator.function(part, values) for part in _halves(batch)]
  for name, column in whole.items():
    if len(column) != batch.num_rows:
      found.append(f"{name}: {len(column)} values for {batch.num_rows} documents")
    elif not _same(_listed(column), [value for h in halves for value in _listed(h[name])]):
      found.append(f"{name}: depends on how documents are divided into batches")
  return found


def _predicate(operator: Operator, values: Any, batch: pa.RecordBatch) -> list[str]:
  from jdc.prep import ops

  assert operator.uses is not None
  signals: dict[str, Any] = {}
  for name, given in operator.uses(values):
    measure = ops.OPERATORS.get(name)
    if measure is None or measure.prepare is not None:
      return []  # of the same file, or of a file that is made for a run
    signals |= measure.function(batch, measure.make_params(given))
  reasons = operator.function(signals, values)
  return [
    f"{reason}: must be bool[{batch.num_rows}], one a document, got {bad!r:.60}"
    for reason, bad in reasons.items()
    if not isinstance(bad, np.ndarray) or bad.dtype != bool or bad.shape != (batch.num_rows,)
  ]


def _halves(batch: pa.RecordBatch) -> list[pa.RecordBatch]:
  middle = batch.num_rows // 2
  # Copied, since slices of a batch have its buffers.
  indices = np.arange(batch.num_rows)
  return [batch.take(pa.array(part)) for part in (indices[:middle], indices[middle:])]


def _listed(column: Any) -> list[Any]:
  return column.to_pylist() if isinstance(column, pa.Array) else np.asarray(column).tolist()


def _same(one: list[Any], two: list[Any]) -> bool:
  return len(one) == len(two) and all(
    a == b or (a != a and b != b) for a, b in zip(one, two, strict=True)
  )
