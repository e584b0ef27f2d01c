"""What a run writes down: cut back exactly, durable, and readable by others."""

import json
import sys
import types

import numpy as np
import pytest

from jdc import metrics


class TestJsonLines:
  def write(self, path, *steps, **continued):
    writer = metrics.JsonlWriter(path, **{"last_step": -1, **continued})
    for step in steps:
      writer.write(step, {"loss": step / 3})
    writer.close()

  def test_numbers_come_back_exactly(self, tmp_path):
    self.write(tmp_path / "metrics.jsonl", 1, 2)
    assert metrics.read_metrics(tmp_path) == [{"step": s, "loss": s / 3} for s in (1, 2)]

  @pytest.mark.parametrize("last_step", range(-1, 7))
  def test_cut_back_to_any_step_and_continued_they_are_the_whole(self, tmp_path, last_step):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    steps = (0, 1, 1, 3, 5, 6)
    self.write(whole, *steps)
    self.write(parts, *steps)
    self.write(parts, *[s for s in steps if s > last_step], last_step=last_step)
    assert parts.read_bytes() == whole.read_bytes()

  @pytest.mark.parametrize("end", ['{"step": 3, "lo', '{"step": 1', "{", '{"step": 3}'])
  def test_a_half_line_is_cut_off(self, tmp_path, end):
    path = tmp_path / "metrics.jsonl"
    self.write(path, 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + end.encode())
    self.write(path, last_step=2)
    assert path.read_bytes() == whole

  def test_lines_beyond_a_number_are_cut_off(self, tmp_path):
    path = tmp_path / "metrics.jsonl"
    self.write(path, 1, 2, 2)
    self.write(path, 2, last_step=2, last_line=2)
    assert [line["step"] for line in metrics.read_metrics(tmp_path)] == [1, 2, 2]
    writer = metrics.JsonlWriter(path, last_step=2, last_line=2)
    assert writer.num_lines == 2
    writer.close()

  def test_flushed_lines_are_in_the_file(self, tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = metrics.JsonlWriter(path, -1)
    writer.write(1, {"loss": 0.5})
    writer.flush()
    assert json.loads(path.read_text()) == {"step": 1, "loss": 0.5}
    writer.close()


def test_a_full_disk_is_named_and_everything_is_closed(tmp_path):
  writer = metrics.JsonlWriter(tmp_path / "metrics.jsonl", -1)
  writer._file.close()
  writer._file = open("/dev/full", "w")  # noqa: SIM115
  writer.write(1, {"loss": 0.5})
  with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
    writer.flush()
  with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
    writer.close()
  assert writer._file.closed


class TestDecisionLog:
  def write(self, folder, first, last, steps):
    log = metrics.DecisionLog(folder, 3, steps)
    for step in range(first, last):
      log.append(np.array([step, -1, 2**31 - 1 - step], np.int32))
    log.close()

  @pytest.mark.parametrize("steps", range(5))
  @pytest.mark.parametrize("extra", [b"", b"\1\2\3\4\5"])
  def test_cut_back_and_continued_it_is_the_whole(self, tmp_path, steps, extra):
    self.write(tmp_path, 0, 5, 0)
    whole = (tmp_path / "example_ids.i32").read_bytes()
    (tmp_path / "example_ids.i32").write_bytes(whole + extra)
    self.write(tmp_path, steps, 5, steps)
    assert (tmp_path / "example_ids.i32").read_bytes() == whole
    expected = [[step, -1, 2**31 - 1 - step] for step in range(5)]
    assert metrics.read_example_ids(tmp_path).tolist() == expected

  def test_a_short_file_is_an_error_that_leaves_it_alone(self, tmp_path):
    self.write(tmp_path, 0, 2, 0)
    with pytest.raises(ValueError, match=r"example_ids\.i32 holds 24 bytes.*needs 36"):
      metrics.DecisionLog(tmp_path, 3, 3)
    assert (tmp_path / "example_ids.i32").stat().st_size == 24
    with pytest.raises(ValueError, match="holds 0 bytes"):
      metrics.DecisionLog(tmp_path / "..", 3, 1)

  def test_another_number_of_rows_is_an_error(self, tmp_path):
    log = metrics.DecisionLog(tmp_path, 3, 0)
    with pytest.raises(ValueError, match="expected 3 example ids"):
      log.append(np.zeros(4, np.int32))
    log.close()


class TestTensorBoard:
  def scalars(self, folder):
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
      tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }

  def test_reads_what_was_written_without_what_a_resume_took_back(self, tmp_path):
    first = metrics.TensorBoardWriter(tmp_path, -1)
    for step in range(1, 6):
      first.write(step, {"train/loss": float(step), "time/step": 0.5})
    first.flush()
    assert self.scalars(tmp_path)["train/loss"] == [(s, s) for s in range(1, 6)]
    first.close()
    second = metrics.TensorBoardWriter(tmp_path, 3)
    second.write(4, {"train/loss": 40.0})
    second.close()
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert self.scalars(tmp_path)["train/loss"] == expected
    assert self.scalars(tmp_path)["time/step"] == [(1, 0.5), (2, 0.5), (3, 0.5)]

  def test_a_full_disk_is_an_error_and_no_wait(self, tmp_path):
    writer = metrics.TensorBoardWriter(tmp_path / "events", -1)
    records = writer._events._py_recordio_writer
    records._writer.close()
    records._writer = open("/dev/full", "wb")  # noqa: SIM115
    many = {f"loss {i}": 1.0 for i in range(1000)}  # more than a buffer holds
    with pytest.raises(OSError, match=r"No space left on device: '.*events'"):
      writer.write(1, many)
    with pytest.raises(OSError, match="No space left on device"):
      records._writer.close()


class TestWandb:
  @pytest.fixture
  def calls(self, monkeypatch):
    calls = []

    class Run:
      def log(self, values, step):
        calls.append(("log", values, step))

      def finish(self):
        calls.append(("finish",))

    module = types.ModuleType("wandb")
    module.init = lambda **arguments: calls.append(("init", arguments)) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls

  def test_calls(self, tmp_path, calls):
    folder = tmp_path / "run"
    folder.mkdir()
    writer = metrics.WandbWriter("project", folder, {"seed": 0})
    writer.write(3, {"loss": 0.5})
    writer.flush()
    writer.close()
    (_, arguments), logged, finished = calls
    assert arguments["project"] == "project"
    assert arguments["config"] == {"seed": 0}
    assert arguments["resume"] == "allow"
    assert logged == ("log", {"loss": 0.5}, 3)
    assert finished == ("finish",)

  def test_a_resumed_run_continues_its_own_and_no_other(self, tmp_path, calls):
    folders = [tmp_path / "a/run", tmp_path / "a/run", tmp_path / "b/run"]
    for folder in folders:
      folder.mkdir(parents=True, exist_ok=True)
      metrics.WandbWriter("project", folder, {})
    ids = [arguments["id"] for _, arguments in calls]
    assert ids[0] == ids[1] != ids[2]

  def test_its_absence_is_an_error_that_says_what_to_install(self, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"logging\.wandb_project.*pip install jdc\[wandb\]"):
      metrics.WandbWriter("project", tmp_path, {})


def random_steps(seed, num_steps=7, batch_size=9, num_domains=4):
  rng = np.random.default_rng(seed)
  for step in range(num_steps):
    loss_B = rng.gamma(3.0, 1.0, batch_size).astype(np.float32)
    loss_B[rng.random(batch_size) < 0.1] = np.nan
    loss_B[rng.random(batch_size) < 0.05] = np.inf
    id_B = np.where(rng.random(batch_size) < 0.1, -1, rng.integers(0, 99, batch_size))
    yield (
      np.where(id_B < 0, 0, rng.integers(0, num_domains - 1, batch_size)),
      loss_B,
      np.where((id_B < 0) | (rng.random(batch_size) < 0.1), 0, rng.integers(1, 30, batch_size)),
      rng.random(batch_size).astype(np.float32) * 2 if step % 2 else None,
      id_B,
    )


def window_of(steps, names):
  """The metrics of a window, one row at a time."""
  rows = {name: [] for name in names}
  for domain_B, loss_B, num_tokens_B, weight_B, id_B in steps:
    for i, k in enumerate(domain_B):
      if id_B[i] >= 0:
        weight = 1.0 if weight_B is None else float(weight_B[i])
        rows[names[k]].append((float(loss_B[i]), int(num_tokens_B[i]), weight))
  total = sum(map(len, rows.values()))
  out, every = {}, []
  for name, seen in rows.items():
    counted = [(loss, n) for loss, n, _ in seen if n > 0 and np.isfinite(loss)]
    every += counted
    out[f"train/domain/{name}/window_share"] = len(seen) / total
    if counted:
      tokens = sum(n for _, n in counted)
      out[f"train/domain/{name}/loss"] = sum(loss * n for loss, n in counted) / tokens
    if seen:
      out[f"train/domain/{name}/weight"] = sum(w for *_, w in seen) / len(seen)
  out["train/loss"] = sum(loss * n for loss, n in every) / sum(n for _, n in every)
  bad = [loss for seen in rows.values() for loss, n, _ in seen if n and not np.isfinite(loss)]
  out["train/num_nonfinite_losses"] = len(bad)
  return out


class TestWindow:
  NAMES = ("a", "b", "c", "never drawn")

  @pytest.mark.parametrize("seed", range(5))
  def test_agrees_with_a_plain_loop(self, seed):
    window = metrics.Window(4)
    for step in random_steps(seed):
      window.add(*step)
    expected = window_of(random_steps(seed), self.NAMES)
    assert window.metrics(self.NAMES) == pytest.approx(expected, rel=1e-12)

  def test_goes_through_json_exactly_in_the_middle(self):
    whole, parts = metrics.Window(4), metrics.Window(4)
    for number, step in enumerate(random_steps(1)):
      whole.add(*step)
      parts.add(*step)
      if number == 3:
        saved = json.loads(json.dumps(parts.to_json()))
        parts = metrics.Window(4)
        parts.from_json(saved)
    assert parts.metrics(self.NAMES) == whole.metrics(self.NAMES)

  def test_forgets_when_it_is_reset(self):
    window = metrics.Window(4)
    for step in random_steps(2):
      window.add(*step)
    window.reset()
    for step in random_steps(3):
      window.add(*step)
    assert window.metrics(self.NAMES) == pytest.approx(window_of(random_steps(3), self.NAMES))

  def test_has_no_mean_of_nothing(self):
    found = metrics.Window(1).metrics(("a",))
    assert found == {"train/num_nonfinite_losses": 0.0, "train/domain/a/window_share": 0.0}


class TestFlatten:
  def test_names_scalars_and_domains(self):
    values = {"rate": np.float32(0.5), "reward": np.array([1, 2])}
    expected = {"policy/rate": 0.5, "policy/reward/a": 1.0, "policy/reward/b": 2.0}
    assert metrics.flatten("policy", values, ("a", "b")) == expected

  def test_refuses_other_shapes(self):
    with pytest.raises(ValueError, match=r"policy/x has shape \(3,\)"):
      metrics.flatten("policy", {"x": np.zeros(3)}, ("a", "b"))


def test_entropy():
  assert metrics.entropy(np.array([0.5, 0.5, 0.0])) == pytest.approx(np.log(2))
  assert metrics.entropy(np.array([1.0])) == 0.0
  assert np.isnan(metrics.entropy(np.zeros(2)))
