"""Tests of the raw text sources: every format, every kind of bad record, folders of domains."""

import gzip
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter

from jdc.data.sources import (
  Document,
  DomainFiles,
  ReadReport,
  find_domains,
  open_source,
  read_documents,
)

TEXTS = ["one", "zwei\nlines", "三", "four 🙂", " "]
JSONL = "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(TEXTS)).encode()
ROOT = Path(__file__).parents[2]
CORPUS = Path(os.environ.get("JDC_TEST_DATA", ROOT / "../shared/data")) / "corpus"


def compress(data, suffix):
  if suffix == ".gz":
    return gzip.compress(data)
  return zstandard.ZstdCompressor().compress(data) if suffix == ".zst" else data


def texts(*paths, **options):
  return [document.text for document in read_documents(paths, **options)]


def write_array_record(path, entries):
  writer = ArrayRecordWriter(str(path), "group_size:1")
  for entry in entries:
    writer.write(entry)
  writer.close()


def write_tfds(folder, splits):
  """Writes a prepared TFDS data set of texts, as protocol buffers spelt out by hand."""

  def message(field, payload):
    size = len(payload)
    varint = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([field << 3 | 2]) + varint + payload

  folder.mkdir(parents=True)
  for split, split_texts in splits.items():
    entries = []
    for text in split_texts:
      value = message(1, message(1, text.encode()))  # Feature.bytes_list.value
      pair = message(1, b"text") + message(2, value)  # an entry of Features.feature
      entries.append(message(1, message(1, pair)))
    name = f"{folder.parent.name}-{split}.array_record-00000-of-00001"
    write_array_record(folder / name, entries)
  features = "tensorflow_datasets.core.features."
  text_feature = {"pythonClassName": f"{features}text_feature.Text", "text": {}}
  (folder / "features.json").write_text(
    json.dumps(
      {
        "pythonClassName": f"{features}features_dict.FeaturesDict",
        "featuresDict": {"features": {"text": text_feature}},
      }
    )
  )
  template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
  info = {
    "name": folder.parent.name,
    "version": folder.name,
    "fileFormat": "array_record",
    "splits": [
      {
        "name": split,
        "shardLengths": [str(len(split_texts))],
        "numBytes": "1",
        "filepathTemplate": template,
      }
      for split, split_texts in splits.items()
    ],
  }
  (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_reads_jsonl(tmp_path, suffix, compression):
  path = tmp_path / f"web{suffix}{compression}"
  path.write_bytes(compress(JSONL.replace(b"\n", b"\r\n\n"), compression))
  documents = list(read_documents([path]))
  assert documents == [Document(t, f"{path}:{2 * i + 1}") for i, t in enumerate(TEXTS)]


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_reads_streams_one_after_the_other(tmp_path, compression):
  path = tmp_path / f"web.jsonl{compression}"
  first, second = JSONL[:30], JSONL[30:]
  padding = b"\0" * 512 if compression == ".gz" else b""
  path.write_bytes(compress(first, compression) + compress(second, compression) + padding)
  assert texts(path) == TEXTS


def test_reads_lines_longer_than_a_chunk(tmp_path):
  long = ["x" * 3_000_000, "y", "z" * (1 << 20)]
  path = tmp_path / "web.jsonl"
  path.write_text("\n".join(json.dumps({"text": text}) for text in long))
  assert texts(path) == long


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_reads_text_files(tmp_path, compression):
  path = tmp_path / f"a.txt{compression}"
  path.write_bytes(compress("uno\r\n\ndué".encode(), compression))
  assert list(read_documents([path])) == [Document("uno\r\n\ndué", f"{path}:1")]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.binary()])
def test_reads_parquet(tmp_path, kind):
  path = tmp_path / "web.parquet"
  column = pyarrow.array([text.encode() for text in TEXTS]).cast(kind)
  table = pyarrow.table({"n": list(range(5)), "body": column})
  pyarrow.parquet.write_table(table, path, row_group_size=2)
  documents = list(read_documents([path], text_field="body"))
  assert documents == [Document(text, f"{path}[{i}]") for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("indent", [None, 2])
def test_reads_a_json_array(tmp_path, indent, compression):
  path = tmp_path / f"web.json{compression}"
  array = json.dumps([{"text": text} for text in TEXTS], indent=indent)
  path.write_bytes(compress(f"\n {array}\n".encode(), compression))
  documents = list(read_documents([path]))
  assert documents == [Document(text, f"{path}[{i}]") for i, text in enumerate(TEXTS)]
  path.write_bytes(compress(b"[]", compression))
  assert texts(path) == []


@pytest.mark.parametrize(
  ("content", "good", "wrong"),
  [
    (b'[{"text": "a"}, 3, {"text": "b"}]', ["a", "b"], "a JSON int, not an object"),
    (b'[{"text": "a"}, {"text": "b"', ["a"], "invalid JSON"),
    (b'[{"text": "a"}', [], "Expecting ',' or ']'"),
    (b'[{"text": "a"},', ["a"], "one array must be all"),
    (b'[{"text": "a"} {"text": "b"}]', [], "Expecting ',' or ']'"),
    (b'[{"text": "a"}]\n[{"text": "b"}]', ["a"], "one array must be all"),
    (b'[{"text": "a"}, {"text": "\xff"}]', ["a"], "invalid UTF-8 at byte 26"),
    # Without its time, which would be part of the test's name.
    (
      gzip.compress(b'[{"text": "a"}, {"text": "b"}]', mtime=0)[:-9],
      ["a"],
      "truncated .gz data",
    ),
  ],
)
def test_broken_json_arrays(tmp_path, content, good, wrong):
  path = tmp_path / ("a.json.gz" if content[:2] == b"\x1f\x8b" else "a.json")
  path.write_bytes(content)
  with pytest.raises(ValueError, match=re.escape(wrong)):
    texts(path)
  aside, report = tmp_path / "bad.jsonl", ReadReport()
  options = {"on_bad_record": "quarantine", "quarantine": aside, "report": report}
  assert texts(path, **options) == good
  (bad,) = map(json.loads, aside.read_text().splitlines())
  assert wrong in bad["error"]
  assert bad["where"] == f"{path}[{1 if good else 0}]"
  assert (report.num_documents, report.num_bad_records) == (len(good), 1)


def test_a_json_array_has_no_random_access(tmp_path):
  (tmp_path / "a.json").write_text('[\n{"text": "a"}]')
  with pytest.raises(ValueError, match="no random access"):
    open_source(tmp_path / "a.json")
  (tmp_path / "a.json").write_text('{"text": "a"}\n{"text": "b"}')
  assert open_source(tmp_path / "a.json")[1].text == "b"


@pytest.mark.parametrize("suffix", [".array_record", ".arrayrecord-00000-of-00001"])
def test_reads_array_record(tmp_path, suffix):
  path = tmp_path / f"web{suffix}"
  write_array_record(path, JSONL.splitlines())
  documents = list(read_documents([path]))
  assert documents == [Document(text, f"{path}[{i}]") for i, text in enumerate(TEXTS)]


def test_reads_tfds_without_tensorflow(tmp_path):
  folder = tmp_path / "toy" / "1.0.0"
  write_tfds(folder, {"train": TEXTS, "validation": ["six"]})
  program = """
import sys
from jdc.data.sources import open_source, read_documents
sources = sys.argv[1:]
print([[d.text for d in read_documents([source])] for source in sources])
print(open_source(sources[0])[3].text)
assert "tensorflow" not in sys.modules
"""
  sources = [str(folder), f"tfds:{folder}:validation", "tfds:toy", "tfds:toy:1.0.0"]
  ran = subprocess.run(
    [sys.executable, "-c", program, *sources, "tfds:toy:1.0.0:validation"],
    env={**os.environ, "TFDS_DATA_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
    capture_output=True,
    encoding="utf-8",
  )
  assert ran.returncode == 0, ran.stderr
  expected = [TEXTS, ["six"], TEXTS, TEXTS, ["six"]]
  assert ran.stdout.splitlines() == [str(expected), TEXTS[3]]


def test_tfds_errors(tmp_path):
  folder = tmp_path / "toy" / "1.0.0"
  write_tfds(folder, {"train": TEXTS})
  with pytest.raises(ValueError, match=r"no split 'val'; prepared: \['train'\]"):
    texts(f"tfds:{folder}:val")
  with pytest.raises(ValueError, match="tfds:no_such_set: neither"):
    texts("tfds:no_such_set")
  with pytest.raises(ValueError, match=r"train\[0\].*'body' is absent.*present: \['text'\]"):
    texts(folder, text_field="body")


BAD_LINES = [
  (b'{"text": "a"', "invalid JSON"),
  (b"[1, 2]", "a JSON list, not an object"),
  (b'{"body": "a", "id": 3}', r"'text' is absent; fields present: \['body', 'id'\]"),
  (b'{"text": 7}', "'text' is of type int, not a string"),
  (b'{"text": null}', "'text' is of type NoneType, not a string"),
  (b'{"text": ""}', "'text' is empty"),
  (b'{"text": "\xff"}', "invalid UTF-8 at byte 10"),
  (b'{"text": "\\ud800"}', "'text' is not valid Unicode"),
  (b"[" * 100_000, "invalid JSON"),
]


@pytest.mark.parametrize(("line", "wrong"), BAD_LINES)
def test_bad_record_raises_with_its_place(tmp_path, line, wrong):
  path = tmp_path / "web.jsonl"
  path.write_bytes(JSONL + line + b"\n" + JSONL)
  with pytest.raises(ValueError, match=rf"web.jsonl:6: .*{wrong}.*accepted: a non-empty"):
    texts(path)


def test_quarantine_holds_every_bad_record(tmp_path):
  path, quarantine, report = tmp_path / "web.jsonl", tmp_path / "bad.jsonl", ReadReport()
  path.write_bytes(JSONL + b"\n".join(line for line, _ in BAD_LINES) + b"\n" + JSONL)
  quarantine.write_text("{}\n")
  options = {"on_bad_record": "quarantine", "quarantine": quarantine, "report": report}
  assert texts(path, **options) == TEXTS + TEXTS
  assert report == ReadReport(num_documents=10, num_bad_records=len(BAD_LINES))
  bad = [json.loads(line) for line in quarantine.read_text().splitlines()]
  assert bad.pop(0) == {}  # what was there is kept
  assert [b["where"] for b in bad] == [f"{path}:{6 + i}" for i in range(len(BAD_LINES))]
  assert [b["raw"] for b in bad] == [
    line.decode("utf-8", "backslashreplace") for line, _ in BAD_LINES
  ]


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["truncated", "damaged"])
def test_damaged_compression_is_a_bad_record(tmp_path, compression, damage):
  path, quarantine = tmp_path / f"web.jsonl{compression}", tmp_path / "bad.jsonl"
  first = compress(JSONL, compression)
  second = compress(b'{"text": "last"}', compression)
  if damage == "truncated":
    path.write_bytes(first + second[:-3])
  else:
    path.write_bytes(first + b"nonsense that is no header")
  with pytest.raises(ValueError, match=rf"{damage} {compression} data"):
    texts(path)
  assert texts(path, on_bad_record="quarantine", quarantine=quarantine) == TEXTS
  bad = [json.loads(line) for line in quarantine.read_text().splitlines()]
  assert damage in bad[-1]["error"]


def test_bad_text_file_names_the_line(tmp_path):
  path = tmp_path / "a.txt"
  path.write_bytes(b"one\ntwo\n\xff")
  with pytest.raises(ValueError, match=r"a.txt:3: invalid UTF-8 at byte 8"):
    texts(path)
  path.write_bytes(b"")
  with pytest.raises(ValueError, match=r"a.txt:1: .*empty"):
    texts(path)
  cut = tmp_path / "a.txt.gz"
  cut.write_bytes(gzip.compress(b"one\ntwo\n")[:-4])
  with pytest.raises(ValueError, match=r"a.txt.gz:\d: truncated"):
    texts(cut)


def test_bad_parquet(tmp_path):
  path, quarantine = tmp_path / "a.parquet", tmp_path / "bad.jsonl"
  column = pyarrow.array([b"ok", None, b"\xff"]).view(pyarrow.string())
  pyarrow.parquet.write_table(pyarrow.table({"text": column, "n": [1, 2, 3]}), path)
  with pytest.raises(ValueError, match=r"a.parquet\[1\]: .*NoneType"):
    texts(path)
  assert texts(path, on_bad_record="quarantine", quarantine=quarantine) == ["ok"]
  assert len(quarantine.read_text().splitlines()) == 2
  with pytest.raises(ValueError, match=r"no column 'body'; columns present: \['text', 'n'\]"):
    texts(path, text_field="body")
  with pytest.raises(ValueError, match=r"a.parquet\[0\]: .*type int, not a string"):
    texts(path, text_field="n")
  path.write_bytes(b"PAR1 and no more")
  with pytest.raises(ValueError, match="not readable as Parquet"):
    texts(path)


def test_damaged_array_record(tmp_path):
  path = tmp_path / "a.array_record"
  write_array_record(path, JSONL.splitlines())
  path.write_bytes(path.read_bytes()[:-50])
  with pytest.raises(ValueError, match="damaged as ArrayRecord"):
    texts(path)
  with pytest.raises(ValueError, match="damaged as ArrayRecord"):
    open_source(path)


def test_wrong_arguments_are_listed_at_the_call(tmp_path):
  (tmp_path / "a.csv").write_text("a")
  with pytest.raises(ValueError) as error:
    read_documents([tmp_path / "no.jsonl", tmp_path / "a.csv"], on_bad_record="skip")
  for part in ("no.jsonl: no such file", "a.csv: unknown suffix; accepted: .jsonl", "'skip'"):
    assert part in str(error.value)
  with pytest.raises(ValueError, match="needs a quarantine file"):
    read_documents([tmp_path / "a.jsonl"], on_bad_record="quarantine")
  with pytest.raises(ValueError, match="no files"):
    read_documents([])


@pytest.mark.parametrize(
  ("module", "name", "extra"),
  [("pyarrow.parquet", "a.parquet", "parquet"), ("zstandard", "a.txt.zst", "zstd")],
)
def test_absent_package_names_the_extra(tmp_path, monkeypatch, module, name, extra):
  (tmp_path / name).write_bytes(b"data")
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ImportError, match=rf"pip install jdc\[{extra}\]"):
    texts(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".array_record"])
def test_random_access_agrees_with_reading(tmp_path, suffix):
  path = tmp_path / f"web{suffix}"
  if suffix == ".jsonl":
    path.write_bytes(b"\n  \r\n" + JSONL.replace(b"\n", b"\n\n").rstrip(b"\n"))
  elif suffix == ".parquet":
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), path, row_group_size=2)
  else:
    write_array_record(path, JSONL.splitlines())
  source = open_source(path)
  assert len(source) == len(TEXTS)
  assert [source[i] for i in (4, 0, 3, 1, 2)] == [
    list(read_documents([path]))[i] for i in (4, 0, 3, 1, 2)
  ]
  assert list(source.shuffle(seed=1).to_iter_dataset())
  with pytest.raises(ValueError, match="'body'"):
    open_source(path, "body")[0]


def test_random_access_refuses_streams(tmp_path):
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(JSONL))
  with pytest.raises(ValueError, match=r"no random access; accepted: uncompressed \.jsonl"):
    open_source(tmp_path / "a.jsonl.gz")
  with pytest.raises(ValueError, match="no such file"):
    open_source(tmp_path / "b.jsonl")


def write(folder, *names):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(JSONL) if name.endswith(".gz") else JSONL)
  return folder


def test_finds_every_layout_of_a_domain(tmp_path):
  write(tmp_path, "whole.jsonl", "pair.train.jsonl.gz", "pair.val.jsonl.gz", "README.md")
  write(tmp_path, "long.name.train.json", "long.name.validation.txt", ".hidden.csv")
  write(
    tmp_path, "flat/b.txt", "flat/a.txt", "flat/LICENSE", "named/train.txt", "named/val.txt"
  )
  write(tmp_path, "deep/train/x/b.txt", "deep/train/a.txt", "deep/val/c.txt")
  write(
    tmp_path, "shards/p.array_record-00000-of-00002", "shards/p.array_record-00001-of-00002"
  )
  write_tfds(tmp_path / "tf", {"train": TEXTS, "validation": ["six"], "test": ["no"]})
  domains = find_domains(tmp_path)
  assert list(domains) == sorted(domains)

  def named(*names):
    return tuple(tmp_path / name for name in names)

  assert domains.pop("tf") == DomainFiles(
    (Path(f"tfds:{tmp_path}/tf:train"),), (Path(f"tfds:{tmp_path}/tf:validation"),)
  )
  assert domains == {
    "deep": DomainFiles(
      named("deep/train/a.txt", "deep/train/x/b.txt"), named("deep/val/c.txt")
    ),
    "flat": DomainFiles(named("flat/a.txt", "flat/b.txt")),
    "long.name": DomainFiles(named("long.name.train.json"), named("long.name.validation.txt")),
    "named": DomainFiles(named("named/train.txt"), named("named/val.txt")),
    "pair": DomainFiles(named("pair.train.jsonl.gz"), named("pair.val.jsonl.gz")),
    "shards": DomainFiles(
      named("shards/p.array_record-00000-of-00002", "shards/p.array_record-00001-of-00002")
    ),
    "whole": DomainFiles(named("whole.jsonl")),
  }


def test_only_the_usual_files_about_the_data_are_ignored(tmp_path):
  about = ["README", "readme.txt", "LICENSE.txt", "Licence.rst", "license", "NOTICE.md"]
  data = ["LICENSES.jsonl", "README_data.jsonl", "readme_corpus.txt", "licence.jsonl"]
  write(tmp_path, *about, *data, "notice/a.txt", "web/train/readme/a.txt")
  write(tmp_path / "web", *about)
  write(tmp_path / "web/train", *about)
  assert find_domains(tmp_path) == {
    "LICENSES": DomainFiles((tmp_path / "LICENSES.jsonl",)),
    "README_data": DomainFiles((tmp_path / "README_data.jsonl",)),
    "licence": DomainFiles((tmp_path / "licence.jsonl",)),
    "notice": DomainFiles((tmp_path / "notice/a.txt",)),
    "readme_corpus": DomainFiles((tmp_path / "readme_corpus.txt",)),
    "web": DomainFiles((tmp_path / "web/train/readme/a.txt",)),
  }
  write(tmp_path, "README_first.md", "LICENSE-MIT")
  with pytest.raises(ValueError, match=r"LICENSE-MIT: unknown(.|\n)*README_first.md: unknown"):
    find_domains(tmp_path)


def test_all_errors_of_a_folder_come_together(tmp_path):
  write(tmp_path, "web.jsonl", "web.txt", "web/a.txt", "notes.csv", "lone.val.jsonl")
  write(tmp_path, "val.jsonl", "x.test.jsonl", "mixed/train/a.txt", "mixed/b.txt", "odd/a.csv")
  (tmp_path / "nothing.jsonl").touch()
  (tmp_path / "nothing2.jsonl.gz").write_bytes(gzip.compress(b""))
  (tmp_path / "bare").mkdir()
  with pytest.raises(ValueError) as error:
    find_domains(tmp_path)
  for part in (
    "web.jsonl: domain 'web' already has train files",
    "web.txt: domain 'web' already has train files",
    "notes.csv: unknown suffix; accepted: .jsonl",
    "domain 'lone' has validation files but none to train on",
    "val.jsonl: names no domain; accepted: NAME.val.jsonl",
    "x.test.jsonl: split 'test' unknown",
    "mixed/b.txt: accepted beside train/, val/ and target/",
    "odd/a.csv: unknown suffix",
    "nothing.jsonl: empty file",
    "nothing2.jsonl.gz: empty file",
    "bare: holds no files",
  ):
    assert part in str(error.value)


def test_folder_missing_or_empty(tmp_path):
  with pytest.raises(ValueError, match="no such folder"):
    find_domains(tmp_path / "no")
  write(tmp_path, "README.md", ".git/config")
  with pytest.raises(ValueError, match="holds no domain"):
    find_domains(tmp_path)


@pytest.mark.skipif(
  not CORPUS.is_dir(), reason=f"no sample data at {CORPUS}; set JDC_TEST_DATA"
)
def test_reads_the_sample_corpus():
  domains = find_domains(CORPUS)
  assert len(domains) == 8
  for files in domains.values():
    assert len(files.train) == len(files.validation) == 1
    validation = texts(*files.validation)
    assert validation
    assert not {*validation} & {*texts(*files.train)}


def test_documents_pickle():
  document = Document("a", "b:1")
  assert pickle.loads(pickle.dumps(document)) == document


@pytest.mark.parametrize("info", ['{"splits": [{"name": "test"}]}', "{", '{"splits": 3}'])
def test_a_tfds_folder_of_which_nothing_can_be_used_is_an_error(tmp_path, info):
  (tmp_path / "web.txt").write_text("text")
  (tmp_path / "prepared").mkdir()
  (tmp_path / "prepared/dataset_info.json").write_text(info)
  with pytest.raises(ValueError, match="prepared"):
    find_domains(tmp_path)
