"""Stop words: eight function words a language, as Gopher's rule has them for English.

English is the published list (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1). The paper
gives no others; those here are eight of the most frequent function words of each language.
Words of Chinese and Japanese are single characters, as everywhere in the signals. Thai, Lao,
Khmer and Burmese have no list: single characters of them say nothing of function words.
"""

import functools

import numpy as np

WORDS: dict[str, tuple[str, ...]] = {
  "en": ("the", "be", "to", "of", "and", "that", "have", "with"),
  "de": ("der", "die", "und", "in", "den", "von", "zu", "das"),
  "fr": ("de", "la", "le", "et", "les", "des", "en", "que"),
  "es": ("de", "la", "que", "el", "en", "y", "los", "con"),
  "it": ("di", "e", "che", "il", "la", "per", "un", "non"),
  "pt": ("de", "a", "o", "que", "e", "do", "da", "em"),
  "nl": ("de", "van", "het", "een", "en", "in", "is", "dat"),
  "sv": ("och", "i", "att", "det", "som", "en", "på", "är"),
  "pl": ("w", "i", "na", "z", "się", "nie", "do", "że"),
  "ru": ("и", "в", "не", "на", "что", "с", "по", "для"),
  "uk": ("і", "в", "не", "на", "що", "з", "до", "та"),
  "tr": ("ve", "bir", "bu", "da", "de", "için", "ile", "çok"),
  "ar": ("في", "من", "على", "أن", "إلى", "عن", "التي", "هذا"),
  "hi": ("के", "है", "की", "से", "और", "का", "को", "पर"),
  "zh": ("的", "是", "不", "了", "在", "有", "和", "这"),
  "ja": ("の", "に", "は", "を", "た", "が", "で", "て"),
}
LANGUAGES = tuple(WORDS)
PER_LANGUAGE = 8
MAX_BYTES = 8  # of a stop word in UTF-8: it fits a machine word

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
SHIFT = np.uint64(54)  # leaves the 10 bits of a slot
_SLOTS = 1024


@functools.cache
def table() -> tuple[np.ndarray, np.ndarray]:
  """Returns an open-addressing table of all stop words.

  Returns:
    keys: u64[1024], the UTF-8 bytes of a word as one big-endian number, 0 where free.
    masks: u64[1024,2], bit 8 l + k is set for word k of language l.

  Example:
    >>> keys, masks = table()
    >>> int((keys != 0).sum()) == len({w for ws in WORDS.values() for w in ws})
    True
  """
  keys, masks = np.zeros(_SLOTS, np.uint64), np.zeros((_SLOTS, 2), np.uint64)
  for language, words in enumerate(WORDS.values()):
    for number, word in enumerate(words):
      slot = _slot(keys, word)
      half, bit = divmod(language * PER_LANGUAGE + number, 64)
      masks[slot, half] |= np.uint64(1 << bit)
  keys.setflags(write=False)
  masks.setflags(write=False)
  return keys, masks


def _slot(keys: np.ndarray, word: str) -> int:
  key = int.from_bytes(word.encode(), "big")
  slot = (key * int(GOLDEN)) % (1 << 64) >> int(SHIFT)
  while keys[slot] not in (0, key):
    slot = (slot + 1) % _SLOTS
  keys[slot] = key
  return slot
