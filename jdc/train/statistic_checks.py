"""Whether a run can tell the statistics that its policies read."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jdc.data.pack import Domain
from jdc.models import subsets
from jdc.models.base import LanguageModel
from jdc.policies.combine import Policies
from jdc.stats import logits, map_alignment
from jdc.stats.directions import Adam
from jdc.stats.probes import check_probes
from jdc.train import features as features_lib
from jdc.train import observe, passes, rounds
from jdc.train.config import RunConfig
from jdc.train.setup import Sizes
from jdc.train.state import Reference, Start, param_shapes, slots

ALIGNED = frozenset({"target_alignment", "target_curvature"})
_BY_DOMAIN = frozenset({"domain_target_loss", "domain_expert_load"})
_OF_TARGET = _BY_DOMAIN | ALIGNED | {"target", "domain_target_alignment", "probe_label"}
_OF_REFERENCE = frozenset({"reference_loss", "reference_token_loss"})


def observed(policies: Policies) -> frozenset[str]:
  """Returns all statistics that the policies of a run read."""
  return observe.observed_of(policies, "step") | observe.observed_of(policies, "round")


def selects_in_step(policies: Policies) -> bool:
  """Whether a step chooses its rows among candidates."""
  return policies.selection is not None and policies.selection.scope == "step"


def reference_errors(
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


def reward_errors(policies: Policies) -> list[str]:
  """Where responses are rewarded, `target.gradient` is that of the reward for everyone."""
  active = slots(policies)
  rewarded = [name for name, p in active.items() if "target_reward" in p.observes]
  others = [
    name
    for name, p in active.items()
    if name not in rewarded and "target" in p.observes and p.observes & features_lib.OF_TARGET
  ]
  if not rewarded or not others:
    return []
  return [
    f"{', '.join(rewarded)} needs the gradients of rewards and {', '.join(others)} those of "
    "losses of one target set: they cannot be in one run"
  ]


def task_errors(
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


def source_errors(
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
  if (read | _observed_pool(policies)) & passes.ERRORS and model.error_outputs is None:
    errors.append("the policies observe el2n, but the model offers no error_outputs")
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
  errors += _alignment_errors(config, read, model, trainable)
  if config.plan.max_segments and read & ALIGNED:
    needing = " and ".join(sorted(read & ALIGNED))
    errors.append(
      f"plan.max_segments={config.plan.max_segments}: {needing} needs unpacked rows"
    )
  return [*errors, *_logit_errors(config, policies, model)]


def _logit_errors(config: RunConfig, policies: Policies, model: LanguageModel) -> list[str]:
  read = sorted(observed(policies) & logits.FIELDS)
  if not read:
    return []
  errors, named = [], ", ".join(read)
  if model.outputs is None or model.output_matrix is None:
    errors.append(
      f"the policies observe {named}, but the model does not offer both outputs and "
      "output_matrix"
    )
  if config.plan.max_segments:
    errors.append(f"plan.max_segments={config.plan.max_segments}: {named} need unpacked rows")
  active = slots(policies)
  before = {"mixture", "selection"} if selects_in_step(policies) else set()
  others = [n for n, p in active.items() if n not in before and p.observes & logits.FIELDS]
  others += [n for n, p in active.items() if p.observes_batch & logits.FIELDS]
  if others:
    errors.append(
      f"{', '.join(others)} observes {named}, which are told of the candidates of a step-scope "
      "selection only"
    )
  return errors


def _alignment_errors(
  config: RunConfig,
  read: frozenset[str],
  model: LanguageModel,
  trainable: Callable[[str], bool] | None,
) -> list[str]:
  if config.target.alignment == "exact":
    return []
  if "target_alignment" not in read:
    return [
      f"target.alignment={config.target.alignment!r} is given, but no policy observes "
      "target_alignment"
    ]
  given, errors = f"target.alignment={config.target.alignment!r}", []
  if features_lib.PRODUCT in read:
    errors.append(
      f"{given}: with {features_lib.PRODUCT} a policy observes target_alignment by the "
      "parameters of `features`; leave it 'exact'"
    )
  if "target_curvature" in read:
    errors.append(f"{given}: target_curvature is by all parameters; leave it 'exact'")
  if errors:
    return errors
  try:
    map_alignment.left_out(model, param_shapes(Start(model, None, trainable)))
  except ValueError as error:
    return [f"target.alignment={config.target.alignment!r}: {error}"]
  return []


def feature_errors(
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
