"""Stores of sweeps: what is cut off, changed or of another key is not there."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jdc.stats import sweep_store
from jdc.stats.sweep_store import SweepStore

KEY = {"seed": 0, "round": 3, "state": "5f"}


def arrays_of(chunk):
  rng = np.random.default_rng(chunk)
  return {
    "loss": rng.normal(size=3).astype(np.float32),
    "direction": rng.normal(size=(3, 2)).astype(jnp.bfloat16),
    "count": np.uint32(chunk),
  }


def assert_holds(store, chunks):
  assert len(store) == len(chunks)
  for chunk in chunks:
    found, expected = store.read(f"c{chunk}"), arrays_of(chunk)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
      assert found[name].dtype == x.dtype
      np.testing.assert_array_equal(found[name], x)


def filled(folder, chunks, key=KEY):
  store = SweepStore(folder, key)
  for chunk in chunks:
    store.write(f"c{chunk}", arrays_of(chunk))
  return store


def journals(store):
  return sorted(store.path.glob("*.journal"))


def test_what_is_written_is_read_again(tmp_path):
  assert_holds(filled(tmp_path, range(3)), range(3))
  assert_holds(SweepStore(tmp_path, KEY), range(3))
  more = filled(tmp_path, range(3, 5))
  assert_holds(more, range(5))
  assert "c4" in more
  assert "c5" not in more
  with pytest.raises(KeyError):
    more.read("c5")


def test_another_key_sees_nothing(tmp_path):
  filled(tmp_path, range(3))
  for other in (KEY | {"seed": 1}, KEY | {"state": "5e"}, {}, [], None):
    assert len(SweepStore(tmp_path, other)) == 0
  assert_holds(SweepStore(tmp_path, dict(reversed(KEY.items()))), range(3))


def test_a_journal_may_end_at_any_byte(tmp_path):
  (journal,) = journals(filled(tmp_path, [0]))
  one = journal.stat().st_size
  (journal,) = journals(filled(tmp_path / "three", range(3)))
  whole = journal.read_bytes()
  for size in range(len(whole)):
    journal.write_bytes(whole[:size])
    assert_holds(SweepStore(tmp_path / "three", KEY), range(size // one))
  # What comes after a torn end is written and found.
  journal.write_bytes(whole[: one + 7])
  assert_holds(filled(tmp_path / "three", [2]), [0, 2])
  assert_holds(SweepStore(tmp_path / "three", KEY), [0, 2])


def test_a_changed_byte_is_found(tmp_path):
  (journal,) = journals(filled(tmp_path, range(2)))
  whole = journal.read_bytes()
  one = len(whole) // 2
  for at in range(len(whole)):
    journal.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
    assert_holds(SweepStore(tmp_path, KEY), range(at // one))
  opened = SweepStore(tmp_path, KEY)
  journal.write_bytes(b"")
  with pytest.raises(ValueError, match="the record of chunk c0 has changed"):
    opened.read("c0")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"seed": 1}', None])
def test_a_store_without_its_key_is_not_trusted(tmp_path, content):
  store = filled(tmp_path, range(2))
  path = store.path / "key.json"
  path.write_bytes(content) if content is not None else path.unlink()
  assert len(SweepStore(tmp_path, KEY)) == 0
  assert json.loads(path.read_text()) == KEY
  assert_holds(filled(tmp_path, range(2)), range(2))


def test_finish_leaves_one_journal(tmp_path):
  for chunk in range(3):
    store = filled(tmp_path, [chunk])
  assert len(journals(store)) == 3
  store.finish()
  assert len(journals(store)) == 1
  assert_holds(store, range(3))
  assert_holds(SweepStore(tmp_path, KEY), range(3))
  store.finish()
  again = filled(tmp_path, [3])
  again.finish()
  assert len(journals(again)) == 1
  assert_holds(again, range(4))
  again.remove()
  assert not again.path.exists()


def test_processes_write_journals_of_their_own(tmp_path, monkeypatch):
  filled(tmp_path, [0, 1])
  monkeypatch.setattr(sweep_store.jax, "process_index", lambda: 1)
  second = filled(tmp_path, [1, 2])
  assert_holds(second, [0, 1, 2])
  filled(tmp_path, [3]).finish()
  assert [path.name[:2] for path in journals(second)] == ["0-", "1-"]
  assert_holds(SweepStore(tmp_path, KEY), [0, 1, 2, 3])


def test_chunks_that_a_process_lacks_are_not_held(monkeypatch):
  from jax.experimental import multihost_utils

  others = np.array([True, False, True])
  monkeypatch.setattr(sweep_store.jax, "process_count", lambda: 2)
  monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: np.stack([x, others]))
  held = sweep_store.in_all_processes([True, True, False])
  assert held.tolist() == [True, False, False]


def test_clean_removes_the_others(tmp_path):
  kept, old = filled(tmp_path, [0]), filled(tmp_path, [1], {"round": 2})
  unreadable = filled(tmp_path, [1], {"round": 1})
  (unreadable.path / "key.json").write_text("{")
  (tmp_path / "notes").mkdir()
  sweep_store.clean(tmp_path, lambda key: key["round"] == 3)
  assert {path.name for path in tmp_path.iterdir()} == {kept.path.name, "notes"}
  assert not old.path.exists()
  sweep_store.clean(tmp_path / "absent", lambda key: True)


def test_a_key_must_be_json(tmp_path):
  for key in ({"a": object()}, {"a": float("nan")}):
    with pytest.raises(ValueError, match="must be JSON"):
      SweepStore(tmp_path, key)
