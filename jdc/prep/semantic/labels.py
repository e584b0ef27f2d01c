"""Writes a number for each document, found by its id, into records."""

import json

import numpy as np
import pyarrow as pa

from jdc.prep import sampling
from jdc.prep.batches import set_column
from jdc.prep.readers.jsonl import dump

DOMAIN = "domain"


def write(
  batch: pa.RecordBatch, doc_ids: np.ndarray, values: np.ndarray, into: str
) -> pa.RecordBatch:
  """Returns the batch with the values of its documents as a field, or as the domain.

  Args:
    batch: of documents that all have a value.
    doc_ids: u8[N, 16], ascending.
    values: [N], whole numbers where they become domains.
    into: name of the field; `domain` writes the domain `cluster_00017`, or `cluster_none`.
  """
  found = values[find(doc_ids, sampling.id_bytes(batch.column("doc_id")))].tolist()
  if into == DOMAIN:
    names = [f"cluster_{value:05d}" if value >= 0 else "cluster_none" for value in found]
    return set_column(batch, DOMAIN, pa.array(names, pa.string()))
  records = [json.loads(fields) for fields in batch.column("fields").to_pylist()]
  fields = [dump({**r, into: value}) for r, value in zip(records, found, strict=True)]
  return set_column(batch, "fields", pa.array(fields, pa.string()))


def find(doc_ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """Returns the places i64[n] of ids u8[n, 16] among ascending ones u8[N, 16].

  Raises:
    ValueError: if one is not there.
  """
  held = np.ascontiguousarray(doc_ids).view("S16")[:, 0]
  asked = np.ascontiguousarray(wanted).view("S16")[:, 0]
  place = np.minimum(np.searchsorted(held, asked), max(len(held) - 1, 0))
  if len(asked) and (not len(held) or np.any(held[place] != asked)):
    raise ValueError("documents that were not there when they were numbered")
  return place
