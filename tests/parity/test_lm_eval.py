"""The adapter gives lm-eval the numbers of its own model for transformers."""

import json
import warnings

import jax
import pytest

from jdc.eval.lm_eval_adapter import adapt
from jdc.eval.text_model import TextModel
from jdc.eval.tokenizer import open_tokenizer
from jdc.models import hf
from jdc.models.decoder import decoder

with warnings.catch_warnings():
  # What these packages and theirs warn about while they are imported is not ours to mend.
  warnings.simplefilter("ignore")
  torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
  transformers = pytest.importorskip("transformers", reason="parity needs transformers")
  tokenizers = pytest.importorskip("tokenizers", reason="parity needs tokenizers")
  lm_eval = pytest.importorskip("lm_eval", reason="the adapter needs lm-eval")
  from lm_eval.api.instance import Instance
  from lm_eval.models.huggingface import HFLM
  from lm_eval.tasks import TaskManager

  transformers.utils.logging.disable_progress_bar()

CONTEXT = 48
TEXT = "the quick brown fox jumps over the lazy dog and runs to the river again"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A tiny random Llama with a byte-level tokenizer that puts no token before a text."""
  folder = tmp_path_factory.mktemp("checkpoint")
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = tokenizers.decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=290,
    special_tokens=["<s>", "</s>"],
    initial_alphabet=alphabet,
    show_progress=False,
  )
  model.train_from_iterator([TEXT] * 3, trainer)
  model.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(
    json.dumps(
      {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    )
  )
  torch.manual_seed(0)
  transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=290,
      hidden_size=32,
      intermediate_size=48,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      max_position_embeddings=CONTEXT,
      initializer_range=0.3,
      bos_token_id=0,
      eos_token_id=1,
    )
  ).save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def ours(folder):
  config = hf.from_hf_config(folder)
  model = decoder(config)
  params = hf.load(folder, config, jax.eval_shape(model.init, jax.random.key(0)))
  text_model = TextModel(
    model, params, open_tokenizer("", folder), config.context_length, batch_size=4
  )
  return adapt(text_model, max_gen_toks=12)


@pytest.fixture(scope="module")
def theirs(folder):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of lm-eval and transformers, about each other
    return HFLM(
      transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
      tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
      batch_size=2,
      max_length=CONTEXT,
      device="cpu",
    )


def instances(kind, arguments):
  return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def test_log_likelihoods(ours, theirs):
  pairs = [
    ("the quick", " brown fox"),
    ("the quick", " a"),
    ("the quick", " b"),
    ("the quick ", "brown"),
    ("", "river"),
    (f"{TEXT} " * 4, "and the dog"),  # cut off at the left
  ]
  requests = instances("loglikelihood", pairs)
  for a, b in zip(
    ours.loglikelihood(requests), quietly(theirs.loglikelihood, requests), strict=True
  ):
    assert a[0] == pytest.approx(b[0], abs=1e-4)
    assert a[1] == b[1]


def test_rolling_log_likelihoods(ours, theirs):
  requests = instances("loglikelihood_rolling", [("fox",), (TEXT,), (f"{TEXT}. " * 3,)])
  found = ours.loglikelihood_rolling(requests)
  assert found == pytest.approx(quietly(theirs.loglikelihood_rolling, requests), abs=1e-3)


def test_generation(ours, theirs):
  greedy = {"until": [], "max_gen_toks": 12, "do_sample": False}
  prompts = ["the quick", TEXT, "a b c d"]
  requests = instances("generate_until", [(prompt, dict(greedy)) for prompt in prompts])
  plain = ours.generate_until(requests)
  assert plain == quietly(theirs.generate_until, requests)
  until = [text[3:5] for text in plain]
  arguments = [(prompt, greedy | {"until": list(until)}) for prompt in prompts]
  stopped = ours.generate_until(instances("generate_until", arguments))
  assert stopped == quietly(theirs.generate_until, instances("generate_until", arguments))
  assert stopped != plain


def quietly(function, requests):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of lm-eval and transformers, about each other
    return function(requests, disable_tqdm=True)


def test_a_task_from_a_file(ours, theirs, tmp_path):
  documents = [
    {"question": f"{word} is", "choices": ["red", "a river", "lazy"], "answer": i % 3}
    for i, word in enumerate(TEXT.split())
  ]
  data = tmp_path / "documents.jsonl"
  data.write_text("".join(json.dumps(document) + "\n" for document in documents))
  (tmp_path / "colours.yaml").write_text(
    "\n".join(
      [
        "task: colours",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: '{data}'}}, cache_dir: '{tmp_path}/cache'}}",
        "test_split: test",
        "output_type: multiple_choice",
        'doc_to_text: "{{question}}"',
        'doc_to_choice: "{{choices}}"',
        "doc_to_target: answer",
        "metric_list: [{metric: acc}, {metric: acc_norm}]",
      ]
    )
  )
  results = []
  for model in (ours, theirs):
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of lm-eval and the packages that it reads data with
      manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
      found = lm_eval.simple_evaluate(
        model, tasks=["colours"], task_manager=manager, bootstrap_iters=0, log_samples=False
      )
    results.append(found["results"]["colours"])
  scores = [{k: v for k, v in each.items() if k.startswith("acc")} for each in results]
  assert scores[0] == scores[1]
  assert 0 < scores[0]["acc,none"] < 1


def test_rejects(ours, folder):
  config = hf.from_hf_config(folder)
  model = TextModel(decoder(config), {}, open_tokenizer("", folder), config.context_length)
  with pytest.raises(ValueError, match=r"max_length must be in \[0, 48\], got 64"):
    adapt(model, max_length=64)
  with pytest.raises(ValueError, match=r"max_gen_toks must be in \[1, 48\), got 256"):
    adapt(model)
  own = open_tokenizer("", folder)._replace(start_id=None)
  with pytest.raises(ValueError, match="neither BOS nor EOS"):
    adapt(model._replace(own=own), max_gen_toks=8)
  bad = {"until": [], "num_beams": 4}
  with pytest.raises(ValueError, match=r"generation_kwargs \['num_beams'\] are not known"):
    ours.generate_until(instances("generate_until", [("a", bad)]))
