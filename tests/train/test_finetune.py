"""Training from imported weights: adapters, frozen parts, packed records, resumption."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from jdc import metrics
from jdc.models import hf, subsets
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.lora import LoraConfig
from jdc.policies import DataPolicy, Decision, combine, mixture, ordering, selection
from jdc.train import command, loop, model_parts
from jdc.train import config as c


def flatten(params):
  """The leaves by path, such as "layers/mlp/gate/kernel"."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): x
    for path, x in jax.tree_util.tree_leaves_with_path(params)
  }


def on_file(folder, **changes):
  """The parameters of a checkpoint by path, on the host."""
  config = hf.from_hf_config(folder, **changes)
  target = jax.eval_shape(decoder(config).init, jax.random.key(0))
  return flatten(jax.device_get(hf.load(folder, config, target)))


def test_only_adapters_change(adapted, base_folder):
  state = adapted[1].state
  names = subsets.paths(state.params)
  assert len(names) == 8  # two for each of four maps
  assert {name.rpartition("/")[2] for name in names} == {"lora_a", "lora_b"}
  for name, x in flatten(jax.device_get(state.params)).items():
    assert np.abs(x).max() > 1e-3, name  # B starts at 0
  expected, frozen = on_file(base_folder), flatten(jax.device_get(state.frozen))
  assert frozen.keys() == expected.keys()
  for name, x in frozen.items():
    assert x.dtype == expected[name].dtype
    assert x.tobytes() == expected[name].tobytes(), name


def test_the_model_learns_from_packed_rows_under_three_policies(adapted):
  workdir, result = adapted
  assert result.stopped == "finished"
  assert result.after["validation/macro_loss"] < result.before["validation/macro_loss"] - 0.1
  lines = metrics.read_metrics(workdir)
  last = [line for line in lines if "train/loss" in line][-1]
  assert last["data/share_filled"] > 0.6
  ids = metrics.read_example_ids(workdir)
  assert ids.shape == (9, 8 * 5)
  assert (ids >= 0).sum() > 9 * 8
  assert any(name.startswith("policy/weighting") for line in lines for name in line)


def stored(workdir):
  """Shapes of the arrays of the newest checkpoint by path."""
  step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
  found = ocp.checkpointables_metadata(workdir / f"checkpoints/{step}").metadata["state"]
  return flatten(found)


def test_no_frozen_parameter_is_stored_nor_has_optimizer_state(adapted, full):
  workdir, result = adapted
  arrays = stored(workdir)
  in_params = {name for name in arrays if name.startswith("params/")}
  assert len(in_params) == 8
  in_optimizer = [name for name in arrays if name.startswith("opt_state/") and "lora" in name]
  assert len(in_optimizer) == 2 * 8  # two moments
  weights = [name for name in arrays if name.endswith(("kernel", "scale", "embedding", "bias"))]
  assert not weights
  num_trained = sum(x.size for x in jax.tree.leaves(result.state.params))
  num_all = num_trained + sum(x.size for x in jax.tree.leaves(result.state.frozen))
  moments = [x.size for x in jax.tree.leaves(result.state.opt_state) if x.ndim]
  assert sum(moments) == 2 * num_trained
  assert num_trained < num_all / 8
  sizes = [
    sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
    for folder in (workdir, full[0])
  ]
  assert sizes[0] < sizes[1] / 2


def test_frozen_parameters_are_split_over_the_devices(adapted):
  frozen = flatten(adapted[1].state.frozen)
  gate = frozen["layers/mlp/gate/kernel"]
  assert gate.sharding.mesh.shape == {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2}
  assert gate.sharding.shard_shape(gate.shape) == (2, 16, 32)


# Resumption.


def without_early_end(folder):
  # A run that ends early evaluates there; a run that is killed does not.
  lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
  assert "validation/micro_loss" in lines[-1]
  (folder / "metrics.jsonl").write_text("".join(lines[:-1]))


def halted(finetune_run, workdir, step=5, **changes):
  """A run that was stopped after a step, with the schedule of the whole one."""
  run = finetune_run(workdir, **changes)
  short = dataclasses.replace(run.config, num_steps=step)
  loop.fit(run._replace(config=short), str(workdir))
  without_early_end(workdir)


@pytest.fixture(scope="module")
def halted_run(finetune_run, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("halted") / "run"
  halted(finetune_run, workdir)  # in the middle of a round of 4 and of a log window of 3
  return workdir


@pytest.fixture
def parts(halted_run, tmp_path):
  return shutil.copytree(halted_run, tmp_path / "parts")


def test_resumes_bitwise(adapted, finetune, parts, assert_same):
  workdir, result = adapted
  resumed = finetune(parts)
  assert_same(result.state, resumed.state)  # the frozen ones included
  assert_same(result.plan, resumed.plan)
  for file in ("metrics.jsonl", "example_ids.i32"):
    assert (parts / file).read_bytes() == (workdir / file).read_bytes()
  assert resumed.after == result.after


def test_four_devices_see_the_same_examples(adapted, finetune, parts, monkeypatch):
  workdir, result = adapted
  four = functools.partial(jax.make_mesh, devices=jax.devices()[:4])
  monkeypatch.setattr(jax, "make_mesh", four)
  monkeypatch.setattr(jax, "device_count", lambda: 4)
  resumed = finetune(parts, mesh=c.MeshConfig(data=1, fsdp=4))
  for x in jax.tree.leaves((resumed.state.params, resumed.state.frozen)):
    assert len(x.sharding.device_set) == 4
  ids = (metrics.read_example_ids(folder) for folder in (parts, workdir))
  np.testing.assert_array_equal(*ids)
  for name, x in flatten(resumed.state.params).items():
    np.testing.assert_allclose(x, flatten(result.state.params)[name], atol=1e-5, err_msg=name)


def test_a_moved_folder_of_weights_is_the_same(
  adapted, finetune, parts, base_folder, tmp_path, assert_same
):
  moved = shutil.copytree(base_folder, tmp_path / "elsewhere")
  resumed = finetune(parts, weights=c.WeightsConfig(folder=str(moved)))
  assert_same(adapted[1].state, resumed.state)


def flip(path):
  content = bytearray(path.read_bytes())
  content[-5] ^= 1
  path.write_bytes(content)


def test_other_weights_are_an_error(finetune, parts, base_folder, tmp_path):
  other = shutil.copytree(base_folder, tmp_path / "other")
  flip(other / "model.safetensors")
  kept = sorted(path.name for path in (parts / "checkpoints").iterdir())
  written = (parts / "metrics.jsonl").read_bytes()
  with pytest.raises(ValueError, match=r"another run.*fields: weights: 'sha256"):
    finetune(parts, weights=c.WeightsConfig(folder=str(other)))
  assert sorted(path.name for path in (parts / "checkpoints").iterdir()) == kept
  assert (parts / "metrics.jsonl").read_bytes() == written


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"lora": LoraConfig(rank=2, alpha=8.0, dropout=0.3)}, ["lora.alpha", "lora.targets"]),
    ({"plan.max_segments": 4}, ["plan.max_segments"]),
    ({"trainable": ("layers/*",)}, ["trainable"]),
  ],
)
def test_other_fields_are_an_error(finetune, finetune_config, parts, changes, named):
  if "plan.max_segments" in changes:
    changes = {"plan": dataclasses.replace(finetune_config.plan, max_segments=4)}
  with pytest.raises(ValueError, match="another run") as error:
    finetune(parts, **changes)
  assert all(name in str(error.value) for name in named)


@pytest.mark.slow
def test_resumes_bitwise_with_an_ordering_and_accumulation(
  finetune, finetune_run, full_fields, assert_same, tmp_path
):
  fields = full_fields | {
    "plan": c.PlanConfig(max_segments=5, steps_per_round=3),
    "ordering": c.policy(ordering.sorting),
    "mixture": c.policy(mixture.odm, warmup_steps=1),
    "accumulation_steps": 2,
    "loss_average": "example",
    "num_steps": 7,
  }
  whole = finetune(tmp_path / "whole", **fields)
  halted(finetune_run, tmp_path / "parts", **fields)  # at step 5, in the second round of 3
  resumed = finetune(tmp_path / "parts", **fields)
  assert_same(whole.state, resumed.state)
  assert_same(whole.plan, resumed.plan)
  for file in ("metrics.jsonl", "example_ids.i32"):
    written = (tmp_path / folder / file for folder in ("whole", "parts"))
    assert len({path.read_bytes() for path in written}) == 1


@pytest.mark.parametrize("on_exhausted", ["renormalise", "stop"])
def test_an_epoch_ends_the_run(finetune_run, full_fields, tmp_path, on_exhausted):
  plan = c.PlanConfig(max_segments=5, max_epochs=(1.0,) * 3, on_exhausted=on_exhausted)
  fields = full_fields | {"plan": plan, "mixture": c.policy(mixture.by_size), "num_steps": 50}
  run = finetune_run(tmp_path / "run", **fields)
  num_records = sum(len(domain.train) for domain in run.domains.values())
  result = loop.fit(run, str(tmp_path / "run"))
  assert "max_epochs=(1.0, 1.0, 1.0) leaves no draw of" in result.stopped
  ids = metrics.read_example_ids(tmp_path / "run")
  assert len(ids) == int(result.plan.step) < 50
  counts = np.bincount(ids[ids >= 0], minlength=num_records)
  assert counts.max() == 1
  if on_exhausted == "renormalise":
    assert counts.sum() == num_records
  else:
    assert counts.sum() == result.plan.drawn_G.sum() > num_records / 2


def test_a_whole_model_resumes_bitwise(
  full, full_fields, finetune, finetune_run, assert_same, tmp_path
):
  halted(finetune_run, tmp_path / "parts", step=3, **full_fields)
  resumed = finetune(tmp_path / "parts", **full_fields)
  assert resumed.state.frozen is None
  assert_same(full[1].state, resumed.state)


def test_patterns_choose_what_of_a_whole_model_is_trained(
  finetune, full_fields, base_folder, tmp_path
):
  fields = full_fields | {"trainable": ("layers/mlp/*", "*/scale"), "num_steps": 2}
  state = finetune(tmp_path / "run", **fields).state
  expected = on_file(base_folder)
  trained, frozen = flatten(state.params), flatten(state.frozen)
  assert trained.keys() | frozen.keys() == expected.keys()
  for name in expected:
    chosen = name.startswith("layers/mlp/") or name.endswith("/scale")
    assert (name in trained, name in frozen) == (chosen, not chosen)
    same = np.array_equal((trained if chosen else frozen)[name], expected[name])
    assert same != chosen, name
  assert not [name for name in stored(tmp_path / "run") if "attention/query" in name]


def test_bfloat16_weights_are_those_of_the_file(
  finetune, finetune_config, base_folder, tmp_path
):
  weights = dataclasses.replace(
    finetune_config.weights, parameter_dtype="bfloat16", dtype="bfloat16", remat="layer"
  )
  state = finetune(tmp_path / "run", num_steps=3, weights=weights).state
  expected = on_file(base_folder, parameter_dtype="bfloat16")
  for name, x in flatten(state.frozen).items():
    assert x.dtype == "bfloat16"
    np.testing.assert_array_equal(x, expected[name])
  assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}


# What is refused.

MODEL = DecoderConfig(
  vocab_size=320, width=16, num_layers=1, num_heads=2, num_kv_heads=2, mlp_width=16
)


def test_a_config_has_a_model_or_weights(finetune_config):
  with pytest.raises(ValueError, match="it has both"):
    model_parts.build(dataclasses.replace(finetune_config, model=MODEL))
  with pytest.raises(ValueError, match="it has neither"):
    model_parts.build(dataclasses.replace(finetune_config, weights=c.WeightsConfig()))


def test_patterns_that_match_nothing_are_all_named(finetune_config):
  fields = {"lora": None, "trainable": ("layers/mpl/*", "*/scale", "head")}
  with pytest.raises(ValueError, match=r"config\.trainable: 'layers/mpl/\*', 'head' match no"):
    model_parts.build(dataclasses.replace(finetune_config, **fields))
  lora = LoraConfig(targets=("layers/attention/*", "layers/router"))
  with pytest.raises(ValueError, match=r"lora\.targets layers/router"):
    model_parts.build(dataclasses.replace(finetune_config, lora=lora))


def test_patterns_that_leave_an_adapter_as_it_is_are_an_error(finetune_config):
  fields = {"trainable": ("layers/mlp/*",)}
  with pytest.raises(ValueError, match="layers/attention/query/lora_a"):
    model_parts.build(dataclasses.replace(finetune_config, **fields))
  model_parts.build(
    dataclasses.replace(finetune_config, trainable=("*/lora_*", "final_norm/*"))
  )


def test_a_tokenizer_of_more_tokens_than_the_model(finetune, base_folder, tmp_path):
  small = dataclasses.replace(MODEL, vocab_size=290, context_length=64)
  params = decoder(small).init(jax.random.key(0))
  hf.save(tmp_path / "small", small, params, tokenizer_folder=base_folder)
  weights = c.WeightsConfig(folder=str(tmp_path / "small"))
  with pytest.raises(
    ValueError, match=r"the tokenizer has 300 tokens.*vocab_size is 290.*copy"
  ):
    finetune(tmp_path / "run", weights=weights)


def test_a_truncated_file_of_weights(finetune_config, base_folder, tmp_path):
  folder = shutil.copytree(base_folder, tmp_path / "base")
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match=r"model\.safetensors"):
    model_parts.build(
      dataclasses.replace(finetune_config, weights=c.WeightsConfig(folder=str(folder)))
    )


def test_a_model_of_another_shape_than_its_weights(finetune, base_folder, tmp_path):
  folder = shutil.copytree(base_folder, tmp_path / "base")
  content = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(content | {"intermediate_size": 48}))
  with pytest.raises(ValueError, match=r"mlp\.gate_proj\.weight has shape"):
    finetune(tmp_path / "run", weights=c.WeightsConfig(folder=str(folder)))


def test_packing_is_refused_with_everything_else_that_is_wrong(
  domains, model_config, tiny_config, tmp_path, monkeypatch
):
  """Step-scope selection, one domain a step, exhausted rounds, and rows of documents."""
  keep_all = DataPolicy(
    lambda spec, key: (Decision(logits=np.zeros(spec.num_candidates, np.float32)), ()),
    lambda stats, state: (Decision(logits=np.zeros(16, np.float32)), state),
    frozenset({"loss"}),
    "step",
  )
  plan = c.PlanConfig(
    max_segments=4, domain_draw="one", round_ends="exhausted", num_candidates=16
  )
  rate = optax.constant_schedule(1.0)
  run = loop.Run(
    decoder(model_config), optax.sgd(rate), rate,
    combine(mixture=mixture.by_size(), selection=keep_all), domains,
    dataclasses.replace(tiny_config, plan=plan),
  )  # fmt: skip

  def compiles(*_, **__):
    raise AssertionError("nothing may be compiled")

  monkeypatch.setattr(jax, "jit", compiles)
  with pytest.raises(ValueError) as error:
    loop.fit(run, str(tmp_path))
  for words in (
    "plan.max_segments=4: a step-scope selection chooses among whole rows",
    "domain_draw='one' is not accepted where rows are packed",
    "round_ends='exhausted' is not accepted where rows are packed",
    "plan.max_segments packs instruction data, these are rows of documents",
    "domains fruit, metal, noise",
  ):
    assert words in str(error.value)


def test_gradients_a_mixture_and_weights_act_in_one_run_of_adapters(
  finetune_config, instruct_folder, assert_same, tmp_path
):
  """LESS, ODM and loss weights on an imported model; it resumes in the middle of a round."""
  tasks = tmp_path / "tasks"
  tasks.mkdir()
  source = sorted(instruct_folder.glob("*.jsonl"))[0]
  (tasks / source.name).write_text("".join(source.read_text().splitlines(keepends=True)[:8]))
  config = dataclasses.replace(
    finetune_config,
    selection=c.policy(selection.less),
    target=c.TargetConfig(folder=str(tasks), rows=4),
    features=c.FeaturesConfig(size=64),
    checkpoint=c.CheckpointConfig(every_steps=5),
  )
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  whole.mkdir()
  expected = loop.fit(command.build_run(config, str(whole)), str(whole))
  assert expected.spec.feature_size == 64
  shutil.copytree(whole, parts)
  shutil.rmtree(parts / "checkpoints" / "9")  # goes on at step 5, in the second round of four
  found = loop.fit(command.build_run(config, str(parts)), str(parts))
  assert_same(found.state, expected.state)
  assert_same(found.plan, expected.plan)
  for file in ("metrics.jsonl", "example_ids.i32"):
    assert (parts / file).read_bytes() == (whole / file).read_bytes()
