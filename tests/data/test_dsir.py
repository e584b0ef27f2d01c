"""DSIR: the same hash and weights in plain Python, the edges, a target that is found."""

import itertools
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from jdc.data import dsir
from jdc.data.dsir import counts, hash_ngrams, log_importance, log_ratio, log_weights

MASK = (1 << 64) - 1
WORD = re.compile(rb"[0-9a-z\x80-\xff]+")


def mix(x):
  x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
  x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
  return x ^ (x >> 31)


def plain(text):
  """Buckets of the words and of the pairs of a text, one by one."""
  words = WORD.findall(text.encode("utf-8", "backslashreplace").lower())
  sums = [sum(b * pow(dsir._BASE, i, 1 << 64) for i, b in enumerate(word)) for word in words]
  hashes = [mix(x & MASK) for x in sums]
  pairs = [mix((a * dsir._PAIR + b) & MASK) for a, b in itertools.pairwise(hashes)]
  return [h % 10_000 for h in hashes], [h % 10_000 for h in pairs]


def plain_weights(pool, target):
  """The equation in float64, a bucket at a time."""
  found = {}
  for name, texts in {"pool": pool, "target": target}.items():
    count = Counter(b for text in texts for part in plain(text) for b in part)
    total = sum(count.values()) + 10_000
    found[name] = [np.log((count[b] + 1) / total) for b in range(10_000)]
  ratio = np.subtract(found["target"], found["pool"])
  return [float(sum(ratio[b] for part in plain(text) for b in part)) for text in pool]


def draw(seed, num_texts=40):
  rng = np.random.default_rng(seed)
  words = [
    "Fig",
    "PLUM",
    "x9",
    "naïve",
    "Ünder",
    "日本",
    "a",
    "\ud800",
    "don't",
    "_",
    "42",
    "é",
  ]
  ends = [" ", "  ", "\n", "-", ", ", "\x00", "..."]
  texts = []
  for _ in range(num_texts):
    length = rng.integers(0, 12)
    pieces = [rng.choice(words) + rng.choice(ends) for _ in range(length)]
    texts.append(rng.choice(["", " ", "("]) + "".join(pieces))
  return ["", "...", *texts, "", "last"]


@pytest.mark.parametrize("block", [1 << 17, 40, 1])
def test_hashes_as_plain_python_does(block, monkeypatch):
  monkeypatch.setattr(dsir, "_BLOCK", block)
  for seed in range(10):
    texts = draw(seed)
    found = hash_ngrams(texts)
    expected = [plain(text) for text in texts]
    assert found.num_words.tolist() == [len(words) for words, _ in expected]
    assert found.unigram.tolist() == [b for words, _ in expected for b in words]
    padded = [[*pairs, 10_000] if words else [] for words, pairs in expected]
    assert found.bigram.tolist() == [b for pairs in padded for b in pairs]
    encoded = [text.encode("utf-8", "backslashreplace") for text in texts]
    for one, other in zip(hash_ngrams(iter(encoded)), found, strict=True):
      np.testing.assert_array_equal(one, other)


def test_weights_agree_with_the_equation():
  for seed in range(10):
    pool, target = draw(seed), draw(seed + 100, 8)
    found = log_importance(hash_ngrams(pool), hash_ngrams(target))
    np.testing.assert_allclose(found, plain_weights(pool, target), rtol=1e-9, atol=1e-9)
    assert found[0] == 0


def test_parts_of_a_pool_add_up():
  pool, target = draw(0), hash_ngrams(draw(1))
  halves = [hash_ngrams(pool[:20]), hash_ngrams(pool[20:])]
  ratio = log_ratio(counts(target), sum(counts(half) for half in halves))
  found = np.concatenate([log_weights(half, ratio) for half in halves])
  np.testing.assert_allclose(found, log_importance(hash_ngrams(pool), target), atol=1e-12)


def test_words_of_all_lengths_spread_over_the_buckets():
  words = [f"{'ab' * (i % 7)}{i}" for i in range(20_000)]
  found = hash_ngrams(words)
  num_used = len(np.unique(found.unigram))
  assert abs(num_used / 10_000 - (1 - np.exp(-2))) < 0.02
  assert np.all(found.bigram == 10_000)


def test_a_text_larger_than_a_block():
  text = "fig " * 200_000
  found = hash_ngrams(["plum", text, "plum"])
  assert found.num_words.tolist() == [1, 200_000, 1]
  assert len(np.unique(found.unigram)) == 2
  assert found.unigram[1] == hash_ngrams(["fig"]).unigram[0]


def test_does_not_depend_on_the_process():
  code = "from jdc.data import dsir; print(dsir.hash_ngrams(['A red fig'])[:2])"
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == str(hash_ngrams(["A red fig"])[:2])


def test_the_topic_of_the_target_is_found():
  """Drawn by Gumbel-top-k, nearly all that is picked is of the target's topic."""
  rng = np.random.default_rng(0)
  vocabulary = {k: [f"w{k}x{i}" for i in range(60)] for k in range(5)}
  shared = [f"the{i}" for i in range(20)]
  write = lambda k: " ".join(rng.choice(vocabulary[k] + shared, 60))
  topic = rng.permutation(500) % 5
  pool = hash_ngrams([write(k) for k in topic])
  found = log_importance(pool, hash_ngrams([write(3) for _ in range(20)]))
  picked = np.argsort(-(found + rng.gumbel(size=500)))[:80]
  assert np.mean(topic[picked] == 3) > 0.98


@pytest.mark.parametrize(
  ("pool", "target", "named"),
  [
    ([], ["a"], "pool have none"),
    (["a"], ["..."], "target have none"),
    ([""], [], "and target"),
  ],
)
def test_rejects_texts_without_words(pool, target, named):
  with pytest.raises(ValueError, match=named):
    log_importance(hash_ngrams(pool), hash_ngrams(target))
