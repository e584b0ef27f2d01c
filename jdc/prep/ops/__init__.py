"""The operators, by name; what each does is in `jdc.prep.text`, `.kernels` and beside them."""

from jdc.prep.catalog import Operator
from jdc.prep.ops import dedup, fields, filters, sampling, text

OPERATORS: dict[str, Operator] = {
  operator.name: operator
  for module in (text, fields, filters, dedup, sampling)
  for operator in module.OPERATORS
}
