"""What in a run cannot work together, found before anything compiles."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jdc.data.pack import Domain
from jdc.models import subsets
from jdc.models.base import LanguageModel
from jdc.policies.base import DataPolicy, Decision, RunSpec
from jdc.policies.combine import Policies
from jdc.stats.directions import Adam
from jdc.stats.probes import check_probes
from jdc.train import features as features_lib
from jdc.train import observe, passes, rounds, sharding
from jdc.train.config import RunConfig
from jdc.train.setup import Sizes, plan_spec, run_spec
from jdc.train.state import Reference, Start, param_shapes, slots

_BY_DOMAIN = frozenset({"domain_target_loss", "domain_expert_load"})
_OF_TARGET = _BY_DOMAIN | {"target", "target_alignment", "domain_target_alignment"}
_OF_REFERENCE = frozenset({"reference_loss", "reference_token_loss"})
_LOOKED = passes.EMBEDDINGS | passes.REFERENCE | features_lib.FIELDS
_STEP = observe.PLAIN | observe.CONTEXT | _LOOKED | {"target_alignment", features_lib.PRODUCT}
_SWEEP = rounds.SWEPT | _LOOKED
_ROUND = observe.CONTEXT | rounds.PROBED | {"example_id", "domain"}


def check(
  config: RunConfig,
  policies: Policies,
  model: LanguageModel,
  domains: Mapping[str, Domain],
  scores: np.ndarray | None,
  sizes: Sizes,
  reference: Reference | None = None,
  tasks: Mapping[str, Any] | None = None,
  trainable: Callable[[str], bool] | None = None,
  adam: Adam | None = None,
) -> None:
  """Raises a ValueError that lists everything in the run that cannot work together."""
  errors = [*_slot_errors(config, policies), *_observation_errors(policies)]
  errors += _data_errors(config, model, domains, tasks or {})
  if all(domain.train is not None for domain in domains.values()):
    errors += _plan_errors(config, policies, domains)
  errors += _ordering_errors(policies, domains, scores)
  errors += _mesh_errors(config, policies, model, reference)
  errors += _reference_errors(config, policies, model, reference)
  errors += _source_errors(config, policies, model, domains, sizes, trainable)
  errors += _task_errors(policies, domains, tasks)
  errors += _feature_errors(config, policies, model, trainable, adam)
  if errors:
    raise ValueError("; ".join(errors))


def observed(policies: Policies) -> frozenset[str]:
  """Returns all statistics that the policies of a run read."""
  return observe.observed_of(policies, "step") | observe.observed_of(policies, "round")


def _reference_errors(
  config: RunConfig, policies: Policies, model: LanguageModel, reference: Reference | None
) -> list[str]:
  read = sorted(observed(policies) & _OF_REFERENCE)
  if reference is None:
    return [
      f"the policies observe {', '.join(read)}, which needs a reference model: set "
      "config.reference.folder to a run directory or a Hugging Face folder"
    ] if read else []  # fmt: skip
  errors = []
  if not read:
    errors.append("a reference model is given, but no policy observes its losses")
  if reference.model.vocab_size != model.vocab_size:
    errors.append(
      f"the reference model has vocab_size={reference.model.vocab_size}, the model has "
      f"{model.vocab_size}"
    )
  if reference.cache is not None and config.plan.max_segments:
    errors.append(
      f"plan.max_segments={config.plan.max_segments}: losses of a reference are cached for "
      "unpacked rows only; choose reference.losses='step'"
    )
  return errors


def _task_errors(
  policies: Policies, domains: Mapping[str, Domain], tasks: Mapping[str, Any] | None
) -> list[str]:
  if tasks is None:
    return []
  read, errors = observed(policies), []
  if not read & _OF_TARGET:
    errors.append("target.folder is given, but no policy observes a target set")
  by_domain = sorted(read & _BY_DOMAIN)
  if by_domain and set(tasks) != set(domains):
    errors.append(
      f"the policies observe {', '.join(by_domain)}, which needs a task for each domain in "
      f"target.folder; it holds {', '.join(tasks)}, the domains are {', '.join(domains)}"
    )
  return errors


def _source_errors(
  config: RunConfig,
  policies: Policies,
  model: LanguageModel,
  domains: Mapping[str, Domain],
  sizes: Sizes,
  trainable: Callable[[str], bool] | None,
) -> list[str]:
  """What policies observe and the model or the target set of this run cannot tell."""
  read, errors = observed(policies), []
  hidden = sorted(read & (passes.EMBEDDINGS | {"domain_expert_load"}))
  if hidden and model.outputs is None:
    errors.append(f"the policies observe {', '.join(hidden)}, but the model offers no outputs")
  if "domain_expert_load" in read and not sizes.num_experts:
    errors.append("the policies observe domain_expert_load, but the model has no experts")
  targeted = sorted(read & _OF_TARGET)
  if targeted and not sizes.num_targets:
    errors.append(
      f"the policies observe {', '.join(targeted)}, which needs a target set: files "
      "NAME.target.jsonl beside those of each domain, config.corpus.target_fraction, or a "
      "folder of tasks as config.target.folder"
    )
  by_domain = sorted(read & _BY_DOMAIN)
  if by_domain and sizes.num_targets and sizes.domains_without_target:
    errors.append(
      f"the policies observe {', '.join(by_domain)}, but there are no target rows of the "
      f"domains {', '.join(sizes.domains_without_target)}"
    )
  if read & rounds.PROBED:
    errors += _probe_errors(config, model, domains, trainable)
  if config.plan.max_segments and "target_alignment" in read:
    errors.append(
      f"plan.max_segments={config.plan.max_segments}: target_alignment needs unpacked rows"
    )
  return errors


def _feature_errors(
  config: RunConfig,
  policies: Policies,
  model: LanguageModel,
  trainable: Callable[[str], bool] | None,
  adam: Adam | None,
) -> list[str]:
  read = observed(policies) | _observed_pool(policies)
  used = sorted(read & (features_lib.FIELDS | {features_lib.PRODUCT}))
  in_step = observe.observed_of(policies, "step")
  errors: dict[str, None] = {}
  if not used:
    return []
  packed = sorted(in_step & {*used})
  if config.plan.max_segments and packed:
    errors[f"plan.max_segments={config.plan.max_segments}: {', '.join(packed)} of a step need "
           "unpacked rows"] = None  # fmt: skip
  if "update_direction" in read and adam is None:
    errors["the policies observe update_direction, which needs the constants of the "
           "optimizer: give `Run.adam`"] = None  # fmt: skip
  else:
    params = param_shapes(Start(model, None, trainable))
    for scope in ("step", "round", "target"):
      try:
        features_lib.make_features(config, model, policies, scope, params, adam, None)
      except ValueError as error:
        errors[str(error)] = None
    try:
      features_lib.make_products(config, model, policies, params, None)
    except ValueError as error:
      errors[str(error)] = None
  return list(errors)


def _observed_pool(policies: Policies) -> frozenset[str]:
  return frozenset[str]().union(*(p.observes_pool for p in slots(policies).values()))


def _probe_errors(
  config: RunConfig,
  model: LanguageModel,
  domains: Mapping[str, Domain],
  trainable: Callable[[str], bool] | None,
) -> list[str]:
  attempts = []
  if all(domain.train is not None for domain in domains.values()):
    sizes = [len(domain.train) for domain in domains.values()]
    attempts.append(lambda: check_probes(list(domains), sizes, config.probe.rows))
  if config.probe.parameters:
    params = jax.eval_shape(model.init, jax.random.key(0))
    if trainable is not None:
      params, _ = subsets.split(params, trainable)
    attempts.append(lambda: subsets.check_patterns(config.probe.parameters, params))
  errors = []
  for attempt in attempts:
    try:
      attempt()
    except ValueError as error:
      errors.append(f"config.probe: {error}")
  return errors


def _plan_errors(
  config: RunConfig, policies: Policies, domains: Mapping[str, Domain]
) -> list[str]:
  num_rows, sweep_rows = sum(len(d.train) for d in domains.values()), config.plan.sweep_rows
  errors = []
  selection = policies.selection
  samples = sweep_rows and selection is not None and selection.score and not selection.sweep_ids
  if config.plan.max_age and not samples:
    errors.append(
      f"plan.max_age={config.plan.max_age} keeps the scores of rows that a sample leaves out: "
      "it needs plan.sweep_rows and a round-scope selection that scores them"
    )
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


def _mesh_errors(
  config: RunConfig, policies: Policies, model: LanguageModel, reference: Reference | None
) -> list[str]:
  try:
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
  except ValueError as error:
    return [str(error)]
  errors = []
  sizes = {
    "batch_size / accumulation_steps": config.batch_size // config.accumulation_steps,
    "plan.sweep_batch_size": config.plan.sweep_batch_size,
    "evaluation.batch_size": config.evaluation.batch_size,
    "target.batch_size": config.target.batch_size,
  }
  if observed(policies) & features_lib.FIELDS:
    sizes["features.microbatch_size"] = config.features.microbatch_size
  try:
    sharding.check_batch(mesh, **sizes)
  except ValueError as error:
    errors.append(str(error))
  models = {"": model}
  if reference is not None:
    models["the reference model: "] = reference.model
  for name, held in models.items():
    if held.check_partition is None:
      continue
    try:
      held.check_partition(mesh.shape)
    except ValueError as error:
      errors.append(f"{name}{error}")
  return errors


def _data_errors(
  config: RunConfig,
  model: LanguageModel,
  domains: Mapping[str, Domain],
  tasks: Mapping[str, Any],
) -> list[str]:
  found: dict[str, dict[str, None]] = {}  # domains by what is wrong with them, in order

  def wrong(name: str, problem: str) -> None:
    found.setdefault(problem, {})[name] = None

  evaluated = config.evaluation.split
  tables: dict[str, dict[str, Any]] = {
    name: domain.splits | {"train": domain.train, evaluated: domain.splits.get(evaluated)}
    for name, domain in domains.items()
  }
  for name, splits in [*tables.items(), *((n, {"target": task}) for n, task in tasks.items())]:
    for split, table in splits.items():
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
