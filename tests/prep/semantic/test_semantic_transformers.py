"""Tests of embeddings by sentence-transformers, where it is installed, and where it is not."""

import importlib.util

import numpy as np
import pytest

from jdc.prep.semantic import transformers

INSTALLED = importlib.util.find_spec("sentence_transformers") is not None


@pytest.mark.skipif(INSTALLED, reason="sentence-transformers is installed")
def test_what_is_missing_is_said():
  with pytest.raises(ImportError, match=r"pip install jdc\[embeddings\]"):
    transformers.embed(["a fig"], "model")


@pytest.mark.skipif(not INSTALLED, reason="sentence-transformers is not installed")
@pytest.mark.filterwarnings("ignore")
def test_embeddings_are_those_of_the_package(tmp_path):
  import sentence_transformers as package
  import transformers as hf
  from sentence_transformers.sentence_transformer import modules

  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fig", "plum"]
  (tmp_path / "vocab.txt").write_text("\n".join(words))
  config = hf.BertConfig(
    vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=16,
  )  # fmt: skip
  hf.BertModel(config).save_pretrained(tmp_path / "bert")
  hf.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
  made = modules.Transformer(str(tmp_path / "bert"))
  model = package.SentenceTransformer(modules=[made, modules.Pooling(16)])
  model.save(str(tmp_path / "model"))
  found = transformers.embed(["a fig", " ", "plum plum"], str(tmp_path / "model"), 2)
  assert not found[1].any()
  np.testing.assert_allclose(found[[0, 2]], model.encode(["a fig", "plum plum"]), atol=1e-6)
