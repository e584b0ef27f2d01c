"""Makes the corpus on which the loop is tried: good domains, a harmful one, and duplicates.

  python launch/loop_corpus.py --data=DIR --output=corpus [--clean]

DIR holds `NAME.train.jsonl.gz` and `NAME.val.jsonl.gz`. Of each domain of `--domains`, so many
texts are taken, cut to `--chars` characters. Planted are

- `scrambled`: web texts whose words of four letters or more have their letters in random order;
  rules about words, symbols and repetition see nothing in them;
- near duplicates in `web`: `--originals` texts, each `--copies` times with every 25th word
  taken out at random, so that exact deduplication finds none; and exact copies of as many.

`corpus/raw` holds the files. Of the validation files of the good domains are, without overlap,
`corpus/target`, for policies to look at, `corpus/held_out`, which decides about rounds, and
`corpus/test`, which nothing but the comparison at the end reads. `--clean` plants nothing. The
same seed makes the same bytes.
"""

import gzip
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

DATA = flags.DEFINE_string("data", None, "Train and validation files.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "A new folder.", required=True)
DOMAINS = flags.DEFINE_list("domains", ["legal", "qa", "web", "wiki"], "The good domains.")
TEXTS = flags.DEFINE_integer("texts", 500, "Of each domain.")
CHARS = flags.DEFINE_integer("chars", 1200, "Of each text, at most.")
SCRAMBLED = flags.DEFINE_integer("scrambled", 1100, "Texts of the harmful domain.")
ORIGINALS = flags.DEFINE_integer("originals", 3, "Texts that have near duplicates.")
COPIES = flags.DEFINE_integer("copies", 160, "Of each.")
HELD_OUT = flags.DEFINE_integer("held_out", 48, "Texts of each domain that decide.")
TEST = flags.DEFINE_integer("test", 56, "Texts of each domain for the comparison.")
TARGET = flags.DEFINE_integer("target", 16, "Texts of each domain for policies.")
CLEAN = flags.DEFINE_bool("clean", False, "Plant nothing.")
SEED = flags.DEFINE_integer("seed", 0, "Of what is planted.")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  data, output, rng = Path(DATA.value), Path(OUTPUT.value), random.Random(SEED.value)
  texts = {name: read(data / f"{name}.train.jsonl.gz") for name in DOMAINS.value}
  made = {name: found[: TEXTS.value] for name, found in texts.items()}
  if not CLEAN.value:
    rest = texts["web"][TEXTS.value :]
    if len(rest) < (needed := SCRAMBLED.value + 2 * ORIGINALS.value):
      raise ValueError(f"web has {len(rest)} texts beside --texts, {needed} are needed")
    made["scrambled"] = [scramble(text, rng) for text in rest[: SCRAMBLED.value]]
    near, exact = (rest[-k * ORIGINALS.value :][: ORIGINALS.value] for k in (1, 2))
    made["web"] += [thin(text, rng) for text in near for _ in range(COPIES.value)]
    made["web"] += [text for text in exact for _ in range(COPIES.value)]
    rng.shuffle(made["web"])
  for name, found in made.items():
    write(output / "raw" / f"{name}.jsonl.gz", found)
  for name in DOMAINS.value:
    held = read(data / f"{name}.val.jsonl.gz")
    for split, count in (("held_out", HELD_OUT), ("test", TEST), ("target", TARGET)):
      write(output / split / f"{name}.jsonl.gz", held[: count.value])
      held = held[count.value :]
  sizes = {name: sum(len(text.encode()) for text in found) for name, found in made.items()}
  print("bytes:", sizes)


def read(path: Path) -> list[str]:
  """Returns the texts of a file, cut before the last word of what is taken, each once."""
  with gzip.open(path, "rt", encoding="utf-8") as lines:
    texts = [str(json.loads(line)["text"]) for line in lines]
  cut = [text[: CHARS.value].rsplit(" ", 1)[0] for text in texts]
  return list(dict.fromkeys(cut))


def scramble(text: str, rng: random.Random) -> str:
  """Returns a text with the letters of its longer words in random order."""

  def mixed(match: re.Match[str]) -> str:
    letters = list(match[0])
    rng.shuffle(letters)
    return "".join(letters)

  return re.sub(r"[^\W\d_]{4,}", mixed, text)


def thin(text: str, rng: random.Random) -> str:
  """Returns a text without every 25th of its words, about."""
  return " ".join(word for word in text.split(" ") if rng.random() > 0.04)


def write(path: Path, texts: Sequence[str]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
  path.write_bytes(gzip.compress(content, mtime=0))


if __name__ == "__main__":
  app.run(main)
