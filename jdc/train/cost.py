"""What policies cost: rows passed through models besides those that are trained."""

from typing import NamedTuple

from jdc.models.base import LanguageModel
from jdc.policies.combine import Policies
from jdc.stats.gradients import passes
from jdc.train import features as features_lib
from jdc.train.config import RunConfig
from jdc.train.features import FIELDS, PRODUCT
from jdc.train.observe import observed_of
from jdc.train.passes import REFERENCE, trains_alignment
from jdc.train.state import slots
from jdc.train.step import StepOptions


class Cost(NamedTuple):
  """Rows of `sequence_length` positions."""

  forward: int = 0
  backward: int = 0  # each about two forward passes

  def plus(self, other: "Cost") -> "Cost":
    """Returns the sum."""
    return Cost(self.forward + other.forward, self.backward + other.backward)


def of_step(
  config: RunConfig,
  model: LanguageModel,
  policies: Policies,
  options: StepOptions,
  *,
  reference_in_step: bool,
) -> Cost:
  """Returns what one step costs beyond one forward and backward pass over its batch.

  `target_alignment` differentiates a backward pass once more: it counts as the target rows and
  the batch, and the candidates if there are any, forward and backward, and these backward twice
  again; by linear maps as the target rows and the candidates, and the batch where its weights,
  or what else is told of it, stand in the way of the pass that trains, forward and backward
  once; of low rank likewise, but without the target rows. `target_curvature` counts
  as the sum of the rows' gradients, one product of the target's Hessian, as much as two more
  passes, and inner products as above.
  """
  observed = observed_of(policies, "step")
  rows, candidates = config.batch_size, config.plan.num_candidates
  forward, backward = candidates, 0
  pointwise = all(slots(policies)[name].pointwise for name in options.weighted_slots)
  if config.accumulation_steps > 1 and not pointwise:
    forward += rows  # losses of the whole batch come before any gradient
  if reference_in_step:
    forward += sum(count for names, count in _looks(config, policies) if names & REFERENCE)
  if "target_alignment" in observed and PRODUCT not in observed:
    by_maps, apart = config.target.alignment != "exact", rows
    drawn = 0 if config.target.alignment == "low_rank" else config.target.alignment_rows
    if by_maps and config.accumulation_steps == 1 and trains_alignment(model, observed):
      # The pass that trains tells it, where the weights of rows do not depend on it.
      apart = rows if options.weighted_slots or options.row_weights else 0
    forward += apart + candidates + drawn
    backward += (apart + candidates) * (1 if by_maps else 3) + drawn
  if "target_curvature" in observed:
    forward += 2 * (rows + candidates) + config.target.alignment_rows
    backward += 4 * (rows + candidates) + 3 * config.target.alignment_rows
  return Cost(forward, backward).plus(_differentiated(config, policies))


def _differentiated(config: RunConfig, policies: Policies) -> Cost:
  """What the gradients of single rows cost a step, in passes besides the one that trains."""
  forward, backward = passes(features_lib.options(config))
  total = Cost()
  for observed, rows in _looks(config, policies):
    if observed & FIELDS:
      total = total.plus(Cost(rows * forward, rows * backward))
    products = rows * (PRODUCT in observed)
    if {PRODUCT, "target_alignment"} <= observed:  # one pass tells both
      products += config.target.alignment_rows
    total = total.plus(Cost(products, products))
  return total


def _looks(config: RunConfig, policies: Policies) -> list[tuple[frozenset[str], int]]:
  """Returns what the step's policies observe of the candidates, and of what is kept."""
  in_step = {n: p for n, p in slots(policies).items() if p.scope == "step"}
  before = {"mixture", "selection"} if "selection" in in_step else set()
  return [
    (frozenset[str]().union(*(in_step[name].observes for name in names)), rows)
    for names, rows in (
      (in_step.keys() & before, config.plan.num_candidates),
      (in_step.keys() - before, config.batch_size),
    )
  ]
