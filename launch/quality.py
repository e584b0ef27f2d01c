"""Makes a classifier of quality for plans, and shows what one is like.

  python launch/quality.py fit --positive='good/*.jsonl.gz' --negative='web/*.jsonl.gz' \
    --output=quality.safetensors
  python launch/quality.py fit --labels='scored/data/*/*.parquet' --label_field=score \
    --min_label=3 --output=quality.safetensors
  python launch/quality.py show quality.safetensors

`--labels` are records with a number, as `llm_score` writes them: a sample that a dear model has
scored teaches the cheap one. A plan takes the file as `model` of `quality_classifier`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from jdc.prep import store
from jdc.prep.ops import quality
from jdc.prep.problems import suggestion
from jdc.prep.quality import classifier

POSITIVE = flags.DEFINE_multi_string("positive", [], "Files of good examples, or globs.")
NEGATIVE = flags.DEFINE_multi_string("negative", [], "Files of other examples, or globs.")
LABELS = flags.DEFINE_multi_string("labels", [], "Files of records with a number, or globs.")
LABEL_FIELD = flags.DEFINE_string("label_field", "score", "The field with the number.")
MIN_LABEL = flags.DEFINE_float("min_label", 3.0, "Good from it on.")
TEXT_COLUMN = flags.DEFINE_string("text_column", "text", "The field with the text.")
MOST = flags.DEFINE_integer("max_examples", 50_000, "Of a side.", lower_bound=100)
BUCKETS = flags.DEFINE_integer("buckets", classifier.BUCKETS, "A power of two.")
L2 = flags.DEFINE_float("l2", 1.0, "The weight of the squares of weights.")
SEED = flags.DEFINE_integer("seed", 0, "Of the choice and division of examples.")
OUTPUT = flags.DEFINE_string("output", "", "The classifier, a new .safetensors file.")
_COUNTS = ("positive", "negative", "duplicates", "in_both", "without_words", "train")


def main(argv: list[str]) -> int:
  commands = {"fit": _fit, "show": _show}
  logging.set_verbosity(logging.WARNING)
  if len(argv) < 2:
    raise app.UsageError(f"give a command: {', '.join(commands)}")
  if argv[1] not in commands:
    raise app.UsageError(f"unknown command {argv[1]!r}{suggestion(argv[1], commands)}")
  try:
    return commands[argv[1]](argv[2:])
  except (ValueError, OSError) as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return 2


def _fit(arguments: list[str]) -> int:
  output = Path(OUTPUT.value)
  if arguments or output.suffix != ".safetensors":
    raise app.UsageError("fit --output=FILE.safetensors, with examples as flags")
  if output.exists():
    raise app.UsageError(f"--output={output} exists already")
  params = quality.QualityClassifier(
    model="",
    positive=tuple(POSITIVE.value),
    negative=tuple(NEGATIVE.value),
    labels=tuple(LABELS.value),
    label_field=LABEL_FIELD.value,
    min_label=MIN_LABEL.value,
    text_column=TEXT_COLUMN.value,
    max_examples=MOST.value,
    buckets=BUCKETS.value,
    l2=L2.value,
    seed=SEED.value,
  ).at(Path())
  made = quality.prepare(params)
  folder = output.absolute().parent
  store.write_bytes(folder, output.name, made.data)
  print(_described(dict(made.counts)))
  print(f"classifier: {output}")
  return 0


def _show(arguments: list[str]) -> int:
  if len(arguments) != 1:
    raise app.UsageError("show FILE")
  print(_described(classifier.load(arguments[0]).about))
  return 0


def _described(about: dict[str, Any]) -> str:
  """Returns what a classifier was made of and how good it is, as text."""
  test = about["test"]
  counts = {name: about["examples"][name] for name in _COUNTS}
  lines = ["examples: " + ", ".join(f"{n} {name}" for name, n in counts.items())]
  lines.append(
    f"held out: {test['documents']} documents, AUC {test['auc']:.4f} +- "
    f"{test['auc_standard_error']:.4f}, accuracy {test['accuracy']:.4f} (the larger side alone "
    f"{test['accuracy_of_majority']:.4f}), calibration error "
    f"{test['expected_calibration_error']:.4f}"
  )
  if test["auc"] - 2 * test["auc_standard_error"] <= 0.5:
    lines.append(
      "warning: documents that were held out are told apart no better than by chance"
    )
  if "agreement" in about:
    lines.append(f"agreement with labels: {json.dumps(about['agreement'])}")
  lines.append("min_score  kept  of positive  of negative  precision")
  for row in test["thresholds"]:
    precision = "-" if row["precision"] is None else f"{row['precision']:.3f}"
    lines.append(
      f"{row['min_score']:9.1f} {row['kept']:5.3f} {row['kept_of_positive']:12.3f} "
      f"{row['kept_of_negative']:12.3f} {precision:>10}"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  app.run(main)
