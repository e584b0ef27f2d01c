"""A small dirty corpus: good passages, junk, copies, personal data, another language."""

import json
import os
import random
from pathlib import Path
from typing import Any

from jdc.prep.canary_texts import CLEAN
from jdc.prep.spec import InputSpec

GOAL = (
  "clean English web text for pre-training, no duplicates, no personal data, keep at least 30 %"
)
_WORDS = [word for text in CLEAN["en"] for word in text.replace(".", "").split()]


def article(rng: random.Random, sentences: int = 14) -> str:
  """An article that no other is like: words of real passages, in no order."""
  made = []
  for _ in range(sentences):
    words = [word.strip(",").lower() for word in rng.choices(_WORDS, k=rng.randrange(10, 18))]
    made.append(" ".join(words).capitalize() + ".")
  half = len(made) // 2
  return " ".join(made[:half]) + "\n\n" + " ".join(made[half:])


def records(seed: int = 0, good: int = 120, junk: int = 40) -> list[dict[str, str]]:
  rng = random.Random(seed)
  texts = [article(rng) for _ in range(good)]
  texts += texts[:6]
  texts += [text.replace(" the ", " some ", 2) for text in texts[6:12]]
  texts += [f"{article(rng)} Write to ann{n}@harbourmail.net please." for n in range(8)]
  for n in range(junk):
    noise = " ".join("".join(rng.choices("0123456789abcdef", k=32)) for _ in range(40))
    loop = f"Buy number {n} now and save money on the best deals. " * 30
    texts.append((noise, loop, f"short {n}", "El barco sale del puerto dos veces. " * 9)[n % 4])
  rng.shuffle(texts)
  return [{"text": text, "id": str(n)} for n, text in enumerate(texts)]


def spec(raw: Path, folder: Path, **options: Any) -> InputSpec:
  """The files as a plan in `folder` names them; ids of documents go by these names."""
  return InputSpec(paths=(os.path.relpath(raw / "*.jsonl", folder),), **options)


def write(folder: Path, seed: int = 0, **sizes: int) -> Path:
  """Writes two files of records, one line of them broken; returns the folder."""
  made = records(seed, **sizes)
  folder.mkdir(parents=True, exist_ok=True)
  for number in range(2):
    lines = [json.dumps(record) for record in made[number::2]]
    lines += ["no JSON"] if number else []
    (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
  return folder
