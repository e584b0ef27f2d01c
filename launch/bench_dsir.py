"""What hashing text and weighing it takes, in megabytes a second of one core."""

import sysconfig
import time
from pathlib import Path

from jdc.data import dsir

_BYTES, _TEXT, _TIMES = 20_000_000, 2_000, 5


def main() -> None:
  """Prints the rates for the sources of Python's own library, in texts of 2,000 bytes."""
  folder = Path(sysconfig.get_path("stdlib"))
  read, size = [], 0
  for path in sorted(folder.rglob("*.py")):
    read.append(path.read_bytes())
    size += len(read[-1])
    if size >= _BYTES:
      break
  data = b"".join(read)[:_BYTES]
  texts = [data[i : i + _TEXT] for i in range(0, len(data), _TEXT)]
  rates = []
  for _ in range(_TIMES):
    begin = time.process_time()
    ngrams = dsir.hash_ngrams(texts)
    hashed = time.process_time()
    dsir.log_importance(ngrams, ngrams)
    rates.append((hashed - begin, time.process_time() - begin))
  millions = len(data) / 1e6
  for name, seconds in zip(
    ("hashing", "hashing and weighing"), zip(*rates, strict=True), strict=True
  ):
    rate = millions / sorted(seconds)[_TIMES // 2]
    print(f"{name:22} {rate:7.1f} MB/s, {len(texts)} texts of {millions:.1f} MB")
