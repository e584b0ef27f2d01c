"""How documents become token shards, and the tokenizer that this names."""

import dataclasses
import typing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jdc.data import token_manifest, tokenize
from jdc.data.token_manifest import TokenizerInfo
from jdc.data.tokenize import Tokenizer
from jdc.prep.sinks.token_writer import SUFFIXES, Layout

PACKINGS = ("best-fit", "none")
DTYPES = ("auto", "uint16", "uint32")


@dataclasses.dataclass(frozen=True)
class TokenOptions:
  """How documents become token shards.

  A document is [BOS] tokens [EOS], each boundary token where there is one. A row has at most
  T + 1 tokens, T = `seq_len` of which can be predicted. Longer documents are cut, with an
  overlap of one token (`best_fit.cut`). A text of more than 2^22 characters is tokenized in
  parts, each of which ends with a line or else a word, so that memory is bounded.

  Attributes:
    tokenizer: a Hugging Face tokenizer.json or a folder that holds one, or "bytes".
    seq_len: T; the `sequence_length` of a run that trains on the shards.
    pack: "best-fit" fills rows with several documents (`best_fit.best_fit`); "none" makes each
      document, or piece of one, a row.
    eos: whether documents end with the tokenizer's EOS, and rows thus say where they end.
    dtype: of the tokens; "auto" is uint16 up to a vocabulary of 65,536 and then uint32.
    format: of the files, "array_record" or "parquet".
    bos_token: starts a document; empty: what the folder's tokenizer_config.json names, if any.
    eos_token: ends a document; empty: what the folder's tokenizer_config.json names.
    validation_fraction: the share v of texts held out from training: those whose hash of
      (seed, text), as a number in [0, 1), is below v. Equal texts fall on one side.
    target_fraction: the share u set apart for policies to observe: hashes in [v, v + u).
    seed: of the split.
  """

  tokenizer: str
  seq_len: int = 2048
  pack: str = "best-fit"
  eos: bool = True
  dtype: str = "auto"
  format: str = "array_record"
  bos_token: str = ""
  eos_token: str = ""
  validation_fraction: float = 0.05
  target_fraction: float = 0.0
  seed: int = 0

  def __post_init__(self) -> None:
    if wrong := _wrong_types(self):
      raise ValueError("\n".join(wrong))
    accepted = {"pack": PACKINGS, "dtype": DTYPES, "format": tuple(SUFFIXES)}
    problems = [
      f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
      for name, known in accepted.items()
      if getattr(self, name) not in known
    ]
    if not 1 <= self.seq_len < 1 << 24:
      problems.append(f"seq_len must be in [1, {1 << 24}), got {self.seq_len}")
    shares = {n: getattr(self, n) for n in ("validation_fraction", "target_fraction")}
    problems += [f"{n} must be in [0, 1), got {v}" for n, v in shares.items() if not 0 <= v < 1]
    if sum(shares.values()) >= 1:
      problems.append(f"{' + '.join(shares)} must be below 1, got {sum(shares.values())}")
    if not 0 <= self.seed < 1 << 64:
      problems.append(f"seed must be in [0, 2^64), got {self.seed}")
    if self.eos_token and not self.eos:
      problems.append(f"eos_token={self.eos_token!r} needs eos=true")
    if self.tokenizer == "bytes" and (self.bos_token or self.eos_token):
      problems.append("bos_token and eos_token are for tokenizer files, got tokenizer='bytes'")
    if problems:
      raise ValueError("\n".join(problems))


def _wrong_types(options: TokenOptions) -> list[str]:
  accepted = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}
  held = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
  found = []
  for name, kind in typing.get_type_hints(TokenOptions).items():
    fits = int | float if kind is float else kind
    if not isinstance(held[name], fits) or (kind is not bool and isinstance(held[name], bool)):
      found.append(f"{name} must be {accepted[kind]}, got {held[name]!r}")
  return found


class Opened(NamedTuple):
  """A tokenizer, and what its shards say of it."""

  tokenizer: Tokenizer
  info: TokenizerInfo
  layout: Layout
  file: Path | None  # that is copied beside the shards


def open_tokenizer(options: TokenOptions) -> Opened:
  """Opens the tokenizer that the options name.

  Raises:
    ValueError: if there is no such tokenizer, no EOS for eos=true, or the vocabulary does not
      fit `dtype`.
    ImportError: if the package `tokenizers` is needed and not installed.
  """
  file, bos, eos = None, options.bos_token, options.eos_token
  if options.tokenizer == "bytes":
    tokenizer, name, content = tokenize.byte_tokenizer(), "bytes", "bytes-256-257"
    tokenizer = tokenizer if options.eos else tokenizer._replace(eos_id=None)
  else:
    path = Path(options.tokenizer).expanduser()
    named = tokenize.boundary_tokens(path) if path.is_dir() else {}
    file = path / token_manifest.TOKENIZER if path.is_dir() else path
    bos = bos or named.get("bos_token", "")
    eos = (eos or named.get("eos_token", "")) if options.eos else ""
    tokenizer = tokenize.from_file(file, bos or None, eos or None)
    name, content = path.name, token_manifest.file_digest(file)
    if options.eos and not eos:
      raise ValueError(
        f"{file}: eos=true needs eos_token, for no tokenizer_config.json beside it names one; "
        "accepted: a token of its vocabulary, or eos=false"
      )
  size = tokenizer.vocab_size
  if options.dtype == "uint16" and size > 1 << 16:
    raise ValueError(f"dtype='uint16' holds 65,536 tokens, the tokenizer has {size:,}")
  dtype = options.dtype if options.dtype != "auto" else ("uint32", "uint16")[size <= 1 << 16]
  return Opened(
    tokenizer,
    TokenizerInfo(name, content, size, bos, eos, tokenizer.bos_id, tokenizer.eos_id),
    Layout(options.seq_len, options.pack, options.format, np.dtype(dtype)),
    file,
  )
