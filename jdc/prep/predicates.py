"""Published rules as data: bounds over the signals of documents, and the decision they make.

A rule reads no text. Its parameters, with the published values as defaults, become bounds on
signals (`jdc.prep.kernels.signals`), so that a threshold changes without a second pass over the
text:

  bounds = predicates.bounds_of({"gopher_quality": {}, "dup_ngram": {"dup5": 0.2}})
  found = signals.signals(text, predicates.signals_of(bounds))
  keep = predicates.decide(found, bounds).keep
"""

import difflib
from collections.abc import Mapping
from typing import Any

from jdc.prep import predicates_rules as rules
from jdc.prep.predicates_base import MOSTLY, Bound, Decision, Rule, decide, signals_of

__all__ = [
  "GROUPS",
  "MOSTLY",
  "RULES",
  "Bound",
  "Decision",
  "Rule",
  "bounds_of",
  "decide",
  "signals_of",
]

RULES: dict[str, type[Rule]] = {
  "word_count": rules.WordCount,
  "mean_word_length": rules.MeanWordLength,
  "symbol_ratio": rules.SymbolRatio,
  "bullet_lines": rules.BulletLines,
  "ellipsis_lines": rules.EllipsisLines,
  "alpha_words": rules.AlphaWords,
  "stop_words": rules.StopWords,
  "duplicate_lines": rules.DuplicateLines,
  "duplicate_paragraphs": rules.DuplicateParagraphs,
  "top_ngram": rules.TopNgram,
  "dup_ngram": rules.DupNgram,
  "fineweb_lines": rules.FinewebLines,
  "boilerplate": rules.Boilerplate,
  "sentences": rules.Sentences,
  "compression_ratio": rules.CompressionRatio,
}
_QUALITY = (
  "word_count",
  "mean_word_length",
  "symbol_ratio",
  "bullet_lines",
  "ellipsis_lines",
  "alpha_words",
  "stop_words",
)
_REPETITION = ("duplicate_lines", "duplicate_paragraphs", "top_ngram", "dup_ngram")
GROUPS: dict[str, tuple[str, ...]] = {
  "gopher_quality": _QUALITY,
  "gopher_repetition": _REPETITION,
  "gopher": (*_QUALITY, *_REPETITION),
  "refinedweb": (*_QUALITY, *_REPETITION),
  "fineweb": ("fineweb_lines",),
  "c4": ("boilerplate", "sentences"),
}


def explain_group(name: str) -> str:
  """Returns the rules of a group, what each says and where to read its parameters.

  Example:
    >>> explain_group("gopher_quality").splitlines()[3][:44]
    'mean_word_length  Gopher: a mean word length'
  """
  how = f"rules of `filter`: rules = {{ {name} = {{}} }}; `explain RULE` tells parameters"
  width = max(map(len, GROUPS[name]))
  first = {rule: (RULES[rule].__doc__ or "").partition("\n")[0] for rule in GROUPS[name]}
  lines = [f"{rule:<{width}}  {what}" for rule, what in first.items()]
  return "\n".join([f"{name} ({how})", "", *lines])


def bounds_of(chosen: Mapping[str, Mapping[str, Any] | str | Rule]) -> tuple[Bound, ...]:
  """Returns the bounds of rules, as a plan names them.

  Args:
    chosen: by name of a rule, its parameters; or the name of its source, such as "gopher", for
      the published ones; or the rule itself. By name of a group, an empty mapping, or by name
      of some of its rules, the parameters of these.

  Returns:
    The bounds in the order in which the rules are named; a rule that is named by itself and in
    a group before or after it stands once, with the parameters that go with its own name.

  Raises:
    ValueError: naming every unknown rule, parameter and value out of range.

  Example:
    >>> [bound.reason for bound in bounds_of({"bullet_lines": {}, "top_ngram": "gopher"})]
    ['bullet_lines', 'top_ngram.top2', 'top_ngram.top3', 'top_ngram.top4', 'top_ngram.unspaced']
  """
  problems: list[str] = []
  made: dict[str, Rule] = {}
  for name, given in chosen.items():
    for rule, parameters in _expand(name, given, problems).items():
      if rule in made and name in GROUPS:
        continue
      if (model := _make(rule, parameters, problems)) is not None:
        made[rule] = model
  if problems:
    raise ValueError("\n".join(problems))
  return tuple(bound for model in made.values() for bound in model.bounds())


def _expand(name: str, given: Any, problems: list[str]) -> dict[str, Any]:
  """Returns the parameters of each rule that a name stands for."""
  if name in RULES:
    return {name: given}
  if name not in GROUPS:
    near = difflib.get_close_matches(name, [*RULES, *GROUPS], 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    problems.append(f"unknown rule {name!r}{hint} known: {[*RULES, *GROUPS]}")
    return {}
  if not isinstance(given, Mapping) or not set(given) <= set(GROUPS[name]):
    problems.append(
      f"{name}: accepted: parameters by rule, of {list(GROUPS[name])}; got {given!r}"
    )
    return {}
  return {rule: given.get(rule, {}) for rule in GROUPS[name]}


def _make(name: str, given: Any, problems: list[str]) -> Rule | None:
  kind = RULES[name]
  if isinstance(given, kind):
    return given
  if isinstance(given, str) and given == kind.source:
    return kind()
  if not isinstance(given, Mapping):
    accepted = f"parameters {list(kind.model_fields)}, or {kind.source!r}"
    problems.append(f"{name}: accepted: {accepted}; got {given!r}")
    return None
  try:
    return kind(**given)
  except ValueError as error:  # pydantic's error is one
    problems += [f"{name}{line}" for line in _lines(error, kind)]
    return None


def _lines(error: Any, kind: type[Rule]) -> list[str]:
  return [
    f"{''.join(f'.{part}' for part in item['loc'])}: {item['msg']}, got {item['input']!r}; "
    f"parameters: {list(kind.model_fields)}"
    for item in error.errors()
  ]
