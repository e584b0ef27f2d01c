"""The operators, by name; what each does is in `jdc.prep.text`, `.kernels` and beside them."""

from jdc.prep.catalog import Operator
from jdc.prep.ops import dedup, fields, filters, llm, sampling, selection, semantic, text

OPERATORS: dict[str, Operator] = {
  operator.name: operator
  for module in (text, fields, filters, selection, dedup, semantic, sampling, llm)
  for operator in module.OPERATORS
}
