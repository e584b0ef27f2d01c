"""Generation and evaluation give the numbers of transformers and torch on the same files."""

import csv
import json
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.eval import specs
from jdc.eval.text_model import TextModel
from jdc.eval.tokenizer import open_tokenizer
from jdc.models import hf
from jdc.models.decoder import decoder
from jdc.models.generate import generate
from jdc.models.sampling import kept_logits

with warnings.catch_warnings():
  # What these packages and theirs warn about while they are imported is not ours to mend.
  warnings.simplefilter("ignore")
  torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
  transformers = pytest.importorskip("transformers", reason="parity needs transformers")
  tokenizers = pytest.importorskip("tokenizers", reason="parity needs tokenizers")
  transformers.utils.logging.disable_progress_bar()

SIZES = {
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 4096,
  "initializer_range": 0.3,  # logits far apart, so that rounding does not choose the tokens
  "bos_token_id": 0,
  "eos_token_id": 1,
  "pad_token_id": None,
}
CASES = {
  "llama": ("LlamaConfig", {}),
  "qwen3": ("Qwen3Config", {"head_dim": 16}),
  "gemma3": (
    "Gemma3TextConfig",
    {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24, "num_hidden_layers": 7},
  ),
  "mixtral": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": 5}),
}
TEXT = "the of and to in is that for it as was with be by on not he his but at this are or"
WORDS = TEXT.split()


def save_tokenizer(folder):
  """A byte-level tokenizer that puts <s> before a text, as those of Llama 3 do."""
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=320,
    special_tokens=["<s>", "</s>"],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  model.train_from_iterator([" ".join(WORDS)] * 4 + ["\nAnswer: A. B. C. D."] * 4, trainer)
  model.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", 0)]
  )
  model.save(str(folder / "tokenizer.json"))
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "__type": "AddedToken"},
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  return model.get_vocab_size()


class Peer:
  """A checkpoint, opened here and in transformers."""

  def __init__(self, folder, name):
    vocab_size = save_tokenizer(folder)
    kind, own = CASES[name]
    config = getattr(transformers, kind)(**(SIZES | own | {"vocab_size": vocab_size}))
    torch.manual_seed(0)
    self.torch = transformers.AutoModelForCausalLM.from_config(
      config, attn_implementation="eager"
    ).eval()
    self.torch.save_pretrained(folder)
    self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    self.folder = folder
    self.config = hf.from_hf_config(folder)
    self.model = decoder(self.config)
    shapes = jax.eval_shape(self.model.init, jax.random.key(0))
    self.params = hf.load(folder, self.config, shapes)

  def text_model(self, **options):
    own = open_tokenizer("", self.folder)
    return TextModel(self.model, self.params, own, self.config.context_length, **options)

  def log_probabilities(self, ids):
    """Those of ids[1:], each given the ids before, float64."""
    with torch.no_grad():
      logits = self.torch(torch.tensor([ids])).logits[0].double()
    return torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.fixture(scope="module", params=list(CASES))
def any_peer(request, tmp_path_factory):
  return Peer(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
  return Peer(tmp_path_factory.mktemp("peer"), "llama")


def greedy_of_torch(peer, prompts, count):
  longest = max(map(len, prompts))
  ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
  mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
  settings = transformers.GenerationConfig(
    max_new_tokens=count, do_sample=False, eos_token_id=1, pad_token_id=0
  )
  with torch.no_grad():
    found = peer.torch.generate(ids, attention_mask=mask, generation_config=settings)
  rows = found[:, longest:].tolist()
  return [row[: row.index(1) + 1] if 1 in row else row for row in rows]


def test_greedy_tokens(any_peer):
  rng = np.random.default_rng(0)
  prompts = [rng.integers(2, 300, n).tolist() for n in (1, 4, 11, 29, 40)]
  found = generate(
    any_peer.model, any_peer.params, prompts, max_new_tokens=24, stop_ids=(1,), batch_size=5
  )
  assert [completion.ids for completion in found] == greedy_of_torch(any_peer, prompts, 24)
  for prompt, completion in zip(prompts, found, strict=True):
    expected = any_peer.log_probabilities(prompt + completion.ids)[-len(completion.ids) :]
    np.testing.assert_allclose(completion.log_probabilities, expected, atol=1e-4)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.7), (5, 1.0), (12, 0.5), (300, 0.95)])
def test_filters(top_k, top_p):
  z = np.random.default_rng(top_k).normal(0, 2, (6, 200)).astype(np.float32)
  warpers = []
  if top_k:
    warpers.append(transformers.TopKLogitsWarper(top_k))
  if top_p < 1:
    warpers.append(transformers.TopPLogitsWarper(top_p))
  expected = torch.from_numpy(z)
  for warper in warpers:
    expected = warper(None, expected)
  np.testing.assert_array_equal(kept_logits(jnp.asarray(z), top_k, top_p), expected)


def write_mmlu(folder):
  rng = np.random.default_rng(0)
  sentence = lambda n: " ".join(rng.choice(WORDS, n))
  for split, count in (("dev", 3), ("test", 5)):
    (folder / split).mkdir(parents=True)
    for subject in ("high_school_jokes", "law"):
      with open(folder / split / f"{subject}_{split}.csv", "w", newline="") as file:
        for i in range(count):
          options = [sentence(rng.integers(1, 5)) for _ in range(4)]
          options[0] += ', "quoted"\nand broken'
          csv.writer(file).writerow([f"{sentence(7)}, {i}?", *options, "ABCD"[i % 4]])


@pytest.mark.parametrize("num_shots", [0, 2])
@pytest.mark.parametrize("score", ["letter", "text"])
def test_option_likelihoods(peer, tmp_path, num_shots, score):
  write_mmlu(tmp_path)
  options = specs.Options(num_shots=num_shots, choice_score=score)
  task = specs.parse(f"mmlu:{tmp_path}", options)
  outcome = task.prepare(peer.text_model(batch_size=4))()
  expected = list(mmlu_of_torch(peer, tmp_path, num_shots, score))
  assert len(outcome.records) == len(expected) == 10
  hits = {"high_school_jokes": [], "law": []}
  for record, (subject, answer, log_probabilities) in zip(
    outcome.records, expected, strict=True
  ):
    assert (record["subject"], record["answer"]) == (subject, answer)
    np.testing.assert_allclose(record["log_probabilities"], log_probabilities, atol=1e-4)
    hits[subject].append(int(np.argmax(log_probabilities)) == answer)
  for subject, values in hits.items():
    assert outcome.metrics[f"{subject}/accuracy"] == pytest.approx(np.mean(values))
  assert outcome.metrics["macro_accuracy"] == pytest.approx(np.mean([*hits.values()]))


def mmlu_of_torch(peer, folder, num_shots, score):
  """(subject, right option, log-likelihoods of the options), from the files themselves."""
  for file in sorted((folder / "test").iterdir()):
    subject = file.name.removesuffix("_test.csv")
    shots = read_csv(folder / "dev" / f"{subject}_dev.csv")
    head = ""
    if score == "letter":
      about = subject.replace("_", " ")
      head = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    for row in shots[:num_shots]:
      head += ask(row, score) + answers(row, score)["ABCD".index(row[5])] + "\n\n"
    for row in read_csv(file):
      prompt = head + ask(row, score)
      scores = []
      for answer in answers(row, score):
        start = len(peer.tokenizer(prompt).input_ids)
        ids = peer.tokenizer(prompt + answer).input_ids
        scores.append(peer.log_probabilities(ids)[start - 1 :].sum().item())
      yield subject, "ABCD".index(row[5]), scores


def read_csv(file):
  with open(file, newline="") as opened:
    return list(csv.reader(opened))


def ask(row, score):
  if score == "text":
    return f"Question: {row[0]}\nAnswer:"
  return f"{row[0]}\nA. {row[1]}\nB. {row[2]}\nC. {row[3]}\nD. {row[4]}\nAnswer:"


def answers(row, score):
  return [f" {text}" for text in (row[1:5] if score == "text" else "ABCD")]


def test_perplexity_and_bits_per_byte(peer, tmp_path):
  rng = np.random.default_rng(1)
  texts = {
    name: [" ".join(rng.choice(WORDS, rng.integers(3, 40))) + " né" for _ in range(6)]
    for name in ("code", "prose")
  }
  for name, documents in texts.items():
    lines = (json.dumps({"text": text}) + "\n" for text in documents)
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / f"{name}.jsonl").write_text("".join(lines))
  options = specs.Options(sequence_length=16, cache_dir=str(tmp_path / "cache"))
  task = specs.parse(f"perplexity:{tmp_path / 'data'}", options)
  metrics = task.prepare(peer.text_model(batch_size=4))().metrics
  for name, documents in texts.items():
    stream = [
      (i, n) for n, text in enumerate(documents) for i in peer.tokenizer(text).input_ids
    ]
    nats, count = 0.0, 0
    for start in range(0, len(stream) - 1, 16):
      row = stream[start : start + 17]
      for document in {n for _, n in row}:
        ids = [i for i, n in row if n == document]
        if len(ids) > 1:
          nats -= peer.log_probabilities(ids).sum().item()
          count += len(ids) - 1
    num_bytes = sum(len(text.encode()) for text in documents)
    assert metrics[f"{name}/num_tokens"] == count
    assert metrics[f"{name}/loss"] == pytest.approx(nats / count, abs=1e-4)
    assert metrics[f"{name}/perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
    expected = nats / math.log(2) / num_bytes
    assert metrics[f"{name}/bits_per_byte"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("post_processor", [True, False])
@pytest.mark.parametrize(
  "config", [{}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}]
)
def test_boundary_tokens(tmp_path, config, post_processor):
  save_tokenizer(tmp_path)
  path = tmp_path / "tokenizer_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | config))
  if not post_processor:
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["post_processor"] = {
      "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
  own = open_tokenizer("", tmp_path)
  tokenizer = own.tokenizer
  before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  after = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
  ids = [*before, *tokenizer.encode("the answer, né")[0].tolist(), *after]
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert ids == theirs("the answer, né").input_ids
  assert (own.stop_ids, own.start_id) == ((1,), 0)
