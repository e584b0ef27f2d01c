"""Whether policies fit their slots: what they decide, and what their scope is told."""

from collections.abc import Mapping

import numpy as np

from jdc.data.pack import Domain
from jdc.policies.base import DataPolicy, Decision, RunSpec
from jdc.policies.combine import Policies
from jdc.stats import logits
from jdc.train import features as features_lib
from jdc.train import observe, passes, rounds
from jdc.train.config import RunConfig
from jdc.train.state import slots
from jdc.train.statistic_checks import ALIGNED, selects_in_step

_LOOKED = passes.EMBEDDINGS | passes.ERRORS | passes.REFERENCE | features_lib.FIELDS
_STEP = observe.PLAIN | observe.CONTEXT | _LOOKED | ALIGNED | {features_lib.PRODUCT}
_STEP |= logits.FIELDS
_SWEEP = rounds.SWEPT | _LOOKED
_ROUND = observe.CONTEXT | rounds.PROBED | {"example_id", "domain"}


def slot_errors(config: RunConfig, policies: Policies) -> list[str]:
  fields, selection = config.plan, policies.selection
  errors = []
  in_round = selection is not None and selection.scope == "round"
  in_step = selection is not None and selection.scope == "step"
  if in_round and fields.draw == "shuffle":
    errors.append(
      "plan.draw='shuffle' ignores the selection; choose top_k, gumbel_top_k or multinomial"
    )
  if not in_round and fields.draw != "shuffle":
    errors.append(f"plan.draw={fields.draw!r} needs a round-scope selection")
  sweeps = any(policy.scope == "round" for policy in slots(policies).values())
  if not sweeps and fields.sweep_rows:
    errors.append(f"plan.sweep_rows={fields.sweep_rows} needs a round-scope policy")
  if not sweeps and policies.ordering is None and fields.sweep_batch_size:
    errors.append(
      f"plan.sweep_batch_size={fields.sweep_batch_size} needs a round-scope policy or an "
      "ordering"
    )
  if in_step and fields.max_segments:
    errors.append(
      f"plan.max_segments={fields.max_segments}: a step-scope selection chooses among whole "
      "rows; set it to 0 for one record a row"
    )
  if in_step and fields.num_candidates <= config.batch_size:
    errors.append(
      f"a step-scope selection needs plan.num_candidates above batch_size={config.batch_size}, "
      f"got {fields.num_candidates}"
    )
  if not in_step and fields.num_candidates:
    errors.append(f"plan.num_candidates={fields.num_candidates} needs a step-scope selection")
  if not in_step and fields.candidate_draw != "top_k":
    errors.append(f"plan.candidate_draw={fields.candidate_draw!r} needs a step-scope selection")
  if fields.on_exhausted == "stop" and not fields.max_epochs:
    errors.append("plan.on_exhausted='stop' needs plan.max_epochs")
  in_use = [name for name, policy in policies._asdict().items() if policy is not None]
  if fields.replay and in_use:
    errors.append(
      f"plan.replay={fields.replay!r} makes the decisions of another run again, and leaves "
      f"none to the {', '.join(in_use)} of this one"
    )
  if policies.mixture is None and fields.proportions:
    errors.append("plan.proportions needs a mixture, such as mixture.static()")
  return errors


def ordering_errors(
  policies: Policies, domains: Mapping[str, Domain], scores: np.ndarray | None
) -> list[str]:
  ordering, num_rows = policies.ordering, sum(len(d.train) for d in domains.values())
  if ordering is None or ordering.observes:
    problem = "scores are given, but no ordering takes given scores"
    errors = [problem] if scores is not None else []
    if ordering is not None and not ordering.observes <= rounds.ORDERING_SCORES:
      known = ", ".join(sorted(rounds.ORDERING_SCORES))
      errors.append(f"the ordering observes {', '.join(ordering.observes)}; accepted: {known}")
    return errors
  if scores is None or np.shape(scores) != (num_rows,):
    found = None if scores is None else np.shape(scores)
    return [f"the ordering needs scores of shape ({num_rows},), got {found}"]
  return []


def observation_errors(policies: Policies) -> list[str]:
  errors = []
  for name, policy in slots(policies).items():
    provided = _provided(policy)
    if missing := sorted(policy.observes - provided):
      known = ", ".join(sorted(provided))
      errors.append(f"{name} observes {', '.join(missing)}; a {policy.scope} provides {known}")
    if unswept := sorted(policy.observes_pool - _SWEEP - observe.CONTEXT):
      errors.append(
        f"{name} observes {', '.join(unswept)} of the pool; a sweep tells "
        f"{', '.join(sorted(_SWEEP))}"
      )
    if unseen := sorted(policy.observes_batch - _STEP):
      errors.append(
        f"{name} observes {', '.join(unseen)} of a batch, which a step does not provide"
      )
  return errors


def _provided(policy: DataPolicy) -> frozenset[str]:
  if policy.scope == "step":
    return _STEP
  return _ROUND if policy.score is None else _ROUND | _SWEEP | {"score", "score_age"}


def check_decisions(
  decisions: Mapping[str, Decision], spec: RunSpec, policies: Policies, max_segments: int = 0
) -> None:
  """Raises a ValueError that lists the initial decisions that do not fit their slots.

  Where rows are packed with up to `max_segments` records, these are the examples.
  """
  errors = []
  for slot, decision in decisions.items():
    policy = slots(policies)[slot]
    accepted = _logit_shapes(slot, policy, spec)
    shape = None if decision.logits is None else np.shape(decision.logits)
    if shape not in accepted:
      errors.append(f"the {slot} decides logits of shape {shape}; accepted: {accepted}")
    if slot == "weighting" and decision.weights is None and decision.token_weights is None:
      errors.append("the weighting decides no weights")
    if decision.token_weights is not None and slot != "weighting" and selects_in_step(policies):
      errors.append(f"token weights of the {slot} do not reach the rows that a step keeps")
    if policy.scope == "round":  # rows carry the weights of a selection, and nothing else
      carried = ("weights",) if slot == "selection" else ()
      errors += [
        f"{field} of a round-scope {slot} do not reach the rows that a step trains"
        for field in ("weights", "token_weights")
        if getattr(decision, field) is not None and field not in carried
      ]
    rows = _weighted_rows(slot, policy, shape, spec, policies)
    num_rows = tuple(size // max(max_segments, 1) for size in rows)
    for field, expected in (
      ("weights", rows),
      ("token_weights", (*num_rows, spec.sequence_length)),
    ):
      value = getattr(decision, field)
      if value is not None and np.shape(value) != expected:
        errors.append(f"the {slot} decides {field} of shape {np.shape(value)}, not {expected}")
  if errors:
    raise ValueError("; ".join(errors))


def _logit_shapes(slot: str, policy: DataPolicy, spec: RunSpec) -> list[tuple[int, ...] | None]:
  if slot == "mixture":
    return [(spec.num_domains,), None]
  if slot == "weighting":
    return [None]
  if policy.scope == "step":
    return [(spec.num_candidates,)]
  return [(spec.sweep_size,), (spec.num_examples,)]


def _weighted_rows(
  slot: str,
  policy: DataPolicy,
  logits: tuple[int, ...] | None,
  spec: RunSpec,
  policies: Policies,
) -> tuple[int, ...]:
  """The shape of weights: one per row that the policy observes, or decides about in a round."""
  if policy.scope == "round":
    return logits or (spec.sweep_size,)
  candidates = selects_in_step(policies) and slot != "weighting"
  return (spec.num_candidates if candidates else spec.batch_size,)
