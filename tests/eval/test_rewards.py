"""Rewards: those included, any function by name, and what is no reward."""

import numpy as np
import pytest

from jdc.eval import rewards

PROMPTS, RESPONSES = ["a", "b"], [["one", "two"], ["three", "four"]]


def length(prompt, response, reference):
  """A reward that is found by its name."""
  del prompt, reference
  return len(response) / 10


def test_rewards_included():
  assert rewards.exact_match("", "So it is.\n#### blue\nand more", "blue") == 1
  assert rewards.exact_match("", "blue.", "blue") == 0
  assert rewards.numeric_answer("", "It costs $1,200.0", "think #### 1200") == 1
  assert rewards.numeric_answer("", "no idea", "3") == 0


def test_scores_in_order():
  found = rewards.scores(length, PROMPTS, RESPONSES, ["", ""])
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, [[0.3, 0.3], [0.5, 0.4]], rtol=1e-6)
  seen = []
  rewards.scores(lambda *texts: seen.append(texts) or 0.0, PROMPTS, RESPONSES, ["x", "y"])
  assert seen == [("a", "one", "x"), ("a", "two", "x"), ("b", "three", "y"), ("b", "four", "y")]


def raises(*texts):
  raise KeyError(texts[1])


@pytest.mark.parametrize(
  ("reward", "message"),
  [
    (raises, "raised KeyError: 'four'"),
    (lambda *_: float("nan"), r"must be a number in \[0, 1\], got nan"),
    (lambda *_: 1.5, r"must be a number in \[0, 1\], got 1.5"),
    (lambda *_: -1e-9, r"must be a number in \[0, 1\], got -1e-09"),
    (lambda *_: None, r"must be a number in \[0, 1\], got None"),
    (lambda *_: "1", r"must be a number in \[0, 1\], got '1'"),
  ],
)
def test_a_bad_reward_stops_with_the_id_of_the_prompt(reward, message):
  only_last = lambda p, y, r: reward(p, y, r) if y == "four" else np.float32(1)
  with pytest.raises(
    ValueError,
    match=f"reward of prompt q7 with the response 'four' {message}; the prompt ends with 'b'$",
  ):
    rewards.scores(only_last, PROMPTS, RESPONSES, ["", ""], ["q3", "q7"])
  with pytest.raises(ValueError, match="reward of prompt 1 "):
    rewards.scores(only_last, PROMPTS, RESPONSES, ["", ""])


def test_a_reference_without_a_number_is_an_error():
  with pytest.raises(ValueError, match=r"prompt 0 .*the reference holds no number: 'many'"):
    rewards.scores(rewards.numeric_answer, ["a"], [["3"]], ["many"])


def test_found_by_name():
  assert rewards.find("exact_match") is rewards.exact_match
  assert rewards.find(f"{__name__}:length") is length
  for name, message in (
    ("exact", "must be one of exact_match, numeric_answer, or 'package.module:function'"),
    ("nowhere.at:all", "cannot be imported"),
    (f"{__name__}:absent", "cannot be imported"),
    (f"{__name__}:PROMPTS", "must be a function, got list"),
  ):
    with pytest.raises(ValueError, match=message):
      rewards.find(name)
