"""What cannot work together is refused before anything compiles or is written."""

import contextlib
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdc import policies
from jdc.data import pack, tokenize
from jdc.data.domains import find_domains
from jdc.models.decoder import decoder
from jdc.policies import DataPolicy, Decision, mixture, ordering, selection
from jdc.train import corpus, loop, model_parts, setup
from jdc.train.config import (
  CheckpointConfig,
  CorpusConfig,
  EvaluationConfig,
  LoggingConfig,
  MeshConfig,
  OptimizerConfig,
  TrainConfig,
  WeightsConfig,
)
from jdc.train.optimizer import make_optimizer

LOSS = policies.combine(selection=selection.loss())
STATIC = policies.combine(mixture=mixture.static((0.2, 0.3, 0.5)))


@contextlib.contextmanager
def nothing_compiles():
  events = []
  listen = lambda event, *_, **__: events.append(event) if "backend_compile" in event else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not events


def test_compilations_are_noticed():
  with pytest.raises(AssertionError), nothing_compiles():
    jax.jit(lambda x: x * 3.125 + 17)(jnp.ones(19)).block_until_ready()


def step_scope_selection():
  def init(spec, key):
    return Decision(logits=jnp.zeros(spec.num_candidates)), ()

  def update(stats, state):
    return Decision(logits=stats.loss), state

  return policies.combine(selection=DataPolicy(init, update, frozenset({"loss"}), "step"))


def observing(*fields, scope="step", **more):
  def init(spec, key):
    return Decision(logits=jnp.zeros(spec.num_domains)), ()

  update = lambda stats, state: (Decision(logits=jnp.zeros(3)), state)
  return policies.combine(mixture=DataPolicy(init, update, frozenset(fields), scope, **more))


REFUSED = {
  "proportions for other domains": (
    STATIC, {"proportions": (0.5, 0.5)},
    ["plan.proportions needs one number for each of fruit, metal, noise, got (0.5, 0.5)"],
  ),
  "negative proportion": (
    STATIC, {"proportions": (0.5, -0.5, 1.0)}, ["plan.proportions", "{'metal': -0.5}"],
  ),
  "NaN proportions": (
    STATIC, {"proportions": (np.nan, 0.5, np.inf)}, ["'fruit': nan", "'noise': inf"],
  ),
  "no positive proportion": (STATIC, {"proportions": (0.0, 0.0, 0.0)}, ["not all 0"]),
  "proportions without a mixture": (
    policies.combine(), {"proportions": (0.2, 0.3, 0.5)},
    ["plan.proportions needs a mixture, such as mixture.static()"],
  ),
  "batch against mesh": (
    None, {"batch_size": 12, "evaluation": EvaluationConfig(batch_size=3)},
    ["batch_size / accumulation_steps=12, evaluation.batch_size=3", "data * fsdp * expert = 8"],
  ),
  "microbatch against mesh": (
    None, {"accumulation_steps": 2},
    ["batch_size / accumulation_steps=4 must be divisible by data * fsdp * expert = 8"],
  ),
  "mesh too small": (
    None, {"mesh": MeshConfig(data=3)},
    ["the mesh data=3, fsdp=1, expert=1, tensor=1 does not cover the 8 devices"],
  ),
  "mesh with two rests": (
    None, {"mesh": MeshConfig(fsdp=-1)}, ["with at most one -1, got data=-1, fsdp=-1"],
  ),
  "mesh of nothing": (
    None, {"mesh": MeshConfig(tensor=0)}, ["mesh sizes must be positive", "tensor=0"],
  ),
  "heads over tensor": (
    None, {"mesh": MeshConfig(data=1, tensor=8)}, ["num_heads"],
  ),
  "sequence length": (
    None, {"sequence_length": 64},
    ["rows are for sequence_length=32, the run has 64 (domains fruit, metal, noise)"],
  ),
  "shuffle with a selection": (
    LOSS, {"draw": "shuffle"},
    ["plan.draw='shuffle' ignores the selection; choose top_k, gumbel_top_k or multinomial"],
  ),
  "draw without a selection": (
    None, {"draw": "top_k", "sweep_rows": 5},
    ["plan.draw='top_k' needs a round-scope selection", "plan.sweep_rows=5 needs"],
  ),
  "fields that nothing reads": (
    STATIC,
    {"sweep_batch_size": 16, "candidate_draw": "multinomial", "on_exhausted": "stop"},
    ["plan.sweep_batch_size=16 needs a round-scope policy or an ordering",
     "plan.candidate_draw='multinomial' needs a step-scope selection",
     "plan.on_exhausted='stop' needs plan.max_epochs"],
  ),
  "unknown draw": (LOSS, {"draw": "best"}, ["draw must be one of", "'best'"]),
  "fraction without top_k": (
    LOSS, {"draw": "multinomial", "top_k_fraction": 0.5}, ["top_k_fraction needs draw='top_k'"],
  ),
  "fraction out of range": (
    LOSS, {"draw": "top_k", "top_k_fraction": 1.5}, ["top_k_fraction must be in (0, 1]"],
  ),
  "end of rounds": (
    LOSS, {"draw": "multinomial", "round_ends": "exhausted"}, ["round_ends='exhausted' needs"],
  ),
  "epochs for other domains": (STATIC, {"max_epochs": (1.0,)}, ["max_epochs needs one number"]),
  "epochs without a mixture": (
    None, {"max_epochs": (1.0, 1.0, 1.0)}, ["max_epochs limits domains and needs a mixture"],
  ),
  "lag": (STATIC, {"decision_lag": -1}, ["decision_lag must be 0 or more, got -1"]),
  "one domain without a mixture": (None, {"domain_draw": "one"}, ["needs a mixture"]),
  "candidates without a selection": (
    None, {"num_candidates": 16}, ["plan.num_candidates=16 needs a step-scope selection"],
  ),
  "a step-scope selection without candidates": (
    step_scope_selection(), {},
    ["needs plan.num_candidates above batch_size=8, got 0"],
  ),
  "a statistic that no step has": (
    observing("loss", "score_age", "reference_loss"), {},
    ["mixture observes score_age; a step provides", "which needs a reference model"],
  ),
  "a statistic that no round has": (
    observing("sampling_probability", scope="round"), {},
    ["mixture observes sampling_probability; a round provides"],
  ),
  "a statistic that no batch has": (
    observing(scope="round", observe=lambda stats, state: state,
              observes_batch=frozenset({"score_age"})), {},
    ["mixture observes score_age of a batch, which a step does not provide"],
  ),
  "logits of rows that no selection chose": (
    observing("logit_projection"), {},
    ["mixture observes logit_projection, which are told of the candidates of a step-scope"],
  ),
  "logits drawn otherwise": (
    policies.combine(selection=selection.uds()),
    {"num_candidates": 16, "candidate_draw": "gumbel_top_k"},
    ["selection: uds must know which candidates are kept", "got 'gumbel_top_k'"],
  ),
  "an ordering by given scores": (
    policies.combine(ordering=ordering.sorting(observes=frozenset())), {},
    ["the ordering needs scores of shape"],
  ),
  "several at once": (
    policies.combine(selection=selection.loss(), mixture=mixture.odm()),
    {"proportions": (1.0,), "batch_size": 12, "sweep_batch_size": 3},
    ["plan.draw='shuffle'", "plan.proportions", "batch_size / accumulation_steps=12",
     "plan.sweep_batch_size=3"],
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_before_anything_compiles(fit, tmp_path, name):
  chosen, fields, named = REFUSED[name]
  with pytest.raises(ValueError, match=re.escape(named[0])) as error, nothing_compiles():
    fit(tmp_path / "run", chosen, **fields)
  missing = [part for part in named if part not in str(error.value)]
  assert not missing, str(error.value)
  assert not list((tmp_path / "run").iterdir())


def test_a_model_without_its_output_matrix_is_refused(fit, model_config, tmp_path):
  model = decoder(model_config)._replace(output_matrix=None)
  chosen = policies.combine(selection=selection.uds())
  with pytest.raises(ValueError, match="both outputs and output_matrix"), nothing_compiles():
    fit(tmp_path / "run", chosen, model=model, num_candidates=16)


def test_a_vocabulary_larger_than_the_models_is_refused_once(fit, model_config, tmp_path):
  small = decoder(dataclasses.replace(model_config, vocab_size=200))
  with pytest.raises(ValueError, match="vocab_size is 200") as error, nothing_compiles():
    fit(tmp_path / "run", model=small)
  assert str(error.value).count("the tokenizer has 258 tokens") == 1
  assert "(domains fruit, metal, noise)" in str(error.value)


@pytest.mark.parametrize(
  ("chosen", "fields", "named"),
  [
    (
      policies.combine(mixture=mixture.static((0.5, 0.5))),
      {},
      ["mixture: proportions must be one for each of", "got 2 of them"],
    ),
    (
      policies.combine(mixture=mixture.static({"fruit": 1.0, "fish": 1.0})),
      {},
      ["fish", "fruit"],
    ),
    (
      policies.combine(mixture=mixture.odm(variant="paper")),
      {},
      ["mixture: ", "domain_draw"],
    ),
  ],
)
def test_a_policy_that_does_not_fit_the_run_names_its_slot(
  fit, tmp_path, chosen, fields, named
):
  with pytest.raises(ValueError, match="mixture: ") as error:
    fit(tmp_path / "run", chosen, **fields)
  assert all(part in str(error.value) for part in named)
  assert not list((tmp_path / "run").iterdir())


@pytest.fixture(scope="module")
def run(fit, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("resume") / "run"
  fit(workdir, STATIC, num_steps=2)
  return workdir


class TestResume:
  def test_with_another_config_says_which_fields_differ(self, fit, run):
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="the checkpoint is of another run") as error:
      fit(run, STATIC, seed=3, batch_size=16, decision_lag=0, max_skipped_in_row=1)
    for change in (
      "seed: 0 -> 3", "batch_size: 8 -> 16", "plan.decision_lag: 1 -> 0",
      "max_skipped_in_row: 10 -> 1",
    ):  # fmt: skip
      assert change in str(error.value)
    assert "num_steps" not in str(error.value)
    assert (run / "metrics.jsonl").read_bytes() == before

  def test_what_may_differ_may_differ(self, fit, run):
    result = fit(
      run,
      STATIC,
      num_steps=3,
      mesh=MeshConfig(data=4, fsdp=2),
      evaluation=EvaluationConfig(every_steps=1, max_rows=4),
      checkpoint=CheckpointConfig(every_steps=1, keep=1),
      logging=LoggingConfig(every_steps=1, tensorboard=False),
    )
    assert int(result.state.step) == 3

  def test_with_other_data_names_the_domain(
    self, domains, model_config, tiny_config, run, tmp_path
  ):
    texts = [json.dumps({"text": f"gold and {i} times silver"}) for i in range(40)]
    (tmp_path / "metal.jsonl").write_text("\n".join(texts))
    other = pack.prepare(
      find_domains(tmp_path), tokenize.byte_tokenizer(), 32, 0.2, tmp_path / "cache"
    )
    schedule = optax.constant_schedule(1e-2)
    parts = (decoder(model_config), optax.adamw(schedule), schedule, STATIC)
    metal = {
      "train": domains["metal"]._replace(train=other["metal"].train),
      "validation": domains["metal"]._replace(validation=other["metal"].validation),
    }
    for split, domain in metal.items():
      with pytest.raises(ValueError, match=rf"data of domain metal \({split}\): ") as error:
        loop.fit(loop.Run(*parts, domains | {"metal": domain}, tiny_config), str(run))
      assert str(error.value).count("data of domain") == 1
      assert "seed" not in str(error.value)


class TestData:
  def prepare(self, tmp_path, path="", **fields):
    config = CorpusConfig(cache_dir=str(tmp_path / "cache"), **fields)
    return corpus.prepare(path, config, 32, 0, str(tmp_path))

  def test_faults_of_the_fields_are_named_at_once(self, tmp_path):
    with pytest.raises(ValueError, match="data is empty") as error:
      self.prepare(tmp_path, on_bad_record="ignore", validation_fraction=1.0)
    assert "corpus.on_bad_record must be one of error, quarantine, got 'ignore'" in str(
      error.value
    )
    assert "corpus.validation_fraction must be in [0, 1), got 1.0" in str(error.value)

  def test_fields_that_conversations_do_not_read(self, tmp_path):
    with pytest.raises(ValueError, match="text_field='body' is for documents") as error:
      self.prepare(
        tmp_path, str(tmp_path), tokenizer=str(tmp_path), format="auto", template="tokenizer",
        text_field="body", eos_token="</s>",
      )  # fmt: skip
    assert "eos_token are not read with corpus.template='tokenizer'" in str(error.value)

  def test_a_missing_folder(self, tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder of domains"):
      self.prepare(tmp_path, path=str(tmp_path / "nowhere"))

  def test_an_empty_folder(self, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: holds no domain; accepted: .*jsonl"):
      self.prepare(tmp_path, path=str(tmp_path / "empty"))

  def test_two_domains_with_one_name(self, tmp_path):
    folder = tmp_path / "domains"
    (folder / "web").mkdir(parents=True)
    text = json.dumps({"text": "a b c"}) + "\n"
    for file in ("web.jsonl", "web/a.jsonl", "web.txt"):
      (folder / file).write_text(text)
    with pytest.raises(ValueError, match="domain 'web' already has train files") as error:
      self.prepare(tmp_path, path=str(folder))
    assert str(error.value).count("already has train files") == 2

  @pytest.mark.parametrize(
    ("fields", "message"),
    [
      ({"tokenizer": "nowhere.json"}, "nowhere.json: no such tokenizer file"),
      ({"bos_token": "<s>"}, "bos_token and corpus.eos_token are for tokenizer files only"),
    ],
  )
  def test_tokenizers(self, tmp_path, fields, message):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.txt").write_text("text")
    with pytest.raises(ValueError, match=message):
      self.prepare(tmp_path, path=str(tmp_path / "d"), **fields)


def test_how_weights_compute_is_not_read_beside_a_model(model_config):
  config = TrainConfig(model=model_config, weights=WeightsConfig(dtype="bfloat16"))
  with pytest.raises(ValueError, match=r"config\.weights is not read .*dtype='bfloat16'"):
    model_parts.decoder_config(config)


def test_faults_of_the_optimizer_are_named_at_once():
  config = OptimizerConfig(
    learning_rate=float("nan"), schedule="cosin", warmup_steps=10, b1=1.0, clip_norm=-1.0
  )
  with pytest.raises(ValueError, match=r"optimizer\.learning_rate must be positive") as error:
    make_optimizer(config, 10)
  for name in ("schedule", "warmup_steps", "b1", "clip_norm"):
    assert f"optimizer.{name} must be" in str(error.value)


def test_policies_know_the_run(domains, tiny_config):
  spec = setup.run_spec(tiny_config, domains, policies.combine())
  assert spec.domain_names == ("fruit", "metal", "noise")
  assert spec.domain_sizes == tuple(len(domain.train) for domain in domains.values())
  assert spec.proportions == pytest.approx(np.array(spec.domain_sizes) / spec.num_examples)
  given = dataclasses.replace(
    tiny_config, plan=dataclasses.replace(tiny_config.plan, proportions=(2, 0, 6), sweep_rows=9)
  )
  spec = setup.run_spec(given, domains, STATIC)
  assert spec.proportions == (0.25, 0.0, 0.75)
  assert spec.sweep_size == 9
