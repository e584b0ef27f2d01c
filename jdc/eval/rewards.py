"""Rewards of sampled responses: Python functions of texts, checked where they are called."""

import importlib
import numbers
from collections.abc import Callable, Sequence

import numpy as np

from jdc.eval.generation import final_answer, number

# (prompt, response, reference) -> a number in [0, 1]; the reference is the right response.
Reward = Callable[[str, str, str], float]


def exact_match(prompt: str, response: str, reference: str) -> float:
  """Returns 1 where the final answers are the same text, see `generation.final_answer`.

  Example:
    >>> exact_match("6 * 7?", "Let me see. #### 42", "42"), exact_match("6 * 7?", "42.", "42")
    (1.0, 0.0)
  """
  del prompt
  return float(final_answer(response) == final_answer(reference))


def numeric_answer(prompt: str, response: str, reference: str) -> float:
  """Returns 1 where the answers are the same number, see `generation.number`.

  Raises:
    ValueError: if the reference holds no number.

  Example:
    >>> numeric_answer("6 * 700?", "That is 4,200.0 in all.", "#### 4200")
    1.0
  """
  del prompt
  right = number(reference)
  if right is None:
    raise ValueError(f"the reference holds no number: {reference[-40:]!r}")
  return float(number(response) == right)


REWARDS: dict[str, Reward] = {"exact_match": exact_match, "numeric_answer": numeric_answer}


def find(name: str) -> Reward:
  """Returns a reward of `REWARDS` by name, or any function as "package.module:function".

  Raises:
    ValueError: if there is no such function.
  """
  if name in REWARDS:
    return REWARDS[name]
  module, colon, attribute = name.partition(":")
  accepted = f"{', '.join(REWARDS)}, or 'package.module:function'"
  if not (module and colon and attribute):
    raise ValueError(f"a reward must be one of {accepted}, got {name!r}")
  try:
    found = getattr(importlib.import_module(module), attribute)
  except Exception as error:  # of whatever kind: a module runs code when it is imported
    raise ValueError(f"the reward {name!r} cannot be imported: {error!r}") from error
  if not callable(found):
    raise ValueError(f"the reward {name!r} must be a function, got {type(found).__name__}")
  return found


def scores(
  reward: Reward,
  prompts: Sequence[str],
  responses: Sequence[Sequence[str]],
  references: Sequence[str],
  ids: Sequence[object] | None = None,
) -> np.ndarray:
  """Returns the rewards of the responses to each prompt, f32[M, S].

  Args:
    reward: is called once for each response, in order.
    prompts: M.
    responses: S to each prompt.
    references: one a prompt.
    ids: of the prompts, for messages; by default their places.

  Raises:
    ValueError: with the id of the prompt, how it ends and the response, if the reward raises,
      or returns no number, NaN, or one outside of [0, 1].

  Example:
    >>> scores(exact_match, ["6 * 7?"], [["42", "43"]], ["42"]).tolist()
    [[1.0, 0.0]]
  """
  named = range(len(prompts)) if ids is None else ids
  rows = zip(named, prompts, responses, references, strict=True)
  found = [
    [_checked(reward, id_, prompt, response, reference) for response in sampled]
    for id_, prompt, sampled, reference in rows
  ]
  return np.array(found, np.float32).reshape(len(prompts), -1)


def _checked(reward: Reward, id_: object, prompt: str, response: str, reference: str) -> float:
  about = f"the reward of prompt {id_} with the response {response[:200]!r}"
  where = f"; the prompt ends with {prompt[-80:]!r}"  # ids are places in the target set
  try:
    value = reward(prompt, response, reference)
  except Exception as error:
    raise ValueError(f"{about} raised {type(error).__name__}: {error}{where}") from error
  if not isinstance(value, numbers.Real | np.bool_) or not 0 <= float(value) <= 1:
    raise ValueError(f"{about} must be a number in [0, 1], got {value!r}{where}")
  return float(value)
