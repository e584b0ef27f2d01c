"""Operators that drop documents by a classifier of quality."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pydantic
from pydantic import Field

from jdc.prep.catalog import Operator, Params, Prepared


class QualityModel(Params):
  """Which classifier: one that was made before, or what it is made of."""

  model: str = Field("", description="A classifier's file, such as models/*.safetensors.")
  positive: tuple[str, ...] = Field((), description="Files of good examples, or globs.")
  negative: tuple[str, ...] = Field((), description="Files of other examples, or globs.")
  labels: tuple[str, ...] = Field((), description="Files of records with a number, or globs.")
  label_field: str = Field("score", description="Of labels: the field with the number.")
  min_label: float = Field(3.0, description="Of labels: good from it on.")
  text_column: str = "text"
  max_examples: Annotated[int, Field(ge=100)] = Field(50_000, description="Of a side.")
  buckets: Annotated[int, Field(ge=2)] = 1 << 20
  l2: Annotated[float, Field(gt=0)] = 1.0
  seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0

  def files(self) -> tuple[str, ...]:
    model = (self.model,) if self.model else ()
    return (*model, *self.positive, *self.negative, *self.labels)

  def at(self, root: Path) -> Self:
    from jdc.prep.quality.examples import expand

    changes: dict[str, Any] = {"model": str(root / self.model) if self.model else ""}
    for name in ("positive", "negative", "labels"):
      changes[name] = expand(getattr(self, name), root)
    return self.model_copy(update=changes)


Model = TypeVar("Model", bound=QualityModel)


def with_source(params: Model) -> Model:
  """Returns the parameters; a ValueError if they do not say what the classifier is."""
  from jdc.prep.quality.features import check_buckets

  check_buckets(params.buckets)
  sides = bool(params.positive) + bool(params.negative)
  if sides == 1 or [bool(params.model), sides == 2, bool(params.labels)].count(True) != 1:
    raise ValueError("one of these must be given: model; positive and negative; or labels")
  return params


def prepare(params: QualityModel) -> Prepared:
  """Returns the file of a classifier, made of the examples if there is none yet."""
  from jdc.prep.quality import classifier, examples

  if params.model:
    found = classifier.load(params.model)
    return Prepared(Path(params.model).read_bytes(), ".safetensors", found.about)
  options: dict[str, Any] = {
    "text_column": params.text_column, "most": params.max_examples, "seed": params.seed
  }  # fmt: skip
  if params.labels:
    held = examples.of_labels(
      params.labels, field=params.label_field, min_label=params.min_label, **options
    )
  else:
    held = examples.of_sides(params.positive, params.negative, **options)
  made = classifier.fit(held, buckets=params.buckets, l2=params.l2, seed=params.seed)
  return Prepared(classifier.to_bytes(made), ".safetensors", made.about)


def quality(batch: pa.RecordBatch, params: QualityModel, file: Path) -> dict[str, np.ndarray]:
  """Scores documents by a classifier of hashed words and pairs of words."""
  from jdc.prep.quality import classifier

  del params
  return {"quality": classifier.load(file).score(batch.column("text"))}


class QualityClassifier(QualityModel):
  """See `quality_classifier`."""

  min_score: Annotated[float, Field(ge=0, le=1)] = 0.5

  @pydantic.model_validator(mode="after")
  def _has_one_source(self) -> Self:
    return with_source(self)


def quality_classifier(found: Mapping[str, Any], params: QualityClassifier) -> dict[str, Any]:
  """Drops documents that are less likely to be good than `min_score`, as a classifier says.

  It is logistic regression on hashed words and pairs of words, which learns from examples of
  both sides (`positive`, `negative`), or from records that a language model gave a number
  (`labels`, of which those from `min_label` on are good), or was made before (`model`). Its
  probabilities are calibrated on examples held out, and measured on others; the file and the
  report stay with the run, in `models/` and the manifest. Documents without words have no score
  and go. See `jdc.prep.quality.classifier`.
  """
  score = np.asarray(found["quality"])
  return {
    "quality_classifier": score < params.min_score,
    "quality_classifier.no_words": np.isnan(score),
  }


def measure(params: QualityModel) -> tuple[tuple[str, dict[str, Any]], ...]:
  """Returns the signals of a step, with its parameters that they depend on."""
  held = params.model_dump(mode="json", include=set(QualityModel.model_fields))
  return (("quality", held),)


OPERATORS = (
  Operator(
    "quality", "signals", quality, QualityModel, provides=("quality",), prepare=prepare,
    code=("jdc.prep.quality.classifier",), stage_rank=30, cost=10.0,
  ),
  Operator(
    "quality_classifier", "predicate", quality_classifier, QualityClassifier, uses=measure,
    stage_rank=60, cost=0.1,
  ),
)  # fmt: skip
