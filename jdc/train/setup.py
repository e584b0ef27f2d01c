"""From a run's config to the fixed facts that its parts need, checked together."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np

from jdc.data import plan
from jdc.data.pack import Domain
from jdc.models.base import LanguageModel
from jdc.policies.base import DataPolicy, Decision, RunSpec
from jdc.policies.combine import Policies
from jdc.train import observe, rounds, sharding, step
from jdc.train.checkpoint import Checkpoints
from jdc.train.config import RunConfig, differences
from jdc.train.describe import describe
from jdc.train.state import Weights, slots


def run_spec(config: RunConfig, domains: Mapping[str, Domain], policies: Policies) -> RunSpec:
  """Returns what policies may know about the run.

  Raises:
    ValueError: naming every proportion that is wrong.
  """
  names = tuple(domains)
  sizes = tuple(len(domain.train) for domain in domains.values())
  plan_config = config.plan
  return RunSpec(
    num_examples=sum(sizes),
    num_domains=len(names),
    domain_names=names,
    domain_sizes=sizes,
    proportions=_proportions(plan_config.proportions, names, sizes, policies),
    batch_size=config.batch_size * max(plan_config.max_segments, 1),
    num_candidates=plan_config.num_candidates,
    sequence_length=config.sequence_length,
    sweep_size=plan_config.sweep_rows or sum(sizes),
    num_steps=config.num_steps,
    steps_per_round=plan_config.steps_per_round,
    draw=plan_config.draw,
    domain_draw=plan_config.domain_draw,
  )


def plan_spec(
  config: RunConfig, spec: RunSpec, policies: Policies, domains: Mapping[str, Domain]
) -> plan.PlanSpec:
  """Returns the plan of a run; its own checks name wrong fields."""
  fields, draw_size = config.plan, 0
  if fields.max_segments:
    # Rows of documents have none; `check` refuses them along with what else is wrong.
    lengths = [getattr(domain.train, "lengths", np.ones(1)) for domain in domains.values()]
    num_tokens = sum(int(lengths_n.sum()) for lengths_n in lengths)
    row_tokens = config.batch_size * (config.sequence_length + 1)
    draw_size = max(1, round(row_tokens * spec.num_examples / num_tokens))
  return plan.PlanSpec(
    domain_names=spec.domain_names,
    domain_sizes=spec.domain_sizes,
    batch_size=fields.num_candidates or config.batch_size,
    seed=config.seed,
    mixed=policies.mixture is not None,
    ordered=policies.ordering is not None,
    draw=cast(Any, fields.draw),  # checked by PlanSpec, as the next ones
    top_k_fraction=fields.top_k_fraction,
    domain_draw=cast(Any, fields.domain_draw),
    steps_per_round=fields.steps_per_round,
    round_ends=cast(Any, fields.round_ends),
    decision_lag=fields.decision_lag,
    max_epochs=tuple(fields.max_epochs),
    on_exhausted=cast(Any, fields.on_exhausted),
    max_segments=fields.max_segments,
    row_tokens=config.sequence_length + 1,
    draw_size=draw_size,
  )


def step_options(
  config: RunConfig, decisions: Mapping[str, Decision], policies: Policies
) -> step.StepOptions:
  """Returns how the step computes, given the policies' initial decisions."""
  in_step = {name for name, p in slots(policies).items() if p.scope == "step"}
  weighted = {
    name
    for name in in_step
    if decisions[name].weights is not None or decisions[name].token_weights is not None
  }
  # Rows carry the weights of a round, and those of slots that saw them among the candidates.
  carried = decisions.keys() - in_step
  if "selection" in in_step:
    carried |= {"mixture", "selection"} & in_step
  row_weights = any(decisions[name].weights is not None for name in carried)
  return step.StepOptions(
    loss_average=cast(Any, config.loss_average),  # checked by RunConfig, as the next one
    accumulation_steps=config.accumulation_steps,
    num_kept=config.batch_size if "selection" in in_step else 0,
    candidate_draw=cast(Any, config.plan.candidate_draw),
    row_weights=row_weights,
    weighted_slots=frozenset(weighted),
  )


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
    if decision.token_weights is not None and slot != "weighting" and _selects(policies):
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
  candidates = _selects(policies) and slot != "weighting"
  return (spec.num_candidates if candidates else spec.batch_size,)


def _selects(policies: Policies) -> bool:
  """Whether a step chooses its rows among candidates."""
  return policies.selection is not None and policies.selection.scope == "step"


def initial_mixture(spec: RunSpec, decisions: Mapping[str, Decision]) -> np.ndarray:
  """Returns the logits f32[K] in force before any update; the base proportions by default."""
  if "mixture" in decisions and decisions["mixture"].logits is not None:
    return np.asarray(decisions["mixture"].logits, np.float32)
  with np.errstate(divide="ignore"):  # a proportion of 0 is never drawn
    return np.log(np.asarray(spec.proportions, np.float32))


def fingerprints(domains: Mapping[str, Domain]) -> dict[str, str]:
  """Returns what tells the data of a run from others, by domain and split."""
  return {
    f"{name} ({split})": table.fingerprint
    for name, domain in domains.items()
    for split, table in domain.splits.items()
  }


def describe_run(
  config_json: Mapping[str, Any],
  policies: Policies,
  domains: Mapping[str, Domain],
  scores: np.ndarray | None,
  state: Any,
  weights: Weights | None,
) -> dict[str, Any]:
  """Returns what a resumed run must have in common with the saved one, as JSON."""
  shapes = {
    f"state{jax.tree_util.keystr(path)}": f"{x.dtype}{list(x.shape)}"
    for path, x in jax.tree_util.tree_leaves_with_path(state)
  }
  parts = describe({"policies": policies, "scores": scores}) | shapes
  if weights is not None:
    parts["weights"] = weights.fingerprint
  return {"config": dict(config_json), "data": fingerprints(domains), "parts": parts}


def check_resume(checkpoints: Checkpoints, described: Mapping[str, Any]) -> None:
  """Raises a ValueError if the newest readable checkpoint is of another run."""
  host = checkpoints.newest_host()
  if host is None:
    return
  changed = differences(host["config"], described["config"])
  changed += differences(host["parts"], described["parts"])
  changed += [
    f"data of domain {name}: {host['data'].get(name)} -> {described['data'].get(name)}"
    for name in sorted(host["data"].keys() | described["data"].keys())
    if host["data"].get(name) != described["data"].get(name)
  ]
  if changed:
    raise ValueError(
      "the checkpoint is of another run, choose another workdir or restore these fields: "
      + "; ".join(changed)
    )


def check(
  config: RunConfig,
  policies: Policies,
  model: LanguageModel,
  domains: Mapping[str, Domain],
  scores: np.ndarray | None,
) -> None:
  """Raises a ValueError that lists everything in the run that cannot work together."""
  errors = [*_slot_errors(config, policies), *_observation_errors(policies)]
  errors += _data_errors(config, model, domains)
  if all(domain.train is not None for domain in domains.values()):
    errors += _plan_errors(config, policies, domains)
  errors += _ordering_errors(policies, domains, scores)
  errors += _mesh_errors(config, model)
  if errors:
    raise ValueError("; ".join(errors))


def _plan_errors(
  config: RunConfig, policies: Policies, domains: Mapping[str, Domain]
) -> list[str]:
  num_rows, sweep_rows = sum(len(d.train) for d in domains.values()), config.plan.sweep_rows
  errors = []
  if sweep_rows and not len(domains) <= sweep_rows <= num_rows:
    errors.append(
      f"plan.sweep_rows must be 0 (all rows) or from {len(domains)}, the number of domains, to "
      f"{num_rows}, that of rows, got {sweep_rows}"
    )
  try:
    plan_spec(config, run_spec(config, domains, policies), policies, domains)
  except ValueError as error:
    errors.append(str(error))
  return errors


def _mesh_errors(config: RunConfig, model: LanguageModel) -> list[str]:
  try:
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
  except ValueError as error:
    return [str(error)]
  errors = []
  sizes = {
    "batch_size / accumulation_steps": config.batch_size // config.accumulation_steps,
    "plan.sweep_batch_size": config.plan.sweep_batch_size,
    "evaluation.batch_size": config.evaluation.batch_size,
  }
  try:
    sharding.check_batch(mesh, **sizes)
  except ValueError as error:
    errors.append(str(error))
  if model.check_partition is not None:
    try:
      model.check_partition(mesh.shape)
    except ValueError as error:
      errors.append(str(error))
  return errors


def _data_errors(
  config: RunConfig, model: LanguageModel, domains: Mapping[str, Domain]
) -> list[str]:
  found: dict[str, dict[str, None]] = {}  # domains by what is wrong with them, in order

  def wrong(name: str, problem: str) -> None:
    found.setdefault(problem, {})[name] = None

  for name, domain in domains.items():
    for split, table in (("train", domain.train), ("validation", domain.validation)):
      if table is None:
        wrong(name, f"there are no {split} rows")
        continue
      if config.plan.max_segments and not hasattr(table, "lengths"):
        wrong(name, "plan.max_segments packs instruction data, these are rows of documents")
      if table.sequence_length != config.sequence_length:
        wrong(
          name,
          f"rows are for sequence_length={table.sequence_length}, "
          f"the run has {config.sequence_length}",
        )
      if table.vocab_size > model.vocab_size:
        wrong(
          name,
          f"the tokenizer has {table.vocab_size} tokens, "
          f"the model's vocab_size is {model.vocab_size}",
        )
  return [f"{problem} (domains {', '.join(names)})" for problem, names in found.items()]


def check_plan(config: RunConfig, policies: Policies) -> None:
  """Raises a ValueError that lists what plan and policies have against each other."""
  if errors := [*_slot_errors(config, policies), *_observation_errors(policies)]:
    raise ValueError("; ".join(errors))


def _slot_errors(config: RunConfig, policies: Policies) -> list[str]:
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
  if policies.mixture is None and fields.proportions:
    errors.append("plan.proportions needs a mixture, such as mixture.static()")
  return errors


def _ordering_errors(
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


def _observation_errors(policies: Policies) -> list[str]:
  errors = []
  for name, policy in slots(policies).items():
    missing = sorted(_observed(policy) - _provided(policy))
    if missing:
      known = ", ".join(sorted(_provided(policy)))
      errors.append(f"{name} observes {', '.join(missing)}; a {policy.scope} provides {known}")
    unseen = sorted(policy.observes_batch - observe.PROVIDED)
    if unseen:
      errors.append(
        f"{name} observes {', '.join(unseen)} of a batch, which a step does not provide"
      )
  return errors


def _observed(policy: DataPolicy) -> frozenset[str]:
  return policy.observes - {"score"} if policy.score is not None else policy.observes


def _provided(policy: DataPolicy) -> frozenset[str]:
  return observe.PROVIDED if policy.scope == "step" else rounds.PROVIDED


def _proportions(
  given: Sequence[float], names: tuple[str, ...], sizes: tuple[int, ...], policies: Policies
) -> tuple[float, ...]:
  if not given:
    return tuple(size / sum(sizes) for size in sizes)
  shown = dict(zip(names, given, strict=False))
  if len(given) != len(names):
    raise ValueError(
      f"plan.proportions needs one number for each of {', '.join(names)}, got {tuple(given)}"
    )
  values = np.asarray(given, np.float64)
  wrong = {n: p for n, p in shown.items() if not (np.isfinite(p) and p >= 0)}
  if wrong or values.sum() <= 0:
    raise ValueError(
      f"plan.proportions must be finite, 0 or more, and not all 0, got {wrong or shown}"
    )
  return tuple((values / values.sum()).tolist())
