"""Bytes of the tokens of byte-level BPE, which spare the tokenizer to keep track of offsets."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def token_widths(model: Any, vocabulary: Mapping[str, int]) -> np.ndarray | None:
  """Returns the bytes that each token stands for, or `None` where that is not known.

  It is known where text is cut and then turned into the letters of the byte-level alphabet, of
  which each stands for a byte, and no space is put before it. What normalizes a text first may
  change its bytes: who adds up the widths of a text's tokens has to compare with the text.

  Args:
    model: of the package `tokenizers`.
    vocabulary: ids by token, with added tokens, which stand for themselves.

  Returns:
    i32[V], V the highest id plus 1.
  """
  if model.pre_tokenizer is None:
    return None
  state = json.loads(model.pre_tokenizer.__getstate__())
  steps = state.get("pretokenizers", [state])
  levels = [step for step in steps if step["type"] == "ByteLevel"]
  if not levels or any(step["add_prefix_space"] for step in levels):
    return None
  added = {token.content for token in model.get_added_tokens_decoder().values()}
  widths = np.zeros(max(vocabulary.values()) + 1, np.int32)
  for token, place in vocabulary.items():
    widths[place] = len(token.encode("utf-8")) if token in added else len(token)
  return widths
