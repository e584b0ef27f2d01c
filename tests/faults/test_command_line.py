"""What a user sees last, after a mistake, is the mistake."""

import re

import pytest

MISTAKES = {
  "typos in flags": (
    "tiny,mixture=odm",
    {"optimzer__learning_rate": 1, "mixture__warmup": 3, "seed__x": 1},
    [
      "FATAL Flags parsing error: ",
      "config has no field 'optimzer', did you mean 'optimizer'?",
      "config.seed has no field 'x'",
      "config.mixture has no field 'warmup', did you mean 'warmup_steps'?",
    ],
  ),
  "wrong parameters of several parts": (
    "tiny,mixture=static",
    {"mixture__proportions": "(1,-1,1)", "optimizer__b1": 2.0, "corpus__on_bad_record": "skip"},
    [
      "ValueError: mixture: proportions must be finite and at least 0, got {1: -1}",
      "optimizer.b1 must be in [0, 1), got 2.0",
      "corpus.on_bad_record must be one of error, quarantine, got 'skip'",
    ],
  ),
  "what does not fit together": (
    "tiny,mixture=odm",
    {"model__vocab_size": 100, "batch_size": 9, "plan__proportions": "(0.5,0.5)"},
    [
      "ValueError: the tokenizer has 258 tokens, the model's vocab_size is 100",
      "plan.proportions needs one number for each of fruit, metal, noise, got (0.5, 0.5)",
      "batch_size / accumulation_steps=9 must be divisible by data * fsdp * expert = 2",
    ],
  ),
  "no such folder": (
    "tiny",
    {"data": "nowhere"},
    ["ValueError: nowhere: no such folder of domains"],
  ),
  "a bad record": ("tiny", {"data": "{bad}"}, [r"web.jsonl:2: "]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_last_line_names_the_mistake(name, run, tmp_path):
  argument, fields, named = MISTAKES[name]
  bad = tmp_path / "bad"
  bad.mkdir()
  (bad / "web.jsonl").write_text('{"text": "one"}\n{"text": "two"\n')
  fields = {n: str(v).replace("{bad}", str(bad)) for n, v in fields.items()}
  status, output = run(f"pretrain_mixture.py:{argument}", tmp_path / "run", **fields)
  assert status == 1
  last_line = output.strip().splitlines()[-1]
  assert all(part in last_line for part in named), last_line
  assert not (tmp_path / "run/checkpoints").exists()
  assert not re.search("Exception ignored|Exception in thread|leaked", output)


def test_an_unknown_argument_of_the_config_is_named(run, tmp_path):
  status, output = run("pretrain_mixture.py:tny", tmp_path / "run")
  assert status == 1
  assert "ValueError: config argument: no field 'tny', did you mean 'tiny'?" in output
