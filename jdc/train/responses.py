"""Responses to the prompts of a target set: drawn, rewarded, and made a policy gradient."""

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from jdc.data import loader
from jdc.eval.rewards import Reward, scores
from jdc.models.base import LanguageModel
from jdc.models.batching import listed
from jdc.models.generate import Completion, generate
from jdc.models.sampling import Sampling, sampling_problems
from jdc.policies.selection.coefficients import coefficients, importance_ratios
from jdc.stats.gradients import Features
from jdc.stats.policy_gradient import (
  make_log_probabilities,
  make_policy_gradient,
  prompts_of,
  response_rows,
)
from jdc.stats.target import TargetState
from jdc.stats.target_rows import TargetRows
from jdc.train.config import RunConfig
from jdc.train.cost import Cost
from jdc.train.describe import describe
from jdc.train.state import Reference, TrainState, full_params


class Responses(NamedTuple):
  """How responses are written and rewarded; `config.responses` has the numbers."""

  reward: Reward
  decode: Callable[[Sequence[int]], str]  # of ids, without special tokens
  stop_ids: tuple[int, ...]  # each ends a response
  frozen: Reference | None = None  # what writes them; `None`: the model as it is

  def describe(self) -> dict[str, Any]:
    """Returns what a resumed run must have in common with the saved one.

    A reward is told by its name, its own text and what it holds, not by what it calls.
    """
    function = self.reward
    named = function if hasattr(function, "__qualname__") else type(function)
    try:
      text = hashlib.blake2b(inspect.getsource(named).encode(), digest_size=8).hexdigest()
    except (OSError, TypeError):  # written in another language, or at a prompt
      text = ""
    return describe({"responses.reward_holds": function}) | {
      "responses.reward": f"{named.__module__}.{named.__qualname__}",
      "responses.reward_text": text,
      "responses.frozen": "" if self.frozen is None else self.frozen.fingerprint,
    }


class Drawn(NamedTuple):
  """What one refresh drew."""

  reward: np.ndarray  # f32[M, S]
  coefficient: np.ndarray  # f32[M, S + 1], the last of the right answer
  completions: list[list[Completion]]  # S of each prompt


class Rewarded(NamedTuple):
  """Puts the policy gradient into the statistics of a target set."""

  # (state, statistics) -> (statistics, what it cost, what was drawn)
  compute: Callable[[TrainState, TargetState], tuple[TargetState, Cost, Drawn]]
  shapes: Callable[[TargetState], TargetState]


def make_rewarded(
  config: RunConfig,
  model: LanguageModel,
  responses: Responses,
  targets: TargetRows,
  features: Features,
  sharding: jax.NamedSharding,
) -> Rewarded:
  """Returns what draws responses and rewards them; call it inside `jax.set_mesh`.

  Draws are keyed by the seed of the run, the step, the prompt and the number of the response.
  Every process calls the reward on all responses: it must be a function of its arguments.
  """
  given, mesh = config.responses, cast(jax.sharding.Mesh, sharding.mesh)
  rule = cast(Any, given.coefficients)  # checked by RunConfig
  prompts, references = prompts_of(targets)
  num_prompts, count, length = len(prompts), given.count, targets.tokens.shape[1]
  batch_size = given.batch_size or config.target.batch_size or config.batch_size
  frozen = None if responses.frozen is None else responses.frozen.load(mesh)
  gradient = make_policy_gradient(features, num_prompts, batch_size, sharding)
  log_probabilities = make_log_probabilities(model, batch_size, sharding)
  everywhere = jax.NamedSharding(mesh, jax.P())

  def text(ids: Sequence[int]) -> str:
    return responses.decode([i for i in ids if i not in responses.stop_ids])

  questions, answers = list(map(text, prompts)), list(map(text, references))
  reference_reward = scores(responses.reward, questions, [[x] for x in answers], answers)[:, 0]

  def draw(state: TrainState) -> list[list[Completion]]:
    seed = np.random.SeedSequence((config.seed, 0x41CE, int(state.step))).generate_state(1)[0]
    writer = model if responses.frozen is None else responses.frozen.model
    found = generate(
      writer,
      full_params(*state.parts) if responses.frozen is None else frozen,
      [prompt for prompt in prompts for _ in range(count)],
      max_new_tokens=given.max_new_tokens,
      temperature=given.temperature,
      top_k=given.top_k,
      top_p=given.top_p,
      stop_ids=responses.stop_ids,
      seed=int(seed),
      batch_size=batch_size,
      mesh=mesh,
    )
    return [found[j * count : (j + 1) * count] for j in range(num_prompts)]

  def compute(state: TrainState, found: TargetState) -> tuple[TargetState, Cost, Drawn]:
    drawn = draw(state)
    texts = [[text(y.ids) for y in sampled] for sampled in drawn]
    reward = scores(responses.reward, questions, texts, answers)
    cost, ratios = Cost(forward=num_prompts * count), None
    if responses.frozen is not None:
      own = response_rows(prompts, [[y.ids for y in ys] for ys in drawn], length)
      log_p = log_probabilities(state.parts, own).reshape(reward.shape)
      log_q = np.array([[sum(y.log_probabilities) for y in ys] for ys in drawn], np.float32)
      ratios = importance_ratios(log_p, log_q, given.largest_ratio or np.inf)
      cost = cost.plus(Cost(forward=num_prompts * count))
    coefficient = np.asarray(
      coefficients(reward, reference_reward, rule, given.baseline, given.best, ratios)
    )
    every = [[y.ids for y in ys] + [ref] for ys, ref in zip(drawn, references, strict=True)]
    rows = response_rows(prompts, every, length)
    passed = gradient(state.parts, rows, coefficient.reshape(-1))
    forward, backward = features.forward * passed.num_rows, features.backward * passed.num_rows
    stats = dataclasses.replace(found.stats, gradient=passed.gradient_MxR)
    found = found._replace(stats=stats, reward=loader.place(reward, everywhere))
    return found, cost.plus(Cost(forward, backward)), Drawn(reward, coefficient, drawn)

  def shapes(found: TargetState) -> TargetState:
    of = lambda width: jax.ShapeDtypeStruct((num_prompts, width), np.float32)
    stats = dataclasses.replace(found.stats, gradient=of(features.size))
    return found._replace(stats=stats, reward=of(count))

  return Rewarded(compute, shapes)


def problems(
  config: RunConfig,
  model: LanguageModel,
  responses: Responses | None,
  targets: TargetRows | None,
  read: frozenset[str],
) -> list[str]:
  """Returns what is wrong with the responses of a run whose policies read `read`."""
  given = config.responses
  if responses is None:
    return [
      "the policies observe target_reward, which needs a reward of responses: set "
      "config.responses.reward"
    ] if "target_reward" in read else []  # fmt: skip
  found = list(sampling_problems(Sampling(given.temperature, given.top_k, given.top_p)))
  if "target_reward" not in read:
    found.append("responses are rewarded, but no policy observes target_reward")
  writer = model if responses.frozen is None else responses.frozen.model
  if writer.empty_cache is None or writer.extend is None:
    found.append("responses need a model that offers empty_cache and extend")
  if writer.vocab_size != model.vocab_size:
    found.append(
      f"what writes the responses has vocab_size={writer.vocab_size}, the model has "
      f"{model.vocab_size}"
    )
  plain = given.temperature == 1 and not given.top_k and given.top_p == 1
  if responses.frozen is not None and not plain:
    found.append(
      "ratios of importance need draws of a frozen model at responses.temperature=1, top_k=0 "
      f"and top_p=1, got {given.temperature}, {given.top_k} and {given.top_p}"
    )
  if targets is None:
    return found
  try:
    prompts = prompts_of(targets).prompts
  except ValueError as error:
    return [*found, str(error)]
  room = targets.tokens.shape[1] - given.max_new_tokens
  if bad := [i for i, prompt in enumerate(prompts) if len(prompt) > room]:
    found.append(
      f"a prompt and responses.max_new_tokens={given.max_new_tokens} must fit a row of "
      f"{targets.tokens.shape[1]} tokens; too long are the target rows "
      f"{listed([f'{i} ({len(prompts[i])})' for i in bad])}"
    )
  return found
