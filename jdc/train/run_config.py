"""The fields of a training run."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

from jdc.models.decoder_config import DecoderConfig
from jdc.models.lora import LoraConfig
from jdc.train import fields as fields_lib


@dataclasses.dataclass(frozen=True)
class PlanConfig:
  """How rows are drawn; see `jdc.data.plan`."""

  proportions: tuple[float, ...] = ()  # base proportions by sorted domain; empty: by size
  draw: str = "shuffle"  # shuffle; top_k, gumbel_top_k or multinomial with a round selection
  top_k_fraction: float = 1.0  # of the rows with finite logits that draw="top_k" keeps
  domain_draw: str = "systematic"  # or "one" domain a step
  steps_per_round: int = 100  # steps between the decisions of round-scope policies
  round_ends: str = "steps"  # or "exhausted": when every kept row was drawn once
  decision_lag: int = 1  # steps that a mixture decision takes to reach the batches; 0 waits
  max_epochs: tuple[float, ...] = ()  # passes over each domain allowed; empty: no limit
  on_exhausted: str = "renormalise"  # or "stop", when max_epochs is reached
  sweep_rows: int = 0  # candidates of a round-scope selection; 0: the whole pool
  sweep_batch_size: int = 0  # rows per forward pass of a sweep; 0: the batch size
  # Steps for which the score of a row that a sample left out still counts; 0: none is kept.
  max_age: int = 0
  num_candidates: int = 0  # rows that a step-scope selection chooses from; 0 without one
  candidate_draw: str = "top_k"  # or gumbel_top_k, multinomial: among the candidates
  # What an ordering puts in order at once: the rows of a "round", those of an "epoch", or,
  # again when each round begins, the "remainder" of the epoch.
  queue: str = "round"
  # The workdir of a run whose examples are trained again step by step, with their weights.
  replay: str = ""
  # Records that a row holds at most, filled after the draw; 0: a record, or row, a row.
  max_segments: int = 0


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh axes; one may be -1 and takes the devices that are left."""

  data: int = -1
  fsdp: int = 1
  expert: int = 1  # of a mixture of experts
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class TargetConfig:
  """The target set that policies look at; its rows are neither trained nor validated."""

  folder: str = ""  # a file a task; empty: the target split of the domains
  rows: int = 64  # of each domain or task; all where there are fewer
  # Steps between two refreshes of its statistics, where policies read them in each step; those
  # that are read when a round begins are refreshed then.
  every_steps: int = 50
  batch_size: int = 0  # rows per forward pass; 0: the batch size
  alignment_rows: int = 8  # drawn anew in each step, for `target_alignment` and such
  # Of which parameters' gradients `target_alignment` is: "exact", all that are trained, or
  # "linear_maps", those alone that are matrices of linear maps, by far cheaper; or "low_rank",
  # of these the leading `alignment_rank` directions of the gradient of all rows, refreshed
  # every `every_steps`, cheaper still.
  alignment: str = "exact"
  alignment_rank: int = 16


@dataclasses.dataclass(frozen=True)
class ResponsesConfig:
  """Responses drawn for the target's prompts at each refresh, for policies of rewards."""

  # "exact_match", "numeric_answer", or a function as "package.module:function"; empty: none.
  reward: str = ""
  count: int = 8  # of each prompt
  max_new_tokens: int = 128
  temperature: float = 1.0  # as in `jdc.models.generate`, as the next two
  top_k: int = 0
  top_p: float = 1.0
  coefficients: str = "official"  # or "dataflex"; see `selection.coefficients`
  baseline: bool = False  # whether the mean reward of a prompt is taken off
  best: int = 10  # responses of a prompt that "official" looks at
  folder: str = ""  # of a frozen model that writes them; empty: the model as it is
  largest_ratio: float = 0.0  # bound of its ratios of importance; 0: none
  batch_size: int = 0  # responses in one pass; 0: that of the target


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
  """Gradients of the domains, at the start of each round in which a policy observes them."""

  rows: int = 8  # of each of the two half-batches of a domain
  # Patterns of the parameters by path, as "layers/mlp/*"; empty: all that are trained.
  parameters: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
  """Gradients of examples, where a policy observes them; see `jdc.stats.gradients`."""

  # Or "kron": linear maps alone, cheaper, without Adam's direction; or "directional": forward
  # mode, `size` times the cost of two forward passes.
  provider: str = "exact"
  # Patterns of the parameters by path, as "layers/mlp/*"; empty: all that are trained.
  parameters: tuple[str, ...] = ()
  top_layers: int = 0  # the last layers alone, below which no gradient goes; 0: all layers
  size: int = 1024  # of a projected gradient
  projection: str = "count_sketch"  # or "rademacher", of exact gradients
  direction: str = "optimizer"  # or "paper", "official", "dataflex": of `update_direction`
  # Examples whose gradients exist at once, over all devices; of "directional" the directions.
  microbatch_size: int = 8


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
  """A frozen model with whose losses policies compare those of the trained one."""

  folder: str = ""  # of a run, or of Hugging Face's format; empty: none
  # In each "step", or "cached": once for all rows, before the first step, kept beside them.
  losses: str = "step"


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """When a split is evaluated, besides before and after training."""

  split: str = "validation"  # or "target", in runs from which policies learn, or "none"
  every_steps: int = 0  # 0: only before and after
  max_rows: int = 0  # rows of each domain, or records where these are packed; 0: all
  batch_size: int = 0  # 0: the training batch size


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When the run is saved, besides at its end and on SIGTERM."""

  every_steps: int = 1000
  keep: int = 2  # newest checkpoints kept
  folder: str = ""  # local or gs://; empty: `checkpoints` in the workdir


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
  """Where metrics go, besides the terminal and `metrics.jsonl`."""

  every_steps: int = 10
  tensorboard: bool = True
  wandb_project: str = ""  # empty: no W&B
  # Whether `examples.parquet` is written at each checkpoint: what was learnt about every
  # example, by document; see `jdc.train.example_table`.
  example_table: bool = False


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
  """What the model reads."""

  # Or the path of a Hugging Face tokenizer.json or its folder; "weights": that of the weights.
  tokenizer: str = "bytes"
  bos_token: str = ""  # of that tokenizer; empty: none, or what its folder says
  eos_token: str = ""
  # "text": documents, cut into rows. Instruction data, a record an example: "alpaca",
  # "sharegpt", "messages", or "auto" to tell by a record's fields.
  format: str = "text"
  # How instruction data are written: "plain", "alpaca", or "tokenizer": by its own template.
  template: str = "plain"
  template_date: str = ""  # such as "2024-07-26", for templates that write the day's date
  predict: str = "all"  # responses of a conversation, or only the "last"
  on_long: str = (
    "error"  # or "truncate", "drop_turns", "quarantine": records too long for a row
  )
  text_field: str = "text"  # of JSON, Parquet and TFDS records
  validation_fraction: float = 0.05  # of documents, in domains without validation files
  target_fraction: float = 0.0  # the same for the target set, which policies may observe
  on_bad_record: str = "error"  # or "quarantine": write aside, count, go on
  cache_dir: str = ""  # of packed rows; empty: $JDC_CACHE, else ~/.cache/jdc


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
  """A checkpoint to start from, in place of `model`, and how its model computes."""

  folder: str = ""  # of Hugging Face's format; empty: none
  dtype: str = "float32"  # of activations, as the next ones in `DecoderConfig`
  parameter_dtype: str = "float32"
  remat: str = "none"
  attention: str = "auto"
  balance_weight: float = 0.0  # of a mixture of experts


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with warm-up and decay."""

  learning_rate: float = 1e-3  # at its peak
  schedule: str = "cosine"  # or "linear", "constant", after the warm-up
  warmup_steps: int = 0
  final_fraction: float = 0.1  # of the peak, at the end of the run
  b1: float = 0.9
  b2: float = 0.95
  epsilon: float = 1e-8
  weight_decay: float = 0.1  # of all parameters but scales and biases
  clip_norm: float = 1.0  # of the gradient; 0: no clipping


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """What the training loop needs to know, whatever the model and the data."""

  seed: int = 0
  num_steps: int = 1000
  batch_size: int = 32  # rows of one optimizer step, over all devices
  sequence_length: int = 256  # tokens predicted in a row
  accumulation_steps: int = 1  # microbatches of one optimizer step
  loss_average: str = "token"  # or "example"
  # Steps without a finite loss, or without a gradient, before the run stops.
  max_skipped_in_row: int = 10
  plan: PlanConfig = dataclasses.field(default_factory=PlanConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  target: TargetConfig = dataclasses.field(default_factory=TargetConfig)
  responses: ResponsesConfig = dataclasses.field(default_factory=ResponsesConfig)
  probe: ProbeConfig = dataclasses.field(default_factory=ProbeConfig)
  features: FeaturesConfig = dataclasses.field(default_factory=FeaturesConfig)
  evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
  checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
  logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)

  def __post_init__(self) -> None:
    wrong = list(fields_lib.wrong_types(self))
    if wrong:
      raise ValueError("; ".join(wrong))
    errors = [
      f"{name} must be {least} or more, got {operator.attrgetter(name)(self)}"
      for least, names in _LEAST.items()
      for name in names
      if operator.attrgetter(name)(self) < least
    ]
    if self.seed >= 1 << 32:  # JAX would take it modulo 2^32
      errors.append(f"seed must be below 2^32, got {self.seed}")
    errors += [
      f"{name} must be one of {known}, got {operator.attrgetter(name)(self)!r}"
      for name, known in _CHOICES.items()
      if operator.attrgetter(name)(self) not in known
    ]
    if self.accumulation_steps > 0 and self.batch_size % self.accumulation_steps:
      errors.append(
        f"batch_size={self.batch_size} must be divisible by "
        f"accumulation_steps={self.accumulation_steps}"
      )
    if self.batch_size > 0 and self.plan.num_candidates % self.batch_size:
      errors.append(
        f"plan.num_candidates={self.plan.num_candidates} must be a multiple of "
        f"batch_size={self.batch_size}"
      )
    if errors:
      raise ValueError("; ".join(errors))


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
  """A whole run: what `launch/train.py` reads from a config file."""

  data: str = ""  # a folder of domains; "python": text of this Python installation
  corpus: CorpusConfig = dataclasses.field(default_factory=CorpusConfig)
  model: DecoderConfig | None = None  # drawn at random; or `weights`
  weights: WeightsConfig = dataclasses.field(default_factory=WeightsConfig)
  lora: LoraConfig | None = None  # adapters, which alone are trained
  trainable: tuple[str, ...] = ()  # patterns as "layers/mlp/*"; empty: all, or the adapters
  reference: ReferenceConfig = dataclasses.field(default_factory=ReferenceConfig)
  optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  mixture: Mapping[str, Any] | None = None  # of `policy(...)`, as the next three
  selection: Mapping[str, Any] | None = None
  ordering: Mapping[str, Any] | None = None
  weighting: Mapping[str, Any] | None = None
  scores: str = ""  # a .npz, an array f32[rows] a domain, for an ordering by given scores


_LEAST = {
  0: (
    "seed", "plan.sweep_rows", "plan.sweep_batch_size", "plan.num_candidates",
    "plan.max_segments", "plan.max_age", "evaluation.every_steps", "evaluation.max_rows",
    "evaluation.batch_size", "target.batch_size", "responses.batch_size",
    "responses.largest_ratio",
  ),
  1: (
    "num_steps", "batch_size", "sequence_length", "accumulation_steps", "max_skipped_in_row",
    "plan.steps_per_round", "checkpoint.every_steps", "checkpoint.keep", "logging.every_steps",
    "target.rows", "target.every_steps", "target.alignment_rows", "target.alignment_rank",
    "probe.rows",
    "responses.count", "responses.max_new_tokens", "responses.best",
  ),
}  # fmt: skip
_CHOICES = {
  "loss_average": ("token", "example"),
  "target.alignment": ("exact", "linear_maps", "low_rank"),
  "evaluation.split": ("validation", "target", "none"),
  "plan.candidate_draw": ("top_k", "gumbel_top_k", "multinomial"),
  "responses.coefficients": ("official", "dataflex"),
}
