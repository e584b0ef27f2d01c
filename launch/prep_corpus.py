"""Writes the corpus of `bench_corpus.py`, which the benchmarks of data preparation run on.

  python launch/prep_corpus.py --output=DIR --documents=200000

`raw-00.jsonl` to `raw-03.jsonl` and `corpus.parquet` hold the same documents: about 242 MB of
text if there are 200,000. `truth.parquet` says what each is: an original, an exact or near copy
of which row, or junk.
"""

from pathlib import Path

import bench_corpus
from absl import app, flags

OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
DOCUMENTS = flags.DEFINE_integer("documents", 200_000, "Documents.", lower_bound=100)
SEED = flags.DEFINE_integer("seed", 0, "Of all that is drawn.")


def main(argv: list[str]) -> None:
  """Writes the files, and prints their size."""
  del argv
  corpus = bench_corpus.Corpus(DOCUMENTS.value, SEED.value)
  size = bench_corpus.write(corpus, Path(OUTPUT.value))
  print(f"{OUTPUT.value}: {len(corpus.truth):,} documents, {size / 1e6:.1f} MB of text")


if __name__ == "__main__":
  app.run(main)
