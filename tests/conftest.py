"""Gives every test eight virtual CPU devices; this must happen before jax is imported."""

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tests compile far more than they compute, so the compiler takes its short cuts; so it does in
# processes that tests start, which add to these flags.
# A collective blocks its thread until all devices have come to it. Where XLA schedules for
# concurrency, virtual devices come to independent ones in any order and wait for ever.
_FLAGS = (
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "64")  # threads, for the same reason
_given = os.environ.get("XLA_FLAGS", "")
_missing = [flag for flag in _FLAGS if flag.partition("=")[0] not in _given]
os.environ["XLA_FLAGS"] = " ".join([*_given.split(), *_missing])


# Programs that one test has compiled serve the others, and the processes that tests start.
_CACHE = Path(__file__).parents[1] / ".pytest_cache/d/xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

_MAPS = Path("/proc/self/maps")  # of Linux, which allows a process 65,530 of them by default


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
  """Drops compiled programs between modules once they hold many memory maps.

  Each keeps a few for as long as its function is cached. A worker that has come to the kernel's
  limit cannot map the next one, and dies without a word.
  """
  yield
  if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 20_000:
    import jax

    jax.clear_caches()
    gc.collect()


CHATML = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def instruct_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Three domains of alpaca records, 40 to 80 each; one of them cannot be learnt."""
  import numpy as np

  rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("instruct")
  words = {"copy": ["fig", "plum", "pear"], "colour": ["red", "blue"], "noise": []}
  for k, (name, chosen) in enumerate(words.items()):
    records = []
    for i in range(40 + 20 * k):
      text = " ".join(rng.choice(chosen, rng.integers(1, 8))) if chosen else f"{i * 7919:x}"
      output = text if name != "colour" else f"{text} is a colour."
      records.append({"instruction": f"{name} this", "input": text, "output": output})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / f"{name}.jsonl").write_text(lines)
  return folder


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, instruct_folder: Path) -> Path:
  """A tiny random Qwen2 in the format of Hugging Face, with a tokenizer and a chat template.

  As with published ones, the model has more tokens than the tokenizer.
  """
  import jax
  import tokenizers

  from jdc.models import hf
  from jdc.models.decoder import decoder
  from jdc.models.decoder_config import DecoderConfig

  special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=special,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train([str(path) for path in sorted(instruct_folder.iterdir())], trainer)
  folder = tmp_path_factory.mktemp("tokenizer")
  tokenizer.save(str(folder / "tokenizer.json"))
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "chat_template": CHATML,
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  config = DecoderConfig(
    vocab_size=320, width=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=64,
    family="qwen2", attention_bias=True, tie_embeddings=True, context_length=512,
  )  # fmt: skip
  base = tmp_path_factory.mktemp("base") / "qwen2"
  ids = {"eos_token_id": tokenizer.token_to_id("<|im_end|>")}
  hf.save(
    base,
    config,
    decoder(config).init(jax.random.key(7)),
    tokenizer_folder=folder,
    generation_config=ids,
    token_ids=ids,
  )
  return base
