"""What a pattern of the lexicon is, and the words that turn its wish around."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

AWAY = (
  r"(?:no|without|free of|(?:do not|don'?t) want(?: any)?|remov(?:e|es|ed|ing)|"
  r"drop(?:s|ped|ping)?|"
  r"delet(?:e|es|ed|ing)|filter(?:ed|ing)? out|exclud(?:e|es|ed|ing)|strip(?:ped|ping)?|"
  r"get rid of|mask(?:ed|ing)?|redact(?:ed|ing)?|anonymi[sz]e[ds]?|fix(?:ed)?|repair(?:ed)?|"
  r"clean up|no more|去除|去掉|删除|移除|剔除|过滤掉|过滤|没有|无|不含|不包含|不要|"
  r"不能有|屏蔽|遮盖|"
  r"掩盖|修复|修正|清除)"
)
STAY = (
  r"(?:keep(?:s|ing)?|kept|retain(?:s|ed|ing)?|allow(?:s|ed|ing)?|preserv(?:e|es|ed|"
  r"ing)|leav(?:e|es|ing)|保留|允许)"
)
_WHOLE = r"(?<![a-z0-9]){}(?![a-z0-9])"
# Words of removal and of keeping that stand by themselves, wherever they stand.
REMOVALS = re.compile(
  _WHOLE.format(rf"(?:{AWAY}|removals?|deletion|exclusion|avoid(?:s|ed|ing)?|排除|避免)"),
  re.ASCII,
)
STAYS = re.compile(_WHOLE.format(STAY), re.ASCII)
# What is done about something unwanted, which is not unwanted itself.
ACTIONS = re.compile(r"\bde-?dup|decontaminat|minhash|去重|脱敏|去污染", re.ASCII)
_BETWEEN = r"(?:\s*(?:all|any|the|of|its|their|所有的?|任何|全部))*\s*"


class Pattern(NamedTuple):
  """Words that name a capability.

  Attributes:
    capability: what `rules` and `contract` know.
    words: a regular expression, matched against the goal in small letters.
    read: makes arguments of a match.
    thing: whether it is unwanted by itself, so that words of removal may stand before it, and
      words of keeping turn it off; of `ACTIONS` it is the other way round.
  """

  capability: str
  words: str
  read: Callable[[re.Match[str]], Mapping[str, Any]] = lambda _: {}
  thing: bool = False

  @property
  def regex(self) -> re.Pattern[str]:
    """The whole expression; ASCII, so that words end where Chinese begins."""
    words = f"(?:{self.words})"
    if self.thing:
      words = rf"(?:(?P<stay>{STAY})|(?P<away>{AWAY}))?{_BETWEEN}{words}"
    return re.compile(rf"(?<![a-z0-9]){words}", re.ASCII)
