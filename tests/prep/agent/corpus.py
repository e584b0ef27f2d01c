"""A small dirty corpus: good passages, junk, copies, personal data, another language."""

import json
import random
from pathlib import Path

_THINGS_WORDS = (
  "harbour garden library engine violin market bridge forest kitchen theatre museum "
  "river lighthouse workshop orchard station castle vineyard bakery glacier "
)
_THINGS = _THINGS_WORDS.split()
_PEOPLE_WORDS = "teacher baker sailor painter farmer doctor pilot gardener tailor miner "
_PEOPLE = _PEOPLE_WORDS.split()
_ACTS_WORDS = (
  "repaired opened measured painted visited described closed restored studied "
  "bought sold photographed defended borrowed "
)
_ACTS = _ACTS_WORDS.split()
_TIMES = (
  "in the early spring", "after the long war", "during the summer", "before the storm",
  "every second Sunday", "in the last century", "when the snow had melted",
)  # fmt: skip


def article(rng: random.Random, sentences: int = 14) -> str:
  """An article that no other is like."""
  made = []
  for _ in range(sentences):
    who, what, other = rng.choice(_PEOPLE), rng.choice(_THINGS), rng.choice(_THINGS)
    act, when, number = rng.choice(_ACTS), rng.choice(_TIMES), rng.randrange(3, 900)
    made.append(
      f"The {who} {act} the {what} {when}, and {number} people from the {other} came to see it "
      f"with their own eyes."
    )
  return " ".join(made[:7]) + "\n\n" + " ".join(made[7:])


def records(seed: int = 0, good: int = 120, junk: int = 40) -> list[dict[str, str]]:
  rng = random.Random(seed)
  texts = [article(rng) for _ in range(good)]
  texts += texts[:6]
  texts += [text.replace(" came to see it", " came and saw it", 1) for text in texts[6:12]]
  texts += [f"{article(rng)} Write to ann{n}@harbourmail.net please." for n in range(8)]
  for n in range(junk):
    noise = " ".join("".join(rng.choices("0123456789abcdef", k=32)) for _ in range(40))
    loop = f"Buy number {n} now and save money on the best deals. " * 30
    texts.append((noise, loop, f"short {n}", "El barco sale del puerto dos veces. " * 9)[n % 4])
  rng.shuffle(texts)
  return [{"text": text, "id": str(n)} for n, text in enumerate(texts)]


def write(folder: Path, seed: int = 0, **sizes: int) -> Path:
  """Writes two files of records, one line of them broken; returns the folder."""
  made = records(seed, **sizes)
  folder.mkdir(parents=True, exist_ok=True)
  for number in range(2):
    lines = [json.dumps(record) for record in made[number::2]]
    lines += ["no JSON"] if number else []
    (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
  return folder
