"""The table and the picture of a run directory."""

import json

from jdc.report import summary

LINES = [
  {
    "step": 0, "validation/web/loss": 5.0, "validation/web/bits_per_byte": 7.0,
    "validation/code/loss": 4.0, "validation/code/bits_per_byte": 6.0,
    "validation/macro_loss": 4.5, "validation/macro_bits_per_byte": 6.5,
    "validation/micro_loss": 4.4,
  },
  {"step": 5, "data/domain/web/probability": 0.4, "train/domain/web/loss": 4.5},
  {
    "step": 10, "validation/web/loss": 3.0, "validation/web/bits_per_byte": 4.3281,
    "validation/code/loss": 2.0, "validation/code/bits_per_byte": 2.8854,
    "validation/macro_loss": 2.5, "validation/macro_bits_per_byte": 3.625,
    "validation/micro_loss": 2.4, "data/domain/web/share_asked": 0.4,
    "data/domain/web/share_seen": 0.41, "data/domain/web/epochs": 1.5,
    "data/domain/code/share_asked": 0.6, "data/domain/code/share_seen": 0.59,
    "data/domain/code/epochs": 0.25,
  },
]  # fmt: skip


def write_run(folder):
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
  return folder


def test_the_table_holds_first_and_last_numbers(tmp_path):
  rows = [line.split() for line in summary.table(write_run(tmp_path)).splitlines()]
  assert rows[1] == ["web", "40.0", "%", "41.0", "%", "1.50", "5.0000", "3.0000", "4.3281"]
  assert rows[2] == ["code", "60.0", "%", "59.0", "%", "0.25", "4.0000", "2.0000", "2.8854"]
  assert rows[3] == ["mean", "4.5000", "2.5000", "3.6250"]


def test_the_picture_is_a_png(tmp_path):
  file = summary.plot(write_run(tmp_path))
  assert file.read_bytes().startswith(b"\x89PNG")


def test_a_run_that_evaluated_no_split_has_a_picture_and_no_table(tmp_path):
  lines = [
    {key: value for key, value in line.items() if not key.startswith("validation/")}
    for line in LINES
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert summary.table(tmp_path) == "no split was evaluated"
  assert summary.domain_names(lines) == ["web", "code"]
  assert summary.plot(tmp_path).read_bytes().startswith(b"\x89PNG")
