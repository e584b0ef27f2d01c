"""The fields of a run: what is accepted, how files and flags fill them, what may change."""

import dataclasses
import json
import re
import sys
import unittest.mock

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from jdc import policies
from jdc.models.configs import DecoderConfig
from jdc.policies import Ordering, mixture, ordering, selection, weighting
from jdc.train import config as c

MODEL = DecoderConfig(
  vocab_size=258, width=16, num_layers=1, num_heads=2, num_kv_heads=2, mlp_width=32
)


def full_config():
  return c.TrainConfig(
    num_steps=7,
    model=MODEL,
    data="somewhere",
    plan=c.PlanConfig(max_epochs=(1.0, 2.5), top_k_fraction=1),
    mesh=c.MeshConfig(fsdp=2),
    optimizer=c.OptimizerConfig(weight_decay=0),
    mixture=c.policy(mixture.odm),
    weighting=c.policy(weighting.loss_reweighting, strategy="extremes"),
  )


def flagged(config, *arguments):
  """Returns the config with flags applied, as the launch script reads them."""
  values = flags.FlagValues()
  with unittest.mock.patch.object(sys, "argv", ["program", *arguments]):
    holder = config_flags.DEFINE_config_dict("config", config, flag_values=values)
    values(sys.argv)
  return holder.value


class TestRoundTrip:
  def test_a_config_comes_back(self):
    config = full_config()
    back = c.from_config_dict(c.to_config_dict(config))
    assert dataclasses.replace(back, mixture=None, weighting=None) == dataclasses.replace(
      config, mixture=None, weighting=None
    )
    assert c.to_json(back) == c.to_json(config)

  def test_of_the_smaller_configs_too(self):
    for cls in (c.RunConfig, c.PlanConfig, c.CorpusConfig, c.OptimizerConfig):
      assert c.from_config_dict(c.to_config_dict(cls()), cls) == cls()

  def test_json_is_flat_and_names_the_factory(self):
    flat = c.to_json(full_config())
    assert flat["plan.max_epochs"] == [1.0, 2.5]
    assert flat["model.width"] == 16
    assert flat["mixture.factory"] == "jdc.policies.mixture.odm.odm"
    assert flat["mixture.warmup_steps"] is None
    assert flat["selection"] is None


class TestFlags:
  @pytest.mark.parametrize(
    ("flag", "path", "expected"),
    [
      ("num_steps=9", "num_steps", 9),
      ("plan.max_epochs=(0.5,1)", "plan.max_epochs", (0.5, 1)),
      ("plan.top_k_fraction=0.5", "plan.top_k_fraction", 0.5),
      ("optimizer.weight_decay=0.25", "optimizer.weight_decay", 0.25),
      ("logging.tensorboard=false", "logging.tensorboard", False),
      ("model.head_size=4", "model.head_size", 4),
    ],
  )
  def test_override_fields(self, flag, path, expected):
    config = c.from_config_dict(flagged(c.to_config_dict(full_config()), f"--config.{flag}"))
    value = config
    for name in path.split("."):
      value = getattr(value, name)
    assert value == expected
    assert type(value) is type(expected)

  @pytest.mark.parametrize(
    ("chosen", "flag", "expected"),
    [
      (c.policy(mixture.odm), "warmup_steps=3", 3),
      (c.policy(mixture.static), "proportions=(0.25,0.75)", (0.25, 0.75)),
      (c.policy(mixture.by_size, temperature=2), "temperature=0.5", 0.5),
      (c.policy(mixture.odm), "reward=smoothed_mean", "smoothed_mean"),
    ],
  )
  def test_override_parameters_of_policies(self, chosen, flag, expected):
    config = c.to_config_dict(dataclasses.replace(full_config(), mixture=chosen))
    changed = flagged(config, f"--config.mixture.{flag}").mixture
    assert changed[flag.partition("=")[0]] == expected
    c.build_policies(c.from_config_dict(config))

  @pytest.mark.parametrize(
    "flag", ["num_steps=1.5", "optimizer.learning_rate=fast", "mixture.warmup_steps=soon"]
  )
  def test_of_another_type_are_errors(self, flag):
    with pytest.raises((flags.IllegalFlagValueError, TypeError), match=flag.partition("=")[0]):
      flagged(c.to_config_dict(full_config()), f"--config.{flag}")

  def test_typos_are_named_all_at_once_with_suggestions(self):
    config = c.to_config_dict(full_config())
    paths = ["optimzer.b1", "optimizer.learning_rte", "mixture.warmup", "num_steps", "seed.x"]
    typos = c.unknown_overrides(config, paths)
    assert [re.sub(r" \(known: .*\)", "", typo) for typo in typos] == [
      "config has no field 'optimzer', did you mean 'optimizer'?",
      "config.optimizer has no field 'learning_rte', did you mean 'learning_rate'?",
      "config.mixture has no field 'warmup', did you mean 'warmup_steps'?",
      "config.seed has no field 'x'",
    ]
    assert "(known: factory, reward, smoothing, variant, warmup_steps)" in typos[2]


class TestRejected:
  def test_unknown_fields_all_at_once(self):
    values = c.to_config_dict(full_config()).to_dict()
    values["batch_sise"] = 1
    values["optimizer"]["beta"] = 2
    with pytest.raises(ValueError, match=r"batch_sise.*batch_size") as error:
      c.from_config_dict(values)
    assert "config.optimizer has no field 'beta'" in str(error.value)

  @pytest.mark.parametrize(
    ("fields", "named"),
    [
      (
        {"num_steps": 0, "batch_size": -1},
        ["num_steps must be 1 or more, got 0", "batch_size"],
      ),
      ({"accumulation_steps": 0}, ["accumulation_steps must be 1 or more, got 0"]),
      ({"accumulation_steps": 5}, ["batch_size=32 must be divisible by accumulation_steps=5"]),
      ({"seed": -1}, ["seed must be 0 or more"]),
      ({"seed": 1 << 32}, ["seed must be below 2^32"]),
      ({"loss_average": "tokens"}, ["loss_average must be one of ('token', 'example')"]),
      ({"plan": c.PlanConfig(num_candidates=40)}, ["plan.num_candidates=40", "batch_size=32"]),
      ({"plan": c.PlanConfig(candidate_draw="best")}, ["plan.candidate_draw", "'best'"]),
      (
        {"evaluation": c.EvaluationConfig(every_steps=-1)},
        ["evaluation.every_steps must be 0"],
      ),
      ({"checkpoint": c.CheckpointConfig(0, 0)}, ["checkpoint.every_steps", "checkpoint.keep"]),
      ({"logging": c.LoggingConfig(every_steps=0)}, ["logging.every_steps must be 1"]),
    ],
  )
  def test_values(self, fields, named):
    with pytest.raises(ValueError, match=re.escape(named[0])) as error:
      c.RunConfig(**fields)
    assert all(name in str(error.value) for name in named)

  @pytest.mark.parametrize(
    ("fields", "named"),
    [
      ({"batch_size": "8", "seed": 0.5}, ["batch_size must be of type int, got '8'", "seed"]),
      ({"num_steps": True}, ["num_steps must be of type int, got True"]),
      ({"plan": c.PlanConfig(proportions=0.5)}, ["plan.proportions", "got 0.5"]),
      ({"plan": c.PlanConfig(proportions=("a",))}, ["plan.proportions"]),
      ({"plan": None, "mesh": {}}, ["plan must be of type PlanConfig, got None", "mesh"]),
      ({"logging": c.LoggingConfig(tensorboard="no")}, ["logging.tensorboard must be of type"]),
    ],
  )
  def test_types(self, fields, named):
    with pytest.raises(ValueError, match=re.escape(named[0])) as error:
      c.RunConfig(**fields)
    assert all(name in str(error.value) for name in named)

  def test_types_of_the_other_parts(self):
    with pytest.raises(ValueError, match=r"corpus\.text_field must be of type str, got 3.*b1"):
      c.TrainConfig(corpus=c.CorpusConfig(text_field=3), optimizer=c.OptimizerConfig(b1="a"))


def plain(first: int, second: float = 1, third: str | None = None, *, fourth: bool = False):
  raise AssertionError


def windows(window: int, ordering: Ordering):
  raise AssertionError


class TestPolicy:
  def test_shows_every_parameter(self):
    made = c.policy(mixture.odm, smoothing=0.5)
    assert set(made) == {"factory", "variant", "reward", "smoothing", "warmup_steps"}
    assert made.smoothing == 0.5
    assert made.variant == "batched"

  def test_needs_what_has_no_default(self):
    made = c.policy(plain)  # a flag may give it
    with pytest.raises(ValueError, match=r"mixture: plain needs a value for \['first'\]"):
      c.build_policies(c.TrainConfig(mixture=made))
    made.first = 2
    assert c.policy(plain, first=2).first == made.first
    chosen = {"selection": c.policy(selection.near), "mixture": c.policy(mixture.pike)}
    config = c.to_config_dict(c.TrainConfig(**chosen))
    changed = flagged(config, "--config.selection.count=7", "--config.mixture.zeta1=1")
    assert (changed.selection.count, changed.mixture.zeta1) == (7, 1.0)
    with pytest.raises(ValueError, match=r"^mixture: pike needs a value for \['zeta2'\]$"):
      c.build_policies(c.from_config_dict(changed))
    with pytest.raises(TypeError, match="windows needs a value for 'ordering'"):
      c.policy(windows, window=3)

  def test_names_unknown_parameters(self):
    with pytest.raises(TypeError, match=r"odm: no field 'warmup', did you mean 'warmup_steps'"):
      c.policy(mixture.odm, warmup=3)

  def test_built_policies_are_the_factories_own(self):
    built = c.build_policies(full_config())
    assert isinstance(built, policies.Policies)
    assert built.mixture.observes == mixture.odm().observes
    assert built.weighting is not None
    assert built.selection is built.ordering is None

  def test_of_another_policy_is_built_with_it_and_takes_flags(self):
    nested = c.policy(ordering.window_shuffle, window=8, ordering=c.policy(ordering.sorting))
    config = c.to_config_dict(dataclasses.replace(full_config(), ordering=nested))
    inner = "config.ordering.ordering"
    paths = [f"{inner}.descending", f"{inner}.descendin"]
    assert (
      c.unknown_overrides(config, [path.removeprefix("config.") for path in paths[:1]]) == []
    )
    (problem,) = c.unknown_overrides(config, ["ordering.ordering.descendin"])
    assert "config.ordering.ordering has no field 'descendin'" in problem
    changed = flagged(config, "--config.ordering.window=1", f"--{paths[0]}=true")
    built = c.build_policies(c.from_config_dict(changed)).ordering
    score = jnp.array([2.0, 5.0, 3.0, jnp.inf])
    assert built.order(score, jax.random.key(0)).tolist() == [1, 2, 0, 3]
    assert c.to_json(c.from_config_dict(changed))["ordering.ordering.descending"] is True

  def test_faults_of_all_slots_are_named_at_once(self):
    config = full_config()
    unknown = ml_collections.ConfigDict({"factory": selection.loss, "focal": 1})
    wrong = dataclasses.replace(
      config,
      mixture=c.policy(mixture.odm, smoothing=2.0, warmup_steps=-1),
      selection=unknown,
      ordering={"temperature": 1},
      weighting=weighting.loss_reweighting(),
    )
    with pytest.raises(ValueError, match=r"mixture: .*smoothing.*2\.0") as error:
      c.build_policies(wrong)
    message = str(error.value)
    assert "warmup_steps" in message
    assert "selection: no field 'focal', did you mean 'focus'?" in message
    assert "ordering must be made by jdc.train.config.policy" in message
    assert "weighting must be made by jdc.train.config.policy" in message

  def test_a_policy_of_another_slot_is_an_error(self):
    wrong = dataclasses.replace(full_config(), weighting=c.policy(selection.loss))
    with pytest.raises(ValueError, match=r"weighting\.scope"):
      c.build_policies(wrong)


class TestDifferences:
  def changed(self, **fields):
    saved = c.to_json(full_config())
    return c.differences(saved, c.to_json(dataclasses.replace(full_config(), **fields)))

  def test_none_in_the_same_config(self):
    assert self.changed() == []

  @pytest.mark.parametrize(
    "fields",
    [
      {"num_steps": 8},
      {"mesh": c.MeshConfig(tensor=2)},
      {"evaluation": c.EvaluationConfig(every_steps=3)},
      {"checkpoint": c.CheckpointConfig(every_steps=3, folder="elsewhere")},
      {"logging": c.LoggingConfig(every_steps=3, wandb_project="x")},
      {"corpus": c.CorpusConfig(cache_dir="there")},
    ],
  )
  def test_what_may_change(self, fields):
    assert self.changed(**fields) == []

  def test_nested_sequences_come_back_equal(self):
    chosen = c.policy(mixture.static, proportions=((1.0, 0.0), (0.5, 0.5)))
    flat = c.to_json(c.TrainConfig(mixture=chosen))
    assert c.differences(json.loads(json.dumps(flat)), flat) == []

  def test_what_may_not_is_listed_with_both_values(self):
    found = self.changed(
      seed=1,
      mixture=c.policy(mixture.static, proportions=(0.5, 0.5)),
      optimizer=c.OptimizerConfig(weight_decay=0.5),
    )
    assert "seed: 0 -> 1" in found
    assert "optimizer.weight_decay: 0 -> 0.5" in found
    assert "mixture.proportions: None -> [0.5, 0.5]" in found
    assert any(line.startswith("mixture.factory: ") for line in found)
    assert len(found) == 7  # and the four parameters of odm

  def test_names_that_only_begin_alike_are_not_allowed(self):
    assert c.differences({"mesh_size": 1}, {"mesh_size": 2}) == ["mesh_size: 1 -> 2"]


KNOWN = {"tiny": False, "steps": 100, "rate": 0.1, "mixture": "odm"}


class TestArgument:
  def test_is_read_with_the_types_of_the_defaults(self):
    assert c.parse_arg("", **KNOWN) == KNOWN
    assert c.parse_arg(None, **KNOWN) == KNOWN
    found = c.parse_arg("tiny,steps=5,rate=1,mixture=a=b", **KNOWN)
    assert found == {"tiny": True, "steps": 5, "rate": 1.0, "mixture": "a=b"}

  @pytest.mark.parametrize(
    ("arg", "message"),
    [
      ("tny", "no field 'tny', did you mean 'tiny'.*known: tiny, steps"),
      ("tiny=1", "'tiny' is a switch and takes no value, got '1'"),
      ("steps", "'steps' needs a value"),
      ("steps=few", "'steps' must be of type int, got 'few'"),
      ("rate=", "'rate' must be of type float, got ''"),
    ],
  )
  def test_is_refused(self, arg, message):
    with pytest.raises(ValueError, match=message):
      c.parse_arg(arg, **KNOWN)


def test_collect_joins_the_errors_of_all():
  def fail(message):
    raise ValueError(message)

  assert c.collect(lambda: 1, lambda: 2) == [1, 2]
  with pytest.raises(ValueError, match=r"^first; second$"):
    c.collect(lambda: fail("first"), lambda: 1, lambda: fail("second"))


def test_sets_among_the_parameters_become_json():
  config = c.TrainConfig(data="somewhere", ordering=c.policy(ordering.sorting))
  assert json.loads(json.dumps(c.to_json(config)))["ordering.observes"] == ["loss"]
