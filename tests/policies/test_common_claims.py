"""What every policy promises. A new policy is one line in POLICIES."""

import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jdc import policies
from jdc.policies import DataPolicy, ExampleStats, RunSpec, TargetStats, mixture, selection
from jdc.policies import weighting as weigh

# All sizes differ, so that a shape tells what an array is about.
K, B, C, N, T, R, D, E, M, S, Q = 4, 16, 32, 64, 8, 5, 6, 3, 7, 2, 9
SPEC = RunSpec(
  num_examples=N,
  num_domains=K,
  domain_names=("a", "b", "c", "d"),
  domain_sizes=(30, 20, 10, 4),
  proportions=(0.1, 0.2, 0.3, 0.4),
  batch_size=B,
  sequence_length=T,
  sweep_size=C,
  num_targets=M,
  num_tasks=S,
  num_responses=9,
  feature_size=R,
  embedding_size=D,
  num_experts=E,
  num_steps=2000,
  steps_per_round=10,
  domain_draw="one",
  logit_projection_size=Q,
)
KEY = jax.random.key(0)
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


@dataclasses.dataclass
class Case:
  name: str
  policy: DataPolicy
  statistic: Callable[[Any], jax.Array] | None = None  # state -> what it knows of each domain
  exceptions: dict[str, str] = dataclasses.field(default_factory=dict)  # claim: reason

  def __post_init__(self):
    self.update = jax.jit(self.policy.update)  # compiled once for all tests
    self.prepare = jax.jit(self.policy.prepare) if self.policy.prepare else None


reward = lambda state: state.reward_K
inner_reward = lambda state: state.inner.reward_K
odm = mixture.odm(warmup_steps=0)
stages = [(0, {"a": 1, "b": 1, "c": 1, "d": 0}), (3, {"a": 1, "b": 2, "c": 3, "d": 4})]
fast = weigh.loss_reweighting(burn_in_steps=1, temperature=((0, 9.0), (3, 0.5)))


def of_candidates(policy):
  """The policy in a run that keeps a third of the rows it sees."""

  def init(spec, key):
    rows = spec.batch_size
    return policy.init(spec._replace(num_candidates=rows, batch_size=rows // 3), key)

  return policy._replace(init=init)


def of_file(factory, **arrays):
  """The policy of a file with these arrays, which it reads at once."""
  with tempfile.TemporaryDirectory() as folder:
    np.savez(f"{folder}/file.npz", **arrays)
    return factory(f"{folder}/file.npz")


def with_probes(policy):
  """The policy in a run with two times six probe rows of each domain."""
  return policy._replace(init=lambda spec, key: policy.init(spec._replace(probe_size=6), key))


keeps_k = {"batch": "the second of two copies is worth less than the first"}
noise = np.random.default_rng(0).normal(size=(N + M, D))
noise[3] = np.nan
given = {"pool": noise[:N], "target": noise[N:]}
scores = {"example_id": np.arange(N)[::2], "score": noise[:N:2, 0], "w": noise[:N:2, 1] ** 2}


def of_whole_pool(policy):
  """The policy in a run that sweeps all rows, of which it is shown some."""

  def init(spec, key):
    decision, state = policy.init(spec._replace(sweep_size=spec.num_examples), key)
    return decision._replace(logits=decision.logits[: spec.sweep_size]), state

  return policy._replace(init=init)


def learning(policy):
  """The policy in rounds of one batch each, whose statistics it reads together with its own."""

  def update(stats, state):
    return policy.update(stats, policy.observe(stats, state))

  return policy._replace(update=update, observes=policy.observes | policy.observes_batch)


# fmt: off
POLICIES = [
  Case("static", mixture.static()),
  Case("by_size", mixture.by_size(3.0)),
  Case("odm", odm, reward),
  Case("odm_default_warmup", mixture.odm(), reward),
  Case("odm_paper", mixture.odm("paper", warmup_steps=1), reward),
  Case("odm_cumulative", mixture.odm(reward="cumulative", warmup_steps=0), reward),
  Case("odm_smoothed_mean", mixture.odm(reward="smoothed_mean", warmup_steps=0), reward),
  Case("odm_paper_smoothed", mixture.odm("paper", "smoothed_mean", warmup_steps=0), reward),
  Case("doge", mixture.doge()),
  Case("doge_target", mixture.doge("target", "repository", max_grad_norm=1.0)),
  Case("pike", mixture.pike(0.01, 0.1, 4)),
  Case("pike_exact", mixture.pike(0.3, 0.1, 4, "exact", alignment=0.1)),
  Case("pike_balanced", mixture.pike(0.01, 0.1, 4, tau=2.0)),
  Case("doremi", mixture.doremi(), lambda state: state.excess_K),
  Case("doremi_base", mixture.doremi(0.3, 1e-2, "base"), lambda state: state.excess_K),
  Case("group_dro", mixture.group_dro(), lambda state: state.loss_K),
  Case("group_dro_zero", mixture.group_dro(0.5, 2.0, "zero")),
  Case("loss_proportional", mixture.loss_proportional(), lambda state: state.loss_K),
  Case("loss_smoothed", mixture.loss_proportional(0.5, 0.9), lambda state: state.loss_K),
  Case("dynamic_moe", mixture.dynamic_moe(every_steps=1)),
  Case("dynamic_moe_cosine", mixture.dynamic_moe("cosine", every_steps=2)),
  Case(
    "random_mixture",
    mixture.random(),
    exceptions={"domains": "a domain's share is drawn by its place, whatever its name"},
  ),
  Case("mixture_schedule", mixture.schedule(stages, "cosine")),
  Case("ado", mixture.ado(), lambda state: state.loss_K),
  Case(
    "ado_fits", mixture.ado(2, 1, 5, 0, history=10, count="own"), lambda state: state.loss_K
  ),
  # A graph that is the same in any order of domains.
  Case("skill_it", mixture.skill_it(np.eye(K) + 0.3)),
  Case("skill_it_normalised", mixture.skill_it(np.eye(K) + 0.3, window=2, normalise=True)),
  Case(
    "aioli", mixture.aioli(period=5, lp_rounds=1),
    exceptions={"domains": "which domain is perturbed next is drawn by its place"},
  ),
  Case(
    "aioli_ema", mixture.aioli(period=9, lp_rounds=2, normalise=False, ema=0.3),
    exceptions={"domains": "which domain is perturbed next is drawn by its place"},
  ),
  Case("random", selection.random(0.3)),
  Case("loss_high", selection.loss()),
  Case("loss_medium", selection.loss("medium", temperature=0.0)),
  Case("loss_low", selection.loss("low", focus_weight=0.1, temperature=np.inf)),
  Case("cluster_less", selection.cluster_less(5)),
  Case(
    "cluster_less_random",
    selection.cluster_less(9, "random_partition", "random", 2, direction="gradient"),
  ),
  Case("coincide", selection.coincide(9, 5)),
  Case("coincide_given", of_file(lambda f: selection.coincide(20, embeddings=f), **given)),
  Case("el2n", selection.el2n()),
  Case("el2n_current", selection.el2n("current")),
  Case("grand", selection.grand()),
  Case("delta_loss", of_whole_pool(selection.delta_loss(update_times=3))),
  Case("less", selection.less()),
  Case("less_mean", selection.less("gradient", "mean")),
  Case("less_sum", selection.less(checkpoints="sum")),
  Case("less_sum_mean", selection.less("gradient", "mean", "sum")),
  Case("zeroth_order", selection.zeroth_order()),
  Case("icons", selection.icons(0.3)),
  Case("icons_gradient", selection.icons(0.7, "gradient")),
  Case("near", selection.near(9, neighbours=4)),
  Case("near_given", of_file(lambda path: selection.near(9, embeddings=path), **given)),
  Case("nice", selection.nice()),
  Case("nice_sum", selection.nice("gradient", "mean", "sum")),
  Case("tsds", selection.tsds()),
  Case("tsds_not_normalised", selection.tsds(0.9, 0.3, 3.0, normalise=False)),
  Case("from_file", of_file(lambda path: selection.from_file(path, weight="w"), **scores)),
  Case("rho_loss", of_candidates(selection.rho_loss())),
  Case("in_run_shapley", learning(selection.in_run_shapley())),
  Case(
    "in_run_shapley_second",
    learning(selection.in_run_shapley("second", "sum", "mean", drop_negative=True)),
  ),
  Case("infobatch", learning(selection.infobatch())),
  Case("infobatch_annealed", learning(selection.infobatch(0.9, anneal=0.001))),
  Case("greats", of_candidates(selection.greats()), exceptions=keeps_k),
  Case(
    "greats_gradient", of_candidates(selection.greats("gradient", self_term=True)),
    exceptions=keeps_k,
  ),
  Case(
    "greats_update_direction", of_candidates(selection.greats("update_direction")),
    exceptions=keeps_k,
  ),
  # Logits of a size of which 1e-6 is more than rounding.
  Case("mates", with_probes(selection.mates(30.0))),
  Case("mates_given", with_probes(selection.mates(50.0, strength=3.0))),
  Case("uds", of_candidates(selection.uds())),
  Case("uds_diverse", of_candidates(selection.uds(2.0, capacity=20))),
  Case("reweighting", fast),
  Case("reweighting_uniform", weigh.loss_reweighting("uniform", burn_in_steps=0)),
  Case("reweighting_quadratic", weigh.loss_reweighting("quadratic", 0.4, 0, delta=2.0)),
  Case("reweighting_extremes", weigh.loss_reweighting("extremes", burn_in_steps=0)),
  Case("reweighting_upper", weigh.loss_reweighting("upper", 1e-3, burn_in_steps=0)),
  Case("reweighting_code_uniform", weigh.loss_reweighting("code_uniform", burn_in_steps=0)),
  Case("adapt", weigh.adapt()),
  Case("adapt_last_token", weigh.adapt(0.1, "last_token_embedding")),
  Case("joint_update_aware", weigh.joint_update_aware()),
  Case("joint_diversity", weigh.joint_update_aware("diversity", 0.5, damping=0.3)),
  Case("learning_to_reweight", weigh.learning_to_reweight()),
  Case("focal", weigh.focal()),
  Case(
    "ohem", weigh.ohem(0.3),
    exceptions={"batch": "keeps a whole number of examples, rounded up"},
  ),
  Case("ohem_k", weigh.ohem(k=15), exceptions={"batch": "keeps k, however many there are"}),
  Case("self_paced", weigh.self_paced(threshold=1.0, growth=1.2)),
  Case(
    "self_paced_linear", weigh.self_paced("linear", quantiles=(0.3, 0.9), growth_steps=3),
    exceptions={"batch": "a quantile interpolates between the losses there are"},
  ),
  Case("selective_backprop", weigh.selective_backprop()),
  Case(
    "selective_backprop_corrected", weigh.selective_backprop(2.0, True, capacity=40),
    exceptions={
      "examples": "a full buffer forgets the first examples of its oldest batch",
      "batch": "a buffer of the same size is full after half as many batches",
    },
  ),
  Case(
    "rho1", weigh.rho1(), exceptions={"batch": "keeps a whole number of tokens, rounded up"}
  ),
  Case("group_dro_weights", weigh.group_dro(0.1, 1.0), lambda state: state.loss_K),
  Case("after", policies.after(2, odm), inner_reward),
  Case("after_selection", policies.after(2, selection.loss())),
  Case("every", policies.every(2, odm), inner_reward),
  Case("every_selection", policies.every(2, selection.loss())),
  Case("temperature", policies.temperature(2.0, odm), reward),
  Case("floor", policies.floor(0.05, odm), reward),
  Case("ema", policies.ema(0.7, odm), inner_reward),
  Case("schedule", policies.schedule([(0, mixture.static()), (2, odm)])),
  Case("corrected_mixture", policies.importance_corrected(odm), inner_reward),
  Case("corrected_weighting", policies.importance_corrected(fast)),
]
# fmt: on


def holding(claim):
  """Parametrises over the policies for which a claim holds."""
  cases = [case for case in POLICIES if claim not in case.exceptions]
  return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


SHAPES = {
  "token_loss": (T,), "reference_token_loss": (T,), "gradient": (R,), "update_direction": (R,),
  "embedding": (D,), "position_weighted_embedding": (D,), "last_token_embedding": (D,),
  "logit_projection": (Q,),
}  # fmt: skip
INTEGERS = {
  "example_id", "domain", "num_tokens", "token_mask", "token_segment", "score_age", "probe_id",
}  # fmt: skip
OF_PROBES = {"probe_id": (12 * K,), "probe_label": (12 * K,)}
OF_RUN = {"target", "step", "learning_rate"}
OF_DOMAINS = {
  "domain_gradient_product": (K, 2, K, 2), "domain_target_alignment": (K, 2),
  "domain_target_loss": (K,), "domain_expert_load": (K, E),
}  # fmt: skip
EXTREMES = {
  "nan": np.nan, "inf": np.inf, "minus_inf": -np.inf, "huge": 3e38, "minus_huge": -3e38,
  "zero": 0.0, "tiny": 1e-38,
}  # fmt: skip


def rows_of(policy):
  return C if policy.scope == "round" else B


def make_fields(policy, seed):
  """Random values for all that a policy observes, and for the score of a sweep."""
  rng, rows = np.random.default_rng(seed), rows_of(policy)
  num_tokens = rng.integers(1, T + 1, rows)
  example_id = rng.permutation(N)[:rows]
  padding = np.arange(rows) % 8 == 5
  fields = {
    "example_id": np.where(padding, -1, example_id),
    "domain": np.where(padding, 0, rng.integers(0, K, rows)),
    "num_tokens": np.where(padding, 0, num_tokens),
    "token_mask": np.arange(T) < np.where(padding, 0, num_tokens)[:, None],
    "token_segment": np.where(padding, -1, np.arange(rows))[:, None] * np.ones((1, T), int),
    "score_age": np.where(example_id % 8 == 3, seed, 0),
    "step": np.int32(seed),
    "learning_rate": np.float32(1e-3),
    "target": TargetStats(
      gradient=jnp.asarray(rng.normal(size=(M, R)), jnp.float32),
      embedding=jnp.asarray(rng.normal(size=(M, D)), jnp.float32),
      position_weighted_embedding=jnp.asarray(rng.normal(size=(M, D)), jnp.float32),
      last_token_embedding=jnp.asarray(rng.normal(size=(M, D)), jnp.float32),
      loss=jnp.asarray(rng.gamma(4.0, 0.5, M), jnp.float32),
      task=jnp.asarray(rng.integers(0, S, M), jnp.int32),
      domain=jnp.asarray(rng.integers(0, K, M), jnp.int32),
    ),
  }
  rewards = np.random.default_rng((seed, 4)).uniform(size=(M, SPEC.num_responses))
  fields["target_reward"] = rewards
  gradient_Kx2xR = np.random.default_rng((seed, 1)).normal(size=(K, 2, R))
  products = np.einsum("iar,jbr->iajb", gradient_Kx2xR, gradient_Kx2xR)
  fields["domain_gradient_product"] = products
  gradient_BxR = np.random.default_rng((seed, 2)).normal(size=(rows, R))
  fields["gradient_product"] = gradient_BxR @ gradient_BxR.T
  fields["probe_id"] = np.random.default_rng((seed, 4)).permutation(N)[: 12 * K]
  for name in sorted(policy.observes - fields.keys()):
    shape = (OF_DOMAINS | OF_PROBES).get(name, (rows, *SHAPES.get(name, ())))
    fields[name] = rng.uniform(0.1, 1.0, shape) * (1 if "probability" in name else 4)
  return {name: fields[name] for name in sorted(policy.observes | {"example_id"})}


def as_stats(policy, fields, state, dtype=jnp.float32):
  """Statistics as a trainer gives them: after a sweep, with the score of each row."""
  converted = {
    name: value
    if name in OF_RUN
    else jnp.asarray(value, jnp.int32 if name in INTEGERS - {"token_mask"} else dtype)
    for name, value in fields.items()
  }
  stats = ExampleStats(**converted)
  if policy.score is None:
    return stats
  halves = [slice(0, C // 2), slice(C // 2, C)]
  of_rows = {name: x for name, x in converted.items() if name not in OF_RUN}
  scores = [
    policy.score(dataclasses.replace(stats, **{n: x[half] for n, x in of_rows.items()}), state)
    for half in halves
  ]
  return dataclasses.replace(stats, score=jnp.concatenate(scores))


def pool_of(policy, seed=0):
  """Statistics of all rows of the pool, as `prepare` reads them."""
  rng = np.random.default_rng((seed, 3))
  fields = {"example_id": np.arange(N), "domain": rng.integers(0, K, N)}
  for name in sorted(policy.observes_pool - fields.keys()):
    fields[name] = rng.normal(size=(N, *SHAPES.get(name, ()))).astype(np.float32)
  return {name: fields[name] for name in sorted(policy.observes_pool)}


def begin(case, spec=SPEC):
  """Returns the initial decision and the state before the first round."""
  first, state = case.policy.init(spec, KEY)
  if case.prepare is not None:
    state = case.prepare(ExampleStats(**pool_of(case.policy)), state)
  return first, state


def run(case, all_fields, spec=SPEC, update=None):
  """Returns the initial decision, the later ones and the last state."""
  first, state = begin(case, spec)
  update, decisions = update or case.update, []
  for fields in all_fields:
    decision, state = update(as_stats(case.policy, fields, state), state)
    decisions.append(decision)
  return first, decisions, state


def typical(policy, num=4):
  return [make_fields(policy, seed) for seed in range(num)]


def raw(tree):
  """NumPy arrays, keys as integers, so that leaves can be compared."""

  def leaf(x):
    key = hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if key else x)

  return jax.tree.map(leaf, tree)


def assert_close(actual, expected, **tolerance):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  compare = lambda a, b: np.testing.assert_allclose(a, b, **(tolerance or TOLERANCE))
  jax.tree.map(compare, raw(actual), raw(expected))


def assert_same(actual, expected):
  assert_close(actual, expected, rtol=0, atol=0)


def types(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype, jax.typeof(x).weak_type), tree)


def assert_sane(decision):
  for name in ("logits", "weights", "token_weights"):
    value = getattr(decision, name)
    if value is not None:
      assert value.dtype == jnp.float32
      assert not np.any(np.isnan(value)), name
      assert not np.any(np.isposinf(value)), name
  for value in (decision.weights, decision.token_weights):
    assert value is None or np.all(np.asarray(value) >= 0)


@holding("types")
def test_decisions_and_states_are_as_init_promised(case):
  first, state = begin(case)
  promised = types((first, state))
  assert_sane(first)
  for fields in typical(case.policy):
    decision, state = case.update(as_stats(case.policy, fields, state), state)
    assert types((decision, state)) == promised
    assert_sane(decision)


@holding("types")
def test_decides_something_of_a_known_shape(case):
  decision, _ = case.policy.init(SPEC, KEY)
  assert any(x is not None for x in decision[:3])
  shapes = {(K,), (N,), (rows_of(case.policy),)}
  assert decision.logits is None or decision.logits.shape in shapes
  shapes = {(rows_of(case.policy),), np.shape(decision.logits)}
  assert decision.weights is None or decision.weights.shape in shapes
  assert decision.token_weights is None or decision.token_weights.shape == (B, T)


def spoilt(policy):
  """Batches with every kind of extreme value in some or all places, then an ordinary one."""
  floats = sorted(policy.observes - INTEGERS - OF_RUN)
  for seed, (name, where) in enumerate(
    (name, where) for name in EXTREMES for where in ("some", "all")
  ):
    fields = make_fields(policy, seed)
    for field in floats:
      rng, value = np.random.default_rng(seed), fields[field]
      chosen = True if where == "all" else rng.random(value.shape) < 0.3
      fields[field] = np.where(chosen, EXTREMES[name], value)
    yield fields
  yield make_fields(policy, 99)
  only_padding = make_fields(policy, 100)
  empty = {"example_id": -1, "domain": 0, "num_tokens": 0, "token_mask": 0, "token_segment": -1}
  yield {n: np.full_like(v, empty[n]) if n in empty else v for n, v in only_padding.items()}
  single = make_fields(policy, 101)
  yield {n: np.full_like(v, 2) if n == "domain" else v for n, v in single.items()}


@holding("finite")
def test_never_nan_whatever_goes_in(case):
  _, fresh = begin(case)
  state = fresh
  for fields in spoilt(case.policy):
    alone, _ = case.update(as_stats(case.policy, fields, fresh), fresh)
    assert_sane(alone)
    decision, state = case.update(as_stats(case.policy, fields, state), state)
    assert_sane(decision)


@holding("recovers")
def test_an_extreme_batch_leaves_no_nan_in_the_state(case):
  _, _, state = run(case, spoilt(case.policy))
  if isinstance(state, policies.holding.EveryState):
    state = state._replace(batches={})  # the statistics as they came
  assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(raw(state)))


def relabel(spec, fields, order):
  """The same run with domain order[j] called j."""
  label = np.argsort(order)
  pick = lambda values: tuple(values[k] for k in order)
  spec = spec._replace(
    domain_names=pick(spec.domain_names),
    domain_sizes=pick(spec.domain_sizes),
    proportions=pick(spec.proportions),
  )
  changed = dict(fields)
  if "domain" in changed:
    real = fields["example_id"] >= 0
    changed["domain"] = np.where(real, label[fields["domain"]], 0)
  for name in OF_DOMAINS.keys() & changed.keys():
    changed[name] = fields[name][order]
  if "domain_gradient_product" in changed:  # about pairs of domains
    changed["domain_gradient_product"] = changed["domain_gradient_product"][:, :, order]
  return spec, changed


@holding("domains")
def test_equivariant_in_the_order_of_domains(case):
  order, all_fields = np.array([2, 0, 3, 1]), typical(case.policy)
  spec = relabel(SPEC, all_fields[0], order)[0]
  renamed = [relabel(SPEC, fields, order)[1] for fields in all_fields]
  first, decisions, _ = run(case, all_fields)
  first_renamed, decisions_renamed, _ = run(case, renamed, spec)
  for one, other in zip([first, *decisions], [first_renamed, *decisions_renamed], strict=True):
    if one.logits is not None and one.logits.shape == (K,):
      one = one._replace(logits=one.logits[order])
    assert_close(other, one, rtol=1e-5, atol=1e-5)


def reorder(fields, order):
  """The same batch with the row order[i] at place i."""
  changed = {n: v[order] if np.shape(v)[:1] == order.shape else v for n, v in fields.items()}
  if "gradient_product" in changed:  # about pairs of rows
    changed["gradient_product"] = changed["gradient_product"][:, order]
  if "token_segment" in changed:
    place = np.argsort(order)
    changed["token_segment"] = np.where(fields["token_segment"] >= 0, place[:, None], -1)[order]
  return changed


@holding("examples")
def test_equivariant_in_the_order_of_examples(case):
  order = np.random.default_rng(7).permutation(rows_of(case.policy))
  all_fields = typical(case.policy)
  shuffled = [reorder(fields, order) for fields in all_fields]
  _, decisions, _ = run(case, all_fields)
  _, decisions_shuffled, _ = run(case, shuffled)
  pick = lambda x: x[order] if x.shape[:1] == order.shape else x
  for one, other in zip(decisions, decisions_shuffled, strict=True):
    assert_close(other, jax.tree.map(pick, one), rtol=1e-5, atol=1e-5)


def doubled(fields):
  """Every row twice, one copy after the other, so that ties keep copies together."""
  twice = lambda x: np.repeat(x, 2, axis=0) if np.shape(x)[:1] == (B,) else x
  changed = {name: twice(value) for name, value in fields.items()}
  if "token_segment" in changed:
    place = np.arange(2 * B)[:, None]
    changed["token_segment"] = np.where(changed["token_segment"] >= 0, place, -1)
  return changed


@pytest.mark.parametrize(
  "case",
  [c for c in POLICIES if c.policy.scope == "step" and "batch" not in c.exceptions],
  ids=lambda case: case.name,
)
def test_a_batch_of_twice_the_size_decides_the_same(case):
  """Of the same rows: neither proportions nor the effective learning rate follow its size."""
  all_fields, spec = typical(case.policy, 2), SPEC._replace(batch_size=2 * B)
  _, decisions, _ = run(case, all_fields)
  _, of_twice, _ = run(case, [doubled(fields) for fields in all_fields], spec)
  twice = lambda x: jnp.repeat(x, 2, axis=0) if x.shape[:1] == (B,) else x
  for one, other in zip(decisions, of_twice, strict=True):
    assert_close(other[:3], jax.tree.map(twice, one[:3]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "case", [case for case in POLICIES if case.statistic], ids=lambda case: case.name
)
def test_an_absent_domain_carries_its_statistic(case):
  _, _, state = run(case, typical(case.policy))
  before = np.asarray(case.statistic(state))
  assert before.shape == (K,)
  assert np.all(before != 0)
  for seed in (50, 51):  # two batches, because `every` learns from both at once
    fields = make_fields(case.policy, seed)
    fields["domain"] = fields["domain"] % 3
    _, state = case.update(as_stats(case.policy, fields, state), state)
  after = np.asarray(case.statistic(state))
  assert after[3] == before[3]
  assert np.all(after[:3] != before[:3])


@holding("dtype")
def test_stays_in_float32_when_statistics_are_bfloat16(case):
  first, state = begin(case)
  promised = types((first, state))
  for fields in typical(case.policy):
    stats = as_stats(case.policy, fields, state, jnp.bfloat16)
    widen = lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x
    expected, _ = case.update(jax.tree.map(widen, stats), state)
    decision, state = case.update(stats, state)
    assert types((decision, state)) == promised
    assert_close(decision, expected)  # computed in float32, not only returned


@holding("jit")
def test_the_same_with_and_without_jit(case):
  """Within 1e-6: a fused sum may round otherwise."""
  plain = run(case, typical(case.policy), update=case.policy.update)
  assert_close(run(case, typical(case.policy)), plain)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@holding("devices")
def test_the_same_on_eight_devices(case, kind):
  """Within 1e-6 of one device; the statistics arrive sharded over the batch."""
  mesh = jax.make_mesh((8,), ("data",), axis_types=(getattr(jax.sharding.AxisType, kind),))
  whole = jax.sharding.NamedSharding(mesh, jax.P())

  def spread(x):
    rows = x.ndim > 0 and x.shape[0] == rows_of(case.policy)
    return jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P("data")) if rows else whole)

  @jax.jit
  def sharded(stats, state):
    return case.policy.update(jax.sharding.reshard(stats, jax.P()), state)

  def update(stats, state):
    with jax.set_mesh(mesh):
      return sharded(jax.tree.map(spread, stats), jax.device_put(state, whole))

  expected = run(case, typical(case.policy))
  assert_close(run(case, typical(case.policy), update=update), expected)


@holding("compiles")
def test_the_second_call_compiles_nothing(case):
  compiled = []
  listener = lambda event, duration, **kwargs: compiled.append(event)
  # A function of its own, so that no other test has compiled it before.
  update = jax.jit(lambda *args: case.policy.update(*args))
  decision, state = begin(case)
  batches = [as_stats(case.policy, fields, state) for fields in typical(case.policy)]
  decision, state = update(batches[0], state)
  jax.block_until_ready(decision)
  jax.monitoring.register_event_duration_secs_listener(listener)
  try:
    for stats in batches[1:]:
      decision, state = update(stats, state)
    jax.block_until_ready(decision)
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)
  assert [event for event in compiled if "compile" in event] == []


def stacked(case):
  """A few batches of statistics along a new first axis; scores do not depend on the state."""
  _, state = begin(case)
  batches = [as_stats(case.policy, fields, state) for fields in typical(case.policy)]
  return state, batches, jax.tree.map(lambda *x: jnp.stack(x), *batches)


@holding("scan")
def test_works_under_scan(case):
  state, batches, stats = stacked(case)
  flip = lambda state, stats: case.policy.update(stats, state)[::-1]
  last, decisions = jax.jit(lambda *args: jax.lax.scan(flip, *args))(state, stats)
  expected = []
  for batch in batches:
    decision, state = case.update(batch, state)
    expected.append(decision)
  assert_close(decisions, jax.tree.map(lambda *x: jnp.stack(x), *expected))
  assert_close(last, state)


@holding("vmap")
def test_works_under_vmap(case):
  state, batches, stats = stacked(case)
  states = jax.tree.map(lambda x: jnp.stack([x] * len(batches)), state)
  decisions, _ = jax.jit(jax.vmap(case.policy.update))(stats, states)
  expected = [case.update(batch, state)[0] for batch in batches]
  assert_close(decisions, jax.tree.map(lambda *x: jnp.stack(x), *expected))


@holding("checkpoint")
def test_continues_identically_from_a_checkpoint(case, tmp_path):
  batches = typical(case.policy, 6)
  _, _, state = run(case, batches[:3])
  # As in a train state, which is never empty.
  tree = {"step": jnp.int32(3), "policy": state}
  ocp.save(tmp_path / "state", tree)
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )
  restored = ocp.load(tmp_path / "state", target)["policy"]
  assert types(restored) == types(state)
  assert_same(restored, state)
  for fields in batches[3:]:
    expected, state = case.update(as_stats(case.policy, fields, state), state)
    decision, restored = case.update(as_stats(case.policy, fields, restored), restored)
    assert_same(decision, expected)


@pytest.mark.parametrize(
  "case", [case for case in POLICIES if case.prepare], ids=lambda case: case.name
)
def test_prepare_keeps_the_types_and_depends_on_nothing_but_its_arguments(case):
  _, state = case.policy.init(SPEC, KEY)
  pool = ExampleStats(**pool_of(case.policy))
  prepared = case.prepare(pool, state)
  assert types(prepared) == types(state)
  assert_same(case.prepare(pool, state), prepared)
  assert any(
    np.any(one != other)
    for one, other in zip(*map(jax.tree.leaves, (raw(prepared), raw(state))), strict=True)
  )


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize(
  "case", [case for case in POLICIES if case.prepare], ids=lambda case: case.name
)
def test_prepares_the_same_on_eight_devices(case, kind):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(getattr(jax.sharding.AxisType, kind),))
  whole = jax.sharding.NamedSharding(mesh, jax.P())
  _, state = case.policy.init(SPEC, KEY)
  pool = ExampleStats(**pool_of(case.policy))
  with jax.set_mesh(mesh):
    prepared = case.prepare(*jax.device_put((pool, state), whole))
  assert_close(prepared, case.prepare(pool, state))


@pytest.mark.parametrize(
  "case", [case for case in POLICIES if case.prepare], ids=lambda case: case.name
)
def test_never_nan_whatever_the_pool_holds(case):
  _, fresh = case.policy.init(SPEC, KEY)
  fields = make_fields(case.policy, 0)
  for seed, value in enumerate(EXTREMES.values()):
    for share in (0.3, 1.0):
      rows = np.random.default_rng(seed).random(N) < share
      pool = {
        name: np.where(rows.reshape(-1, *[1] * (x.ndim - 1)), value, x).astype(x.dtype)
        if x.dtype == np.float32
        else x
        for name, x in pool_of(case.policy, seed).items()
      }
      state = case.prepare(ExampleStats(**pool), fresh)
      assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(raw(state)))
      assert_sane(case.update(as_stats(case.policy, fields, state), state)[0])


@holding("seed")
def test_init_depends_on_nothing_but_its_arguments(case):
  assert_same(case.policy.init(SPEC, KEY), case.policy.init(SPEC, KEY))


def test_imports_jax_and_numpy_only():
  banned = ["flax", "optax", "grain", "orbax", "absl", "ml_collections"]
  code = f"import sys, jdc.policies; print(sorted(m for m in {banned} if m in sys.modules))"
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == "[]"
