"""Parts of a run that do not fit together, and resumes of another run, are named errors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdc import metrics, policies
from jdc.data.pack import Domain
from jdc.models.configs import DecoderConfig
from jdc.models.decoder import decoder
from jdc.policies import DataPolicy, Decision, RunSpec, mixture, ordering, selection, weighting
from jdc.stats.directions import Adam
from jdc.train import command, loop, slot_checks
from jdc.train import config as c
from jdc.train.state import Reference

SPEC = RunSpec(
  num_examples=30, num_domains=3, domain_names=("a", "b", "c"), domain_sizes=(10,) * 3,
  proportions=(0.2, 0.3, 0.5),
)  # fmt: skip


def weighting_of(shape, field="weights"):
  decision = Decision(**{field: jnp.full(shape, 0.5)})
  return DataPolicy(
    lambda spec, key: (decision, ()),
    lambda stats, state: (decision, state),
    frozenset(),
    "step",
  )


@pytest.mark.parametrize(
  ("field", "shape", "message"),
  [
    ("weights", (1,), r"weights of shape \(1,\), not \(8,\)"),
    ("weights", (3,), r"weights of shape \(3,\), not \(8,\)"),
    ("token_weights", (8, 1), r"token_weights of shape \(8, 1\), not \(8, 32\)"),
  ],
)
def test_weights_of_another_shape_are_refused(fit, tmp_path, field, shape, message):
  with pytest.raises(ValueError, match=message):
    fit(tmp_path / "run", policies.combine(weighting=weighting_of(shape, field)))


@pytest.mark.parametrize(
  ("slot", "size", "fields"),
  [
    ("selection", 30, {"token_weights": (30, 4)}),
    ("mixture", 3, {"weights": (30,), "token_weights": (30, 4)}),
  ],
)
def test_weights_of_a_round_that_no_row_carries_are_refused(slot, size, fields):
  decided = {field: np.ones(shape, np.float32) for field, shape in fields.items()}
  decision = Decision(logits=np.zeros(size, np.float32), **decided)
  policy = weighting_of((1,))._replace(scope="round")
  spec = SPEC._replace(sweep_size=30, sequence_length=4)
  with pytest.raises(ValueError) as error:
    slot_checks.check_decisions({slot: decision}, spec, policies.combine(**{slot: policy}))
  for field in fields:
    assert f"{field} of a round-scope {slot} do not reach the rows" in str(error.value)


@pytest.mark.parametrize(
  ("weights", "token_weights", "right"),
  [((40,), (8, 32), True), ((8,), (8, 32), False), ((40,), (40, 32), False)],
)
def test_weights_of_packed_rows_are_those_of_their_records(weights, token_weights, right):
  decision = Decision(weights=np.ones(weights), token_weights=np.ones(token_weights))
  spec = SPEC._replace(batch_size=8 * 5, sequence_length=32)
  arguments = ({"weighting": decision}, spec, policies.combine(weighting=weighting_of((1,))), 5)
  if right:
    return slot_checks.check_decisions(*arguments)
  with pytest.raises(ValueError, match=r"not \(40,\)|not \(8, 32\)"):
    slot_checks.check_decisions(*arguments)


@pytest.mark.parametrize("sweep_rows", [2, 10**6])
def test_a_sweep_holds_every_domain_and_no_more_than_the_pool(fit, tmp_path, sweep_rows):
  with pytest.raises(ValueError, match=r"plan.sweep_rows must be 0 .* or from 3"):
    fit(
      tmp_path / "run",
      policies.combine(selection=selection.loss()),
      draw="top_k",
      sweep_rows=sweep_rows,
    )


def test_a_resume_under_another_policy_or_optimizer_names_what_differs(fit, tmp_path):
  odm = policies.combine(mixture=mixture.odm(warmup_steps=1))
  fit(tmp_path / "run", odm, num_steps=3)
  other = policies.combine(mixture=mixture.odm(warmup_steps=1, smoothing=0.1))
  with pytest.raises(ValueError, match=r"another run.*smoothing: 0\.9 -> 0\.1"):
    fit(tmp_path / "run", other)
  with pytest.raises(ValueError, match=r"another run.*policies\.mixture"):
    fit(tmp_path / "run", policies.combine(mixture=mixture.static()))
  with pytest.raises(ValueError, match=r"another run.*state\.opt_state"):
    fit(tmp_path / "run", odm, optimizer=optax.sgd(1e-2))
  assert fit(tmp_path / "run", odm, num_steps=6).stopped == "finished"


def test_asked_shares_are_those_of_the_policy_when_a_domain_is_spent(fit, tmp_path):
  result = fit(
    tmp_path / "run",
    policies.combine(mixture=mixture.static((0.2, 0.3, 0.5))),
    max_epochs=(3.0, 3.0, 0.2),
  )
  rows = result.plan.seen_K.sum()
  np.testing.assert_allclose(result.plan.asked_K / rows, [0.2, 0.3, 0.5])
  assert result.plan.seen_K[2] < 0.3 * rows


def test_token_weights_of_a_mixture_beside_candidates_are_refused(fit, tmp_path):
  decision = Decision(logits=jnp.zeros(3), token_weights=jnp.ones((16, 32)))
  token_weighting = DataPolicy(
    lambda spec, key: (decision, ()),
    lambda stats, state: (decision, state),
    frozenset(),
    "step",
  )
  chosen = policies.combine(
    mixture=token_weighting,
    selection=DataPolicy(
      lambda spec, key: (Decision(logits=jnp.zeros(spec.num_candidates)), ()),
      lambda stats, state: (Decision(logits=-stats.loss), state),
      frozenset({"loss"}),
      "step",
    ),
  )
  with pytest.raises(ValueError, match="token weights of the mixture do not reach the rows"):
    fit(tmp_path / "run", chosen, num_candidates=16)
  plain = chosen._replace(mixture=mixture.odm(warmup_steps=1))
  assert fit(tmp_path / "run", plain, num_candidates=16).stopped == "finished"


# What policies observe, and a run cannot tell. Everything is said before anything compiles.

DOREMI = policies.combine(mixture=mixture.doremi())
SKILL_IT = policies.combine(mixture=mixture.skill_it(adjacency=np.eye(3).tolist()))
REWEIGHT = policies.combine(weighting=weighting.learning_to_reweight())
ADAPT = policies.combine(weighting=weighting.adapt())
DOGE = policies.combine(mixture=mixture.doge())


@pytest.fixture(scope="module")
def compiled():
  """What was compiled, newest last."""
  events = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: events.append(event) if "backend_compile" in event else None
  )
  return events


@pytest.fixture
def refuse(small_run, compiled, tmp_path):
  """Returns `refuse(policies, **parts of the run)`, the message of its error."""

  def refuse(chosen, **changes):
    run = small_run(chosen, **changes)
    jax.random.key(0)  # compiles at first
    compiled.clear()
    with pytest.raises(ValueError) as error:
      loop.fit(run, str(tmp_path))
    assert compiled == []
    assert list(tmp_path.iterdir()) == []
    return str(error.value)

  return refuse


def reference_of(model, **fields):
  return Reference(model, lambda mesh: None, "unread")._replace(**fields)


class TestReference:
  @pytest.mark.parametrize("chosen", [DOREMI, policies.combine(weighting=weighting.rho1())])
  def test_is_missing(self, refuse, chosen):
    message = refuse(chosen)
    assert "observe reference_token_loss, which needs a reference model" in message
    assert "config.reference.folder" in message

  def test_is_observed_by_nobody(self, refuse, small_model):
    message = refuse(policies.combine(), reference=reference_of(small_model))
    assert "a reference model is given, but no policy observes its losses" in message

  def test_has_another_vocabulary(self, refuse, small_model):
    message = refuse(DOREMI, reference=reference_of(small_model._replace(vocab_size=300)))
    assert "the reference model has vocab_size=300, the model has 258" in message

  def test_is_cached_for_unpacked_rows_only(self, refuse, small_model):
    message = refuse(DOREMI, reference=reference_of(small_model, cache="x"), max_segments=4)
    assert "plan.max_segments=4: losses of a reference are cached for unpacked rows" in message
    assert "reference.losses='step'" in message


class TestTarget:
  @pytest.mark.parametrize(
    ("chosen", "observed"),
    [
      (ADAPT, "target"),
      (REWEIGHT, "target_alignment"),
      (SKILL_IT, "domain_target_loss"),
      (policies.combine(mixture=mixture.doge("target")), "domain_target_alignment"),
    ],
  )
  def test_is_missing(self, refuse, domains, chosen, observed):
    message = refuse(chosen, domains=domains)
    assert f"observe {observed}, which needs a target set" in message
    for field in ("NAME.target.jsonl", "corpus.target_fraction", "target.folder"):
      assert field in message

  def test_lacks_rows_of_some_domains(self, refuse, target_domains):
    some = {
      name: domain if name == "metal" else domain._replace(target=None)
      for name, domain in target_domains.items()
    }
    message = refuse(SKILL_IT, domains=some)
    assert "there are no target rows of the domains fruit, noise" in message

  def test_has_tasks_that_are_no_domains(self, refuse, target_domains):
    tasks = dict.fromkeys(("fruit", "metal", "sums"), target_domains["metal"].target)
    message = refuse(SKILL_IT, tasks=tasks)
    assert (
      "needs a task for each domain in target.folder; it holds fruit, metal, sums" in message
    )

  def test_has_tasks_that_nobody_observes(self, refuse, target_domains):
    message = refuse(policies.combine(), tasks={"sums": target_domains["metal"].target})
    assert "target.folder is given, but no policy observes a target set" in message

  def test_is_no_part_of_packed_alignments(self, refuse):
    message = refuse(REWEIGHT, max_segments=4)
    assert "plan.max_segments=4: target_alignment needs unpacked rows" in message


class TestModel:
  def test_has_no_experts(self, refuse, small_model):
    def outputs(*arguments):
      return small_model.outputs(*arguments)._replace(expert_load=None)

    chosen = policies.combine(mixture=mixture.dynamic_moe())
    message = refuse(chosen, model=small_model._replace(outputs=outputs))
    assert "observe domain_expert_load, but the model has no experts" in message

  def test_offers_no_hidden_states(self, refuse, small_model):
    message = refuse(ADAPT, model=small_model._replace(outputs=None))
    assert "observe position_weighted_embedding, but the model offers no outputs" in message

  def test_offers_no_errors_of_tokens(self, refuse, small_model):
    chosen = policies.combine(selection=selection.el2n())
    message = refuse(chosen, model=small_model._replace(error_outputs=None), draw="top_k")
    assert "observe el2n, but the model offers no error_outputs" in message


class TestProbes:
  def test_need_rows(self, refuse):
    message = refuse(DOGE, probe=c.ProbeConfig(rows=60))
    assert "config.probe: two half-batches of 60 rows need 120 rows of each domain" in message
    assert "metal (" in message
    assert "noise (" in message
    assert "fruit (" not in message

  def test_are_of_parameters_that_there_are(self, refuse):
    message = refuse(DOGE, probe=c.ProbeConfig(rows=2, parameters=("out*", "norm", "mlp/*")))
    assert "config.probe: 'norm', 'mlp/*' match no parameter; known: embedding" in message

  def test_are_of_parameters_that_are_trained(self, refuse):
    probe = c.ProbeConfig(rows=2, parameters=("output",))
    message = refuse(DOGE, probe=probe, trainable=lambda path: path != "output")
    assert "config.probe: 'output' match no parameter; known: embedding, router" in message


def test_all_that_is_missing_is_listed_at_once(refuse, domains, small_model):
  chosen = policies.combine(mixture=mixture.doge("target"), weighting=weighting.rho1())
  message = refuse(
    chosen, domains=domains, probe=c.ProbeConfig(rows=500, parameters=("nowhere",))
  )
  for part in (
    "observe reference_token_loss",
    "observe domain_target_alignment",
    "two half-batches of 500 rows",
    "'nowhere' match no parameter",
  ):
    assert part in message


# Scores by which an ordering puts rows in order.


def rows_of(**sizes):
  return {name: Domain(name, range(size), None, 0) for name, size in sizes.items()}


def test_scores_that_do_not_fit_are_named_at_once(tmp_path):
  path = tmp_path / "scores.npz"
  np.savez(path, fruit=np.zeros(4), metal=np.zeros((5, 1)), wood=np.zeros(3))
  with pytest.raises(ValueError) as error:
    command._scores(str(path), rows_of(fruit=5, metal=5, noise=2))
  message = str(error.value)
  for part in (
    "fruit: (4,), not (5,)",
    "metal: (5, 1), not (5,)",
    "noise: absent, not (2,)",
    "wood: no such domain",
  ):
    assert part in message
  for content in (None, b"no archive"):
    other = tmp_path / f"{content}.npz"
    if content is not None:
      other.write_bytes(content)
    with pytest.raises(ValueError, match=r"scores=.* is no readable \.npz"):
      command._scores(str(other), rows_of(fruit=5))


def test_scores_of_a_file_reach_the_ordering(tmp_path):
  rng, folder = np.random.default_rng(0), tmp_path / "data"
  folder.mkdir()
  for name in ("b", "a"):
    texts = [" ".join(rng.choice(["fig", "plum", "iron"], 12)) + f" {i}" for i in range(40)]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / f"{name}.train.jsonl").write_text("\n".join(lines))
    (folder / f"{name}.val.jsonl").write_text(lines[0])
  config = c.TrainConfig(
    num_steps=4,
    batch_size=8,
    sequence_length=32,
    data=str(folder),
    corpus=c.CorpusConfig(cache_dir=str(tmp_path / "cache")),
    model=DecoderConfig(
      vocab_size=258, width=8, num_layers=1, num_heads=1, num_kv_heads=1, mlp_width=8
    ),
    plan=c.PlanConfig(steps_per_round=4),
    logging=c.LoggingConfig(tensorboard=False),
    ordering=c.policy(ordering.sorting, descending=True, observes=frozenset()),
    scores=str(tmp_path / "scores.npz"),
  )
  domains = command.corpus.prepare(str(folder), config.corpus, 32, config.seed, str(tmp_path))
  scores = {name: rng.random(len(domain.train)) for name, domain in domains.items()}
  np.savez(tmp_path / "scores.npz", **dict(reversed(scores.items())))
  result = command.train(config, str(tmp_path / "run"))
  assert result.spec.domain_names == ("a", "b")
  ids = metrics.read_example_ids(tmp_path / "run")
  drawn = np.concatenate([scores["a"], scores["b"]])[ids]
  assert (drawn.min(axis=1)[:-1] >= drawn.max(axis=1)[1:]).all()


LESS = policies.combine(selection=selection.less())
PLAIN_LESS = policies.combine(selection=selection.less(direction="gradient"))
GREATS = policies.combine(selection=selection.greats())
BY_FEATURES = policies.combine(selection=selection.greats(products="gradient"))
ADAM = Adam(0.9, 0.999, 1e-8)


class TestFeatures:
  def test_directions_need_the_constants_of_the_optimizer(self, refuse):
    message = refuse(LESS, draw="top_k")
    assert "observe update_direction, which needs the constants of the optimizer" in message

  @pytest.mark.parametrize(
    ("fields", "named"),
    [
      ({"provider": "trak"}, "features.provider must be one of"),
      ({"projection": "hadamard"}, "features.projection must be"),
      ({"direction": "sgd"}, "features.direction must be one of"),
      ({"microbatch_size": 0}, "features.microbatch_size must be"),
      ({"size": 0}, "features.size must be"),
      ({"size": 40, "projection": "rademacher"}, "features.size must be"),
      ({"parameters": ("nowhere/*",)}, "features.parameters"),
      ({"top_layers": 3}, "features.top_layers"),
      ({"provider": "kron", "size": 64}, "features.provider"),
    ],
  )
  def test_options_are_wrong(self, refuse, fields, named):
    message = refuse(LESS, draw="top_k", adam=ADAM, features=c.FeaturesConfig(**fields))
    assert named in message

  def test_kron_has_no_directions_and_a_size_of_squares(self, refuse, model_config):
    fields = {"draw": "top_k", "model": decoder(model_config), "adam": ADAM}
    kron = c.FeaturesConfig(provider="kron", size=100)
    assert "commute" in refuse(LESS, features=kron, **fields)
    message = refuse(PLAIN_LESS, features=kron, **fields)
    assert "features.size must be k^2 for each of 14 matrices" in message
    assert "nearest that fit" in message

  def test_a_microbatch_is_split_over_devices(self, refuse):
    features = c.FeaturesConfig(microbatch_size=4)
    message = refuse(PLAIN_LESS, draw="top_k", features=features)
    assert "features.microbatch_size" in message
    assert "8" in message

  def test_packed_rows_have_no_gradients_of_examples(self, refuse):
    message = refuse(BY_FEATURES, max_segments=4, num_candidates=16)
    assert "max_segments=4: gradient of a step need unpacked rows" in message

  def test_products_need_linear_maps(self, refuse):
    assert "linear" in refuse(GREATS, num_candidates=16)

  @pytest.mark.parametrize("alignment", ["linear_maps", "low_rank"])
  def test_an_alignment_that_would_not_be_used(self, refuse, alignment):
    target = c.TargetConfig(alignment=alignment)
    message = refuse(GREATS, num_candidates=16, target=target)
    assert f"target.alignment='{alignment}': with gradient_product" in message
    second = policies.combine(selection=selection.in_run_shapley("second"))
    message = refuse(second, draw="gumbel_top_k", target=target)
    assert f"target.alignment='{alignment}': target_curvature is by all" in message

  def test_a_target_set_is_missing(self, fit, tmp_path):
    with pytest.raises(ValueError, match="observe target, which needs a target set"):
      fit(tmp_path / "run", PLAIN_LESS, draw="top_k")


class TestScoresThatAreKept:
  def test_need_a_sample_and_a_selection_that_scores(self, refuse):
    for chosen, fields in (
      (LESS, {"adam": ADAM}),
      (policies.combine(selection=selection.random()), {"sweep_rows": 24}),
      (policies.combine(selection=selection.cluster_less(clusters=3)), {"sweep_rows": 24}),
    ):
      message = refuse(chosen, draw="gumbel_top_k", max_age=5, **fields)
      assert "plan.max_age=5 keeps the scores of rows that a sample leaves out" in message
