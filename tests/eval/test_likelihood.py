"""Tests of log-likelihoods: against a loop over tokens, on a mesh, and what is refused."""

import jax
import numpy as np
import pytest

from jdc.eval.likelihood import Request, log_likelihoods, too_long
from jdc.models import DecoderConfig
from jdc.models.base import MESH_AXES
from jdc.models.decoder import decoder

MODEL = decoder(
  DecoderConfig(
    vocab_size=48,
    width=16,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    mlp_width=24,
    initializer_scale=4.0,
  )
)
PARAMS = MODEL.init(jax.random.key(0))


def random_requests():
  """Requests with one token and with several; some share a context."""
  rng = np.random.default_rng(0)
  ids = lambda n: tuple(rng.integers(0, 48, n).tolist())
  contexts = [ids(n) for n in (1, 3, 20, 34)]
  single = [Request(context, ids(1)) for context in contexts for _ in range(3)]
  several = [Request(context, ids(n)) for context in contexts[1:] for n in (1, 2, 5)]
  lonely = [Request(ids(7), ids(1)), Request(ids(2), ids(9))]
  requests = single + several + lonely
  return [requests[i] for i in rng.permutation(len(requests))]


REQUESTS = random_requests()


def reference(request):
  """The sum over tokens in float64, and whether each is the likeliest, from all logits."""
  ids = (*request.context, *request.continuation)
  index = np.arange(48, dtype=np.int32)[None]
  tokens = np.pad(np.array(ids, np.int32), (0, 48 - len(ids)))[None]
  logits = np.float64(LOGITS(PARAMS, tokens, index, np.int32(index < len(ids)))[0])
  total, greedy = 0.0, True
  for t in range(len(request.context), len(ids)):
    z = logits[t - 1]
    total += z[ids[t]] - z.max() - np.log(np.exp(z - z.max()).sum())
    greedy &= int(z.argmax()) == ids[t]
  return total, greedy


LOGITS = jax.jit(MODEL.logits)


def with_greedy_ones():
  """The requests, and for some contexts the greedy continuation."""
  greedy = []
  for request in REQUESTS[:4]:
    found = next(i for i in range(48) if reference(Request(request.context, (i,)))[1])
    greedy.append(Request(request.context, (found,)))
    greedy.append(Request(request.context, (found, 5)))
  return REQUESTS + greedy


@pytest.mark.parametrize("cached", [True, False])
def test_agrees_with_a_loop_over_tokens(cached):
  model = MODEL if cached else MODEL._replace(extend=None)
  requests = with_greedy_ones()
  found = log_likelihoods(model, PARAMS, requests, batch_size=4, greedy=True)
  for request, likelihood in zip(requests, found, strict=True):
    total, greedy = reference(request)
    assert likelihood.log_probability == pytest.approx(total, abs=1e-4)
    assert likelihood.is_greedy is greedy
  assert {likelihood.is_greedy for likelihood in found} == {True, False}


def test_without_greedy_on_eight_devices():
  mesh = jax.make_mesh((2, 2, 1, 2), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
  shardings = jax.tree.map(
    lambda spec: jax.NamedSharding(mesh, spec), MODEL.partition_specs(PARAMS)
  )
  params = jax.device_put(PARAMS, shardings)
  found = log_likelihoods(MODEL, params, REQUESTS, batch_size=4, mesh=mesh, buckets=(64,))
  for request, likelihood in zip(REQUESTS, found, strict=True):
    assert likelihood.log_probability == pytest.approx(reference(request)[0], abs=1e-4)
    assert likelihood.is_greedy is None


def test_options_of_a_question_are_read_in_one_row():
  rows = []
  model = MODEL._replace(
    extend=lambda *args: (rows.append(args[1].shape), MODEL.extend(*args))[1],
    token_losses=None,
  )
  requests = [Request((1, 2, 3), (i,)) for i in range(4)]
  found = log_likelihoods(model, PARAMS, requests, batch_size=1)
  assert rows == [(1, 32)]
  assert len(found) == 4


def test_nothing_to_score():
  assert log_likelihoods(MODEL, PARAMS, []) == []


def test_lists_every_problem():
  requests = [
    Request((), (1,)),
    Request((1,), ()),
    Request((1, 48), (2,)),
    Request((1,) * 9, (2, 3)),
    Request((1,) * 7, (2, 3)),
  ]
  with pytest.raises(ValueError) as caught:
    log_likelihoods(MODEL, PARAMS, requests, batch_size=0, buckets=(4,), context_length=8)
  for part in [
    "contexts must have at least one token; empty in requests 0",
    "continuations must have at least one token; empty in requests 1",
    "not in requests 2",
    "request 3 (10 positions)",
    "batch_size",
    "buckets, 4, is below the longest length, 10",
  ]:
    assert part in str(caught.value)
  assert "request 4" not in str(caught.value)  # the last token is a target only


def test_too_long_names_the_first_few():
  requests = [Request((1,) * 9, (2,))] * 12
  assert too_long(requests, list("abcdefghijkl"), 9) == ""
  assert too_long(requests, list("abcdefghijkl"), 8).endswith("j (9 positions) and 2 more")
