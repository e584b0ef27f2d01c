import gzip
import importlib.util
import itertools
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep import near_clusters, near_dedup, near_shingles
from jdc.prep.kernels import minhash
from jdc.prep.text.scripts import UNSPACED

ROOT = Path(__file__).parents[2]
DIRTY = Path(os.environ.get("JDC_TEST_DATA", ROOT / "../shared/data")) / "dirty"
FULL = (1 << 64) - 1
KIND: dict[str, str] = {}


def kind_of(char):
  if char not in KIND:
    letter = unicodedata.category(char)[0] in "LMN"
    alone = letter and any(first <= ord(char) <= last for first, last in UNSPACED)
    KIND[char] = "alone" if alone else "letter" if letter else "gap"
  return KIND[char]


def folded(char):
  full = char.casefold()
  return full if len(full) == 1 else char.lower()[0]


def reference_words(text):
  found, current = [], ""
  for char in unicodedata.normalize("NFC", text) + " ":
    kind = kind_of(char)
    if kind == "letter":
      current += folded(char)
      continue
    found += [current] * bool(current) + [folded(char)] * (kind == "alone")
    current = ""
  return found


def reference_shingles(text, ngram):
  words = reference_words(text)
  if not words:
    return []
  size = min(ngram, len(words))
  return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def mix(x):
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & FULL
  x = (x ^ x >> 27) * 0x94D049BB133111EB & FULL
  return x ^ x >> 31


HASHES: dict[str, int] = {}


def word_hash(word):
  if word not in HASHES:
    h = 0xCBF29CE484222325
    for char in word:
      h = (h ^ ord(char)) * 0x100000001B3 & FULL
    HASHES[word] = mix(h)
  return HASHES[word]


def shingle_hash(shingle):
  total = 0
  for word in shingle:
    total = (total * 0x9E3779B97F4A7C15 + word_hash(word)) & FULL
  return mix(total)


def reference_keys(text, ngram, bands, rows, seed):
  """The keys of a text, hash by hash in Python's integers; None without words."""
  a, b = minhash.permutations(bands * rows, seed)
  x = [shingle_hash(s) >> 32 for s in reference_shingles(text, ngram)]
  if not x:
    return None
  permuted = a[:, None].astype(object) * np.array(x, object) + b[:, None].astype(object)
  least = (permuted % (1 << 32)).min(axis=1).tolist()
  keys = []
  for band in range(bands):
    key = 0
    for value in least[band * rows : (band + 1) * rows]:
      key = (key * 0x9E3779B97F4A7C15 + value) & FULL
    keys.append(mix((key + 1) & FULL))
  return keys


def similarity(texts, i, j, ngram=5):
  one, two = (set(reference_shingles(texts[k], ngram)) for k in (i, j))
  return len(one & two) / len(one | two)


def reference_clusters(texts, keys, threshold, ngram=5):
  """Compares every pair of every band as sets of tuples of words; the root is the least row."""
  sets = [set(reference_shingles(text, ngram)) for text in texts]
  root = list(range(len(texts)))

  def find(x):
    while root[x] != x:
      x = root[x]
    return x

  pairs = set()
  for band in keys:
    groups: dict[int, list[int]] = {}
    for row in range(len(texts)):
      if sets[row]:
        groups.setdefault(int(band[row]), []).append(row)
    for group in groups.values():
      pairs.update(itertools.combinations(group, 2))
  for x, y in sorted(pairs):
    if len(sets[x] & sets[y]) / len(sets[x] | sets[y]) >= threshold:
      x, y = find(x), find(y)
      root[max(x, y)] = min(x, y)
  return [find(x) for x in range(len(texts))], pairs


def fetch_from(texts):
  """Returns texts of rows in batches of three."""
  array = pa.array(texts, pa.string())

  def fetch(rows):
    assert np.all(np.diff(rows) > 0)
    for i in range(0, len(rows), 3):
      yield array.take(pa.array(rows[i : i + 3]))

  return fetch


def dedup(texts, **options):
  keys = near_dedup.keys(pa.array(texts, pa.string()))
  return near_dedup.decide([keys], fetch_from(texts), **options)


def check_evidence(texts, found, threshold):
  """What the decision promises: one row of a cluster stays, the evidence is true."""
  gone = set(found.row.tolist())
  assert not gone & set(found.kept.tolist())
  for row, kept, near, value in zip(*(x.tolist() for x in found), strict=True):
    assert value == similarity(texts, row, near) >= threshold
    assert kept < row
    assert near == kept or near in gone


def dirty_texts():
  if not DIRTY.exists():
    pytest.skip(f"no {DIRTY}: set JDC_TEST_DATA to the folder with dirty/")
  texts = []
  for line in gzip.decompress((DIRTY / "raw-00.jsonl.gz").read_bytes()).splitlines():
    try:
      text = json.loads(line)["text"]
      text.encode()
    except (ValueError, KeyError, TypeError, AttributeError):
      continue
    texts.append(text)
  return texts


@pytest.fixture(scope="module")
def planted():
  """3,000 documents of made-up words with copies planted as in the corpus of the benchmarks."""
  path = ROOT / "launch/bench_corpus.py"
  spec = importlib.util.spec_from_file_location("bench_corpus", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  rng = np.random.default_rng(0)
  weights = 1 / np.arange(1, 4001)
  words = rng.choice(4000, (3000, 16), p=weights / weights.sum()).tolist()
  sentences = [" ".join(f"w{i}" for i in sentence) + "." for sentence in words]
  corpus = module.Corpus(3000, 1, sentences)
  return corpus.truth, [corpus.text(row) for row in range(3000)]


CHARS = st.characters(exclude_categories=("Cs", "Cn"), max_codepoint=0x323AF)
TEXTS = st.lists(st.text(st.one_of(CHARS, st.sampled_from("ab Aİẞ·中อé\u0301"))), max_size=6)


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.integers(1, 6), st.integers(0, 2**70))
def test_keys_are_those_of_plain_python(texts, ngram, seed):
  found = near_dedup.keys(pa.array(texts, pa.string()), ngram=ngram, bands=3, rows=2, seed=seed)
  for row, text in enumerate(texts):
    assert found.num_words[row] == len(reference_words(text))
    expected = reference_keys(text, ngram, 3, 2, seed)
    assert found.bands[:, row].tolist() == (expected or [0, 0, 0])


def test_raw_documents_against_plain_python():
  texts = dirty_texts()
  keys = near_dedup.keys(pa.array(texts))
  for row in range(0, len(texts), 60):
    expected = reference_keys(texts[row][:2000], 5, 14, 8, 1)
    found = near_dedup.keys(pa.array([texts[row][:2000]])).bands[:, 0].tolist()
    assert found == (expected or [0] * 14)
  found, counts = near_dedup.decide([keys], fetch_from(texts))
  root, pairs = reference_clusters(texts, keys.bands, 0.7)
  gone = [row for row in range(len(texts)) if root[row] != row]
  assert found.row.tolist() == gone
  assert found.kept.tolist() == [root[row] for row in gone]
  assert counts.candidates == len({row for pair in pairs for row in pair}) > 100
  check_evidence(texts, found, 0.7)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=12), st.data())
def test_clusters_of_random_texts(words, data):
  texts = [" ".join(text) for text in words]
  threshold = data.draw(st.sampled_from([0.2, 0.5, 2 / 3, 1.0]))
  keys = near_dedup.keys(pa.array(texts, pa.string()), ngram=2, bands=4, rows=1)
  found, _ = near_dedup.decide([keys], fetch_from(texts), ngram=2, min_jaccard=threshold)
  root, _ = reference_clusters(texts, keys.bands, threshold, ngram=2)
  assert found.row.tolist() == [row for row, kept in enumerate(root) if kept != row]
  assert found.kept.tolist() == [kept for row, kept in enumerate(root) if kept != row]
  for row, near, value in zip(found.row, found.neighbour, found.similarity, strict=True):
    assert value == similarity(texts, row, near, 2) >= threshold


@pytest.mark.parametrize(("threshold", "recall"), [(0.5, 0.88), (0.7, 0.83)])
def test_recall_of_planted_copies(planted, threshold, recall):
  truth, texts = planted
  found, counts = dedup(texts, min_jaccard=threshold)
  check_evidence(texts, found, threshold)
  copies = {row for row, it in enumerate(truth) if it.kind in ("exact", "near")}
  assert len(copies) > 700
  # Which member of a group stays is a matter of ids: as many as its copies are to go.
  pairs = zip(found.row.tolist(), found.kept.tolist(), strict=True)
  hits = sum(truth[row].original == truth[kept].original for row, kept in pairs)
  assert hits / len(copies) >= recall
  assert len(found.row) == hits  # nothing else goes
  assert counts.chained <= counts.candidates // 50
  exact = {row for row, it in enumerate(truth) if it.kind == "exact"}
  stays = [row for row in range(len(texts)) if row not in set(found.row.tolist())]
  groups = [truth[row].original for row in stays if row in exact]
  assert len(groups) == len(set(groups))


def test_shards_and_batches_in_any_order(planted):
  _, texts = planted
  texts, rng = texts[:1200], np.random.default_rng(3)
  ids = rng.integers(0, 256, (len(texts), 16), dtype=np.uint8)
  ids[:600, :8] = ids[0, :8]  # told apart by the last bytes only
  results = []
  for cuts, order in (([], range(1)), ([100, 101, 700], (2, 0, 3, 1))):
    parts = [np.split(np.arange(len(texts)), cuts)[i] for i in order]
    rows = np.concatenate(parts)
    shuffled = [texts[row] for row in rows]
    tables = [near_dedup.keys(pa.array([texts[row] for row in part])) for part in parts]
    found, counts = near_dedup.decide(
      tables, fetch_from(shuffled), doc_ids=[ids[part] for part in parts]
    )
    as_ids = [[bytes(ids[rows[r]]) for r in x] for x in found[:3]]
    results.append((sorted(zip(*as_ids, found.similarity, strict=True)), counts))
  assert results[0] == results[1]
  assert len(results[0][0]) > 90
  assert all(kept < row for row, kept, _, _ in results[0][0])


def test_a_chain_is_one_cluster():
  words = [f"w{i}" for i in range(120)]
  texts = [" ".join(words[i : i + 90]) for i in (0, 12, 24)]
  chain = [round(similarity(texts, *pair), 2) for pair in ((0, 1), (1, 2), (0, 2))]
  assert chain == [0.76, 0.76, 0.56]
  keys = near_dedup.keys(pa.array(texts), rows=1)
  found, counts = near_dedup.decide([keys], fetch_from(texts))
  assert found.row.tolist() == [1, 2]
  assert found.kept.tolist() == [0, 0]
  assert found.neighbour.tolist() == [0, 1]
  assert counts == near_dedup.Counts(candidates=3, compared=3, refuted=1, chained=1)


def test_threshold_is_inclusive():
  texts = ["a b c d e f g h i j k l m", "a b c d e f g h i j k"]  # 7 of 9 shingles
  keys = near_dedup.keys(pa.array(texts), rows=1)
  for threshold, gone in ((7 / 9, [1]), (np.nextafter(7 / 9, 1), [])):
    found, _ = near_dedup.decide([keys], fetch_from(texts), min_jaccard=threshold)
    assert found.row.tolist() == gone


def test_short_and_empty_documents():
  texts = ["", "...", "", "!?", "one two", "One, two!", "one", "one two three", "二三", "三二"]
  found, _ = dedup(texts)
  assert found.row.tolist() == [5]
  assert dedup([])[0].row.tolist() == dedup(["", ""])[0].row.tolist() == []


def test_scripts_without_spaces_are_cut_into_characters():
  text = "我们在春天去山上看花，然后回家吃饭，晚上一起读书。" * 2
  changed = text[:-5] + "写字。"
  keys = near_dedup.keys(pa.array([text, changed, "ไทย ไทย"]))
  assert keys.num_words.tolist() == [44, 42, 6]
  assert dedup([text, changed])[0].row.tolist() == [1]


def test_unverified_links_all_that_share_a_band(planted):
  _, texts = planted
  found, counts = dedup(texts[:600], verify=False)
  keys = near_dedup.keys(pa.array(texts[:600]))
  root, _ = reference_clusters(texts[:600], keys.bands, 0.0)
  assert found.row.tolist() == [row for row, kept in enumerate(root) if kept != row]
  assert np.isnan(found.similarity).all()
  assert counts.compared == 0


def test_large_groups_compare_with_leaders_only(monkeypatch):
  monkeypatch.setattr(near_clusters, "LEADERS", 1)
  texts = ["a b c d", "p q a b c", "q r p q a b c", "q r p q a b c"]
  keys = near_dedup.keys(pa.array(texts), ngram=2)
  same = keys._replace(bands=np.ones_like(keys.bands))
  found, counts = near_dedup.decide([same], fetch_from(texts), ngram=2, min_jaccard=0.6)
  assert found.row.tolist() == [3]  # of equal ones, before leaders count
  monkeypatch.setattr(near_clusters, "LEADERS", 2)
  found, _ = near_dedup.decide([same], fetch_from(texts), ngram=2, min_jaccard=0.6)
  assert found.kept.tolist() == [1, 1]
  assert counts.compared > 3


def test_spilled_shingles_are_the_same(planted, monkeypatch, tmp_path):
  _, texts = planted
  held = dedup(texts[:800])
  monkeypatch.setattr(near_shingles, "_HELD", 1_250)
  spilled = dedup(texts[:800], folder=tmp_path)
  assert all(np.array_equal(x, y) for x, y in zip(held[0], spilled[0], strict=True))
  assert not list(tmp_path.iterdir())


def test_errors():
  text = pa.array(["a b", "a b"])
  with pytest.raises(ValueError, match="ngram must be 1 or more, got 0; rows must be 1"):
    near_dedup.keys(text, ngram=0, rows=-1)
  keys = near_dedup.keys(text)
  with pytest.raises(ValueError, match=r"min_jaccard must be in \(0, 1\], got 0"):
    near_dedup.decide([keys], lambda rows: [text], min_jaccard=0)
  with pytest.raises(ValueError, match="asked for 2 texts, and returned 1"):
    near_dedup.decide([keys], lambda rows: [text[:1]])
  with pytest.raises(ValueError, match=r"as many bands, got \[3, 14\]"):
    near_dedup.decide([keys, near_dedup.keys(text, bands=3)], lambda rows: [text])
  with pytest.raises(ValueError, match=r"lengths of the tables, \[2\], got \[1\]"):
    near_dedup.decide([keys], lambda rows: [text], doc_ids=[np.zeros((1, 16), np.uint8)])
  with pytest.raises(ValueError, match="nulls"):
    near_dedup.keys(pa.array(["a", None]))
