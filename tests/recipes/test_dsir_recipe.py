"""Importance weights of a run's pool: ids, texts and the file that the run reads."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from jdc.data import dsir as words
from jdc.policies import selection
from jdc.recipes import dsir
from jdc.train import corpus, setup
from jdc.train.config import CorpusConfig, PlanConfig, TargetConfig, TrainConfig
from jdc.train.config import policy as policy_config

ROOT = Path(__file__).parent.parent.parent
TOPICS = {"fruit": ["apple", "pear", "plum", "fig"], "metal": ["iron", "tin", "lead", "zinc"]}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
  for name, chosen in TOPICS.items():
    texts = [" ".join(rng.choice(chosen, 30)) for _ in range(20)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / f"{name}.jsonl").write_text(lines)
    (folder / f"{name}.val.jsonl").write_text(lines[: lines.index("\n") + 1])
  targets = tmp_path_factory.mktemp("targets")
  ores = [{"text": " ".join(rng.choice(["zinc", "tin", "iron"], 500))} for _ in range(20)]
  (targets / "ores.jsonl").write_text("".join(json.dumps(ore) + "\n" for ore in ores))
  cache = tmp_path_factory.mktemp("cache")
  return TrainConfig(
    sequence_length=48,
    data=str(folder),
    corpus=CorpusConfig(cache_dir=str(cache)),
    target=TargetConfig(folder=str(targets)),
    plan=PlanConfig(draw="gumbel_top_k"),
  )


def test_weighs_the_rows_of_the_run_and_finds_the_target(config, tmp_path):
  weighed = dsir.weigh(config, str(tmp_path / "work"))
  domains = corpus.prepare(
    config.data, config.corpus, config.sequence_length, config.seed, str(tmp_path / "run")
  )
  tables = [domain.train for domain in domains.values()]
  size = sum(map(len, tables))
  assert weighed.columns["example_id"].tolist() == list(range(size))
  assert weighed.fingerprint == setup.data_fingerprint(domains)
  metal = weighed.columns["domain"] == "metal"
  assert metal.sum() == len(domains["metal"].train)
  score = weighed.columns["score"]
  # But for the last row of each domain, which is a short one.
  assert score[metal][:-1].min() > score[~metal][:-1].max()

  # A row of bytes and its documents, read without any of the code that weighs.
  tokens, segments = domains["fruit"].train.rows([1])
  pieces = [
    bytes(tokens[0][(segments[0] == s) & (tokens[0] < 256)].astype(np.uint8)).decode()
    for s in range(1, segments.max() + 1)
  ]
  assert list(dsir.texts(tables, corpus.tokenizer(config.corpus).decode))[1] == "\n".join(
    pieces
  )
  assert weighed.columns["num_words"][1] == words.hash_ngrams(["\n".join(pieces)]).num_words[0]

  output = tmp_path / "weights.parquet"
  dsir.write(output, weighed)
  chosen = dataclasses.replace(
    config, selection=policy_config(selection.from_file, path=str(output))
  )
  spec = setup.run_spec(chosen, domains, setup.Policies())
  decision, _ = selection.from_file(str(output)).init(spec, jax.random.key(0))
  np.testing.assert_array_equal(decision.logits, np.float32(score))
  with pytest.raises(ValueError, match="data_fingerprint"):
    selection.from_file(str(output)).init(
      spec._replace(data_fingerprint="0" * 32), jax.random.key(0)
    )


def test_refuses_a_run_without_a_target(config, tmp_path):
  with pytest.raises(ValueError, match="there are no target rows"):
    dsir.weigh(dataclasses.replace(config, target=TargetConfig()), str(tmp_path))


@pytest.mark.slow
def test_the_command(config, tmp_path):
  output = tmp_path / "weights.parquet"
  launch = lambda *flags: subprocess.run(
    [sys.executable, "launch/dsir.py", f"--config={ROOT}/configs/pretrain_mixture.py",
     f"--config.data={config.data}", f"--config.target.folder={config.target.folder}",
     f"--config.corpus.cache_dir={tmp_path}/cache", "--config.sequence_length=48", *flags],
    cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    timeout=300, check=False,
  )  # fmt: skip
  done = launch(f"--output={output}")
  assert done.returncode == 0, done.stderr
  table = pq.read_table(output)
  assert f"{len(table)} rows weighed by" in done.stdout
  assert table.column_names == ["example_id", "domain", "num_words", "score"]
  again = launch(f"--output={output}")
  assert "exists already" in again.stdout + again.stderr
  assert again.returncode != 0
