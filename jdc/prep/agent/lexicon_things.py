"""Patterns of what is unwanted: duplicates, personal data, markup, kinds of bad text."""

from jdc.prep.agent.pattern import Pattern

_THAT = r"(?:texts?|documents|pages|lines|文本|文档|网页)"

PATTERNS: tuple[Pattern, ...] = (
  # Duplicates.
  Pattern(
    "semantic_dedup",
    r"semantic(?:ally)?[- ](?:duplicates?|similar (?:documents|texts))|paraphrases|"
    r"语义重复|语义去重",
    thing=True,
  ),
  Pattern(
    "dedup_lines",
    r"(?:repeated|repeating|recurring|duplicate[d]?|frequent) (?:lines|paragraphs)|"
    r"boilerplate lines|重复(?:的)?行|重复(?:的)?段落",
    thing=True,
  ),
  Pattern(
    "near_dedup",
    r"(?:near|fuzzy|approximate|close)[- ]?(?:identical|duplicates?|dups?|copies|"
    r"de-?dup(?:lication|licated?|licating|ed)?)|minhash|近似重复(?:的?(?:内容|文本|"
    r"文档))?|模糊重复|近似去重|模糊去重|相似重复",
    thing=True,
  ),
  Pattern(
    "exact_dedup",
    r"(?:exact(?:ly)?|identical|verbatim)[- ](?:the same|duplicates?|dups?|copies|"
    r"equal(?: texts)?|de-?dup(?:lication|licated?|licating|ed)?)|完全重复|完全相同|"
    r"精确去重|精确重复",
    thing=True,
  ),
  Pattern(
    "dedup",
    r"duplicates?(?: (?:texts?|documents|records|content))?|duplicated(?: (?:texts?|"
    r"documents|content))?|duplication|de-?dup(?:lication|licated?|licating|ed)?\b|copies|"
    r"重复(?:的?(?:内容|文本|文档|数据|项))?|去重",
    thing=True,
  ),
  # Personal data.
  Pattern(
    "pii_email",
    r"e-?mails?(?: address(?:es)?)?|电子邮件(?:地址)?|邮箱(?:地址)?|电邮|邮件地址",
    thing=True,
  ),
  Pattern("pii_ip", r"ips?(?: address(?:es)?|s)?\b|ip地址", thing=True),
  Pattern(
    "pii_phone",
    r"(?:tele)?phone(?: numbers?|s)?|电话(?:号码)?|手机号码?",
    thing=True,
  ),
  Pattern(
    "pii_card",
    r"(?:credit |payment |debit |bank )cards?(?: numbers?)?|card numbers?|"
    r"信用卡(?:号码?)?|银行卡(?:号码?)?",
    thing=True,
  ),
  Pattern(
    "pii_iban",
    r"ibans?|(?:bank )?account numbers?|银行账[号户]|账号",
    thing=True,
  ),
  Pattern(
    "pii_ssn",
    r"ssns?\b|social security numbers?|社会安全号码?|社保号码?",
    thing=True,
  ),
  Pattern(
    "pii_street",
    r"(?:street|postal|home|mailing) address(?:es)?|街道地址|住址|家庭地址",
    thing=True,
  ),
  Pattern(
    "pii_name",
    r"(?:personal |people'?s |private )names|names of (?:people|persons)|人名|姓名",
    thing=True,
  ),
  Pattern(
    "pii",
    r"personal(?:ly identifiable)? (?:data|information|details|info)|pii\b|"
    r"private (?:data|information)|privacy[- ]sensitive data|个人(?:数据|信息|资料|"
    r"隐私(?:信息)?)|隐私(?:数据|信息)?|私人信息|脱敏",
    thing=True,
  ),
  # What a text carries that it should not.
  Pattern(
    "html",
    r"html(?: (?:tags?|markup|entities))?|mark-?up|xml tags?|tags\b|网页标签|标签|html标签",
    thing=True,
  ),
  Pattern(
    "encoding",
    r"mojibake|(?:bad|broken|wrong) (?:encodings?|characters|unicode)|encoding (?:errors|"
    r"faults|problems|issues)|unicode(?: errors| problems| issues)?|encodings?\b|乱码|"
    r"编码(?:错误|问题)?",
    thing=True,
  ),
  Pattern(
    "whitespace",
    r"(?:extra |superfluous |surplus )?white ?spaces?|(?:extra |surplus )?(?:blank lines|"
    r"spaces)|空白(?:字符)?|多余空格|空行",
    thing=True,
  ),
  Pattern(
    "urls",
    r"(?:urls|links|hyperlinks|web addresses)\b|链接|网址",
    thing=True,
  ),
  Pattern(
    "citations",
    r"(?:citation|reference|footnote) marks?|citations|\[\d+\]|引用标记|引文标记|引用",
    thing=True,
  ),
  Pattern(
    "furniture",
    r"menus?\b(?:,? (?:and )?footers?)?|footers?\b|navigation|(?:page )?furniture|"
    r"boilerplate|cookie (?:notices|banners)|advertisements|ads\b|导航(?:栏)?|页脚|菜单|"
    r"样板文字|广告|模板文字",
    thing=True,
  ),
  Pattern(
    "javascript",
    r"javascript|js notices|lorem ipsum|placeholder text|占位文字|占位文本",
    thing=True,
  ),
  Pattern(
    "short",
    rf"(?:short|tiny|too short|very short) {_THAT}|fragments|(?:过|太)短的?{_THAT}|短文本|"
    r"片段|碎片",
    thing=True,
  ),
  Pattern(
    "repetition",
    r"repetiti(?:on|ons|ve text|ve texts|ve documents|ve)|loops|spam|keyword stuffing|"
    r"垃圾(?:文本|信息|内容)|复读|刷屏",
    thing=True,
  ),
  Pattern(
    "gibberish",
    r"gibberish|random (?:characters|strings|text)|noise|nonsense|binary data|"
    r"无意义(?:文本|内容)|噪声|噪音|胡言乱语",
    thing=True,
  ),
  Pattern("code", r"(?:source |program )?code\b|programs\b|源代码|代码", thing=True),
  Pattern("symbols", r"symbol lines|lines of symbols|符号行", thing=True),
  Pattern(
    "refusals",
    r"refusals|refusing (?:answers|responses)|拒答|拒绝回答",
    thing=True,
  ),
)
