"""What in a run cannot work together, found before anything compiles."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jdc.data.pack import Domain
from jdc.models.base import LanguageModel
from jdc.policies.combine import Policies
from jdc.stats.directions import Adam
from jdc.stats.target_rows import TargetRows
from jdc.train import features as features_lib
from jdc.train import responses as responses_lib
from jdc.train import sharding, slot_checks, statistic_checks
from jdc.train.config import RunConfig
from jdc.train.setup import Sizes, plan_spec, run_spec
from jdc.train.state import Reference
from jdc.train.statistic_checks import observed


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
  responses: responses_lib.Responses | None = None,
  targets: TargetRows | None = None,
) -> None:
  """Raises a ValueError that lists everything in the run that cannot work together."""
  errors = [
    *slot_checks.slot_errors(config, policies),
    *slot_checks.observation_errors(policies),
  ]
  errors += _data_errors(config, model, domains, tasks or {})
  if all(domain.train is not None for domain in domains.values()):
    errors += _plan_errors(config, policies, domains)
  errors += slot_checks.ordering_errors(policies, domains, scores)
  errors += _mesh_errors(config, policies, model, reference)
  errors += statistic_checks.reference_errors(config, policies, model, reference)
  errors += statistic_checks.source_errors(config, policies, model, domains, sizes, trainable)
  errors += statistic_checks.task_errors(policies, domains, tasks)
  errors += statistic_checks.feature_errors(config, policies, model, trainable, adam)
  errors += responses_lib.problems(config, model, responses, targets, observed(policies))
  errors += statistic_checks.reward_errors(policies)
  if errors:
    raise ValueError("; ".join(errors))


def check_plan(config: RunConfig, policies: Policies) -> None:
  """Raises a ValueError that lists what plan and policies have against each other."""
  if errors := [
    *slot_checks.slot_errors(config, policies),
    *slot_checks.observation_errors(policies),
  ]:
    raise ValueError("; ".join(errors))


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
    "responses.batch_size": config.responses.batch_size,
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

  evaluated = [split for split in (config.evaluation.split,) if split != "none"]
  tables: dict[str, dict[str, Any]] = {
    name: domain.splits
    | {"train": domain.train, **{split: domain.splits.get(split) for split in evaluated}}
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
