"""`launch/sweep.py`: the table it writes, what reads it, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from jdc.policies import RunSpec, selection

ROOT = Path(__file__).parent.parent


def launch(*flags):
  xla = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
  return subprocess.run(
    [sys.executable, "launch/sweep.py", *map(str, flags)],
    cwd=ROOT, env=os.environ | {"XLA_FLAGS": xla, "PYTHONPATH": str(ROOT)},
    capture_output=True, text=True, timeout=300, check=False,
  )  # fmt: skip


@pytest.mark.slow
def test_writes_a_table_that_a_selection_reads(base_folder, instruct_folder, tmp_path):
  targets = tmp_path / "targets"
  targets.mkdir()
  records = {
    path.stem: path.read_text().splitlines() for path in sorted(instruct_folder.glob("*.jsonl"))
  }
  (targets / "copy.jsonl").write_text("".join(f"{line}\n" for line in records["copy"][:6]))
  output, kept = tmp_path / "scores.parquet", tmp_path / "kept"
  flags = (
    f"--config={ROOT}/configs/select_less.py:tiny,scores",
    f"--config.weights.folder={base_folder}",
    f"--config.data={instruct_folder}",
    f"--config.corpus.cache_dir={tmp_path}/cache",
    f"--config.target.folder={targets}",
    f"--features={kept}",
  )
  done = launch(*flags, f"--output={output}")
  assert done.returncode == 0, done.stderr
  table = pq.read_table(output)
  assert table.column_names[:4] == ["example_id", "domain", "where", "score"]
  rows = table.to_pydict()
  assert rows["example_id"] == list(range(len(table)))
  assert set(rows["domain"]) == set(records)
  assert np.all(np.isfinite(rows["score"]))
  assert f"{len(table)} rows, {len(table)} of them may be drawn" in done.stdout
  for where, domain in zip(rows["where"], rows["domain"], strict=True):
    path, _, line = where.rpartition(":")
    assert Path(path).stem == domain
    assert json.loads(records[domain][int(line) - 1])["instruction"].startswith(domain)
  # The copies that the target consists of are what helps it most.
  best = np.argsort(rows["score"])[-10:]
  assert np.mean([rows["domain"][i] == "copy" for i in best]) > 0.5
  facts = json.loads(table.schema.metadata[b"jdc"])
  assert facts["steps"] == [0]
  assert len(facts["data_fingerprint"]) == 32
  assert (kept / "0/update_direction/meta.json").exists()

  spec = RunSpec(
    len(table), 3, tuple(records), tuple(rows["domain"].count(name) for name in records),
    (1 / 3,) * 3, data_fingerprint=facts["data_fingerprint"],
  )  # fmt: skip
  policy = selection.from_file(str(output))
  logits_N = policy.init(spec, jax.random.key(0))[0].logits
  np.testing.assert_array_equal(logits_N, np.float32(rows["score"]))
  with pytest.raises(ValueError, match="is not that of the run"):
    policy.init(spec._replace(data_fingerprint="0" * 32), jax.random.key(0))
  again = launch(*flags, f"--output={output}")
  assert again.returncode != 0
  assert f"--output={output} exists already" in again.stderr


def test_wrong_flags_are_named_at_once(tmp_path):
  done = launch(
    f"--config={ROOT}/configs/select_less.py:tiny,scores", f"--output={tmp_path}/scores.csv",
    f"--run={tmp_path}", "--steps=1,last",
  )  # fmt: skip
  assert done.returncode != 0
  for message in (
    "--output must end with .parquet",
    "--steps must be whole numbers, got ['last']",
    f"--run={tmp_path} holds no checkpoints",
  ):
    assert message in done.stderr
