"""The words of goals that are understood, in English and Chinese, as patterns.

A pattern names a capability. Things that are unwanted by themselves, such as duplicates, count
as `off` behind words such as "keep". Patterns are tried in order and use up what they match, so
that special ones stand before general ones.
"""

import functools
import re

from jdc.prep.agent import lexicon_amounts, lexicon_things
from jdc.prep.agent.pattern import Pattern

LANGUAGES = {
  "en": "english|英文|英语",
  "zh": "chinese|mandarin|中文|汉语",
  "de": "german|德文|德语",
  "fr": "french|法文|法语",
  "es": "spanish|西班牙文|西班牙语",
  "it": "italian|意大利文|意大利语",
  "pt": "portuguese|葡萄牙文|葡萄牙语",
  "nl": "dutch|荷兰文|荷兰语",
  "sv": "swedish|瑞典语",
  "pl": "polish|波兰语",
  "ru": "russian|俄文|俄语",
  "uk": "ukrainian|乌克兰语",
  "tr": "turkish|土耳其语",
  "ar": "arabic|阿拉伯文|阿拉伯语",
  "hi": "hindi|印地语",
  "ja": "japanese|日文|日语",
  "ko": "korean|韩文|韩语",
  "vi": "vietnamese|越南语",
  "th": "thai|泰文|泰语",
  "id": "indonesian|印尼语",
  "cs": "czech|捷克语",
  "da": "danish|丹麦语",
  "fi": "finnish|芬兰语",
  "el": "greek|希腊语",
  "he": "hebrew|希伯来语",
  "hu": "hungarian|匈牙利语",
  "ro": "romanian|罗马尼亚语",
  "fa": "persian|farsi|波斯语",
}


def _code(code: str, match: re.Match[str]) -> dict[str, str]:
  del match
  return {"code": code}


_KINDS: tuple[Pattern, ...] = (
  Pattern(
    "all_languages",
    r"multi-?lingual|(?:all|any|every|many) languages?|多语言|多语种|所有语言|任何语言",
  ),
  *(
    Pattern(
      "language",
      rf"(?:only |仅|只要|只保留|仅保留)?(?:{words})(?:[- ]language\b)?(?:[- ]only\b|"
      r" texts? only\b)?",
      functools.partial(_code, code),
    )
    for code, words in LANGUAGES.items()
  ),
  Pattern(
    "recipe",
    r"(?P<name>gopher|c4|refined ?web|fine ?web)(?:[- ]edu)?(?:'s)?(?: (?:rules?|filters?|"
    r"recipe|quality|style))?(?:规则)?",
    lambda m: {"name": m["name"].replace(" ", "")},
  ),
  Pattern(
    "sft",
    r"(?:supervised )?fine-?tun(?:e|ing)|sft\b|instruction(?:s|[- ]tuning|"
    r"[- ]following)?(?: data)?|chat\b(?: data)?|conversations?|dialogues?|指令(?:微调|"
    r"数据)?|对话(?:数据)?|微调|聊天",
  ),
  Pattern(
    "web",
    r"web ?(?:text|pages?|crawls?|data|sites?|documents)?\b|crawl(?:ed|s)?\b(?: (?:pages|"
    r"text|data))?|common ?crawl|internet(?: text)?|网络(?:文本|数据)?|网页(?:文本|数据|"
    r"内容)?|互联网(?:文本|数据)?|爬虫(?:数据)?|爬取的?(?:数据|文本)?",
  ),
  Pattern(
    "clean",
    r"(?:low|bad|poor)[- ]quality|junk|garbage|rubbish|低质量的?",
    thing=True,
  ),
  Pattern(
    "clean",
    r"clean(?:ed|ing|er)?\b|high[- ]?quality|good[- ]quality|quality\b|readable|"
    r"well[- ]formed|干净的?|清洗(?:过的?)?|高质量的?|优质的?|可读的?|质量",
  ),
  Pattern(
    "pretrain",
    r"(?:continued |continual )?pre-?train(?:ing|ed)?|language model(?:l?ing|"
    r"s)?(?: training)?|llm(?: training)?|预训练|语言模型(?:训练)?|大模型(?:训练)?",
  ),
  Pattern(
    "format",
    r"(?:as |in |to |into |输出为|保存为|写成)\s*(?P<name>parquet|jsonl|arrayrecord|"
    r"array_record|byte tokens)(?: files| shards)?(?:格式)?",
    lambda m: {"name": m["name"].replace("_", "")},
  ),
)  # fmt: skip

PATTERNS = (*lexicon_amounts.PATTERNS, *lexicon_things.PATTERNS, *_KINDS)

# Words that carry no wish of their own.
_FILLER = (
  "a an and are as at be by data dataset datasets document documents file files for "
  "from give good i in into is it its make me my of on or our please prepare process "
  "produce raw record records set so text texts that the their them these this those to "
  "training train us use used using want we which will with would you need corpus "
  "collection content result output input have has should must can be model models "
  "build create get turn new all any every each "
)
FILLER = frozenset(_FILLER.split())
FILLER_CHINESE = re.compile(
  "[的了和与及并且而或把将被从在为是请我们要想需用于做成得到一个份些这那对进行处理数据文本集语料训练其中所有用来]"
)
NEGATIONS = re.compile(
  r"\b(?:not|never|don'?t|doesn'?t|except|unless|but|instead|nor|other than)\b|"
  r"不要|不是|不得|别|除了|除外|禁止|而非",
  re.ASCII,
)
