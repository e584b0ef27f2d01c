"""Sampling to budgets: the rule against plain Python, exact accounts, any order."""

import hashlib
import random
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.data.tokenize import byte_tokenizer
from jdc.prep import sample, sample_keys


def batch_of(rows):
  """Documents of (number, domain, text)."""
  ids = [hashlib.blake2b(str(i).encode(), digest_size=16).digest() for i, _, _ in rows]
  return pa.record_batch(
    {
      "doc_id": pa.array(ids, pa.binary(16)),
      "domain": pa.array([domain for _, domain, _ in rows]),
      "text": pa.array([text for _, _, text in rows]),
    }
  )


def corpus(sizes):
  """Documents of so many words, by domain."""
  rows = [(domain, size) for domain in sizes for size in sizes[domain]]
  return [(i, domain, "w " * size) for i, (domain, size) in enumerate(rows)]


def reference(rows, weights, budget, temperature, max_epochs, seed):
  """The rule in plain Python: copies of each document by its number."""
  number, total = {}, {}
  for i, domain, text in rows:
    doc_id = hashlib.blake2b(str(i).encode(), digest_size=16).digest()
    digest = hashlib.blake2b(doc_id, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    number[i] = int.from_bytes(digest, "little")
    total[domain] = total.get(domain, 0) + len(text.split())
  power = (lambda w: w) if temperature == 1 else (lambda w: float(w) ** (1 / temperature))
  powers = {d: Fraction(power((weights or total)[d])) for d in total}
  share = {d: powers[d] / sum(powers.values()) for d in total}
  if budget is None:
    budget = min(Fraction(max_epochs) * total[d] / share[d] for d in total if share[d])
  found = {}
  for domain in total:
    mine = sorted((number[i], len(t.split()), i) for i, d, t in rows if d == domain)
    whole, rest = divmod(int(budget * share[domain]), total[domain])
    found |= {i: whole for _, _, i in mine}
    for _, size, i in mine:
      if size > rest:
        break
      rest -= size
      found[i] += 1
  return found


def taken(rows, mix):
  counts = sample.copies(batch_of(rows), mix)
  return {row[0]: count for row, count in zip(rows, counts.tolist(), strict=True)}


@settings(deadline=None, max_examples=60)
@given(
  st.dictionaries(
    st.sampled_from("abc"), st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1
  ),
  st.data(),
)
def test_agrees_with_the_rule(sizes, data):
  rows = corpus(sizes)
  weights = data.draw(st.none() | st.fixed_dictionaries({d: st.integers(1, 9) for d in sizes}))
  temperature = data.draw(st.sampled_from([1.0, 2.0]))
  seed = data.draw(st.integers(0, 3))
  budget = data.draw(st.none() | st.integers(1, 60))
  max_epochs = 1.0 if budget is None else 1e6
  expected = reference(rows, weights, budget, temperature, max_epochs, seed)
  keys = [sample_keys.keys(batch_of(rows), "words", seed)]
  mix = sample.decide(keys, weights, budget, temperature, max_epochs)
  found = taken(rows, mix)
  assert found == expected
  # The account is exact, by domain, and no domain is above its budget.
  words = {i: len(text.split()) for i, _, text in rows}
  for domain, share in mix.shares.items():
    mine = [i for i, d, _ in rows if d == domain]
    assert share.taken == sum(found[i] * words[i] for i in mine)
    assert share.taken_documents == sum(found[i] for i in mine)
    assert share.available == sum(words[i] for i in mine)
    assert share.taken <= share.budget
  assert mix.taken == sum(found[i] * words[i] for i in words) <= mix.max_size


def test_neither_order_nor_batches_matter():
  rows = corpus({"a": [3, 1, 4, 1, 5] * 20, "b": [9, 2, 6] * 10})
  whole = sample.decide([sample_keys.keys(batch_of(rows), "words")], max_size=200)
  shuffled = random.Random(0).sample(rows, len(rows))
  parts = [shuffled[i : i + 7] for i in range(0, len(rows), 7)]
  tables = [sample_keys.keys(batch_of(part), "words") for part in parts]
  again = [sample_keys.from_arrays(t.arrays(), "words", 0) for t in tables]
  assert sample.decide(again, max_size=200) == whole
  assert taken(shuffled, whole) == taken(rows, whole)
  for part, table in zip(parts, again, strict=True):
    of_keys = sample.copies_of_keys(table, whole).tolist()
    assert of_keys == sample.copies(batch_of(part), whole).tolist()
  out = [sample.take(batch_of(part), whole) for part in parts]
  assert sum(len(t.split()) for b in out for t in b["text"].to_pylist()) == whole.taken


def test_all_is_taken_without_weights_or_budget():
  rows = corpus({"a": [7] * 13, "b": [3] * 11, "c": [1]})
  mix = sample.decide([sample_keys.keys(batch_of(rows), "words")])
  assert set(taken(rows, mix).values()) == {1}
  assert mix.taken == mix.max_size == 7 * 13 + 33 + 1


def test_the_largest_mixture_without_repeats_is_the_default():
  rows = corpus({"a": [1] * 100, "b": [1] * 30})
  mix = sample.decide([sample_keys.keys(batch_of(rows), "words")], {"a": 1, "b": 1})
  assert {name: share.taken for name, share in mix.shares.items()} == {"a": 30, "b": 30}
  mix = sample.decide(
    [sample_keys.keys(batch_of(rows), "words")], {"a": 1, "b": 1}, max_epochs=2.5
  )
  assert {name: share.taken for name, share in mix.shares.items()} == {"a": 75, "b": 75}
  assert mix.shares["b"].epochs == 2.5
  assert sorted(set(taken(rows[100:], mix).values())) == [2, 3]


def test_a_weight_of_zero_leaves_a_domain_out():
  rows = corpus({"a": [1] * 10, "b": [1] * 10})
  mix = sample.decide([sample_keys.keys(batch_of(rows), "words")], {"a": 0, "b": 1})
  assert [share.taken for share in mix.shares.values()] == [0, 10]


def test_temperature_evens_out():
  rows = corpus({"a": [1] * 900, "b": [1] * 100})
  mix = sample.decide([sample_keys.keys(batch_of(rows), "words")], None, 100, temperature=2.0)
  assert {n: s.budget for n, s in mix.shares.items()} == {"a": 75, "b": 25}  # 30 : 10


def test_a_smaller_budget_takes_a_part_of_what_a_larger_one_takes():
  rows = corpus({"a": [2] * 50})
  keys = [sample_keys.keys(batch_of(rows), "words", 5)]
  few, many = (taken(rows, sample.decide(keys, max_size=m)) for m in (20, 60))
  assert sum(few.values()) == 10
  assert all(many[i] for i in few if few[i])


def test_upsampling_is_never_silent():
  rows = corpus({"a": [1] * 100, "code": [1] * 10})
  keys = [sample_keys.keys(batch_of(rows), "words")]
  with pytest.raises(ValueError) as error:
    sample.decide(keys, {"a": 1, "code": 1}, max_size=100)
  assert "domain 'code' has 10 words, its budget is 50: 5 epochs" in str(error.value)
  assert "max_size of at most 20" in str(error.value)
  assert "max_epochs of at least 5 (now 1)" in str(error.value)
  assert sample.decide(keys, {"a": 1, "code": 1}, 20).taken == 20
  assert sample.decide(keys, {"a": 1, "code": 1}, 100, max_epochs=5).taken == 100


def test_all_that_is_wrong_is_listed():
  keys = [sample_keys.keys(batch_of(corpus({"code": [1], "web": [1]})), "words")]
  with pytest.raises(ValueError) as error:
    sample.decide(keys, {"cod": 1, "web": -1}, 0, temperature=0, max_epochs=float("nan"))
  for part in (
    "temperature must be a finite number above 0, got 0",
    "max_epochs must be a finite number above 0, got nan",
    "max_size must be at least 1, got 0",
    "weights lacks domain 'code'",
    "no domain 'cod', did you mean 'code'?",
    "weight of 'web' must be finite and at least 0, got -1",
  ):
    assert part in str(error.value)
  with pytest.raises(ValueError, match="one unit and one seed"):
    sample.decide([*keys, sample_keys.keys(batch_of(corpus({"web": [1]})), "bytes")])
  with pytest.raises(ValueError, match=r"seed must be in \[0, 2\^64\), got -1"):
    sample_keys.keys(batch_of(corpus({"web": [1]})), "words", -1)
  mix = sample.decide(keys)
  with pytest.raises(ValueError, match=r"\['new'\] are not in the mixture"):
    sample.copies(batch_of(corpus({"new": [1]})), mix)


def test_units():
  text = pa.array(["two words", " 日本語 text\u3000x ", "", "a-b c\n\td", "ภาษา"])
  assert sample_keys.sizes(text, "words").tolist() == [2, 5, 0, 3, 4]
  assert sample_keys.sizes(text, "bytes").tolist() == [
    len(t.encode()) for t in text.to_pylist()
  ]
  tokens = sample_keys.sizes(text, "tokens", byte_tokenizer())
  assert tokens.tolist() == [len(t.encode()) for t in text.to_pylist()]
  for unit, tokenizer in (("tokens", None), ("words", byte_tokenizer()), ("lines", None)):
    with pytest.raises(ValueError, match="unit must be one of tokens, words, bytes"):
      sample_keys.sizes(text, unit, tokenizer)


def test_numbers_are_uniform():
  ids = pa.array([i.to_bytes(16, "big") for i in range(4000)], pa.binary(16))
  numbers = sample_keys.numbers(ids, 3) / 2**64
  counts, _ = np.histogram(numbers, 10, (0, 1))
  assert abs(counts - 400).max() < 5 * 400**0.5
  assert (sample_keys.numbers(ids, 3) != sample_keys.numbers(ids, 4)).all()
