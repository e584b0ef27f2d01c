"""A tiny run on three made-up domains, in a few seconds."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdc import policies
from jdc.data import pack, tokenize
from jdc.data.domains import find_domains
from jdc.models.base import LanguageModel, Outputs
from jdc.models.configs import DecoderConfig
from jdc.models.decoder import decoder
from jdc.models.lora import LoraConfig
from jdc.policies import mixture, selection, weighting
from jdc.train import config as config_lib
from jdc.train import corpus, loop, model_parts
from jdc.train.config import (
  CheckpointConfig,
  CorpusConfig,
  EvaluationConfig,
  LoggingConfig,
  MeshConfig,
  OptimizerConfig,
  PlanConfig,
  RunConfig,
  TrainConfig,
  WeightsConfig,
  policy,
)
from jdc.train.optimizer import make_optimizer
from jdc.train.responses import Responses

SEQUENCE_LENGTH = 32
WORDS = {
  "fruit": ["apple", "pear", "plum", "fig", "quince", "cherry"],
  "metal": ["iron", "tin", "lead", "zinc", "gold", "silver", "copper"],
  "noise": [f"{i * 7919 % 99991:x}" for i in range(300)],
}


def write_domains(folder: Path, num_documents: int = 60) -> Path:
  """Writes three domains of different predictability and size."""
  rng = np.random.default_rng(0)
  for k, (name, words) in enumerate(WORDS.items()):
    lines = [
      json.dumps({"text": " ".join(rng.choice(words, 20 + 10 * k))})
      for _ in range(num_documents // (k + 1))
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
  return folder


@pytest.fixture(scope="session")
def domains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pack.Domain]:
  folder = tmp_path_factory.mktemp("domains")
  found = find_domains(write_domains(folder))
  cache = tmp_path_factory.mktemp("cache")
  return pack.prepare(found, tokenize.byte_tokenizer(), SEQUENCE_LENGTH, 0.2, cache)


@pytest.fixture(scope="session")
def model_config() -> DecoderConfig:
  return DecoderConfig(
    vocab_size=258, width=16, num_layers=2, num_heads=2, num_kv_heads=2, mlp_width=32
  )


@pytest.fixture
def one_step_config(tmp_path: Path) -> TrainConfig:
  """One step of a model of one layer on two domains of text; all of it lies in `tmp_path`."""
  (tmp_path / "data").mkdir()
  for name in ("a", "b"):
    lines = [json.dumps({"text": f"{name} {i} " * 20}) for i in range(20)]
    (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(lines))
  return TrainConfig(
    num_steps=1,
    batch_size=8,
    sequence_length=16,
    data=str(tmp_path / "data"),
    corpus=CorpusConfig(cache_dir=str(tmp_path / "cache"), validation_fraction=0.2),
    model=DecoderConfig(
      vocab_size=258, width=8, num_layers=1, num_heads=1, num_kv_heads=1, mlp_width=8
    ),
    logging=LoggingConfig(tensorboard=False),
  )


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
  return RunConfig(
    num_steps=12,
    batch_size=8,
    sequence_length=SEQUENCE_LENGTH,
    plan=PlanConfig(steps_per_round=5),
    mesh=MeshConfig(data=8),
    evaluation=EvaluationConfig(max_rows=8),
    checkpoint=CheckpointConfig(every_steps=100),
    logging=LoggingConfig(every_steps=3, tensorboard=False),
  )


@pytest.fixture(scope="session")
def fit(
  domains: dict[str, pack.Domain], model_config: DecoderConfig, tiny_config: RunConfig
) -> Callable[..., loop.Result]:
  """Returns `fit(workdir, policies, **fields of RunConfig or of its plan)`."""

  def run(
    workdir: Path,
    chosen: policies.Policies | None = None,
    *,
    learning_rate: float = 1e-2,
    optimizer: Any = None,
    model: Any = None,
    **changes: Any,
  ) -> loop.Result:
    plan_fields = {field.name for field in dataclasses.fields(PlanConfig)}
    plan = {name: changes.pop(name) for name in changes.keys() & plan_fields}
    config = dataclasses.replace(
      tiny_config, plan=dataclasses.replace(tiny_config.plan, **plan), **changes
    )
    workdir.mkdir(exist_ok=True)
    schedule = optax.constant_schedule(learning_rate)
    run = loop.Run(
      model or decoder(model_config),
      optimizer or optax.adamw(schedule),
      schedule,
      chosen or policies.combine(),
      domains,
      config,
    )
    return loop.fit(run, str(workdir))

  return run


@pytest.fixture(scope="session")
def target_domains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pack.Domain]:
  """The same domains, each with a target set."""
  found = find_domains(write_domains(tmp_path_factory.mktemp("domains")))
  cache, tokenizer = tmp_path_factory.mktemp("cache"), tokenize.byte_tokenizer()
  return pack.prepare(found, tokenizer, SEQUENCE_LENGTH, 0.2, cache, target_fraction=0.2)


def make_small_model(vocab_size: int = 258, width: int = 4, num_experts: int = 3) -> Any:
  """A model of two matrices, which tells of everything that policies observe."""

  def init(key: jax.Array) -> dict[str, jax.Array]:
    shapes = {"embedding": (vocab_size, width), "output": (width, vocab_size)}
    shapes["router"] = (width, num_experts)
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    return {name: jax.random.normal(keys[name], shape) for name, shape in shapes.items()}

  def outputs(params: Any, tokens: Any, targets: Any, _: Any, segments: Any) -> Outputs:
    hidden = params["embedding"][tokens]
    logits = jax.nn.log_softmax(hidden @ params["output"])
    losses = -jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    expert = jnp.argmax(hidden @ params["router"], axis=-1)
    load = jax.nn.one_hot(expert, num_experts) * (segments > 0)[..., None]
    return Outputs(losses, hidden, expert_load=load.sum(axis=1))

  def error_outputs(params: Any, tokens: Any, targets: Any, *rest: Any) -> Outputs:
    found = outputs(params, tokens, targets, *rest)
    logits = jax.lax.stop_gradient(found.hidden @ params["output"])
    error = jax.nn.softmax(logits) - jax.nn.one_hot(targets, vocab_size)
    return found._replace(token_error=jnp.linalg.norm(error, axis=-1))

  return LanguageModel(
    init=init,
    hidden=lambda params, tokens, *_: params["embedding"][tokens],
    token_losses=lambda *inputs: outputs(*inputs).token_loss,
    logits=lambda params, tokens, *_: params["embedding"][tokens] @ params["output"],
    partition_specs=lambda params: jax.tree.map(lambda _: jax.P(), params),
    vocab_size=vocab_size,
    outputs=outputs,
    error_outputs=error_outputs,
    output_matrix=lambda params: params["output"],
  )


@pytest.fixture(scope="session")
def small_model() -> LanguageModel:
  return make_small_model()


@pytest.fixture(scope="session")
def small_run(
  target_domains: dict[str, pack.Domain], small_model: LanguageModel, tiny_config: RunConfig
) -> Callable[..., loop.Run]:
  """Returns `build(policies, **parts of Run, or fields of RunConfig or of its plan)`."""

  def build(chosen: policies.Policies, **changes: Any) -> loop.Run:
    plan_fields = {field.name for field in dataclasses.fields(PlanConfig)}
    plan = {name: changes.pop(name) for name in changes.keys() & plan_fields}
    parts = {name: changes.pop(name) for name in changes.keys() & set(loop.Run._fields)}
    config = dataclasses.replace(
      tiny_config, plan=dataclasses.replace(tiny_config.plan, **plan), **changes
    )
    schedule = optax.constant_schedule(1e-2)
    run = loop.Run(small_model, optax.adamw(schedule), schedule, chosen, target_domains, config)
    return run._replace(**parts)

  return build


def assert_trees_equal(left: Any, right: Any) -> None:
  """Asserts that two trees are bitwise equal."""
  left, right = (
    jax.tree_util.tree_leaves_with_path(jax.tree.map(_bits, tree)) for tree in (left, right)
  )
  assert [path for path, _ in left] == [path for path, _ in right]
  differing = [
    jax.tree_util.keystr(path)
    for (path, a), (_, b) in zip(left, right, strict=True)
    if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes()
  ]
  assert not differing


def _bits(x: Any) -> np.ndarray:
  if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  return np.asarray(x)


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Any, Any], None]:
  return assert_trees_equal


# Instead of adapters: all parameters, without policies.
FULL: dict[str, Any] = {
  "lora": None,
  "mixture": None,
  "selection": None,
  "weighting": None,
  "plan": PlanConfig(max_segments=5),
  "num_steps": 4,
  "checkpoint": CheckpointConfig(every_steps=2),
}


@pytest.fixture(scope="session")
def full_fields() -> dict[str, Any]:
  return FULL


@pytest.fixture(scope="session")
def finetune_config(
  base_folder: Path, instruct_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainConfig:
  """Adapters with dropout under three policies, on packed rows over eight devices."""
  return TrainConfig(
    num_steps=9,
    batch_size=8,
    sequence_length=63,
    data=str(instruct_folder),
    corpus=CorpusConfig(
      tokenizer="weights",
      format="auto",
      on_long="truncate",
      cache_dir=str(tmp_path_factory.mktemp("cache")),
    ),
    weights=WeightsConfig(folder=str(base_folder)),
    lora=LoraConfig(rank=2, alpha=4.0, dropout=0.3, targets=("layers/*/query", "layers/mlp/*")),
    optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0),
    plan=PlanConfig(draw="gumbel_top_k", steps_per_round=4, sweep_rows=24, max_segments=5),
    mesh=MeshConfig(data=2, fsdp=2, tensor=2),
    evaluation=EvaluationConfig(max_rows=8),
    checkpoint=CheckpointConfig(every_steps=100),
    logging=LoggingConfig(every_steps=3, tensorboard=False),
    mixture=policy(mixture.odm, warmup_steps=1),
    selection=policy(selection.loss, focus="high"),
    weighting=policy(weighting.loss_reweighting, burn_in_steps=2),
  )


@pytest.fixture(scope="session")
def finetune_run(finetune_config: TrainConfig) -> Callable[..., loop.Run]:
  """Returns `build(workdir, **fields)`, which does what `launch/train.py` does."""

  def build(workdir: Path, **changes: Any) -> loop.Run:
    workdir.mkdir(exist_ok=True)
    config, start = model_parts.build(dataclasses.replace(finetune_config, **changes))
    found = corpus.with_tokenizer_of(config.weights.folder, config.corpus)
    domains = corpus.prepare(
      config.data, found, config.sequence_length, config.seed, str(workdir)
    )
    optimizer, rate = make_optimizer(config.optimizer, config.num_steps)
    return loop.Run(
      start.model, optimizer, rate, config_lib.build_policies(config), domains, config,
      weights=start.weights, trainable=start.trainable,
    )  # fmt: skip

  return build


@pytest.fixture(scope="session")
def finetune(finetune_run: Callable[..., loop.Run]) -> Callable[..., loop.Result]:
  """Returns `fit(workdir, **fields)` of such a run."""
  return lambda workdir, **changes: loop.fit(finetune_run(workdir, **changes), str(workdir))


@pytest.fixture(scope="session")
def adapted(
  finetune: Callable[..., loop.Result], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, loop.Result]:
  """A run that trained adapters, not to be changed."""
  workdir = tmp_path_factory.mktemp("adapted") / "run"
  return workdir, finetune(workdir)


@pytest.fixture(scope="session")
def full(
  finetune: Callable[..., loop.Result], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, loop.Result]:
  """A run that trained all parameters, not to be changed; it saved steps 2 and 4."""
  workdir = tmp_path_factory.mktemp("full") / "run"
  return workdir, finetune(workdir, **FULL)


class Questions:
  """Records of a prompt and a right answer each, in bytes; EOS is 257."""

  sequence_length, vocab_size = SEQUENCE_LENGTH, 258

  def __init__(self, pairs: list[tuple[str, str]]):
    self.pairs = pairs
    self.num_targets = np.array([len(answer) + 1 for _, answer in pairs], np.int32)

  def rows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.zeros((len(ids), SEQUENCE_LENGTH + 1), np.int32)
    segments = np.zeros_like(tokens)
    for row, (prompt, answer) in enumerate(self.pairs[i] for i in ids):
      both = [*prompt.encode(), *answer.encode(), 257]
      tokens[row, : len(both)] = both
      segments[row, : len(both)] = 1
      segments[row, : len(prompt)] = -1
    return tokens, segments


def share_of_ascii(prompt: str, response: str, reference: str) -> float:
  """A reward that a model drawn at random gets some of."""
  del prompt, reference
  return sum(letter.isascii() for letter in response) / max(len(response), 1)


def byte_text(ids: Any) -> str:
  return bytes(i for i in ids if i < 256).decode("latin1")


@pytest.fixture(scope="session")
def rewarded(model_config: DecoderConfig) -> dict[str, Any]:
  """The parts of a run whose model responds to questions and is rewarded for it."""
  tasks = {
    "sums": Questions([("1+1=", "2"), ("2+3=", "5"), ("12+30=", "42")]),
    "words": Questions([("say fig:", "fig"), ("say plum:", "plum")]),
  }
  return {
    "model": decoder(model_config),
    "tasks": tasks,
    "responses": Responses(share_of_ascii, byte_text, (257,)),
  }
