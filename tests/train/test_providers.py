"""What policies observe in a run is what it is computed from, apart from the trainer."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdc import metrics, policies
from jdc.data.batch import inputs_and_targets
from jdc.data.loader import Batch, Pool
from jdc.models.base import MESH_AXES
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.policies import DataPolicy, Decision, RunSpec, TargetStats, mixture, weighting
from jdc.stats.embeddings import POOLINGS
from jdc.stats.probes import probe_ids
from jdc.stats.target_rows import TargetRows, choose_rows
from jdc.train import loop, sharding, sources
from jdc.train import passes as passes_lib
from jdc.train import state as state_lib
from jdc.train.config import LoggingConfig, ProbeConfig, TargetConfig
from jdc.train.state import Reference
from jdc.train.step import StepOptions, make_train_step

B, T, K, V, S = 8, 20, 3, 258, 3
SPEC = RunSpec(
  num_examples=64,
  num_domains=K,
  domain_names=("a", "b", "c"),
  domain_sizes=(20, 20, 24),
  proportions=(0.2, 0.3, 0.5),
  batch_size=B,
  sequence_length=T,
  num_steps=100,
)


def recorder(*fields, scope="step", **shapes):
  """A mixture that decides nothing and keeps what it observes as its state.

  Shapes are those of the fields that are not one number for each example.
  """

  def init(spec, key):
    state = {name: np.zeros(shapes.get(name, spec.batch_size), np.float32) for name in fields}
    if "target" in fields:
      numbers = np.zeros(spec.num_targets, np.int32)
      state["target"] = TargetStats(
        loss=numbers.astype(np.float32), task=numbers, domain=numbers
      )
    for name in {"example_id", "domain", "num_tokens"} & set(fields):
      state[name] = state[name].astype(np.int32)
    return Decision(), jax.tree.map(jnp.asarray, state)

  def update(stats, state):
    return Decision(), {name: getattr(stats, name) for name in state}

  return DataPolicy(init, update, frozenset(fields), scope)


# Single steps on made-up rows, in which every domain has tokens of its own.


@functools.cache
def make_batch(packed=False):
  """Rows of one record each, with a prompt, and of up to S; one of them is empty."""
  rng = np.random.default_rng(0)
  tokens, segments = np.zeros((2, B, T + 1), np.int32)
  ids = np.full((B, S), -1, np.int32)
  count = itertools.count()
  for row in range(B - 1):
    end = 0
    for place in range(1 + row % S if packed else 1):
      ids[row, place] = example = next(count)
      length = int(rng.integers(3, T // S + 1 if packed else T + 2))
      here = slice(end, end + length)
      tokens[row, here] = example % K * (V // K) + rng.integers(0, V // K, length)
      segments[row, here] = place + 1
      segments[row, end] *= -1
      end += length
  ids = ids if packed else ids[:, 0]
  ones = np.ones(ids.shape, np.float32)
  return Batch(tokens, segments, ids, np.where(ids < 0, 0, ids % K), ones, ones, ones)


def make_step(model, chosen, batch, options, devices=None, **parts):
  """A state, and the function that takes one step of SGD from it on the batch."""
  optimizer, rate = optax.sgd(1.0), optax.constant_schedule(1.0)
  devices = devices or 8 // options.accumulation_steps
  shape = (devices, 1, 1, 1)
  auto = (jax.sharding.AxisType.Auto,) * len(shape)
  mesh = jax.make_mesh(shape, MESH_AXES, axis_types=auto, devices=jax.devices()[:devices])
  slots = batch.max_segments
  spec = SPEC._replace(batch_size=B * (slots or 1), max_segments=slots or 0)
  with jax.set_mesh(mesh):
    _, states = state_lib.init_policies(chosen, spec, 0)
    state = state_lib.init(state_lib.Start(model), optimizer, states, mesh, 0)
    fixed = sources.fixed_parts(parts.get("reference_params"), parts.get("targets"), mesh)
    placed = jax.device_put(batch, sharding.batch_sharding(mesh))
    step = jax.jit(
      make_train_step(model, optimizer, rate, chosen, options, parts.get("reference"))
    )

  def take(state):
    with jax.set_mesh(mesh):
      return step(state, placed)

  return state._replace(fixed=fixed), take


def take_step(*arguments, **parts):
  """One step: the state before it, the one after it, the output."""
  state, take = make_step(*arguments, **parts)
  return state, *take(state)


def inputs_of(batch):
  return inputs_and_targets(batch.tokens, batch.segments)


@pytest.fixture(scope="module")
def deep(model_config):
  return decoder(dataclasses.replace(model_config, num_layers=1))


@pytest.mark.parametrize("accumulation_steps", [1, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_embeddings_are_those_of_the_hidden_states(deep, packed, accumulation_steps):
  batch = make_batch(packed)
  num_examples, width = batch.example_id.size, 16
  observed = recorder("example_id", *POOLINGS, **dict.fromkeys(POOLINGS, (num_examples, width)))
  before, after, _ = take_step(
    deep,
    policies.combine(mixture=observed),
    batch,
    StepOptions(accumulation_steps=accumulation_steps),
  )
  found = jax.device_get(after.policies["mixture"])
  np.testing.assert_array_equal(found["example_id"], batch.example_id.ravel())
  inputs = inputs_of(batch)
  hidden = deep.hidden(before.params, inputs.tokens, inputs.positions, inputs.segments)
  hidden = np.asarray(hidden, np.float64)
  scale = np.abs(hidden).max()
  for place, example in enumerate(found["example_id"]):
    row, segment = divmod(place, S) if packed else (place, 0)
    own = hidden[row][inputs.segments[row] == segment + 1]
    count = np.arange(1, len(own) + 1)
    expected = {name: np.zeros(width) for name in POOLINGS}
    if example >= 0:
      expected = {
        "embedding": own.mean(axis=0),
        "position_weighted_embedding": count / count.sum() @ own,
        "last_token_embedding": own[-1],
      }
    for name, value in expected.items():
      np.testing.assert_allclose(found[name][place], value, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("accumulation_steps", [1, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_reference_losses_are_those_of_the_reference(small_model, packed, accumulation_steps):
  batch, params = make_batch(packed), small_model.init(jax.random.key(5))
  num_examples = batch.example_id.size
  chosen = policies.combine(
    mixture=recorder(
      "reference_loss", "reference_token_loss", "num_tokens", reference_token_loss=(B, T)
    )
  )
  options = StepOptions(accumulation_steps=accumulation_steps)
  _, after, _ = take_step(
    small_model, chosen, batch, options, reference=small_model, reference_params=params
  )
  found, inputs = jax.device_get(after.policies["mixture"]), inputs_of(batch)
  expected = small_model.token_losses(params, *inputs[:4])
  counted = inputs.mask
  np.testing.assert_allclose(
    found["reference_token_loss"][counted], np.asarray(expected)[counted], rtol=1e-5
  )
  assert found["reference_loss"].shape == (num_examples,)
  losses = np.where(counted, expected, 0).astype(np.float64)
  for place, example in enumerate(batch.example_id.ravel()):
    row, segment = divmod(place, S) if packed else (place, 0)
    own = losses[row][counted[row] & (inputs.segments[row] == segment + 1)]
    assert found["num_tokens"][place] == len(own)
    mean = own.mean() if example >= 0 else 0.0
    np.testing.assert_allclose(found["reference_loss"][place], mean, rtol=1e-5)


@functools.cache
def chunked():
  """A decoder whose losses come a few positions at a time."""
  return decoder(
    DecoderConfig(
      vocab_size=V, width=16, num_layers=1, num_heads=2, num_kv_heads=2, mlp_width=32
    ),
    loss_chunk=33,
  )


@pytest.mark.parametrize(
  ("packed", "weighted", "accumulation_steps"),
  [(False, False, 1), (True, False, 4), (True, True, 1), (False, True, 4)],
)
def test_errors_come_with_the_losses_that_train(packed, weighted, accumulation_steps):
  """EL2N of each example, from all its logits in float64; the step is the same without."""
  batch, told = make_batch(packed), {}
  options = StepOptions(
    accumulation_steps=accumulation_steps,
    weighted_slots=frozenset({"weighting"} if weighted else ()),
  )
  for fields in (("loss",), ("loss", "el2n", "example_id")):
    chosen = policies.combine(mixture=recorder(*fields))
    if weighted:
      chosen = chosen._replace(weighting=weighting.loss_reweighting(burn_in_steps=0))
    before, told[fields], output = take_step(chunked(), chosen, batch, options, devices=1)
    assert not output.skipped
  without, after = told.values()
  for e, a in zip(*map(jax.tree.leaves, (without.params, after.params)), strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)
  found, inputs = jax.device_get(after.policies["mixture"]), inputs_of(batch)
  np.testing.assert_allclose(
    found["loss"], without.policies["mixture"]["loss"], rtol=1e-5, atol=1e-6
  )
  logits = chunked().logits(before.params, inputs.tokens, inputs.positions, inputs.segments)
  logits = np.asarray(logits, np.float64)
  p = np.exp(logits - logits.max(axis=-1, keepdims=True))
  p /= p.sum(axis=-1, keepdims=True)
  p_target = np.take_along_axis(p, np.maximum(inputs.targets, 0)[..., None], -1)[..., 0]
  error = np.sqrt((p**2).sum(axis=-1) - 2 * p_target + 1)
  for place, example in enumerate(found["example_id"]):
    row, segment = divmod(place, S) if packed else (place, 0)
    own = error[row][inputs.mask[row] & (inputs.segments[row] == segment + 1)]
    expected = own.mean() if example >= 0 else 0
    np.testing.assert_allclose(found["el2n"][place], expected, rtol=1e-5)


@pytest.mark.parametrize("form", ["weighted", "look"])
def test_errors_need_no_further_pass_over_the_output_matrix(form):
  model, inputs = chunked(), inputs_of(make_batch())
  params = model.init(jax.random.key(0))
  rows, counts = passes_lib.Microbatch(make_batch(), inputs), []
  for wanted in ({"loss"}, {"loss", "el2n"}):
    passes = passes_lib.make_passes(model, None, frozenset(wanted))

    def loss(params, passes=passes):
      if form == "weighted":
        return passes.weighted(params, rows, jnp.ones((B, T)))[:2]
      seen, _ = passes.look(params, rows)
      return jnp.sum(seen.token_loss * jnp.log1p(seen.token_loss)), seen

    grad = jax.make_jaxpr(jax.grad(loss, has_aux=True))(params)
    counts.append(str(grad).count("dot_general"))
  assert counts[0] == counts[1]


@functools.cache
def target_rows(count=4):
  rng = np.random.default_rng(1)
  tokens = rng.integers(0, V, (count, T + 1)).astype(np.int32)
  segments = (np.arange(T + 1) < 4 + 4 * np.arange(count)[:, None]).astype(np.int32)
  return TargetRows(tokens, segments, *np.zeros((2, count), np.int32))


def gradient_rows(model, params, tokens, segments):
  """The gradient of the sum of each row's losses, f64[rows, P], and its target tokens."""
  inputs = inputs_and_targets(tokens, segments)

  def row_loss(params, row):
    losses = model.token_losses(params, *(x[row][None] for x in inputs[:4]))
    return jnp.sum(jnp.where(inputs.mask[row], losses[0], 0))

  gradient = jax.jit(jax.grad(row_loss))
  inputs = jax.tree.map(jnp.asarray, inputs)
  rows = [jax.tree.leaves(gradient(params, row)) for row in range(len(tokens))]
  flat = [np.concatenate([np.ravel(leaf) for leaf in leaves]) for leaves in rows]
  return np.stack(flat).astype(np.float64), np.asarray(inputs.mask).sum(axis=1)


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_target_alignment_is_with_the_gradient_of_rows_that_are_drawn_anew(
  small_model, accumulation_steps
):
  batch, targets, drawn = make_batch(), target_rows(), 2
  state, take = make_step(
    small_model,
    policies.combine(mixture=recorder("target_alignment")),
    batch,
    StepOptions(accumulation_steps=accumulation_steps, num_target_rows=drawn),
    targets=targets,
  )
  params = state.params
  sums, counts = gradient_rows(small_model, params, batch.tokens, batch.segments)
  examples = sums / np.maximum(counts, 1)[:, None]
  sums, counts = gradient_rows(small_model, params, targets.tokens, targets.segments)
  seen = []
  for step in range(4):
    after, _ = take(state._replace(step=jnp.int32(step)))
    found = jax.device_get(after.policies["mixture"]["target_alignment"])
    fitting = []
    for rows in itertools.combinations(range(len(counts)), drawn):
      expected = examples @ (sums[[*rows]].sum(axis=0) / counts[[*rows]].sum())
      if np.allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0):
        fitting.append(rows)
    assert len(fitting) == 1
    assert found[-1] == 0  # padding
    seen += fitting
  assert len(set(seen)) > 1


@pytest.mark.parametrize("average", ["token", "example"])
@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_alignment_by_linear_maps(deep, accumulation_steps, average):
  """By the pass that trains, or one before it; the step itself stays as it is."""
  batch, targets = make_batch(), target_rows()
  chosen = policies.combine(mixture=recorder("target_alignment"))
  params, found, drawn = [], [], len(targets.task)
  for alignment in ("exact", "linear_maps"):
    options = StepOptions(
      average, accumulation_steps, num_target_rows=drawn, alignment=alignment
    )
    state, after, _ = take_step(deep, chosen, batch, options, targets=targets)
    params.append(jax.device_get(after.params))
    found.append(jax.device_get(after.policies["mixture"]["target_alignment"]))
  maps = deep.linear_maps(state.params)
  leaves = jax.tree_util.tree_leaves_with_path(state.params)
  named = [("/".join(key.key for key in path), x.size) for path, x in leaves]
  by_maps = np.concatenate([np.full(size, path in maps) for path, size in named])
  assert 0 < by_maps.sum() < by_maps.size
  sums, counts = gradient_rows(deep, state.params, batch.tokens, batch.segments)
  examples = sums / np.maximum(counts, 1)[:, None]
  sums, counts = gradient_rows(deep, state.params, targets.tokens, targets.segments)
  target = sums.sum(axis=0) / counts.sum()
  for aligned, chosen_numbers in zip(found, (np.ones_like(by_maps), by_maps), strict=True):
    scale = np.abs(examples @ target).max()
    expected = examples @ (target * chosen_numbers)
    np.testing.assert_allclose(aligned, expected, rtol=0, atol=1e-5 * scale)
  assert found[1][-1] == 0  # padding
  for one, other in zip(*map(jax.tree.leaves, params), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# DoReMi and the balance of experts.


def doremi_step(model, devices=None, accumulation_steps=1, **options):
  return make_step(
    model,
    policies.combine(mixture=mixture.doremi(learning_rate=2.0, **options)),
    make_batch(),
    StepOptions(accumulation_steps=accumulation_steps, weighted_slots=frozenset({"mixture"})),
    devices,
    reference=model,
    reference_params=model.init(jax.random.key(5)),
  )


def test_doremi_decides_the_same_on_any_devices_and_microbatches(small_model):
  results = []
  for devices, accumulation_steps in ((1, 1), (1, 4), (8, 1), (2, 4)):
    state, take = doremi_step(small_model, devices, accumulation_steps)
    after, output = take(state)
    alpha = np.exp(after.policies["mixture"].log_alpha_K)
    results.append((alpha, np.asarray(output.weight_B), np.asarray(output.loss)))
  alpha, weight, _ = results[0]
  assert np.ptp(alpha) > 0.05
  assert np.ptp(weight) > 0.1
  for found in results[1:]:
    for value, expected in zip(found, results[0], strict=True):
      np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_a_domain_of_weight_zero_has_no_gradient(small_model, accumulation_steps):
  """No rows of other domains have its tokens."""
  state, take = doremi_step(small_model, None, accumulation_steps, smoothing=0.0)
  batch = make_batch()
  inputs = inputs_of(batch)
  for domain in range(K):
    alpha_K = np.where(np.arange(K) == domain, 0, 0.5)
    with np.errstate(divide="ignore"):
      log_alpha_K = jnp.float32(np.log(alpha_K))
    doremi = state.policies["mixture"]._replace(log_alpha_K=log_alpha_K)
    after, _ = take(state._replace(policies={"mixture": doremi}))
    moved = np.asarray(after.params["embedding"]) != np.asarray(state.params["embedding"])
    for k in range(K):
      rows = (batch.domain == k) & (batch.example_id >= 0)
      read = np.unique(inputs.tokens[rows][inputs.mask[rows]])
      assert len(read) > 5
      assert moved[read].any(axis=1).all() if k != domain else not moved[read].any()


@pytest.mark.parametrize("accumulation_steps", [1, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_balance_of_experts_enters_the_gradient_alone(
  small_model, accumulation_steps, weighted
):
  def outputs(params, *inputs):
    found = small_model.outputs(params, *inputs)
    return found._replace(balance_loss=jnp.sum(params["router"] ** 2))

  chosen, slots = policies.combine(mixture=recorder("loss")), frozenset()
  if weighted:
    chosen = chosen._replace(weighting=weighting.loss_reweighting(burn_in_steps=0))
    slots = frozenset({"weighting"})
  options = StepOptions(accumulation_steps=accumulation_steps, weighted_slots=slots)
  results = {}
  for weight in (0.0, 0.25):
    model = small_model._replace(outputs=outputs, balance_weight=weight)
    results[weight] = take_step(model, chosen, make_batch(), options)
  (before, plain, without), (_, balanced, output) = results.values()
  router = np.asarray(before.params["router"])
  np.testing.assert_array_equal(plain.params["router"], router)
  np.testing.assert_allclose(balanced.params["router"], router * (1 - 2 * 0.25), rtol=1e-5)
  for name in ("embedding", "output"):
    np.testing.assert_allclose(balanced.params[name], plain.params[name], atol=1e-6)
  assert without.balance_loss is None
  np.testing.assert_allclose(output.balance_loss, 0.25 * np.sum(router**2), rtol=1e-5)
  np.testing.assert_allclose(output.loss, without.loss, rtol=1e-6)
  np.testing.assert_allclose(
    balanced.policies["mixture"]["loss"], plain.policies["mixture"]["loss"], rtol=1e-6
  )


# Whole runs.


def of_reference(model, **fields):
  """A reference model that counts how often its parameters are loaded."""
  loads = []

  def load(mesh):
    loads.append(mesh)
    return jax.device_put(model.init(jax.random.key(9)), jax.NamedSharding(mesh, jax.P()))

  return Reference(model, load, "first")._replace(**fields), loads


def steps_of(run, workdir):
  """The parameters before the first step and after each, and what each one observed."""
  params = [jax.device_get(jax.jit(run.model.init)(jax.random.key(run.config.seed)))]
  observed = []
  for progress in loop.steps(run, str(workdir)):
    params.append(jax.device_get(progress.state.params))
    observed.append(jax.device_get(progress.state.policies["mixture"]))
  return params, observed


def pool_of(run):
  return Pool([domain.train for domain in run.domains.values()], run.config.sequence_length)


def test_a_cached_reference_decides_as_one_in_each_step(small_run, small_model, tmp_path):
  chosen = policies.combine(mixture=mixture.doremi(), weighting=weighting.rho1())
  logging = LoggingConfig(every_steps=1, tensorboard=False)
  found = {}
  for cache in (None, str(tmp_path / "cache")):
    reference, loads = of_reference(small_model, cache=cache)
    run = small_run(chosen, reference=reference, logging=logging, num_steps=8)
    folder = tmp_path / str(cache is None)
    result = loop.fit(run, str(folder))
    lines = metrics.read_metrics(folder)
    found[cache is None] = (
      metrics.read_example_ids(folder),
      np.array(
        [line["train/weighted_loss"] for line in lines if "train/weighted_loss" in line]
      ),
      jax.device_get(result.state.policies["mixture"].mean_alpha_K),
      lines[-1]["cost/extra_forward_rows"],
    )
    assert len(loads) == 1
  np.testing.assert_array_equal(found[True][0], found[False][0])
  for k in (1, 2):
    np.testing.assert_allclose(found[True][k], found[False][k], rtol=1e-5)
  assert found[True][3] == 8 * run.config.batch_size
  assert found[False][3] == len(pool_of(run))


def open_cached(run, reference):
  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh):
    _, losses = sources.open_reference(
      reference, pool_of(run), run.domains, run.config.batch_size, mesh
    )
  return losses


def test_losses_are_cached_by_reference_and_rows(small_run, small_model, tmp_path):
  run, folder = small_run(policies.combine()), tmp_path / "cache"
  reference, loads = of_reference(small_model, cache=str(folder))
  first, again = open_cached(run, reference), open_cached(run, reference)
  assert (len(loads), len(list(folder.iterdir()))) == (1, 1)
  pool = pool_of(run)
  every = np.arange(len(pool))
  inputs = inputs_and_targets(*pool.rows(every, np.ones(len(pool), bool)))
  expected = small_model.token_losses(small_model.init(jax.random.key(9)), *inputs[:4])
  expected = np.where(inputs.mask, expected, 0)
  for losses in (first, again):
    np.testing.assert_allclose(losses.rows(every, every >= 0), expected, rtol=1e-5)
  some, wanted = np.array([-1, 5, 2]), np.array([True, True, False])
  read = again.rows(some, wanted)
  np.testing.assert_array_equal(read[1:2], first.rows(every[5:6], wanted[:1]))
  assert not read[::2].any()
  open_cached(run, reference._replace(fingerprint="second"))
  names = [*run.domains][::-1]  # the same rows under other numbers
  open_cached(run._replace(domains={name: run.domains[name] for name in names}), reference)
  assert (len(loads), len(list(folder.iterdir()))) == (3, 3)


@pytest.mark.parametrize("fault", ["interrupted", "not finite"])
def test_an_unfinished_computation_leaves_no_losses(
  small_run, small_model, tmp_path, monkeypatch, fault
):
  run, folder = small_run(policies.combine()), tmp_path / "cache"
  reference, _ = of_reference(small_model, cache=str(folder))
  broken, error, message = reference, KeyboardInterrupt, None
  if fault == "interrupted":
    read, count = Pool.rows, itertools.count()

    def rows(self, ids, wanted):
      if next(count) == 3:
        assert len(list(folder.iterdir())) == 1  # it had begun
        raise KeyboardInterrupt
      return read(self, ids, wanted)

    monkeypatch.setattr(Pool, "rows", rows)
  else:
    error, message = FloatingPointError, "no finite loss on"
    nan = lambda *inputs: small_model.token_losses(*inputs) * jnp.nan
    broken = reference._replace(model=small_model._replace(token_losses=nan))
  with pytest.raises(error, match=message):
    open_cached(run, broken)
  assert list(folder.iterdir()) == []
  monkeypatch.undo()
  open_cached(run, reference)
  assert len(list(folder.iterdir())) == 1


def target_losses(run, params, rows=6):
  """The mean loss of each target row and of each domain, apart from the run."""
  chosen = choose_rows({n: d.target for n, d in run.domains.items()}, rows)
  inputs = inputs_and_targets(chosen.tokens, chosen.segments)
  losses = np.asarray(run.model.token_losses(params, *inputs[:4]), np.float64)
  sum_M = np.where(inputs.mask, losses, 0).sum(axis=1)
  tokens_M = inputs.mask.sum(axis=1)
  sum_K, tokens_K = (np.bincount(chosen.domain, x) for x in (sum_M, tokens_M))
  return sum_M / tokens_M, sum_K / tokens_K


@pytest.mark.parametrize("every_steps", [3, 100])
def test_target_statistics_are_those_of_the_last_refresh(small_run, tmp_path, every_steps):
  """A step-scope policy sees no other refreshes than those every n steps."""
  run = small_run(
    policies.combine(mixture=recorder("target", "domain_target_loss", domain_target_loss=K)),
    num_steps=8,
    steps_per_round=2,
    target=TargetConfig(rows=6, every_steps=every_steps),
  )
  params, observed = steps_of(run, tmp_path / "run")
  expected = [target_losses(run, x) for x in params]
  assert np.abs(np.diff([loss_K for _, loss_K in expected], axis=0)).min() > 1e-4
  for step, found in enumerate(observed):
    loss_M, loss_K = expected[step // every_steps * every_steps]
    np.testing.assert_allclose(found["target"].loss, loss_M, rtol=1e-5)
    np.testing.assert_allclose(found["domain_target_loss"], loss_K, rtol=1e-5)
  np.testing.assert_array_equal(found["target"].domain, np.repeat(np.arange(K), 6))
  cost = metrics.read_metrics(tmp_path / "run")[-1]["cost/extra_forward_rows"]
  assert cost == len(range(0, 8, every_steps)) * K * 6


def test_rounds_see_target_losses_of_their_start(small_run, tmp_path):
  observed = recorder("domain_target_loss", scope="round", domain_target_loss=K)
  run = small_run(
    policies.combine(mixture=observed),
    num_steps=7,
    steps_per_round=3,
    target=TargetConfig(rows=6, every_steps=100),
  )
  params, observed = steps_of(run, tmp_path / "run")
  for step, found in enumerate(observed):
    _, loss_K = target_losses(run, params[step // 3 * 3])
    np.testing.assert_allclose(found["domain_target_loss"], loss_K, rtol=1e-5)


@pytest.mark.parametrize("parameters", [(), ("output",)])
def test_rounds_see_the_gradients_of_their_start(small_run, tmp_path, parameters):
  shapes = {"domain_gradient_product": (K, 2, K, 2), "domain_target_alignment": (K, 2)}
  run = small_run(
    policies.combine(mixture=recorder(*shapes, scope="round", **shapes)),
    num_steps=5,
    steps_per_round=3,
    target=TargetConfig(rows=6),
    probe=ProbeConfig(rows=4, parameters=parameters),
  )
  params, observed = steps_of(run, tmp_path / "run")
  pool = pool_of(run)
  sizes = [len(table) for table in pool.tables]
  targets = choose_rows({n: d.target for n, d in run.domains.items()}, 6)
  for step, found in enumerate(observed):
    round_ = step // 3
    ids = probe_ids(sizes, 4, run.config.seed, round_)
    kept = lambda *rows, at=params[round_ * 3]: mean_gradient(run.model, at, parameters, *rows)
    halves = np.stack([kept(*pool.rows(half, half >= 0)) for half in ids.reshape(2 * K, -1)])
    product = (halves @ halves.T).reshape(K, 2, K, 2)
    alignment = (halves @ kept(targets.tokens, targets.segments)).reshape(K, 2)
    for name, expected in zip(shapes, (product, alignment), strict=True):
      scale = np.abs(expected).max()
      np.testing.assert_allclose(found[name], expected, atol=1e-5 * scale, rtol=0)
  cost = metrics.read_metrics(tmp_path / "run")[-1]["cost/extra_backward_rows"]
  assert cost == 2 * (K * 2 * 4 + K * 6)


def mean_gradient(model, params, names, tokens, segments):
  """Of all target tokens of some rows, by the named parameters or all, flat."""
  inputs = jax.tree.map(jnp.asarray, inputs_and_targets(tokens, segments))

  def loss(params):
    losses = model.token_losses(params, *inputs[:4])
    return jnp.sum(jnp.where(inputs.mask, losses, 0)) / jnp.sum(inputs.mask)

  found = jax.grad(loss)(params)
  kept = [np.ravel(found[name]) for name in sorted(found) if not names or name in names]
  return np.concatenate(kept).astype(np.float64)
