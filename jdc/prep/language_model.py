"""A jdc checkpoint as operators use it: losses and embeddings of documents, in batches."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdc.data.tokenize import Tokenizer
from jdc.prep.sinks import best_fit

PREFIX = "jdc:"
_DEFAULT_LENGTH = 1024
_PART = 512  # documents tokenized in one call


class Opened(NamedTuple):
  """A checkpoint and its tokenizer.

  Attributes:
    model: a `jdc.models.base.LanguageModel`.
    params: its parameters.
    tokenizer: the one that it was trained with.
    context_length: the most positions of a row.
    mesh: all devices; parameters and the rows of a batch are split over them.
  """

  model: Any
  params: Any
  mesh: Any
  tokenizer: Tokenizer
  context_length: int


class Losses(NamedTuple):
  """How well n documents are predicted.

  Attributes:
    loss: f64[n], summed over predicted tokens, nats.
    num_tokens: i64[n], that are predicted: all but the first.
    num_bytes: i64[n], of the text.
  """

  loss: np.ndarray
  num_tokens: np.ndarray
  num_bytes: np.ndarray


def folder_of(model: str) -> Path:
  """Returns the folder that "jdc:FOLDER" names; ValueError if it is another name."""
  if not model.startswith(PREFIX) or model == PREFIX:
    raise ValueError(f"model={model!r} must be {PREFIX}FOLDER, a run or a checkpoint")
  return Path(model.removeprefix(PREFIX))


def at(model: str, root: Path) -> str:
  """Returns the name of a model whose folder starts at another one."""
  return f"{PREFIX}{root / folder_of(model)}"


def files(model: str) -> tuple[str, ...]:
  """Returns the files of the newest checkpoint, or of a Hugging Face folder."""
  folder = folder_of(model)
  if (folder / "config.json").is_file():
    return tuple(sorted(str(path) for path in folder.iterdir() if path.is_file()))
  place = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
  steps = [p for p in place.iterdir() if p.name.isdigit()] if place.is_dir() else []
  if not steps:
    return (str(folder / "checkpoints"),)  # no such file, which the plan's check says
  newest = max(steps, key=lambda path: int(path.name))
  return tuple(sorted(str(path) for path in newest.rglob("*") if path.is_file()))


def open_model(model: str) -> Opened:
  """Opens the newest checkpoint of a run, or a Hugging Face folder; kept for the next call.

  Raises:
    ValueError: if there is none, or it names no tokenizer.
    checkpoint.Damaged: if the checkpoint fails its checksums.
  """
  stamps = tuple(Path(path).stat().st_mtime_ns for path in files(model))
  return _open(str(folder_of(model).absolute()), stamps)


@functools.lru_cache(maxsize=1)
def _open(folder: str, stamps: tuple[int, ...]) -> Opened:
  del stamps
  from jdc.eval import text_model
  from jdc.eval.tokenizer import OwnTokenizer, of_training, open_tokenizer
  from jdc.train import corpus, pretrained, sharding

  mesh = sharding.make_mesh(data=1, fsdp=-1)
  opened = pretrained.open_model(folder, mesh)
  own: OwnTokenizer
  if opened.run:
    config = pretrained.corpus_of(folder)
    assert config is not None
    own = of_training(corpus.tokenizer(config), config.tokenizer)
  else:
    own = open_tokenizer("", opened.source)
  text_model.check_vocabulary(own, opened.model)
  length = opened.config.context_length or _DEFAULT_LENGTH
  return Opened(opened.model, opened.params, mesh, own.tokenizer, length)


def losses(opened: Opened, texts: Sequence[str], batch_size: int = 8) -> Losses:
  r"""Returns the losses of documents [BOS] tokens [EOS], boundary tokens where there are any.

  A document of more than T + 1 tokens, T the context, is cut into pieces that overlap by one
  token, as in token shards, so that each token but the first is predicted once. Pieces are
  padded to powers of two and batched by length. Losses of tokens are float32, sums float64.

  Args:
    opened: the model.
    texts: n documents.
    batch_size: rows in one call on each device.

  Returns:
    What `jdc.eval.perplexity` sums over the rows of the same documents, one piece a row.
  """
  rows = _rows(opened, texts)
  found = np.zeros(len(texts))
  count = np.zeros(len(texts), np.int64)
  for places, loss_BxT in _run(
    _masked_losses(opened.model, opened.mesh), opened, rows, batch_size
  ):
    for place, loss_T in zip(places, loss_BxT, strict=False):
      length = len(rows[place][1]) - 1
      found[rows[place][0]] += np.sum(loss_T[:length], dtype=np.float64)
      count[rows[place][0]] += length
  sizes = np.array([len(text.encode()) for text in texts], np.int64)
  return Losses(found, count, sizes)


def embeddings(
  opened: Opened, texts: Sequence[str], batch_size: int = 8, max_tokens: int = 0
) -> np.ndarray:
  """Returns the mean hidden state over the tokens of each document, f32[n, D].

  Long documents are cut as by `losses`; the mean is over the tokens that are read of all
  pieces, of which the last of each is left to the next piece.

  Args:
    opened: the model.
    texts: n documents.
    batch_size: rows in one call on each device.
    max_tokens: of each document only so many at its beginning are read; 0: all.

  Returns:
    Zeros for an empty text.
  """
  rows = _rows(opened, texts, max_tokens)
  rows = [row for row in rows if texts[row[0]]]
  total = np.zeros((len(texts), _width(opened)))
  count = np.zeros(len(texts), np.int64)
  for places, mean_BxD in _run(
    _mean_hidden(opened.model, opened.mesh), opened, rows, batch_size
  ):
    for place, mean_D in zip(places, mean_BxD, strict=False):
      length = max(1, len(rows[place][1]) - 1)
      total[rows[place][0]] += mean_D.astype(np.float64) * length
      count[rows[place][0]] += length
  return (total / np.maximum(count, 1)[:, None]).astype(np.float32)


Row = tuple[int, np.ndarray]  # the document, and its tokens: inputs and targets


def _rows(opened: Opened, texts: Sequence[str], max_tokens: int = 0) -> list[Row]:
  tokenizer, found = opened.tokenizer, []
  before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  after = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
  for start in range(0, len(texts), _PART):
    for n, (ids, _) in enumerate(tokenizer.mark_batch(list(texts[start : start + _PART]))):
      tokens = np.array([*before, *ids.tolist(), *after], np.int32)
      tokens = tokens[: max_tokens + 1] if max_tokens else tokens
      if not len(tokens):
        continue
      pieces = best_fit.cut(np.array([len(tokens)]), opened.context_length + 1)
      for offset, length in zip(pieces.offset.tolist(), pieces.length.tolist(), strict=True):
        found.append((start + n, tokens[offset : offset + length]))
  return found


def _run(
  function: Callable[..., Any], opened: Opened, rows: Sequence[Row], batch_size: int
) -> Iterator[tuple[list[int], np.ndarray]]:
  """Yields places in `rows` and what the function says of them, a batch at a time."""
  import jax

  from jdc.models.batching import batches_by_length, place_rows

  batch_size *= opened.mesh.size
  lengths = [max(1, len(tokens) - 1) for _, tokens in rows]
  for places, bucket in batches_by_length(lengths, batch_size):
    tokens_BxT1 = np.zeros((batch_size, bucket + 1), np.int32)
    segments_BxT1 = np.zeros_like(tokens_BxT1)
    for b, place in enumerate(places):
      tokens = rows[place][1]
      tokens_BxT1[b, : len(tokens)] = tokens
      # A single token is read, though nothing follows it that it could predict.
      segments_BxT1[b, : max(2, len(tokens))] = 1
    arrays = [place_rows(array, opened.mesh) for array in (tokens_BxT1, segments_BxT1)]
    yield places, jax.device_get(function(opened.params, *arrays))


@functools.lru_cache(maxsize=2)
def _masked_losses(model: Any, mesh: Any) -> Callable[..., Any]:
  import jax
  import jax.numpy as jnp

  from jdc.models.batching import on_mesh

  def function(params: Any, tokens_BxT1: Any, segments_BxT1: Any) -> Any:
    tokens, targets = tokens_BxT1[:, :-1], tokens_BxT1[:, 1:]
    segments, mask = segments_BxT1[:, :-1], segments_BxT1[:, 1:] > 0
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    losses = model.token_losses(params, tokens, targets, positions, segments)
    return jnp.where(mask, losses, 0.0)

  return on_mesh(mesh, jax.jit(function, out_shardings=jax.NamedSharding(mesh, jax.P())))


@functools.lru_cache(maxsize=2)
def _mean_hidden(model: Any, mesh: Any) -> Callable[..., Any]:
  import jax
  import jax.numpy as jnp

  from jdc.models.batching import on_mesh
  from jdc.stats.embeddings import mean_embedding

  def function(params: Any, tokens_BxT1: Any, segments_BxT1: Any) -> Any:
    tokens, segments = tokens_BxT1[:, :-1], segments_BxT1[:, 1:]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return mean_embedding(model.hidden(params, tokens, positions, segments), segments)

  return on_mesh(mesh, jax.jit(function, out_shardings=jax.NamedSharding(mesh, jax.P())))


def _width(opened: Opened) -> int:
  import jax

  shape = jax.ShapeDtypeStruct((opened.mesh.size, 2), np.int32)
  with jax.set_mesh(opened.mesh):
    return int(jax.eval_shape(opened.model.hidden, opened.params, *[shape] * 3).shape[-1])
