"""Scripts that are written without spaces between words, and the marks that end sentences.

In these scripts a word is a run of their characters cut into single characters (code points):
segmenting into true words takes a dictionary per language, and counts of characters order
documents as counts of words do.
"""

import re

# First and last code point of Thai, Lao, Burmese, Khmer, then Chinese and Japanese.
UNSPACED = (
  (0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x19E0, 0x19FF),
  (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3031, 0x3035), (0x3041, 0x312F),
  (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA9E0, 0xA9FF),
  (0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1B000, 0x1B16F),
  (0x20000, 0x3FFFF),
)  # fmt: skip
CLASS = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in UNSPACED)
# Of scripts in which no mark ends a sentence: Thai and Lao.
UNMARKED_CLASS = "\u0e00-\u0eff"
# ASCII, then those of Chinese and Japanese, Arabic and Urdu, Devanagari, Burmese, Khmer,
# Armenian, Ethiopic.
SENTENCE_END = ".?!。！？｡．؟۔।॥၊။។៕։።፧"  # fmt: skip
# May close a quotation or bracket after the mark.
CLOSERS = "\"'”’»›)]」』）】》〉"
WORD = re.compile(f"[{CLASS}]|[^\\s{CLASS}]+")


def words(text: str) -> list[str]:
  """Returns the words of a text: runs without white space, unspaced scripts cut up.

  Example:
    >>> words("C4 rules, 你好!")
    ['C4', 'rules,', '你', '好', '!']
  """
  return WORD.findall(text)
