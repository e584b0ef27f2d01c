"""DataFlex's selectors on one thread, for `launch/bench.py --what=sweeps --peer=PYTHON`.

Runs in an environment of its own with `dataflex[less]==1.1.0`, and imports nothing of jdc. The
first line of standard input is the setting as JSON, with the `lengths` of the examples; any
other is a question, `{"what": "loss", "batch_size": 8}` or `{"what": "features"}`, and each is
answered by a line of JSON. What runs is DataFlex's own: the loss pass of its `LossSelector` and
the projected Adam gradients of its `LessSelector`, with its data loaders and its files.
"""

import importlib.metadata
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from typing import Any


def main() -> None:
  # DataFlex logs to standard output, which from here on goes where errors go.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)

  def answer(content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()

  setting = json.loads(sys.stdin.readline())
  peer = Peer(setting)
  names = ("dataflex", "torch", "transformers", "peft", "traker")
  versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
  answer({"versions": versions, "num_trained": peer.num_trained})
  for line in sys.stdin:
    question = json.loads(line)
    wall, cpu = time.perf_counter(), _cpu_seconds()
    if question["what"] == "loss":
      found = peer.losses(question["batch_size"])
    else:
      found = peer.features()
    answer(
      {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": _cpu_seconds() - cpu,
        "examples": found,
      }
    )


class Peer:
  """A tiny Llama with adapters, random examples, and the selectors."""

  def __init__(self, setting: dict[str, Any]):
    import accelerate
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    self._folder = tempfile.mkdtemp()
    self._setting = setting
    self._model = _model(setting)
    self._trained = [p for p in self._model.parameters() if p.requires_grad]
    self.num_trained = sum(p.numel() for p in self._trained)
    self._examples = _examples(setting)
    self._accelerator = accelerate.Accelerator(cpu=True)
    self._collator = _collator()

  def losses(self, batch_size: int) -> int:
    """Computes the loss of every example."""
    import math

    from dataflex.train.selector.loss_selector import LossSelector

    selector = LossSelector(
      dataset=self._examples,
      accelerator=self._accelerator,
      data_collator=self._collator,
      cache_dir=self._folder,
      score_batch_size=batch_size,
    )
    self._model.eval()
    found = selector._compute_losses(selector.candidate_positions(), self._model, 0)
    if not all(map(math.isfinite, found)):
      raise ValueError("the peer's losses are not finite")
    return len(found)

  def features(self) -> int:
    """Computes and writes the projected Adam gradients of the examples that features are of."""
    from dataflex.train.selector.less_selector import LessSelector

    chosen = [self._examples[i] for i in self._setting["feature_examples"]]
    folder = tempfile.mkdtemp(dir=self._folder)
    selector = LessSelector(
      dataset=chosen,
      eval_dataset=chosen[:1],
      accelerator=self._accelerator,
      data_collator=self._collator,
      cache_dir=folder,
      gradient_type="adam",
      proj_dim=self._setting["size"],
    )
    state = {
      p: {"exp_avg": 1e-3 * p.detach(), "exp_avg_sq": 1e-4 * p.detach().abs() + 1e-8}
      for p in self._trained
    }
    selector._collect_and_save_projected_gradients(self._model, folder, chosen, "adam", state)
    written = [name for name in os.listdir(folder) if name.startswith("grads-")]
    shutil.rmtree(folder)
    if not written:
      raise ValueError("the peer wrote no features")
    return len(chosen)


def _model(setting: dict[str, Any]) -> Any:
  import peft
  import torch
  import transformers

  config = transformers.LlamaConfig(
    vocab_size=setting["vocab_size"],
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    intermediate_size=688,
    max_position_embeddings=2048,
    use_cache=False,
  )
  adapters = peft.LoraConfig(
    r=setting["rank"], lora_alpha=2 * setting["rank"], target_modules="all-linear",
    task_type="CAUSAL_LM",
  )  # fmt: skip
  model = peft.get_peft_model(transformers.LlamaForCausalLM(config), adapters)
  for name, parameter in model.named_parameters():
    if "lora_B" in name:
      torch.nn.init.normal_(parameter, std=0.01)  # as after some steps
  return model


def _examples(setting: dict[str, Any]) -> list[dict[str, list[int]]]:
  import torch

  examples = []
  for length, prompt in zip(setting["lengths"], setting["prompts"], strict=True):
    tokens = torch.randint(1, setting["vocab_size"], (length,)).tolist()
    labels = [-100] * prompt + tokens[prompt:]
    examples.append({"input_ids": tokens, "attention_mask": [1] * length, "labels": labels})
  return examples


def _collator() -> Any:
  """What LLaMA-Factory pads with, in multiples of 8."""
  import tokenizers
  import transformers

  words = tokenizers.models.WordLevel({"<pad>": 0}, unk_token="<pad>")
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(words), pad_token="<pad>"
  )
  return transformers.DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)


def _cpu_seconds() -> float:
  """Of this process and of those it has waited for, which load the data."""
  own, others = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
  return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


if __name__ == "__main__":
  main()
