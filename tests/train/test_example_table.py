"""The table of examples equals a plain loop over what each step saw, and a resumed run's."""

import dataclasses
import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc import metrics, policies
from jdc.data.batch import inputs_and_targets
from jdc.models.decoder import decoder
from jdc.policies import mixture, selection, weighting
from jdc.policies.base import DataPolicy, Decision
from jdc.train import example_table, loop
from jdc.train.config import CheckpointConfig, LoggingConfig, OptimizerConfig, TargetConfig
from jdc.train.optimizer import make_optimizer

pq = pytest.importorskip("pyarrow.parquet")

LOGGING = LoggingConfig(every_steps=3, tensorboard=False, example_table=True)


def read(folder):
  return pq.read_table(folder / example_table.NAME).to_pylist()


def digest(folder):
  return hashlib.sha256((folder / example_table.NAME).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def followed(domains, model_config, tiny_config, tmp_path_factory):
  """A run, its model, and the parameters after each of its steps."""
  folder = tmp_path_factory.mktemp("followed")
  config = dataclasses.replace(tiny_config, logging=LOGGING, num_steps=70)
  optimizer, rate = make_optimizer(OptimizerConfig(learning_rate=1e-2), config.num_steps)
  model = decoder(model_config)
  run = loop.Run(model, optimizer, rate, policies.combine(), domains, config)
  running = loop.steps(run, str(folder))
  return folder, model, [jax.device_get(progress.state.params) for progress in running]


def test_equals_a_loop_over_the_steps(domains, followed):
  folder, model, held = followed
  ids = metrics.read_example_ids(folder)
  tables = [domain.train for domain in domains.values()]
  starts = np.cumsum([0, *map(len, tables)])
  views = {}  # (example, piece) -> [(step, loss, mean of the step)]
  for step in range(2, len(ids) + 1):  # those before which parameters are known
    losses, tokens = [], []
    for example in ids[step - 1].tolist():
      k = int(np.searchsorted(starts, example, side="right")) - 1
      row = inputs_and_targets(*tables[k].rows([example - starts[k]]))
      args = (row.tokens, row.targets, row.positions, row.segments)
      found = np.asarray(model.token_losses(held[step - 2], *args), np.float64)[0]
      for piece in range(1, int(row.segments.max()) + 1):
        at = row.mask[0] & (row.segments[0] == piece)
        if at.any():
          losses.append((example, piece - 1, found[at].mean()))
          tokens.append(at.sum())
    mean = np.average([loss for *_, loss in losses], weights=tokens)
    for example, piece, loss in losses:
      views.setdefault((example, piece), []).append((step, loss, mean))

  rows = {(r["example_id"], r["piece"]): r for r in read(folder)}
  first_step = set(ids[0].tolist())
  checked = several = 0
  for key, row in rows.items():
    if key[0] in first_step:
      continue
    seen = views.get(key, [])
    assert row["times_seen"] == int((ids == key[0]).sum())
    if not seen:
      assert row["loss_first"] is None
      assert row["loss_mean"] is None
      continue
    steps, losses, means = map(np.array, zip(*seen, strict=True))
    expected = {
      "loss_first": losses[0], "loss_last": losses[-1], "loss_min": losses.min(),
      "loss_mean": losses.mean(), "loss_excess": (losses - means).mean(),
      "step_first": steps[0], "step_last": steps[-1], "step_min": steps[losses.argmin()],
    }  # fmt: skip
    for name, value in expected.items():
      assert row[name] == pytest.approx(value, rel=2e-5, abs=2e-5), name
    if len(set(steps)) > 1:
      slope = 1000 * np.polyfit(steps, losses, 1)[0]
      assert row["loss_slope"] == pytest.approx(slope, rel=1e-2, abs=1e-2)
      several += 1
    else:
      assert row["loss_slope"] is None
    checked += 1
  assert checked > 30
  assert several > 5


def test_names_where_the_pieces_of_every_row_come_from(domains, followed):
  folder, *_ = followed
  rows = read(folder)
  example = 0
  for name, domain in domains.items():
    for row in range(len(domain.train)):
      pieces = domain.train.documents(row)
      here = [r for r in rows if r["example_id"] == example]
      assert [(r["source"], r["token_offset"]) for r in here] == [
        (piece.where, piece.offset) for piece in pieces
      ]
      assert {r["domain"] for r in here} == {name}
      assert sum(r["tokens"] for r in here) == domain.train.num_targets[row]
      example += 1


HARDEST = DataPolicy(
  lambda spec, key: (Decision(logits=jnp.zeros(spec.num_candidates)), ()),
  lambda stats, state: (Decision(logits=stats.loss), state),
  frozenset({"loss"}),
  "step",
)
RUNS = {
  "rounds": (
    policies.combine(selection=selection.random(0.5)),
    {"draw": "top_k", "num_steps": 17},
  ),
  "candidates": (policies.combine(selection=HARDEST), {"num_candidates": 16}),
  "weights": (policies.combine(weighting=weighting.loss_reweighting(burn_in_steps=2)), {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_leaves_the_same_bytes(fit, tmp_path, name):
  chosen, fields = RUNS[name]
  fields = {**fields, "logging": LOGGING}
  fit(tmp_path / "whole", chosen, **fields)
  fit(tmp_path / "parts", chosen, **fields | {"num_steps": 7})
  before = digest(tmp_path / "parts")
  fit(tmp_path / "parts", chosen, **fields)
  assert digest(tmp_path / "parts") == digest(tmp_path / "whole") != before


def test_selections_and_weights_are_counted(fit, tmp_path):
  chosen, fields = RUNS["rounds"]
  fit(tmp_path / "round", chosen, **fields, logging=LOGGING)
  rows = read(tmp_path / "round")
  assert {row["times_offered"] for row in rows} == {4}  # rounds of 5 in 17 steps
  ids = metrics.read_example_ids(tmp_path / "round")
  for row in rows:
    assert row["times_selected"] <= 4
    assert row["times_seen"] == (ids == row["example_id"]).sum()
    if row["times_seen"]:
      assert row["times_selected"] > 0
  fit(tmp_path / "weights", *RUNS["weights"][:1], logging=LOGGING)
  weights = metrics.read_decisions(tmp_path / "weights").weights_SxB
  ids = metrics.read_example_ids(tmp_path / "weights")
  for row in read(tmp_path / "weights"):
    expected = weights[ids == row["example_id"]].sum(dtype=np.float64)
    assert row["weight_sum"] == pytest.approx(expected, rel=1e-6)


def test_candidates_are_counted(fit, tmp_path):
  chosen, fields = RUNS["candidates"]
  fit(tmp_path / "run", chosen, **fields, logging=LOGGING)
  rows = {row["example_id"]: row for row in read(tmp_path / "run")}.values()
  assert sum(row["times_offered"] for row in rows) == 12 * 16
  assert sum(row["times_selected"] for row in rows) == 12 * 8
  assert all(row["times_selected"] == row["times_seen"] for row in rows)


def test_influence_is_the_scaled_product_with_the_gradient_of_the_target(
  target_domains, model_config, tiny_config, tmp_path
):
  """Of one step, whose products a policy tells too."""
  seen = []
  watch = DataPolicy(
    lambda spec, key: (Decision(metrics={"a": jnp.zeros(())}), ()),
    lambda stats, state: (Decision(metrics={"a": stats.target_alignment[3]}), state),
    frozenset({"target_alignment"}),
    "step",
  )
  by_size = policies.observing(["target_alignment"], mixture.by_size())
  for name, chosen in {"told": watch, "by size": by_size}.items():
    config = dataclasses.replace(
      tiny_config,
      num_steps=1,
      logging=dataclasses.replace(LOGGING, every_steps=1),
      target=TargetConfig(rows=8, alignment_rows=8),
    )
    optimizer, rate = make_optimizer(OptimizerConfig(), 1)
    policy = policies.combine(mixture=chosen)
    run = loop.Run(decoder(model_config), optimizer, rate, policy, target_domains, config)
    loop.fit(run, str(tmp_path / name))
    seen.append({r["example_id"]: r for r in read(tmp_path / name) if r["influence"]})
  told, by_size = seen
  assert told.keys() == by_size.keys()
  assert len(told) == 8
  values = np.array([row["influence"] for row in told.values()])
  assert np.mean(np.square(values)) == pytest.approx(1, rel=1e-5)
  fourth = metrics.read_example_ids(tmp_path / "told")[0, 3]
  (line,) = [x for x in metrics.read_metrics(tmp_path / "told") if "policy/mixture/a" in x]
  assert np.sign(line["policy/mixture/a"]) == np.sign(told[fourth]["influence"])


def test_switched_on_too_late_is_an_error(fit, tmp_path):
  fit(tmp_path / "run", num_steps=6)
  with pytest.raises(ValueError, match="first 6 steps were trained without it"):
    fit(tmp_path / "run", num_steps=12, logging=LOGGING)


def test_without_pyarrow_is_an_error_before_training(fit, tmp_path, monkeypatch):
  for module in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
    monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ImportError, match=r"pip install jdc\[parquet\]"):
    fit(tmp_path / "run", logging=LOGGING)
  assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_table_is_no_newer_than_a_checkpoint(fit, tmp_path):
  fields = {"logging": LOGGING, "checkpoint": CheckpointConfig(every_steps=5)}
  fit(tmp_path / "run", **fields)
  rows = read(tmp_path / "run")
  assert max(row["step_last"] for row in rows if row["step_last"] is not None) == 12
