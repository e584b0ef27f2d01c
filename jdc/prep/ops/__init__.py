"""The operators, by name; what each does is in `jdc.prep.text`, `.kernels` and beside them."""

from jdc.prep.catalog import Operator
from jdc.prep.ops import (
  dedup,
  documents,
  fields,
  filters,
  importance,
  likelihood,
  llm,
  percentiles,
  proposed,
  quality,
  sampling,
  selection,
  semantic,
  text,
)

OPERATORS: dict[str, Operator] = {
  operator.name: operator
  for module in (
    text,
    fields,
    filters,
    selection,
    proposed,
    quality,
    likelihood,
    dedup,
    semantic,
    percentiles,
    importance,
    documents,
    sampling,
    llm,
  )
  for operator in module.OPERATORS
}
