"""Cuts a stream of tokenized documents into fixed rows that overlap by one token."""

from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from jdc.data.rows import RowTable, RowWriter
from jdc.data.tokenize import Encoded, Tokenizer

BLOCK_TOKENS = 1 << 20


class Packer:
  r"""Concatenates documents and cuts them into rows of T + 1 tokens with stride T.

  A document becomes [BOS] tokens [EOS], each boundary token where the tokenizer has one. With
  s_0, s_1, ... the tokens of all documents, row r holds s_{rT}, ..., s_{rT+T}: consecutive rows
  share one token, so every token of a document but its first is a target exactly once. The
  last row is padded with token 0, segment 0.

  A token's bytes run from its first byte to that of the next token; boundary tokens have none.

  Args:
    folder: where the rows go; must not exist.
    tokenizer: gives boundary tokens and vocabulary size.
    sequence_length: T, in tokens.
    block_tokens: tokens held in memory before rows are written. Does not change the rows.
  """

  def __init__(
    self,
    folder: str | Path,
    tokenizer: Tokenizer,
    sequence_length: int,
    block_tokens: int = BLOCK_TOKENS,
  ):
    self._writer = RowWriter(folder, sequence_length, tokenizer.vocab_size)
    self._length, self._block_tokens = sequence_length, block_tokens
    self._before = _boundary(tokenizer.bos_id)
    self._after = _boundary(tokenizer.eos_id)
    self._wheres: list[str] = []
    self._tokens: list[np.ndarray] = []
    self._widths: list[np.ndarray] = []
    self._buffered = 0
    # What fills no row yet: token, bytes, document and offset in the document.
    self._tail_4xS = np.zeros((4, 0), np.int32)
    self._num_documents = self._num_targets = 0

  def __enter__(self) -> "Packer":
    return self

  def __exit__(self, *error: object) -> None:
    self._writer.close()

  def add(self, where: str, encoded: Encoded, num_bytes: int) -> None:
    """Appends a document of `num_bytes` UTF-8 bytes and at least one token."""
    ids, byte_starts = encoded
    if not len(ids):
      raise ValueError(f"{where}: no tokens")
    widths = np.diff(byte_starts, append=np.int32(num_bytes))
    no_bytes = np.zeros(1, np.int32)
    self._tokens.append(np.concatenate([self._before, ids, self._after]))
    self._widths.append(
      np.concatenate([no_bytes[: len(self._before)], widths, no_bytes[: len(self._after)]])
    )
    self._wheres.append(where)
    self._buffered += len(self._tokens[-1])
    if self._buffered >= self._block_tokens:
      self._flush(last=False)

  def finish(self) -> RowTable:
    """Writes what is left and opens the rows; ValueError where they hold no target token."""
    self._flush(last=True)
    if not self._num_targets:
      raise ValueError(f"no target tokens in {self._num_documents} documents")
    self._writer.finish()
    return RowTable(self._writer.folder)

  def _flush(self, last: bool) -> None:
    stream_4xS = np.concatenate([self._tail_4xS, self._stream()], axis=1)
    span = self._length
    num_rows = (stream_4xS.shape[1] - 1) // span
    if last and stream_4xS.shape[1] > max(1, num_rows * span + 1):
      num_rows += 1
      padding = num_rows * span + 1 - stream_4xS.shape[1]
      padding_4xP = np.repeat(np.array([[0], [0], [-1], [0]], np.int32), padding, axis=1)
      stream_4xS = np.concatenate([stream_4xS, padding_4xP], axis=1)
    if num_rows > 0:
      rows_4xNxT = sliding_window_view(stream_4xS, span + 1, axis=1)[
        :, : num_rows * span : span
      ]
      self._write(*rows_4xNxT)
      stream_4xS = stream_4xS[:, num_rows * span :]
    self._tail_4xS = stream_4xS.copy()

  def _stream(self) -> np.ndarray:
    """Takes the buffered documents: token, bytes, document and offset of each token."""
    if not self._tokens:
      return np.zeros((4, 0), np.int32)
    lengths = np.array([len(tokens) for tokens in self._tokens])
    starts = np.cumsum(lengths) - lengths
    documents = self._num_documents + np.arange(len(lengths))
    stream_4xS = np.empty((4, lengths.sum()), np.int32)
    stream_4xS[0] = np.concatenate(self._tokens)
    stream_4xS[1] = np.concatenate(self._widths)
    stream_4xS[2] = np.repeat(documents, lengths)
    stream_4xS[3] = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    self._writer.add_documents(self._wheres)
    self._num_documents += len(lengths)
    self._tokens, self._widths, self._wheres, self._buffered = [], [], [], 0
    return stream_4xS

  def _write(
    self,
    tokens_NxT: np.ndarray,
    widths_NxT: np.ndarray,
    documents_NxT: np.ndarray,
    offsets_NxT: np.ndarray,
  ) -> None:
    valid_NxT = documents_NxT >= 0
    segments_NxT = np.where(valid_NxT, documents_NxT - documents_NxT[:, :1] + 1, 0)
    target_NxT = (segments_NxT[:, 1:] == segments_NxT[:, :-1]) & valid_NxT[:, 1:]
    num_targets_N = target_NxT.sum(axis=1)

    first_NxT = valid_NxT.copy()  # the first token of each piece
    first_NxT[:, 1:] &= ~target_NxT
    row_P, column_P = np.nonzero(first_NxT)
    num_pieces_N = first_NxT.sum(axis=1)
    end_P = np.append(column_P[1:], 0)
    last_P = np.cumsum(num_pieces_N) - 1
    end_P[last_P] = valid_NxT.sum(axis=1)
    self._writer.add_rows(
      tokens_NxT,
      segments_NxT,
      num_targets_N,
      np.where(target_NxT, widths_NxT[:, 1:], 0).sum(axis=1),
      num_pieces_N,
      (documents_NxT[row_P, column_P], offsets_NxT[row_P, column_P], end_P - column_P),
    )
    self._num_targets += int(num_targets_N.sum())


def _boundary(token: int | None) -> np.ndarray:
  return np.array([] if token is None else [token], np.int32)
