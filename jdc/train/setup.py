"""From a run's config to the fixed facts that its parts need, checked together."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from jdc.data import plan
from jdc.data.pack import Domain
from jdc.metrics import Decisions
from jdc.models.base import LanguageModel
from jdc.policies.base import Decision, RunSpec
from jdc.policies.combine import Policies
from jdc.stats import logits
from jdc.stats.target_rows import TargetRows
from jdc.train import step
from jdc.train.checkpoint import Checkpoints
from jdc.train.config import RunConfig, differences
from jdc.train.describe import describe
from jdc.train.state import Weights, slots


class Sizes(NamedTuple):
  """What model and target set add to the facts of a run."""

  embedding_size: int = 0
  num_experts: int = 0
  num_targets: int = 0
  num_tasks: int = 0
  num_responses: int = 0
  feature_size: int = 0
  logit_projection_size: int = 0
  domains_without_target: tuple[str, ...] = ()


NO_SIZES = Sizes()


def sizes_of(
  model: LanguageModel,
  domains: Mapping[str, Domain],
  target: TargetRows | None,
  tasks: Mapping[str, Any] | None = None,
) -> Sizes:
  """Returns the sizes that a model's outputs and the rows of a target set have."""
  held = tasks or {name: domain.target for name, domain in domains.items()}
  without = tuple(name for name in domains if held.get(name) is None)
  sizes = Sizes(domains_without_target=without)
  if model.outputs is not None:
    params = jax.eval_shape(model.init, jax.random.key(0))
    one = jax.ShapeDtypeStruct((1, 1), np.int32)
    found = jax.eval_shape(model.outputs, params, one, one, one, one)
    loads = found.expert_load
    sizes = sizes._replace(
      embedding_size=found.hidden.shape[-1],
      num_experts=0 if loads is None else loads.shape[-1],
      logit_projection_size=logits.SIZE if model.output_matrix is not None else 0,
    )
  if target is not None:
    num_tasks = int(np.max(target.task)) + 1
    sizes = sizes._replace(num_targets=len(target.task), num_tasks=num_tasks)
  return sizes


def run_spec(
  config: RunConfig,
  domains: Mapping[str, Domain],
  policies: Policies,
  sizes: Sizes = NO_SIZES,
) -> RunSpec:
  """Returns what policies may know about the run.

  Raises:
    ValueError: naming every proportion that is wrong.
  """
  names = tuple(domains)
  rows = tuple(len(domain.train) for domain in domains.values())
  plan_config = config.plan
  return RunSpec(
    num_examples=sum(rows),
    num_domains=len(names),
    domain_names=names,
    domain_sizes=rows,
    proportions=_proportions(plan_config.proportions, names, rows, policies),
    batch_size=config.batch_size * max(plan_config.max_segments, 1),
    num_candidates=plan_config.num_candidates,
    sequence_length=config.sequence_length,
    # Where scores are kept for a while, policies are told those of all rows.
    sweep_size=(not plan_config.max_age and plan_config.sweep_rows) or sum(rows),
    num_steps=config.num_steps,
    steps_per_round=plan_config.steps_per_round,
    draw=plan_config.draw,
    domain_draw=plan_config.domain_draw,
    max_segments=plan_config.max_segments,
    probe_size=config.probe.rows,
    num_targets=sizes.num_targets,
    num_tasks=sizes.num_tasks,
    num_responses=sizes.num_responses,
    embedding_size=sizes.embedding_size,
    num_experts=sizes.num_experts,
    feature_size=sizes.feature_size,
    logit_projection_size=sizes.logit_projection_size,
    candidate_draw=plan_config.candidate_draw,
    data_fingerprint=data_fingerprint(domains),
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
    queue=cast(Any, fields.queue),
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
  config: RunConfig,
  decisions: Mapping[str, Decision],
  policies: Policies,
  recorded: Decisions | None = None,
) -> step.StepOptions:
  """Returns how the step computes, given the policies' initial decisions or recorded ones."""
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
  if recorded is not None:
    row_weights = recorded.weights_SxB is not None
  return step.StepOptions(
    loss_average=cast(Any, config.loss_average),  # checked by RunConfig, as the next one
    accumulation_steps=config.accumulation_steps,
    num_kept=config.batch_size if "selection" in in_step else 0,
    candidate_draw=cast(Any, config.plan.candidate_draw),
    row_weights=row_weights,
    num_target_rows=config.target.alignment_rows,
    alignment=cast(Any, config.target.alignment),
    weighted_slots=frozenset(weighted),
  )


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


def data_fingerprint(domains: Mapping[str, Domain]) -> str:
  """Returns what tells the training rows of all domains, in order, from others."""
  held = [[name, domain.train.fingerprint] for name, domain in domains.items()]
  return hashlib.blake2b(json.dumps(held).encode(), digest_size=16).hexdigest()


def describe_run(
  config_json: Mapping[str, Any],
  policies: Policies,
  domains: Mapping[str, Domain],
  scores: np.ndarray | None,
  state: Any,
  weights: Weights | None,
  targets: TargetRows | None = None,
  reference: str | None = None,
  responses: Mapping[str, Any] | None = None,
  recorded: Decisions | None = None,
) -> dict[str, Any]:
  """Returns what a resumed run must have in common with the saved one, as JSON."""
  shapes = {
    f"state{jax.tree_util.keystr(path)}": f"{x.dtype}{list(x.shape)}"
    for path, x in jax.tree_util.tree_leaves_with_path(state)
  }
  parts = describe({"policies": policies, "scores": scores}) | shapes
  if weights is not None:
    parts["weights"] = weights.fingerprint
  if targets is not None:
    parts |= describe({"target": targets})
  if reference is not None:
    parts["reference"] = reference
  parts |= responses or {}
  if recorded is not None:
    parts |= describe({"replay": recorded})
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
