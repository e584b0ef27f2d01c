"""Operators that drop documents by how well a language model predicts them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pydantic
from pydantic import Field

from jdc.prep.catalog import Operator, Params

Positive = Annotated[float, Field(gt=0)]


class ModelLosses(Params):
  """Which model predicts."""

  model: str = Field(description="jdc:FOLDER, a run or a checkpoint of jdc or Hugging Face.")
  batch_size: Annotated[int, Field(ge=1)] = 8

  @pydantic.field_validator("model")
  @classmethod
  def _is_model(cls, value: str) -> str:
    from jdc.prep import language_model

    language_model.folder_of(value)
    return value

  def files(self) -> tuple[str, ...]:
    from jdc.prep import language_model

    return language_model.files(self.model)

  def at(self, root: Path) -> Self:
    from jdc.prep import language_model

    return self.model_copy(update={"model": language_model.at(self.model, root)})


def model_losses(batch: pa.RecordBatch, params: ModelLosses) -> dict[str, np.ndarray]:
  """Measures the perplexity and the bits per byte of documents under a language model."""
  from jdc.prep import language_model

  opened = language_model.open_model(params.model)
  found = language_model.losses(opened, batch.column("text").to_pylist(), params.batch_size)
  with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
    token = np.where(found.num_bytes > 0, found.loss / found.num_tokens, np.nan)
    byte = np.where(found.num_bytes > 0, found.loss / found.num_bytes / np.log(2), np.nan)
    return {
      "perplexity": np.exp(token),
      "bits_per_byte": byte,
      "model_tokens": found.num_tokens,
    }


class Perplexity(ModelLosses):
  """See `perplexity`."""

  of: Literal["perplexity", "bits_per_byte"] = "perplexity"
  min: Positive | None = None
  max: Positive | None = None

  @pydantic.model_validator(mode="after")
  def _has_bound(self) -> Self:
    if self.min is None and self.max is None:
      raise ValueError("min or max must be given; perplexity_percentile takes shares")
    return self


def perplexity(found: Mapping[str, Any], params: Perplexity) -> dict[str, np.ndarray]:
  """Drops documents that a language model of jdc predicts too well, or not well enough.

  Perplexity is exp(sum of losses / predicted tokens) of [BOS] text [EOS], as `jdc.eval` has it,
  with long documents cut at the context; bits per byte do not depend on the tokenizer. An empty
  text, or a loss that is not finite, is `undefined`, and goes.
  """
  values = np.asarray(found[params.of])
  low = values < (-np.inf if params.min is None else params.min)
  high = values > (np.inf if params.max is None else params.max)
  undefined = ~np.isfinite(values)
  return {
    "perplexity.undefined": undefined,
    "perplexity.low": low & ~undefined,
    "perplexity.high": high & ~undefined,
  }


def measure(params: ModelLosses) -> tuple[tuple[str, dict[str, Any]], ...]:
  """Returns the signals of a step, with its parameters that they depend on."""
  held = params.model_dump(mode="json", include=set(ModelLosses.model_fields))
  return (("model_losses", held),)


OPERATORS = (
  Operator(
    "model_losses", "signals", model_losses, ModelLosses,
    provides=("perplexity", "bits_per_byte", "model_tokens"),
    code=("jdc.prep.language_model",), stage_rank=31, cost=100_000.0,
  ),
  Operator(
    "perplexity", "predicate", perplexity, Perplexity, uses=measure, stage_rank=70, cost=0.1
  ),
)  # fmt: skip
