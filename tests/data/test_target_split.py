"""The target split: disjoint from training and validation, by hash, by files, or by task."""

import itertools
import json

import pytest

from jdc.data import cache, instruct, pack
from jdc.data.chat import from_tokenizer
from jdc.data.domains import DomainFiles, find_domains, find_tasks
from jdc.data.tokenize import byte_tokenizer
from jdc.train import corpus
from jdc.train.config import CorpusConfig

BYTES = byte_tokenizer()
CHAT = from_tokenizer(BYTES)
CONTENTS = [f"{i % 45}" for i in range(60)]  # 15 of them twice


def write(path, contents=CONTENTS):
  records = [{"text": f"document {c}", "instruction": "do", "output": c} for c in contents]
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return path


def packed(files, folder, *fractions, **options):
  """The texts of each split, and the cache folder."""
  domain = pack.prepare({"a": files}, BYTES, 40, *fractions, folder / "cache", **options)["a"]
  return domain, {split: texts_of(table) for split, table in domain.splits.items()}


def texts_of(table):
  """The documents, put together from their pieces."""
  found = {}
  for row in range(len(table)):
    tokens, start = table[row]["tokens"], 0
    for where, offset, length in table.documents(row):
      piece = found.setdefault(where, {})
      piece |= {offset + i: int(tokens[start + i]) for i in range(length)}
      start += length
  return [BYTES.decode([t for _, t in sorted(tokens.items())]) for tokens in found.values()]


def instructed(files, folder, *fractions, **options):
  domain = instruct.prepare({"a": files}, CHAT, 64, *fractions, folder / "cache", **options)[
    "a"
  ]
  return domain, {
    split: [
      CHAT.decode(ids[counts]) for ids, counts in zip(*t.read(range(len(t))), strict=True)
    ]
    for split, t in domain.splits.items()
  }


@pytest.mark.parametrize("prepare", [packed, instructed])
def test_a_fraction_is_held_out_by_content(tmp_path, prepare):
  files = DomainFiles((write(tmp_path / "a.jsonl"),))
  _, found = prepare(files, tmp_path, 0.2, target_fraction=0.1)
  _, before = prepare(files, tmp_path, 0.2)
  together = [sorted(itertools.chain(*texts.values())) for texts in (found, before)]
  assert together[0] == together[1]
  assert [len({*found[split]}) for split in found] == [45 - 9 - 5, 9, 5]
  assert not {*found["train"]} & {*found["target"]}
  assert not {*found["validation"]} & {*found["target"]}
  assert not {*found["train"]} & {*found["validation"]}
  # What is held out for validation does not depend on the target set.
  assert sorted(found["validation"]) == sorted(before["validation"])
  # Nor does the order of the documents matter; the seed does.
  shuffled = DomainFiles((write(tmp_path / "b.jsonl", CONTENTS[::-1]),))
  for seed, same in ((0, True), (1, False)):
    _, other = prepare(shuffled, tmp_path, 0.2, target_fraction=0.1, seed=seed)
    assert ({*other["target"]} == {*found["target"]}) is same
  _, alone = prepare(files, tmp_path, 0.0, target_fraction=0.1)
  assert "validation" not in alone
  assert len({*alone["target"]}) == 5


@pytest.mark.parametrize("prepare", [packed, instructed])
def test_files_take_the_place_of_a_fraction(tmp_path, prepare):
  train = write(tmp_path / "a.train.jsonl")
  target = write(tmp_path / "a.target.jsonl", ["x", "y"])
  (files,) = find_domains(tmp_path).values()
  assert files == DomainFiles((train,), (), (target,))
  _, found = prepare(files, tmp_path, 0.2, target_fraction=0.1)
  _, before = prepare(DomainFiles((train,)), tmp_path, 0.2)
  assert [found["train"], found["validation"]] == [before["train"], before["validation"]]
  assert len(found["target"]) == 2
  # Nothing is taken from files of a split.
  same = files._replace(target=(train,))
  assert len(prepare(same, tmp_path, 0.5)[1]["target"]) == len(CONTENTS)
  _, other = prepare(files._replace(validation=(target,), target=()), tmp_path, 0.0)
  assert other["validation"] == found["target"]
  assert "target" not in other


@pytest.mark.parametrize("prepare", [packed, instructed])
def test_without_a_target_set_the_cache_is_that_of_before(tmp_path, prepare, monkeypatch):
  """The key of a folder before there were target sets: two lists of names, no fraction."""
  seen, dumps = [], json.dumps
  monkeypatch.setattr(cache.json, "dumps", lambda x, **more: seen.append(x) or dumps(x, **more))
  files = DomainFiles((write(tmp_path / "a.jsonl"),))
  domain, _ = prepare(files, tmp_path, 0.2)
  *_, options, names, contents = next(x for x in seen if isinstance(x, list))
  if prepare is packed:
    assert options == [40, 0.2, "text", "error", 0]
  else:
    assert options == [64, 0.2, "auto", "error", "error", 0]
  assert names == [[str(tmp_path / "a.jsonl")], []]
  assert len(contents) == 1
  assert domain.target is None
  again, _ = prepare(files, tmp_path, 0.2, target_fraction=0.1)
  assert again.train.folder.parent != domain.train.folder.parent


def test_too_few_documents_name_the_domain(tmp_path):
  few = DomainFiles((write(tmp_path / "few.jsonl", "abcabc"),))
  enough = DomainFiles((write(tmp_path / "enough.jsonl"),))
  for fractions, counts in (
    ((0.4, 0.1), "validation_fraction 0.4 holds out 1, target_fraction 0.1 holds out 0 of 3"),
    ((0.3, 0.6), "validation_fraction 0.3 holds out 1, target_fraction 0.6 holds out 2 of 3"),
    ((0.0, 0.1), "documents: target_fraction 0.1 holds out 0 of 3"),
  ):
    with pytest.raises(ValueError, match=counts) as error:
      pack.prepare(
        {"few": few, "enough": enough}, BYTES, 9, fractions[0], tmp_path / "cache",
        target_fraction=fractions[1],
      )  # fmt: skip
    assert "domain 'few'" in str(error.value)
    assert "enough'" not in str(error.value)


def test_fractions_out_of_range_come_together(tmp_path):
  files = {"a": DomainFiles((write(tmp_path / "a.jsonl"),))}
  for prepare, tool in ((pack.prepare, BYTES), (instruct.prepare, CHAT)):
    with pytest.raises(ValueError, match=r"validation_fraction .* got -1.*\n.*target.* got 1"):
      prepare(files, tool, 9, -1.0, tmp_path / "cache", target_fraction=1.0)
    with pytest.raises(ValueError, match=r"0\.5 and target_fraction 0\.5 leave nothing"):
      prepare(files, tool, 9, 0.5, tmp_path / "cache", target_fraction=0.5)


def test_every_layout_of_a_domain_may_have_target_files(tmp_path):
  write(tmp_path / "deep/train/x.jsonl")
  write(tmp_path / "deep/target/y/x.jsonl")
  write(tmp_path / "named/target.jsonl")
  write(tmp_path / "named/part.jsonl")
  (tmp_path / "tf").mkdir()
  info = {"splits": [{"name": "target"}, {"name": "train"}]}
  (tmp_path / "tf/dataset_info.json").write_text(json.dumps(info))
  found = find_domains(tmp_path)
  assert found["deep"].target == (tmp_path / "deep/target/y/x.jsonl",)
  assert found["named"] == (
    (tmp_path / "named/part.jsonl",),
    (),
    (tmp_path / "named/target.jsonl",),
  )
  assert [str(path) for path in found["tf"].target] == [f"tfds:{tmp_path}/tf:target"]
  write(tmp_path / "lone.target.jsonl")
  with pytest.raises(ValueError, match="'lone' has target files but none to train on"):
    find_domains(tmp_path)


def test_a_file_is_a_task(tmp_path):
  for name in ("gsm8k.dev.jsonl", "web.target.jsonl", "my.task.jsonl", "README.md"):
    write(tmp_path / name)
  assert find_tasks(tmp_path) == {
    "gsm8k": DomainFiles((tmp_path / "gsm8k.dev.jsonl",)),
    "my.task": DomainFiles((tmp_path / "my.task.jsonl",)),
    "web": DomainFiles((tmp_path / "web.target.jsonl",)),
  }
  write(tmp_path / "gsm8k.test.jsonl")
  write(tmp_path / "folder/a.jsonl")
  (tmp_path / "notes.csv").touch()
  (tmp_path / "empty.jsonl").touch()
  with pytest.raises(ValueError) as error:
    find_tasks(tmp_path)
  for part in (
    "gsm8k.test.jsonl: task 'gsm8k' already has the file",
    "folder: a task is a file",
    "notes.csv: a task is a file; accepted: .jsonl",
    "empty.jsonl: empty file",
  ):
    assert part in str(error.value)
  with pytest.raises(ValueError, match="nowhere: no such folder of target sets"):
    find_tasks(tmp_path / "nowhere")
  (tmp_path / "bare").mkdir()
  with pytest.raises(ValueError, match="holds no task"):
    find_tasks(tmp_path / "bare")


@pytest.mark.parametrize("kind", ["text", "auto"])
def test_tasks_are_written_as_the_data_are(tmp_path, kind):
  write(tmp_path / "tasks/gsm8k.dev.jsonl", ["1", "1", "2"])
  write(tmp_path / "tasks/code.jsonl", ["x"])
  config = CorpusConfig(format=kind, cache_dir=str(tmp_path), target_fraction=0.3)
  tables = corpus.prepare_targets(str(tmp_path / "tasks"), config, 64, str(tmp_path))
  assert list(tables) == ["code", "gsm8k"]
  assert [table.num_documents for table in tables.values()] == [1, 3]
  assert tables["code"].num_target_tokens == (len("document x") + 1 if kind == "text" else 2)
  with pytest.raises(ValueError, match="no such folder"):
    corpus.prepare_targets(str(tmp_path / "other"), config, 64, str(tmp_path))


def test_a_run_prepares_the_target_split(tmp_path):
  write(tmp_path / "data/a.jsonl")
  for kind in ("text", "auto"):
    config = CorpusConfig(format=kind, cache_dir=str(tmp_path), target_fraction=0.1)
    found = corpus.prepare(str(tmp_path / "data"), config, 64, 0, str(tmp_path))["a"]
    assert list(found.splits) == ["train", "validation", "target"]
    assert len({table.fingerprint for table in found.splits.values()}) == 3
  with pytest.raises(ValueError, match=r"corpus.target_fraction must be in \[0, 1\), got 1.5"):
    corpus.check("folder", CorpusConfig(target_fraction=1.5))
