r"""What a run learnt about every example, kept as sums while it trains, and the table of them.

Documents that share a row are told apart: the step adds up the losses of each of its pieces, so
that the statistics of a document are its own, and those of a document in several pieces are
means weighted by `tokens`. What concerns the row as a whole, how often it was seen, its weight
and the alignment of its gradient, is the same for all pieces of a row: of a document it is a
mean over rows, whose other documents have their part in it.

With l_v the mean loss per target token of a piece at its view v, in nats and before the update
of that step s_v, and L_v that of all target tokens of the batch,

  loss_excess = mean_v (l_v - L_v),
  loss_slope  = sum_v (s_v - mean s)(l_v - mean l) / sum_v (s_v - mean s)^2, per 1,000 steps.

The excess compares pieces that were seen at different times, while the losses of all fell.
With a_v = <g, g_i> the product of the row's gradient and that of the target's loss,

  influence = mean_v a_v / r_v,   r_v^2 the mean square of a over the rows of that step,

which is positive where training on the row lowers the target's loss, to first order.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdc.data.formats import import_extra
from jdc.data.plan import RoundRows
from jdc.train.step import StepOutput

NAME = "examples.parquet"
_PREFIX = "examples_"  # of the arrays in a checkpoint
_CHUNK = 1 << 16  # rows of the table made at a time


class Pieces(NamedTuple):
  """The pieces of documents that the N rows of a pool consist of, P of them."""

  start: np.ndarray  # i64[N + 1], those of row r are start[r], ..., start[r + 1] - 1
  targets: np.ndarray  # i32[P], tokens that are predicted

  @property
  def most(self) -> int:
    """The most pieces of a row."""
    return int(np.diff(self.start).max(initial=1))


def pieces_of(tables: Sequence[Any]) -> Pieces:
  """Returns the pieces of the rows of all domains in order; a record is one piece."""
  counts, targets = [], []
  for table in tables:
    found = table.pieces() if hasattr(table, "pieces") else None
    counts.append(np.ones(len(table), np.int64) if found is None else np.diff(found[0]))
    # Of a row without an overlap all tokens but the first of each piece are predicted.
    targets.append(table.num_targets if found is None else np.maximum(found[1] - 1, 0))
  start = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
  return Pieces(start, np.concatenate(targets).astype(np.int32))


# The sums, and what they hold before the first view. Of pieces:
_OF_PIECES: dict[str, tuple[Any, float]] = {
  "count": (np.int32, 0),  # views with a finite loss
  "loss_first": (np.float32, np.nan),
  "step_first": (np.int32, -1),
  "loss_last": (np.float32, np.nan),
  "step_last": (np.int32, -1),
  "loss_min": (np.float32, np.inf),
  "step_min": (np.int32, -1),
  "loss_sum": (np.float64, 0),
  "excess_sum": (np.float64, 0),
  "step_sum": (np.float64, 0),
  "step_squares": (np.float64, 0),
  "loss_step_sum": (np.float64, 0),
}
# Of rows:
_OF_ROWS: dict[str, tuple[Any, float]] = {
  "times_seen": (np.int32, 0),
  "num_nonfinite": (np.int32, 0),
  "times_offered": (np.int32, 0),
  "times_selected": (np.int32, 0),
  "logit": (np.float32, np.nan),
  "weight_sum": (np.float64, 0),
  "influence_count": (np.int32, 0),
  "influence_sum": (np.float64, 0),
  "influence_squares": (np.float64, 0),
}


class ExampleTable:
  """The sums of a run; 68 bytes a piece and 48 a row, whatever the number of steps.

  Args:
    domains: names and tables to train on, in the order of the run.
    pieces: of these tables.
    saved: the arrays of the checkpoint that the run continues from; empty in a fresh run.
    step: of that checkpoint.

  Raises:
    ImportError: without pyarrow, which writes the table.
    ValueError: if the run went so far without a table.
  """

  def __init__(
    self, domains: Mapping[str, Any], pieces: Pieces, saved: Mapping[str, Any], step: int
  ):
    import_extra("pyarrow.parquet", "parquet")
    self._domains, self._pieces = domains, pieces
    num_rows, num_pieces = len(pieces.start) - 1, len(pieces.targets)
    kept = {name: x for name, x in saved.items() if name.startswith(_PREFIX)}
    if step and not kept:
      raise ValueError(
        f"logging.example_table: the first {step} steps were trained without it; switch it "
        "off, or train in another workdir"
      )
    self._sums = {
      name: kept[_PREFIX + name].copy() if kept else np.full(size, initial, kind)
      for size, named in ((num_pieces, _OF_PIECES), (num_rows, _OF_ROWS))
      for name, (kind, initial) in named.items()
    }

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns copies of the sums, for a checkpoint that is written while the run goes on."""
    return {_PREFIX + name: x.copy() for name, x in self._sums.items()}

  def round(self, rows: RoundRows) -> None:
    """Takes in which rows the selection of a round lets through."""
    sums = self._sums
    offered = slice(None) if rows.ids_C is None else rows.ids_C[rows.ids_C >= 0]
    sums["times_offered"][offered] += 1
    sums["times_selected"] += np.isfinite(rows.logits_N)
    sums["logit"][offered] = rows.logits_N[offered]

  def step(self, out: StepOutput, step: int) -> None:
    """Takes in a step; views of the same row in one step count each."""
    sums, id_B = self._sums, np.asarray(out.example_id)
    real_B = np.flatnonzero(id_B >= 0)
    rows = id_B[real_B]
    np.add.at(sums["times_seen"], rows, 1)
    if out.candidate_id is not None:
      candidates = np.asarray(out.candidate_id)
      np.add.at(sums["times_offered"], candidates[candidates >= 0], 1)
      np.add.at(sums["times_selected"], rows, 1)
    weight_B = np.ones(len(rows)) if out.weight_B is None else np.asarray(out.weight_B)[real_B]
    np.add.at(sums["weight_sum"], rows, weight_B)
    if out.target_alignment is not None:
      self._influence(rows, np.asarray(out.target_alignment, np.float64)[real_B])
    loss_B, tokens_B = np.asarray(out.loss_B)[real_B], np.asarray(out.num_tokens_B)[real_B]
    told = tokens_B > 0
    lost = told & ~np.isfinite(loss_B)
    np.add.at(sums["num_nonfinite"], rows[lost], 1)
    told &= ~lost
    if not told.any():
      return
    mean = float(np.average(loss_B[told].astype(np.float64), weights=tokens_B[told]))
    start = self._pieces.start
    if out.piece_loss is None:
      self._losses(start[rows[told]], loss_B[told], mean, step)
      return
    piece_loss = np.asarray(out.piece_loss)[real_B[told]]
    first = start[rows[told]]
    piece = first[:, None] + np.arange(piece_loss.shape[1])
    there = piece < start[rows[told] + 1][:, None]
    chosen = piece[there]
    predicts = self._pieces.targets[chosen] > 0
    self._losses(chosen[predicts], piece_loss[there][predicts], mean, step)

  def _influence(self, rows: np.ndarray, value: np.ndarray) -> None:
    finite = np.isfinite(value)
    scale = np.sqrt(np.mean(np.square(value[finite]))) if finite.any() else 0.0
    if not scale > 0:
      return
    rows, value = rows[finite], value[finite] / scale
    np.add.at(self._sums["influence_count"], rows, 1)
    np.add.at(self._sums["influence_sum"], rows, value)
    np.add.at(self._sums["influence_squares"], rows, np.square(value))

  def _losses(self, piece: np.ndarray, loss: np.ndarray, mean: float, step: int) -> None:
    """Adds the losses of pieces in a step; those that come twice have one loss."""
    sums, loss = self._sums, loss.astype(np.float32)
    new = piece[sums["count"][piece] == 0]
    np.add.at(sums["count"], piece, 1)
    wide = loss.astype(np.float64)
    for name, value in (
      ("loss_sum", wide),
      ("excess_sum", wide - mean),
      ("step_sum", float(step)),
      ("step_squares", float(step) ** 2),
      ("loss_step_sum", wide * step),
    ):
      np.add.at(sums[name], piece, value)
    sums["loss_last"][piece], sums["step_last"][piece] = loss, step
    lower = loss < sums["loss_min"][piece]
    sums["loss_min"][piece[lower]], sums["step_min"][piece[lower]] = loss[lower], step
    sums["loss_first"][new], sums["step_first"][new] = sums["loss_last"][new], step

  def write(self, folder: Path) -> None:
    """Writes `examples.parquet`, at once: a reader sees the old table or the new one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, partial = folder / NAME, folder / f".{NAME}.partial"
    with pq.ParquetWriter(partial, pa.schema(list(_schema(pa))), compression="zstd") as writer:
      for chunk in self._chunks():
        writer.write_table(pa.table(chunk, schema=writer.schema))
    os.replace(partial, path)

  def _chunks(self) -> Iterator[dict[str, Any]]:
    begin = 0
    for name, table in self._domains.items():
      for first in range(0, len(table), _CHUNK):
        last = min(first + _CHUNK, len(table))
        rows = np.arange(first, last)
        yield self._chunk(name, table, rows, rows + begin)
      begin += len(table)

  def _chunk(self, name: str, table: Any, local: np.ndarray, rows: np.ndarray) -> dict:
    start, sums = self._pieces.start, self._sums
    count = start[rows + 1] - start[rows]
    of_piece = np.repeat(rows, count)
    here = slice(start[rows[0]], start[rows[-1] + 1])
    piece = {column: sums[column][here] for column in _OF_PIECES}
    row = {column: sums[column][of_piece] for column in _OF_ROWS}
    seen, judged = piece["count"], row["influence_count"]
    views, judgements = np.maximum(seen, 1), np.maximum(judged, 1)
    influence = row["influence_sum"] / judgements
    variance = row["influence_squares"] / judgements - influence**2
    chunk: dict[str, Any] = {
      "example_id": of_piece.astype(np.int32),
      "piece": np.arange(here.start, here.stop) - start[of_piece],
      **_documents(table, local),
      "tokens": self._pieces.targets[here],
      "domain": np.full(len(of_piece), name, object),
      **{n: row[n] for n in ("times_seen", "num_nonfinite", "times_offered", "times_selected")},
      "weight_sum": row["weight_sum"],
      "logit": _where(~np.isnan(row["logit"]), row["logit"]),
    }
    for column in ("loss_first", "loss_last", "loss_min", "step_first", "step_last"):
      chunk[column] = _where(seen > 0, piece[column])
    chunk["step_min"] = _where(seen > 0, piece["step_min"])
    chunk["loss_mean"] = _where(seen > 0, piece["loss_sum"] / views)
    chunk["loss_excess"] = _where(seen > 0, piece["excess_sum"] / views)
    spread = piece["step_squares"] - piece["step_sum"] ** 2 / views
    product = piece["loss_step_sum"] - piece["step_sum"] * piece["loss_sum"] / views
    several = (seen > 1) & (piece["step_last"] > piece["step_first"])
    chunk["loss_slope"] = _where(several, 1000 * product / np.where(several, spread, 1.0))
    chunk["influence"] = _where(judged > 0, influence)
    chunk["influence_std"] = _where(judged > 1, np.sqrt(np.maximum(variance, 0)))
    chunk["influence_count"] = judged
    return chunk


def _schema(pa: Any) -> Iterator[Any]:
  small = pa.dictionary(pa.int32(), pa.string())
  kinds = {
    pa.int32(): (
      "example_id", "piece", "tokens", "times_seen", "num_nonfinite", "times_offered",
      "times_selected", "step_first", "step_last", "step_min", "influence_count",
    ),
    pa.int64(): ("source_offset", "token_offset"),
    pa.float32(): ("logit", "loss_first", "loss_last", "loss_min"),
    small: ("source", "domain"),
    pa.string(): ("doc_id",),
  }  # fmt: skip
  of = {name: kind for kind, names in kinds.items() for name in names}
  for name in COLUMNS:
    yield pa.field(name, of.get(name, pa.float64()))


COLUMNS = (
  "example_id", "piece", "doc_id", "source", "source_offset", "token_offset", "tokens",
  "domain", "times_seen", "num_nonfinite", "times_offered", "times_selected", "weight_sum",
  "logit", "loss_first", "step_first", "loss_last", "step_last", "loss_min", "step_min",
  "loss_mean", "loss_excess", "loss_slope", "influence", "influence_std", "influence_count",
)  # fmt: skip


def _documents(table: Any, rows: np.ndarray) -> dict[str, Any]:
  """What is known of the documents of rows: of token shards all, else the place in a file."""
  if not hasattr(table, "documents"):
    none = [None] * len(rows)
    where = [table.where(int(row)) for row in rows]
    return {"doc_id": none, "source": where, "source_offset": none, "token_offset": none}
  pieces = [piece for row in rows.tolist() for piece in table.documents(row)]
  if pieces and not hasattr(pieces[0], "doc_id"):
    source, place, ids = [p.where for p in pieces], [None] * len(pieces), [None] * len(pieces)
  else:
    source, place = [p.source for p in pieces], [p.source_offset for p in pieces]
    ids = [p.doc_id for p in pieces]
  offsets = [p.offset for p in pieces]
  return {"doc_id": ids, "source": source, "source_offset": place, "token_offset": offsets}


def _where(known: np.ndarray, values: np.ndarray) -> Any:
  """Returns an Arrow array with null where a value is not known."""
  import pyarrow as pa

  return pa.array(values, mask=~known)
