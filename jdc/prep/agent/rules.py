"""Plans by rules: from wishes and evidence to steps, without a model and without a network."""

from collections.abc import Iterable, Mapping
from typing import Any

from jdc.prep import ops
from jdc.prep.agent import contract
from jdc.prep.agent.goal import Goal, Intent
from jdc.prep.agent.planner import Proposal, Task
from jdc.prep.kernels import tokenise_stop_words
from jdc.prep.spec import OutputSpec, PlanSpec, StepSpec, step

NAME = "rules/1"
# From these shares on, a fault that a step repairs is worth the step.
_EXACT, _NEAR, _HTML = 0.001, 0.005, 0.001
_STOP_WORDS = frozenset(tokenise_stop_words.LANGUAGES)
# Which published rules a kind of text is held to. FineWeb's recipe for web text takes Gopher's
# rules, those of C4 but the one on lines without a full stop, and its own
# (arXiv:2406.17557, 3.1 to 3.6). Where a paper and its code differ, values are the paper's:
# three sentences, a tenth of the characters in repeated lines.
_C4: dict[str, Any] = {"sentences": {"min": 3}}
_FINEWEB: dict[str, Any] = {"fineweb_lines": {"dup_chars": 0.1}}
_GOPHER: dict[str, Any] = {"gopher_quality": {}, "gopher_repetition": {}}
_RECIPES: dict[str, dict[str, Any]] = {
  "gopher": _GOPHER,
  "refinedweb": _GOPHER,
  "c4": {"c4": _C4},
  "fineweb": {**_GOPHER, "c4": _C4, "fineweb": _FINEWEB},
}
SINGLE = {  # rules that a wish asks for by itself
  "short": ("word_count",),
  "repetition": ("gopher_repetition", "compression_ratio"),
  "gibberish": ("alpha_words", "mean_word_length", "compression_ratio"),
  "code": ("alpha_words", "boilerplate"),
  "javascript": ("boilerplate",),
}


_DROP_LINES = ("drop_lines", "dedup_lines")
_SHOWN = 6  # rules of a step whose effect stands in its reason


class RulePlanner:
  """The default planner: the same goal and profile give the same plan."""

  def plan(self, task: Task) -> Proposal:
    """Returns a plan of published defaults; ValueError if the goal asks for nothing known."""
    made = _Steps(task)
    made.add_all()
    if not made.steps:
      raise ValueError(
        f"goal {task.goal.text!r}: nothing in it asks for a step; not understood: "
        f"{', '.join(task.goal.unknown) or 'nothing'}; what would be: 'clean English text, no "
        "duplicates'"
      )
    plan = task.plan(ordered(made.steps), output_of(task.goal, made.remarks))
    return Proposal(_with_evidence(plan, task), tuple(made.remarks), {"planner": NAME})

  def revise(self, task: Task, plan: PlanSpec, report: Mapping[str, Any]) -> Proposal | None:
    """Returns nothing: what thresholds can do, `repair` does."""
    del task, plan, report
    return None


def ordered(steps: Iterable[StepSpec]) -> tuple[StepSpec, ...]:
  """Returns steps in the order in which their operators usually stand.

  Two operators stand twice, so that a second run finds nothing to do. White space is brought
  into form before lines are dropped, which are judged without it, and after that, since other
  lines begin and end what is left. Characters are repaired before HTML is read, since tags may
  be among them, and after that, since entities may stand for such.
  """
  held = sorted(steps, key=lambda s: ops.OPERATORS[s.op].stage_rank)
  names = [s.op for s in held]
  last = max((n for n, name in enumerate(names) if name in _DROP_LINES), default=-1)
  if "normalize_whitespace" in names and last >= 0:
    held.insert(
      last + 1, step("normalize_whitespace", why=f"lines go before it: {names[last]}")
    )
  if "html_to_text" in names and "fix_unicode" in names:
    held.insert(
      names.index("html_to_text"), step("fix_unicode", why="tags may hold such faults")
    )
  return tuple(held)


def output_of(goal: Goal, remarks: list[str]) -> OutputSpec:
  """Returns how a goal wants the output written."""
  value: dict[str, Any] = {}
  if (wish := goal.find("format")) and wish.args["name"] != "byte tokens":
    value["format"] = wish.args["name"]
  tokens = goal.find("tokens")
  if tokens or (wish and wish.args["name"] == "byte tokens"):
    length = goal.find("sequence_length")
    name = tokens.args["tokenizer"] if tokens else "bytes"
    value |= {"format": "tokens", "tokens": {"tokenizer": name}}
    value["tokens"] |= {"seq_len": length.args["length"]} if length else {}
  elif goal.find("sequence_length"):
    remarks.append("a length of sequences needs a tokenizer, as in 'tokenize with llama.json'")
  if size := goal.find("shard_size"):
    value["shard_mb"] = size.args["mb"]
  return OutputSpec(**value)


class _Steps:
  """Collects the steps for a task, each with its reason."""

  def __init__(self, task: Task):
    self.goal, self.profile = task.goal, task.profile
    self.input = task.input
    self.steps: list[StepSpec] = []
    self.remarks: list[str] = []
    self.clean = self.goal.find("clean", "recipe")

  def add_all(self) -> None:
    self._sft()
    self._repairs()
    self._rules()
    self._selection()
    self._duplicates()
    self._sizes()
    if self.steps and not self.goal.find("sft"):  # whose records are filtered already
      self._whole()

  def _add(self, op: str, why: str, **params: Any) -> None:
    self.steps.append(step(op, why=why, **params))

  def _asked(self, *names: str) -> str:
    """Returns the reason that a wish gives, "" if there is none or the goal forbids it."""
    wish = self.goal.find(*names)
    return f"goal: {wish.words!r}" if wish else ""

  def _seen(self, name: str, least: float, wish: Intent | None) -> str:
    """Returns the reason that the profile gives for what a wish covers in general."""
    value = self.profile.get(name, 0.0)
    if wish is None or value <= least:
      return ""
    return f"goal: {wish.words!r}; profile: {name}={value:.4g} > {least:g}"

  def _sft(self) -> None:
    why = self._asked("sft")
    if why:
      self._add("sft_normalize", f"{why}; profile: chat_rate={self.profile['chat_rate']:.4g}")
      self._add("sft_filter", why)

  def _repairs(self) -> None:
    web = self.goal.find("web") if self.clean else None
    if not self.goal.refuses("html"):
      why = self._asked("html") or self._seen("html_rate", _HTML, self.clean)
      if why:
        self._add("html_to_text", why, repeat=True)
    if not self.goal.refuses("encoding"):
      why = self._asked("encoding") or self._seen("encoding_fault_rate", 0, self.clean)
      if why:
        self._add("fix_unicode", why)
    for name, op in (
      ("urls", "strip_urls"),
      ("citations", "strip_citations"),
      ("symbols", "strip_symbol_lines"),
    ):
      if why := self._asked(name):
        self._add(op, why)
    if not self.goal.refuses("furniture"):
      why = self._asked("furniture")
      if web and not why:
        why = f"goal: {web.words!r}, whose menus and notices are lines (C4)"
      if why:
        self._add("drop_lines", why)
    why = self._asked("whitespace", "clean", "recipe")
    if why and not self.goal.refuses("whitespace"):
      self._add("normalize_whitespace", why)
    if why := self._asked("dedup_lines"):
      self._add("dedup_lines", why)
    self._pii()

  def _pii(self) -> None:
    kinds = contract.pii_kinds(self.goal)
    if not kinds:
      return
    names = ["pii", *(f"pii_{kind}" for kind in kinds)]
    rates = ", ".join(
      f"pii_{k}_per_million={self.profile.get(f'pii_{k}_per_million', 0):.4g}" for k in kinds
    )
    given = {"card_luhn" if k == "card" else k: k in kinds for k in contract.PII}
    defaults = ops.OPERATORS["mask_pii"].params.model_fields
    params = {k: v for k, v in given.items() if v != defaults[k].default}
    self._add("mask_pii", f"{self._asked(*names)}; profile: {rates}", **params)

  def _rules(self) -> None:
    rules: dict[str, Any] = {}
    why: list[str] = []
    recipes = self.goal.all("recipe")
    for recipe in recipes:
      rules |= _RECIPES[recipe.args["name"]]
      why.append(f"goal: {recipe.words!r}")
    if not recipes and self.clean:
      web = self.goal.find("web")
      name = "fineweb" if web else "gopher"
      rules |= _RECIPES[name]
      words = [self.clean.words, *([web.words] if web else [])]
      why.append(f"goal: {' and '.join(map(repr, words))}, published rules of {name}")
    for wish, names in SINGLE.items():
      if asked := self._asked(wish):
        rules |= {n: {} for n in names if n not in rules and not _in_group(n, rules)}
        why.append(asked)
    if rules:
      self._to_language(rules)
      self._to_wishes(rules)
    bounds = {k: v for wish in self.goal.all("word_count") for k, v in wish.args.items()}
    if bounds:
      rules["word_count"] = bounds
      why += [f"goal: {wish.words!r}" for wish in self.goal.all("word_count")]
    if rules:
      self._add("filter", "; ".join(dict.fromkeys(why)), rules=rules)

  def _whole(self) -> None:
    """Records without a word go, whatever the goal: of any plan, whole records are expected."""
    rules = [held.params["rules"] for held in self.steps if held.op == "filter"]
    if not any("word_count" in r or _in_group("word_count", r) for r in rules):
      self._add("word_count", "records without a word are no text", min=1)

  def _to_language(self, rules: dict[str, Any]) -> None:
    """Stop words are those of the language that is asked for."""
    if "gopher_quality" not in rules:
      return
    languages = self.goal.languages
    if languages == ("en",):
      return
    one = languages[0] if len(languages) == 1 else "any"
    if one in _STOP_WORDS or one == "any":
      rules["stop_words"] = {"language": one}
    else:
      rules["stop_words"] = {"min": 0}
      self.remarks.append(f"there is no list of stop words of {one!r}: their rule is off")

  def _to_wishes(self, rules: dict[str, Any]) -> None:
    if self.goal.refuses("code") and ("c4" in rules or "boilerplate" in rules):
      rules["boilerplate"] = {"curly": False}
    if self.goal.refuses("short"):
      rules["word_count"] = {"min": 1}
    if self.profile.get("unspaced_rate", 0) > 0.01:
      self.remarks.append(
        f"profile: unspaced_rate={self.profile['unspaced_rate']:.4g}: in scripts without "
        "spaces the rules count characters as words"
      )

  def _selection(self) -> None:
    languages = self.goal.languages
    if languages:
      score = self.goal.find("language_score")
      shares = self.profile.get("languages", {})
      seen = ", ".join(f"{code} {shares.get(code, 0):.4g}" for code in languages)
      words = ", ".join(dict.fromkeys(i.words for i in self.goal.all("language")))
      given = {"min_score": score.args["score"]} if score else {}
      why = f"goal: {words!r}; profile: languages={seen}"
      self._add("language", why, keep=list(languages), **given)
    elif self.clean and self.profile.get("languages"):
      first, share = next(iter(self.profile["languages"].items()))
      if share < 0.99:
        self.remarks.append(
          f"profile: {share:.1%} are in {first!r}, and the goal names no language: all are kept"
        )
    for name in ("blocklist", "url_blocklist"):
      for wish in self.goal.all(name):
        self._add(name, f"goal: {wish.words!r}", path=wish.args["path"])
    paths = [wish.args["path"] for wish in self.goal.all("decontaminate")]
    if paths:
      self._add("decontaminate", self._asked("decontaminate"), against=paths)

  def _duplicates(self) -> None:
    goal = self.goal
    if goal.refuses("dedup"):
      return
    exact = self._asked("exact_dedup", "dedup", "near_dedup")
    exact = exact or self._seen("exact_dup_rate", _EXACT, self.clean)
    if exact and not goal.refuses("exact_dedup"):
      rate = f"profile: exact_dup_rate={self.profile.get('exact_dup_rate', 0):.4g}"
      self._add("exact_dedup", exact if rate in exact else f"{exact}; {rate}")
    near = self._asked("near_dedup", "dedup")
    near = near or self._seen("near_dup_rate", _NEAR, self.clean)
    if near and not goal.refuses("near_dedup"):
      rate = f"profile: near_dup_rate={self.profile.get('near_dup_rate', 0):.4g}"
      given = dict(wish.args) if (wish := goal.find("similarity")) else {}
      self._add("minhash_dedup", near if rate in near else f"{near}; {rate}", **given)
      # Copies with words moved or replaced share few runs of words, but the words. GPT-3's data
      # were deduplicated so (Brown et al., 2020, arXiv:2005.14165, appendix A).
      rate_of_words = self.profile.get("reworded_dup_rate", 0)
      if rate_of_words > _NEAR:
        evidence = f"profile: reworded_dup_rate={rate_of_words:.4g} > {_NEAR:g}"
        self._add("minhash_dedup", f"{evidence}: equal sets of words", ngram=1, **given)
    if (why := self._asked("semantic_dedup")) and "semantic_dedup" in ops.OPERATORS:
      self._add("semantic_dedup", why)

  def _sizes(self) -> None:
    if wish := self.goal.find("chunk"):
      self._add("chunk_text", f"goal: {wish.words!r}", tokens=wish.args["tokens"])
    if wish := self.goal.find("budget"):
      self._budget(wish)

  def _budget(self, wish: Intent) -> None:
    unit = wish.args["unit"]
    given: dict[str, Any] = {"max_tokens": wish.args["size"], "unit": unit}
    tokens, seed = self.goal.find("tokens"), self.goal.find("seed")
    if unit == "tokens":
      if tokens is None or tokens.args["tokenizer"] == "bytes":
        self.remarks.append(
          f"{wish.words!r} needs a tokenizer, as in 'tokenize with llama.json', or words or "
          "bytes as its unit: not acted on"
        )
        return
      given["tokenizer"] = tokens.args["tokenizer"]
    given |= {"seed": seed.args["seed"]} if seed else {}
    self._add("sample", f"goal: {wish.words!r}", **given)


def _in_group(name: str, rules: Mapping[str, Any]) -> bool:
  from jdc.prep.predicates import GROUPS

  return any(name in GROUPS.get(group, ()) for group in rules)


def _with_evidence(plan: PlanSpec, task: Task) -> PlanSpec:
  """Returns a plan whose rule steps say what share of the profiled sample breaks them."""
  effects = task.measure(plan)
  steps = []
  for number, held in enumerate(plan.step, start=1):
    shares = sorted(effects.get(number, {}).items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{name} {share:.2%}" for name, share in shares[:_SHOWN] if share)
    why = f"{held.why}; profiled sample: out of bounds {text}" if text else held.why
    steps.append(held.model_copy(update={"why": why}))
  return plan.model_copy(update={"step": tuple(steps)})
