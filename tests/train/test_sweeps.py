"""Sweeps of a run: interrupted, of other runs, of samples whose scores are kept, offline."""

import json
import shutil

import jax
import numpy as np
import pytest

from jdc import metrics, policies
from jdc.data.batch import inputs_and_targets
from jdc.data.loader import Pool
from jdc.policies import Decision, selection
from jdc.stats import pool as pool_lib
from jdc.stats.directions import Adam
from jdc.stats.features_table import FeaturesTable
from jdc.stats.sweep_store import SweepStore
from jdc.train import checkpoint, loop, offline
from jdc.train.config import CheckpointConfig, FeaturesConfig, TargetConfig
from jdc.train.state import saved_part

ADAM = Adam(b1=0.9, b2=0.999, epsilon=1e-8)


@pytest.fixture
def build(small_run):
  """Returns `build(selection, **fields)`, a short run on one device with a target set."""

  def build(chosen, **fields):
    settings = {
      "num_steps": 4,
      "steps_per_round": 2,
      "draw": "top_k",
      "top_k_fraction": 0.5,
      "features": FeaturesConfig(size=32),
      "target": TargetConfig(rows=6, every_steps=2),
      "checkpoint": CheckpointConfig(every_steps=1, keep=10),
      "adam": ADAM,
    }
    return small_run(policies.combine(selection=chosen), **settings | fields)

  return build


@pytest.fixture
def sweeps(monkeypatch):
  """What each sweep that was finished has counted, in order."""
  counted, sweep = [], pool_lib.sweep

  def counting(*args, **kwargs):
    counted.append(sweep(*args, **kwargs))
    return counted[-1]

  monkeypatch.setattr(pool_lib, "sweep", counting)
  return counted


def arrays_of(folder, state):
  """The arrays of the decision in the newest checkpoint."""
  saved = checkpoint.Checkpoints(str(folder / "checkpoints"), 10)
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
  try:
    return saved.restore(jax.tree.map(shape, saved_part(state))).arrays
  finally:
    saved.close()


def test_an_interrupted_sweep_goes_on_where_it_was(
  build, sweeps, assert_same, monkeypatch, tmp_path
):
  run = build(selection.less())
  expected = loop.fit(run, str(tmp_path / "whole"))
  whole = list(sweeps)
  assert [x.num_computed for x in whole] == [x.num_chunks for x in whole]
  assert whole[1].num_chunks > 4
  assert not list((tmp_path / "whole" / "sweeps").iterdir())

  # The second round stops after three chunks of its sweep.
  sweeps.clear()
  write, count = SweepStore.write, []

  def stops(self, name, arrays):
    if len(sweeps) == 1 and len(count) == 3:
      raise InterruptedError
    write(self, name, arrays)
    count.extend([name] * (len(sweeps) == 1))

  monkeypatch.setattr(SweepStore, "write", stops)
  with pytest.raises(InterruptedError):
    loop.fit(run, str(tmp_path / "parts"))
  monkeypatch.setattr(SweepStore, "write", write)
  kept = tmp_path / "kept"
  shutil.copytree(tmp_path / "parts" / "sweeps", kept)
  found = loop.fit(run, str(tmp_path / "parts"))
  assert sweeps[-1].num_computed == whole[1].num_chunks - 3
  assert_same(found.state, expected.state)
  assert_same(found.plan, expected.plan)

  # Runs of another seed, or other features, do not see what it left.
  for changes in ({"seed": 1}, {"features": FeaturesConfig(size=64)}):
    folder = tmp_path / str(changes)
    shutil.copytree(kept, folder / "sweeps")
    sweeps.clear()
    loop.fit(build(selection.less(), **changes), str(folder))
    assert [x.num_computed for x in sweeps] == [x.num_chunks for x in sweeps]


def test_scores_of_a_sample_count_until_they_are_too_old(build, tmp_path):
  """Rounds begin at steps 0, 2 and 4; a score counts for two steps."""
  fields = {"num_steps": 5, "sweep_rows": 10, "seed": 3}
  result = loop.fit(build(selection.loss(), max_age=2, **fields), str(tmp_path / "kept"))
  arrays = arrays_of(tmp_path / "kept", result.state)
  step_N, logits_N = arrays["score_step_N"], arrays["logits_N"]
  seen = {step: set(np.flatnonzero(step_N == step)) for step in (0, 2, 4)}
  assert len(seen[4]) == 10
  assert seen[2]
  assert seen[0]  # swept at first, and not again
  np.testing.assert_array_equal(np.isfinite(logits_N), (step_N == 4) | (step_N == 2))
  assert result.spec.sweep_size == result.spec.num_examples

  plain = loop.fit(build(selection.loss(), **fields), str(tmp_path / "plain"))
  logits_N = arrays_of(tmp_path / "plain", plain.state)["logits_N"]
  assert set(np.flatnonzero(np.isfinite(logits_N))) == seen[4]


def test_offline_scores_are_those_of_the_round_that_a_checkpoint_begins(build, tmp_path):
  run = build(selection.less())
  state = loop.fit(run, str(tmp_path / "run")).state
  logits_N = arrays_of(tmp_path / "run", state)["logits_N"]  # decided at step 2
  folder = str(tmp_path / "run" / "checkpoints")
  scored = offline.score(run, str(tmp_path / "offline"), folder, [2])
  np.testing.assert_allclose(scored.columns["score"], logits_N, atol=1e-6)
  assert scored.steps == (2,)
  assert scored.cost.backward > len(logits_N)
  assert scored.columns["domain"].tolist() == sorted(scored.columns["domain"])
  other = offline.score(run, str(tmp_path / "offline"), folder, [1])
  assert np.abs(other.columns["score"] - logits_N).max() > 1e-4

  # Several checkpoints add up in a policy that adds up.
  both = offline.score(
    build(selection.less(checkpoints="sum", aggregate="mean")),
    str(tmp_path / "offline"), folder, [1, 2],
  )  # fmt: skip
  each = [
    offline.score(
      build(selection.less(aggregate="mean")), str(tmp_path / "offline"), folder, [step]
    ).columns["score"]
    for step in (1, 2)
  ]
  np.testing.assert_allclose(both.columns["score"], np.mean(each, axis=0), atol=1e-5)


def test_errors_and_losses_of_the_pool_come_from_one_pass(build, sweeps, tmp_path):
  run, by_loss = build(selection.el2n()), selection.loss()
  mixture = by_loss._replace(
    init=lambda spec, key: (Decision(), ()), update=lambda stats, state: (Decision(), state)
  )
  both = run._replace(policies=policies.combine(mixture=mixture, selection=selection.el2n()))
  num_rows = loop.fit(both, str(tmp_path / "run")).spec.num_examples
  assert len(sweeps) == 2  # one a round
  lines = metrics.read_metrics(tmp_path / "run")
  assert lines[-1]["cost/extra_forward_rows"] == 2 * num_rows
  assert lines[-1]["cost/extra_backward_rows"] == 0

  # Of the parameters that the run begins with.
  scored = offline.score(run, str(tmp_path / "start"))
  assert (scored.cost.forward, scored.cost.backward) == (num_rows, 0)
  pool = Pool([domain.train for domain in run.domains.values()], 32)
  tokens, segments = pool.rows(np.arange(num_rows), np.ones(num_rows, bool))
  inputs = inputs_and_targets(tokens, segments)
  params = jax.jit(run.model.init)(jax.random.key(run.config.seed))
  logits = np.asarray(run.model.logits(params, inputs.tokens), np.float64)
  p = np.exp(logits - logits.max(axis=-1, keepdims=True))
  p /= p.sum(axis=-1, keepdims=True)
  p_target = np.take_along_axis(p, inputs.targets[..., None], -1)[..., 0]
  error = np.sqrt((p**2).sum(axis=-1) - 2 * p_target + 1)
  expected = (error * inputs.mask).sum(axis=1) / inputs.mask.sum(axis=1)
  for column in ("el2n", "score"):
    np.testing.assert_allclose(scored.columns[column], expected, rtol=1e-5)

  # Several checkpoints are averaged.
  folder = str(tmp_path / "run" / "checkpoints")
  mean = offline.score(run, str(tmp_path / "mean"), folder, [1, 3]).columns["score"]
  each = [
    offline.score(build(selection.el2n("current")), str(tmp_path / "each"), folder, [step])
    for step in (1, 3)
  ]
  expected = np.mean([found.columns["score"] for found in each], axis=0)
  np.testing.assert_allclose(mean, expected, rtol=1e-5)


def test_kept_features_serve_other_policies_and_targets(build, sweeps, tmp_path):
  loop.fit(build(selection.random()), str(tmp_path / "run"))
  folder, kept = str(tmp_path / "run" / "checkpoints"), str(tmp_path / "kept")

  def score(run, name, features=None):
    return offline.score(run, str(tmp_path / name), folder, [2], features)

  first = score(build(selection.less()), "first", kept)
  table = FeaturesTable(f"{kept}/2/update_direction")
  assert (len(table), table.size("update_direction")) == (len(first.columns["score"]), 32)
  for number, (policy, rows) in enumerate(
    [(selection.less(), 6), (selection.less(aggregate="mean"), 4)]
  ):
    run = build(policy, target=TargetConfig(rows=rows, every_steps=2))
    alone = score(run, f"alone {number}")
    found = score(run, f"with kept {number}", kept)
    np.testing.assert_allclose(found.columns["score"], alone.columns["score"], atol=1e-6)
    num_rows, num_targets = len(table), alone.cost.backward - len(table)
    assert found.cost == (alone.cost.forward - num_rows, num_targets)
  assert not np.allclose(found.columns["score"], first.columns["score"], atol=1e-4)

  # Any rows of the pool are read from it, here representatives of clusters of embeddings.
  clusters = build(selection.cluster_less(clusters=4, count=2))
  alone = score(clusters, "clusters alone")
  first = score(clusters, "clusters", kept)
  assert FeaturesTable(f"{kept}/2/embedding").names == ("embedding",)
  again = score(clusters, "clusters again", kept)
  assert again.cost.backward == first.cost.backward == alone.cost.backward - 8
  assert (first.cost.forward, again.cost.forward) == tuple(
    alone.cost.forward - 8 - rows for rows in (0, num_rows)
  )
  for other in (first, again):
    np.testing.assert_allclose(other.columns["score"], alone.columns["score"], atol=1e-6)

  # What is kept is read: a changed table changes the scores.
  rows = np.lib.format.open_memmap(f"{kept}/2/update_direction/update_direction.npy", "r+")
  rows[3] *= -1
  rows.flush()
  changed = score(run, "changed", kept).columns["score"]
  np.testing.assert_allclose(changed[3], -found.columns["score"][3], atol=1e-6)

  # Gradients without Adam are others, and have a table of their own.
  score(build(selection.less(direction="gradient")), "gradient", kept)
  assert FeaturesTable(f"{kept}/2/gradient").names == ("gradient",)


def test_kept_features_of_others_are_refused(build, tmp_path):
  loop.fit(build(selection.random()), str(tmp_path / "run"))
  loop.fit(build(selection.random(), batch_size=16), str(tmp_path / "another"))
  kept = str(tmp_path / "kept")

  def score(name, from_run="run", **changes):
    folder = str(tmp_path / from_run / "checkpoints")
    run = build(selection.less(), **changes)
    return offline.score(run, str(tmp_path / name), folder, [2], kept)

  first = score("first")
  for number, (changes, named) in enumerate((
    ({"seed": 1}, "config"),
    ({"features": FeaturesConfig(size=64)}, "config"),
    ({"config_json": {"model.num_heads": 2}}, "config"),
    ({"adam": ADAM._replace(clip_norm=0.1)}, "adam"),
    ({"from_run": "another"}, "state"),
  )):  # fmt: skip
    message = f"holds features of another sweep, of other {named}; delete it"
    with pytest.raises(ValueError, match=message):
      score(f"other {number}", **changes)
  # Of the data, the pool alone decides.
  domains = build(selection.less()).domains
  others = {n: d._replace(target=d.validation) for n, d in domains.items()}
  assert score("targets", domains=others).rows_read == len(first.columns["score"])


def test_features_that_nothing_reads_are_refused(build, tmp_path):
  for features, message in (
    (str(tmp_path / "kept"), "of which the selection observes none; it observes .*loss"),
    ("gs://bucket/kept", "must be a local folder"),
  ):
    with pytest.raises(ValueError, match=message):
      offline.score(build(selection.loss()), str(tmp_path), features=features)


def test_sweeps_under_another_adam_are_others(build, sweeps, tmp_path):
  loop.fit(build(selection.random()), str(tmp_path / "run"))
  folder, counted = str(tmp_path / "run" / "checkpoints"), []
  for clip_norm in (0.0, 0.0, 0.1):
    sweeps.clear()
    run = build(selection.less(), adam=ADAM._replace(clip_norm=clip_norm))
    offline.score(run, str(tmp_path / "offline"), folder, [2])
    counted += [(x.num_computed, x.num_chunks) for x in sweeps]
  (first, whole), (again, _), (other, _) = counted
  assert (first, again, other) == (whole, 0, whole)


def test_a_preparation_that_was_finished_is_found_again(build, tmp_path):
  """Its store is without the embeddings, which the table has."""
  run, kept = build(selection.cluster_less(clusters=4, count=2)), str(tmp_path / "kept")
  first, again = (offline.score(run, str(tmp_path / "same"), features=kept) for _ in range(2))
  np.testing.assert_allclose(again.columns["score"], first.columns["score"], atol=1e-6)


def test_a_stage_that_observes_nothing_sweeps_nothing(build, sweeps, tmp_path):
  """And leaves no scores: rows that the second round has not swept have no influence."""
  warm = policies.schedule([(0, selection.random(0.5)), (1, selection.less())])
  result = loop.fit(build(warm), str(tmp_path / "whole"))
  assert [x.num_rows for x in sweeps] == [0, result.spec.num_examples]
  sweeps.clear()
  result = loop.fit(build(warm, sweep_rows=10, max_age=2), str(tmp_path / "sample"))
  assert [x.num_rows for x in sweeps] == [0, 10]
  arrays = arrays_of(tmp_path / "sample", result.state)
  assert np.sum(np.isfinite(arrays["logits_N"])) == 10
  assert set(arrays["score_step_N"].tolist()) == {np.iinfo(np.int32).min, 2}


def test_offline_scores_show_what_was_observed(build, tmp_path):
  scored = offline.score(build(selection.loss()), str(tmp_path))
  assert np.all(np.isfinite(scored.columns["loss"]))
  assert scored.steps == (0,)
  assert len(scored.fingerprint) == 32


def test_offline_scores_refuse_what_does_not_fit(build, tmp_path, small_model):
  loop.fit(build(selection.random(), num_steps=1, draw="gumbel_top_k", top_k_fraction=1.0),
           str(tmp_path / "run"))  # fmt: skip
  folder = str(tmp_path / "run" / "checkpoints")
  run = build(selection.loss())
  with pytest.raises(ValueError, match=r"no checkpoint of step 7; there are \[1\]"):
    offline.score(run, str(tmp_path), folder, [7])
  with pytest.raises(ValueError, match=r"steps must increase, got \(1, 1\)"):
    offline.score(run, str(tmp_path), folder, [1, 1])
  with pytest.raises(ValueError, match="are of checkpoints, and none are given"):
    offline.score(run, str(tmp_path), None, [1])
  with pytest.raises(ValueError, match="round-scope selection"):
    offline.score(build(selection.rho_loss()), str(tmp_path))
  wider = run._replace(model=small_model._replace(
    init=lambda key: {n: x[..., :2] if n == "embedding" else x[:2]
                      for n, x in small_model.init(key).items()}))  # fmt: skip
  with pytest.raises(ValueError, match="holds other parameters than the config") as error:
    offline.score(wider, str(tmp_path), folder)
  assert json.dumps(str(error.value)).count("embedding") >= 1
