"""Tests of losses and embeddings under a checkpoint, beside `jdc.eval` and plain code."""

import jax
import numpy as np
import pyarrow as pa
import pytest

from jdc.eval import perplexity
from jdc.prep import language_model
from jdc.prep.ops import likelihood

TEXTS = [
  "a fig",
  "copy this: red plum pear, blue fig. " * 3,
  "",
  "x",
  "colour this: red is a colour, and so is blue. " * 40,
  "fig\nplum\n",
]


@pytest.fixture(scope="module")
def opened(base_folder):
  # A short context, so that one text is cut.
  found = language_model.open_model(f"jdc:{base_folder}")
  return found._replace(context_length=100)


class Document:
  """A document as rows of a table, cut with an overlap of one token."""

  def __init__(self, ids, size, length):
    self._rows = [ids[i : i + length + 1] for i in range(0, max(len(ids) - 1, 1), length)]
    self._length, self.num_bytes = length, np.full(len(self._rows), size)

  def __len__(self):
    return len(self._rows)

  def rows(self, ids):
    tokens = np.zeros((len(ids), self._length + 1), np.int32)
    segments = np.zeros_like(tokens)
    for place, row in enumerate(ids):
      held = self._rows[row]
      tokens[place, : len(held)], segments[place, : len(held)] = held, 1
    return tokens, segments


def test_perplexity_is_that_of_the_evaluation(opened, base_folder):
  found = language_model.losses(opened, TEXTS)
  ids = [opened.tokenizer.encode(text)[0] for text in TEXTS]
  some = [n for n, held in enumerate(ids) if len(held) > 1]
  assert len(some) == 4
  assert max(map(len, ids)) > 3 * opened.context_length
  tables = {str(n): Document(ids[n], len(TEXTS[n]), 100) for n in some}
  expected = perplexity.evaluate(
    opened.model.token_losses, opened.params, tables, 8, opened.mesh
  )
  for n in some:
    assert found.num_tokens[n] == expected[f"validation/{n}/num_tokens"] == len(ids[n]) - 1
    loss = expected[f"validation/{n}/loss"]
    assert found.loss[n] / found.num_tokens[n] == pytest.approx(loss, rel=1e-5)
  assert found.num_tokens.tolist()[2:4] == [0, 0]
  signals = likelihood.model_losses(
    pa.record_batch({"text": TEXTS[1:2]}),
    likelihood.ModelLosses(model=f"jdc:{base_folder}"),
  )
  whole = language_model.losses(opened._replace(context_length=512), TEXTS[1:2])
  token = whole.loss[0] / whole.num_tokens[0]
  assert signals["perplexity"][0] == pytest.approx(np.exp(token), rel=1e-5)
  size = len(TEXTS[1].encode())
  assert signals["bits_per_byte"][0] == pytest.approx(
    whole.loss[0] / size / np.log(2), rel=1e-5
  )


def test_losses_do_not_depend_on_batches(opened):
  whole = language_model.losses(opened, TEXTS, batch_size=1)
  for size in (2, 5):
    for order in (range(6), range(5, -1, -1), [4], [1, 5]):
      found = language_model.losses(opened, [TEXTS[n] for n in order], batch_size=size)
      np.testing.assert_allclose(found.loss, whole.loss[list(order)], rtol=1e-5)
      np.testing.assert_array_equal(found.num_tokens, whole.num_tokens[list(order)])


def test_embeddings_are_means_of_hidden_states(opened):
  found = language_model.embeddings(opened, TEXTS, batch_size=2)
  for n, text in enumerate(TEXTS):
    ids = opened.tokenizer.encode(text)[0]
    total, count = np.zeros(32), 0
    for begin in range(0, max(len(ids) - 1, 1) if len(ids) else 0, 100):
      tokens = ids[begin : begin + 101][None]
      tokens = tokens[:, :-1] if tokens.shape[1] > 1 else tokens
      position = np.arange(tokens.shape[1], dtype=np.int32)[None]
      hidden = opened.model.hidden(
        jax.device_get(opened.params), tokens, position, np.ones_like(position)
      )
      total += np.asarray(hidden, np.float64)[0].sum(axis=0)
      count += tokens.shape[1]
    np.testing.assert_allclose(found[n], total / max(count, 1), atol=2e-5)
  assert not found[2].any()
  start = language_model.embeddings(opened, TEXTS, batch_size=2, max_tokens=10)
  ids = opened.tokenizer.encode(TEXTS[4])[0][:11]
  short = language_model.embeddings(opened, [opened.tokenizer.decode(ids)])
  np.testing.assert_allclose(start[4], short[0], atol=2e-5)


def test_bounds_of_perplexity():
  values = np.array([3.0, 10.0, 50.0, np.nan, np.inf])
  found = {"perplexity": values, "bits_per_byte": values, "model_tokens": np.ones(5)}
  params = likelihood.Perplexity(model="jdc:x", min=5, max=20)
  why = {name: np.flatnonzero(bad).tolist() for name, bad in
         likelihood.perplexity(found, params).items()}  # fmt: skip
  assert why == {
    "perplexity.undefined": [3, 4], "perplexity.low": [0], "perplexity.high": [2]
  }  # fmt: skip
  for wrong, message in [
    ({"model": "runs/x", "max": 3}, "must be jdc:FOLDER"),
    ({"model": "jdc:x"}, "min or max must be given"),
    ({"model": "jdc:x", "max": 0}, "greater than 0"),
  ]:
    with pytest.raises(ValueError, match=message):
      likelihood.Perplexity(**wrong)


def test_the_files_of_a_model_are_those_of_its_newest_checkpoint(tmp_path):
  for step in ("9", "10"):
    (tmp_path / "run" / "checkpoints" / step / "params").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / step / "params" / "a").write_text(step)
  found = language_model.files(language_model.at("jdc:run", tmp_path))
  assert found == (str(tmp_path / "run" / "checkpoints" / "10" / "params" / "a"),)
  assert language_model.files(f"jdc:{tmp_path}/none") == (f"{tmp_path}/none/checkpoints",)
