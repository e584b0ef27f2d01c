"""Checkpoints: what is saved comes back, and what is damaged is never taken for it."""

import gc
import logging
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.train import checkpoint
from jdc.train.checkpoint import Checkpoints, Damaged, checksums

# A load that fails leaves reading tasks of Orbax and TensorStore behind, which complain that
# nobody waits for them. `settled` keeps their complaints inside the test that causes them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

HOST = {"plan": {"step": 3, "asked": [0.1, 1e300, -0.0]}, "name": "é"}


@pytest.fixture
def settled():
  yield
  gc.collect()
  time.sleep(0.05)


def make_state(seed):
  rng = np.random.default_rng(seed)
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.NamedSharding(mesh, jax.P("x"))
  split = {
    "matrix": rng.normal(size=(64, 33)).astype(np.float32),
    "half": jnp.asarray(rng.normal(size=(16, 3)), jnp.bfloat16),
  }
  whole = {
    "seen": jnp.asarray(rng.random(5) < 0.5),
    "step": jnp.int32(seed),
    "key": jax.random.key(seed),
  }
  everywhere = jax.NamedSharding(mesh, jax.P())
  return jax.device_put(split, rows) | jax.device_put(whole, everywhere)


def abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def arrays(step):
  return {"logits_N": np.arange(1000, dtype=np.float32) + step}


def save_steps(folder, *steps):
  checkpoints = Checkpoints(str(folder), keep=2)
  for step in steps:
    checkpoints.save(step, make_state(step), HOST | {"step": step}, arrays(step))
  checkpoints.close()


def restore(folder, like=1):
  checkpoints = Checkpoints(str(folder), keep=2)
  try:
    return checkpoints.restore(abstract(make_state(like)))
  finally:
    checkpoints.close()


def assert_saved(assert_same, saved, step):
  assert saved.step == step
  assert_same(saved.state, make_state(step))
  assert saved.host == HOST | {"step": step}
  np.testing.assert_array_equal(saved.arrays["logits_N"], arrays(step)["logits_N"])


def test_what_is_saved_comes_back_where_it_lay(tmp_path, assert_same):
  save_steps(tmp_path, 1, 2)
  saved = restore(tmp_path)
  assert_saved(assert_same, saved, 2)
  for name, x in make_state(1).items():
    assert saved.state[name].sharding.is_equivalent_to(x.sharding, x.ndim)


def test_nothing_saved_is_nothing_restored(tmp_path):
  assert restore(tmp_path / "new") is None


def test_only_the_newest_are_kept(tmp_path):
  save_steps(tmp_path, 1, 2, 3, 10)
  checkpoints = Checkpoints(str(tmp_path), keep=2)
  assert checkpoints.steps() == [3, 10]
  assert checkpoints.newest_host() == HOST | {"step": 10}
  checkpoints.close()


def test_a_state_may_be_donated_once_its_save_has_started(tmp_path, assert_same):
  checkpoints = Checkpoints(str(tmp_path), keep=2)
  state, expected = make_state(1), make_state(1)
  change = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)
  numbers = {name: x for name, x in state.items() if name not in ("key", "seen")}
  checkpoints.save(1, state, HOST, {})
  changed = change(numbers)
  assert int(changed["step"]) == 0
  checkpoints.close()
  saved = restore(tmp_path)
  assert_same(saved.state, expected)


class TestChecksums:
  @pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "int8"]
  )
  def test_detect_every_flipped_bit(self, dtype):
    rng = np.random.default_rng(0)
    x = np.array(jnp.asarray(rng.normal(size=(3, 5)) * 50, dtype))
    x[0, 0] = 0
    intact = checksums({"x": jnp.asarray(x)})
    for byte in range(x.nbytes):
      for bit in range(8):
        damaged = np.frombuffer(x.tobytes(), np.uint8).copy()
        damaged[byte] ^= 1 << bit
        damaged = damaged.view(x.dtype).reshape(x.shape)
        assert checksums({"x": jnp.asarray(damaged)}) != intact, (byte, bit)

  def test_detect_a_flipped_bit_of_keys_and_bools(self):
    key = np.array([3, 5], np.uint32)
    flag = np.array([True, False])
    tree = lambda k, f: {"k": jax.random.wrap_key_data(jnp.asarray(k)), "f": jnp.asarray(f)}
    intact = checksums(tree(key, flag))
    assert (checksums(tree(key ^ np.uint32([0, 1 << 31]), flag)) != intact).tolist() == [0, 1]
    assert (checksums(tree(key, ~flag)) != intact).tolist() == [1, 0]

  # Numbers with few bits, at distances where a multiplicative hash is blind.
  @pytest.mark.parametrize("values", [(2.0, 0.0), (-0.0, 0.0), (1.0, -1.0), (0.5, 2.0)])
  @pytest.mark.parametrize("distance", [1, 2, 1 << 8, 1 << 15, 1 << 16])
  def test_detect_swapped_elements(self, values, distance):
    x = np.ones(distance + 1, np.float32)
    x[0], x[-1] = values
    y = x.copy()
    y[0], y[-1] = x[-1], x[0]
    assert checksums(jnp.asarray(x)) != checksums(jnp.asarray(y))

  def test_detect_swapped_leaves_rows_and_axes(self):
    rng = np.random.default_rng(1)
    a, b = (jnp.asarray(rng.normal(size=(4, 4)), jnp.float32) for _ in range(2))
    intact = checksums({"a": a, "b": b})
    assert (checksums({"a": b, "b": a}) != intact).all()
    assert (checksums({"a": a[::-1], "b": b.T}) != intact).all()

  def test_do_not_depend_on_the_sharding(self):
    state = make_state(3)
    one_device = jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]), state)
    np.testing.assert_array_equal(checksums(state), checksums(one_device))


def kind(file: Path) -> str:
  """The role of a file of a checkpoint; data files have random names."""
  parts = ["*" if len(part) == 32 else part for part in file.parts]
  return "/".join(parts)


FILES = [
  "_CHECKPOINT_METADATA", "commit_success.txt",
  "arrays/_METADATA", "arrays/commit_success.txt", "arrays/d/*", "arrays/manifest.ocdbt",
  "arrays/ocdbt.process_0/d/*", "arrays/ocdbt.process_0/manifest.ocdbt",
  "state/_METADATA", "state/_sharding", "state/array_metadatas/process_0",
  "state/commit_success.txt", "state/d/*", "state/manifest.ocdbt",
  "state/ocdbt.process_0/d/*", "state/ocdbt.process_0/manifest.ocdbt",
]  # fmt: skip

# Those without which nothing can be read.
NEEDED = {
  "_CHECKPOINT_METADATA", "arrays/_METADATA", "arrays/d/*", "arrays/manifest.ocdbt",
  "state/_METADATA", "state/d/*", "state/manifest.ocdbt", "state/ocdbt.process_0/d/*",
}  # fmt: skip


def _flip(position):
  def flip(file):
    data = bytearray(file.read_bytes())
    data[int(position * (len(data) - 1))] ^= 16
    file.write_bytes(data)

  return flip


DAMAGE = {
  "first byte": _flip(0.0),
  "middle byte": _flip(0.5),
  "truncated": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
  "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
  "empty": lambda file: file.write_bytes(b""),
  "removed": lambda file: file.unlink(),
}


@pytest.fixture(scope="module")
def saved_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("saved")
  save_steps(folder, 1, 2)
  return folder


def test_the_files_of_a_checkpoint_are_the_ones_damaged_here(saved_folder):
  files = [path.relative_to(saved_folder / "2") for path in (saved_folder / "2").rglob("*")]
  assert {kind(f) for f in files if (saved_folder / "2" / f).is_file()} == set(FILES)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_newest_is_reported_and_the_one_before_it_used(
  saved_folder, tmp_path, caplog, assert_same, file
):
  for number, (name, damage) in enumerate(DAMAGE.items()):
    folder = tmp_path / str(number)
    shutil.copytree(saved_folder, folder)
    for path in sorted(p for p in (folder / "2").rglob("*") if p.is_file()):
      if kind(path.relative_to(folder / "2")) == file:
        damage(path)
        break
    caplog.clear()
    with caplog.at_level(logging.ERROR, logger="jdc"):
      saved = restore(folder)
    reported = [r.getMessage() for r in caplog.records if r.name == "jdc"]
    # Damage to a byte that nobody reads may pass, wrong values may not.
    assert_saved(assert_same, saved, saved.step)
    if saved.step == 1:
      assert f"{folder}/2 is damaged" in reported[0], name
      assert (folder / "damaged-2").is_dir()
    else:
      assert saved.step == 2
      assert not reported
    if file in NEEDED and name in ("removed", "zeros", "empty", "truncated"):
      assert saved.step == 1, name


def damage_all(folder, steps, file="state/d"):
  for step in steps:
    path = folder / str(step) / file
    shutil.rmtree(path) if path.is_dir() else path.write_bytes(b"{")


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("file", ["state/d", "_CHECKPOINT_METADATA"])
def test_nothing_but_damaged_ones_is_an_error_every_time(tmp_path, file):
  save_steps(tmp_path, 1, 2)
  damage_all(tmp_path, (1, 2), file)
  for _ in range(3):
    with pytest.raises(Damaged, match=r"none of the checkpoints .*1.*2|.*2.*1"):
      restore(tmp_path)


@pytest.mark.usefixtures("settled")
def test_nothing_but_unparsable_metadata_is_an_error_every_time(tmp_path):
  save_steps(tmp_path, 1, 2)
  for step in (1, 2):  # which keeps Orbax from listing any checkpoint of the folder
    file = tmp_path / str(step) / "_CHECKPOINT_METADATA"
    file.write_text(file.read_text().replace("metrics", "metrica", 1))
  for _ in range(2):
    with pytest.raises(Damaged, match="damaged-1; damaged-2"):
      restore(tmp_path)


@pytest.mark.parametrize("item", ["state", "arrays"])
def test_readable_but_of_another_step_is_damaged(tmp_path, assert_same, item):
  save_steps(tmp_path, 1, 2)
  shutil.rmtree(tmp_path / "2" / item)
  shutil.copytree(tmp_path / "1" / item, tmp_path / "2" / item)
  assert_saved(assert_same, restore(tmp_path), 1)
  assert (tmp_path / "damaged-2").is_dir()


@pytest.mark.usefixtures("settled")
def test_a_damaged_step_can_be_saved_again(tmp_path, assert_same):
  save_steps(tmp_path, 1, 2)
  for name in ("damaged-2", "damaged-2-1"):
    damage_all(tmp_path, [2])
    assert restore(tmp_path).step == 1
    assert (tmp_path / name).is_dir()
    save_steps(tmp_path, 2)
    assert_saved(assert_same, restore(tmp_path), 2)


@pytest.mark.usefixtures("settled")
def test_half_written_ones_are_never_loaded(tmp_path, assert_same):
  save_steps(tmp_path, 1, 2)
  shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
  shutil.copytree(tmp_path / "2", tmp_path / "4")
  (tmp_path / "4/_CHECKPOINT_METADATA").unlink()
  shutil.rmtree(tmp_path / "4/state/d")
  (tmp_path / "5").mkdir()
  assert_saved(assert_same, restore(tmp_path), 2)
  assert not (tmp_path / "3.orbax-checkpoint-tmp").exists()


def test_only_half_written_ones_are_as_good_as_none(tmp_path):
  save_steps(tmp_path, 1)
  (tmp_path / "1").rename(tmp_path / "1.orbax-checkpoint-tmp")
  assert restore(tmp_path) is None


class TestSavingAStepOnceMore:
  def test_replaces_it(self, tmp_path, assert_same):
    save_steps(tmp_path, 1)
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    checkpoints.save(1, make_state(1), {"other": 1}, {})
    checkpoints.close()
    assert restore(tmp_path).host == {"other": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["1"]

  def test_keeps_the_earlier_one_when_it_fails(self, tmp_path, monkeypatch, assert_same):
    save_steps(tmp_path, 1)
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    fail = lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    monkeypatch.setattr(
      checkpoint.ocp.training.Checkpointer, "save_checkpointables_async", fail
    )
    with pytest.raises(RuntimeError, match=r"could not be saved .*\[1\].*No space left"):
      checkpoints.save(1, make_state(1), {"other": 1}, {})
    checkpoints.close()
    monkeypatch.undo()
    assert_saved(assert_same, restore(tmp_path), 1)

  @pytest.mark.parametrize("committed", [False, True])
  def test_survives_a_kill_on_the_way(self, tmp_path, assert_same, committed):
    save_steps(tmp_path / "first", 1)
    (tmp_path / "first/1").rename(tmp_path / "first/replaced-1")
    if committed:
      save_steps(tmp_path / "second", 1)
      (tmp_path / "second/1").rename(tmp_path / "first/1")
    assert_saved(assert_same, restore(tmp_path / "first"), 1)
    assert not (tmp_path / "first/replaced-1").exists()


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_every_array_lies_where_it_is_asked_for(tmp_path, num_devices):
  devices = jax.devices()[:num_devices]
  kind = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((num_devices,), ("x",), axis_types=kind, devices=devices)
  rows, everywhere = (jax.NamedSharding(mesh, spec) for spec in (jax.P("x"), jax.P()))
  state = jax.device_put({"key": jax.random.key(1), "step": jnp.int32(2)}, everywhere)
  state |= {"matrix": jax.device_put(jnp.ones((8, 2)), rows)}
  checkpoints = Checkpoints(str(tmp_path), keep=2)
  checkpoints.save(1, state, HOST, {})
  checkpoints.wait()
  saved = checkpoints.restore(abstract(state))
  checkpoints.close()
  assert {name: x.sharding for name, x in saved.state.items()} == {
    name: x.sharding for name, x in state.items()
  }


# Parameters read alone, as to evaluate or export them.


def save_params(folder):
  """A checkpoint whose state begins as that of a run, and its parameters."""
  state = make_state(4)
  params = {"matrix": state.pop("matrix"), "half": state.pop("half")}
  checkpoints = Checkpoints(str(folder), keep=2)
  for step in (5, 12):
    full = Trained(jnp.int32(step), params, state)
    checkpoints.save(step, full, HOST | {"step": step}, arrays(step))
  checkpoints.close()
  return params


class Trained(NamedTuple):
  step: jax.Array
  params: Any
  rest: Any


def test_parameters_are_read_without_the_rest(tmp_path, assert_same):
  params = save_params(tmp_path)
  for chosen, expected in ((None, 12), (5, 5)):
    step, payload = checkpoint.read_payload(tmp_path, chosen)
    assert (step, payload["host"]["step"]) == (expected, expected)
    assert_same(checkpoint.read_params(tmp_path, step, payload, abstract(params)), params)
  with pytest.raises(ValueError, match=r"no checkpoint of step 7; there are \[5, 12\]"):
    checkpoint.read_payload(tmp_path, 7)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("leaf", [1, 2])
def test_parameters_of_another_checksum_are_not_read(tmp_path, leaf):
  params = save_params(tmp_path)
  step, payload = checkpoint.read_payload(tmp_path)
  payload["checksums"][leaf] ^= 1
  with pytest.raises(Damaged, match="12: its params fail their checksums"):
    checkpoint.read_params(tmp_path, step, payload, abstract(params))


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("names", [("params", "opt_state"), ("opt_state", "params")])
def test_the_optimizer_is_read_too_in_any_order(tmp_path, assert_same, names):
  class Full(NamedTuple):
    step: jax.Array
    params: Any
    opt_state: Any
    rest: Any

  state = make_state(4)
  parts = {"params": {"half": state.pop("half")}, "opt_state": {"matrix": state.pop("matrix")}}
  checkpoints = Checkpoints(str(tmp_path), keep=2)
  checkpoints.save(5, Full(jnp.int32(5), **parts, rest=state), HOST, arrays(5))
  checkpoints.close()
  step, payload = checkpoint.read_payload(tmp_path)
  wanted = {name: abstract(parts[name]) for name in names}
  assert_same(checkpoint.read_fields(tmp_path, step, payload, wanted), parts)
