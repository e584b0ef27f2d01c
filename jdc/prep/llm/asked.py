"""What is asked of a model, and all that may be wrong with it."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

from jdc.data.formats import import_extra
from jdc.prep import problems
from jdc.prep.llm import prompts, templates
from jdc.prep.llm.params import LOCAL, Generate, Map, ModelParams, Score

ATTEMPTS = 64  # seeds apart from one sample to the next
_MOST_SCORES = 101  # whole numbers that likelihoods are compared of
_RESERVED = ("doc_id", "source", "offset", "domain", "parent_id", "parent_part")


class Asked(NamedTuple):
  """What is asked of each document, after the prompt's defaults."""

  system: str
  user: str
  fields: tuple[str, ...]
  schema: dict[str, Any] | None
  outputs: dict[str, str]
  bounds: tuple[float, float]
  whole: bool


def resolve(params: ModelParams) -> Asked:
  """Returns what is asked, where parameters are silent by the named prompt."""
  named = prompts.PROMPTS.get(params.prompt) or prompts.Prompt("", "", "", (), whole=False)
  schema, outputs = named.schema, named.outputs
  bounds, whole = named.bounds, named.whole
  if isinstance(params, Map | Generate) and params.json_schema is not None:
    schema, outputs = params.json_schema, params.outputs
  elif isinstance(params, Map | Generate) and params.outputs:
    outputs = params.outputs
  if isinstance(params, Score):
    low, high = params.minimum, params.maximum
    bounds = (bounds[0] if low is None else low, bounds[1] if high is None else high)
    whole = whole if params.whole is None else params.whole
    schema = (
      None if params.response == "text" or params.by == "likelihood" else _scores(bounds, whole)
    )
  return Asked(
    params.system or named.system,
    params.user or named.user,
    params.fields or named.fields,
    schema,
    dict(outputs),
    bounds,
    whole,
  )


def problems_of(params: ModelParams) -> list[str]:
  """Returns all that is wrong with parameters together."""
  asked = resolve(params)
  found = [*_model_problems(params), *_prompt_problems(params, asked)]
  if isinstance(params, Score):
    found += _score_problems(params, asked)
  elif isinstance(params, Map):
    found += _map_problems(params, asked)
  elif isinstance(params, Generate):
    found += _generate_problems(params, asked)
  return found


def _model_problems(params: ModelParams) -> Iterable[str]:
  if params.is_local and not params.folder:
    yield "model='jdc:': must name a folder, jdc:FOLDER"
  if params.is_local and params.server is not None:
    yield f"server: only for served models, not for model={params.model!r}"
  if not params.is_local and params.server is None:
    yield f"server: must be given for model={params.model!r}; a checkpoint is jdc:FOLDER"
  if params.is_local and params.sampling.extra:
    yield "sampling.extra: only for served models"
  if params.attempts > ATTEMPTS:
    yield f"attempts must be at most {ATTEMPTS}, got {params.attempts}"


def _prompt_problems(params: ModelParams, asked: Asked) -> Iterable[str]:
  operator = {Score: "llm_score", Map: "llm_map", Generate: "llm_generate"}[type(params)]
  known = [name for name, prompt in prompts.PROMPTS.items() if prompt.operator == operator]
  if params.prompt and params.prompt not in known:
    hint = problems.suggestion(params.prompt, known)
    yield f"prompt={params.prompt!r}: not a prompt of {operator}{hint}"
    return
  if not asked.user:
    yield f"user: must be given, or prompt, one of {', '.join(sorted(known))}"
    return
  try:
    template = templates.parse(asked.user, quote=params.quote)
  except ValueError as error:
    yield f"user: {error}"
    return
  yield from templates.place_problems(template, asked.fields, "user")
  unused = [name for name in asked.fields if name not in template.fields]
  if unused:
    yield f"fields: no place in user for {', '.join(unused)}"


def _schema_problems(schema: dict[str, Any] | None) -> list[str]:
  if schema is None:
    return []
  jsonschema_rs = import_extra("jsonschema_rs", "llm")
  try:
    jsonschema_rs.meta.validate(schema)
    jsonschema_rs.validator_for(schema)
  except (ValueError, jsonschema_rs.ReferencingError) as error:
    return [f"json_schema: {str(error).splitlines()[0]}"]
  return []


def _score_problems(params: Score, asked: Asked) -> Iterable[str]:
  low, high = asked.bounds
  if not low < high:
    yield f"minimum={low:g} must be below maximum={high:g}"
  yield from _target_problems([params.into, params.reason_into], allow_text=False)
  if params.by == "likelihood":
    if not params.is_local:
      yield "by='likelihood': only for checkpoints, model='jdc:FOLDER'"
    if low != int(low) or high != int(high) or not 0 < high - low < _MOST_SCORES:
      yield f"by='likelihood': bounds must be whole numbers, at most {_MOST_SCORES} of them"
  if params.reason_into and (params.response == "text" or params.by == "likelihood"):
    yield "reason_into: only where the answer is JSON"


def _map_problems(params: Map, asked: Asked) -> Iterable[str]:
  yield from _schema_problems(asked.schema)
  if asked.schema is None:
    if asked.outputs:
      yield "outputs: only with json_schema"
    targets = [params.into]
  else:
    yield from _output_problems(asked.schema, asked.outputs, "json_schema")
    if params.into != "text":
      yield "into: of answers by json_schema, outputs says where they go"
    targets = list(asked.outputs.values())
  yield from _target_problems([*targets, params.keep_as], allow_text=params.samples == 1)
  if params.keep_as == "text":
    yield "keep_as='text': must be another field"
  if params.samples > 1 and "text" in targets:
    yield f"samples={params.samples}: a text is one; name a field, which gets a list"
  if params.samples > 1 and params.sampling.temperature == 0:
    yield f"samples={params.samples}: all the same at sampling.temperature=0"


def _generate_problems(params: Generate, asked: Asked) -> Iterable[str]:
  if asked.schema is None:
    yield "json_schema: must be given, or a prompt that has one"
    return
  yield from _schema_problems(asked.schema)
  held = _mapping(asked.schema.get("properties")).get(params.items)
  items = _mapping(held).get("items")
  if params.items not in asked.schema.get("required", ()) or not isinstance(items, dict):
    yield f"json_schema: must require the property {params.items!r}, an array of objects"
    return
  yield from _output_problems(items, asked.outputs, f"json_schema, items of {params.items!r}")
  targets = list(asked.outputs.values())
  yield from _target_problems([*targets, params.keep_as], allow_text=True)
  if params.keep_as == "text":
    yield "keep_as='text': must be another field"
  if params.text:
    if "text" in targets:
      yield "text: given twice, as a template and by outputs"
    try:
      template = templates.parse(params.text, quote=False)
      yield from templates.place_problems(template, targets, "text")
    except ValueError as error:
      yield f"text: {error}"


def _output_problems(
  schema: Mapping[str, Any], outputs: Mapping[str, str], where: str
) -> Iterable[str]:
  if not outputs:
    yield "outputs: must say which property goes to which field"
  properties = _mapping(schema.get("properties"))
  for name, target in outputs.items():
    if name not in properties:
      yield f"outputs: {where} has no property {name!r}{problems.suggestion(name, properties)}"
    elif name not in schema.get("required", ()):
      yield f"outputs: {where} does not require {name!r}, so that it may be absent"
    elif target == "text" and _mapping(properties[name]).get("type") != "string":
      yield f"outputs: {name!r} must be of type string to become the text"


def _target_problems(targets: Iterable[str], *, allow_text: bool) -> Iterable[str]:
  named = [name for name in targets if name]
  twice = sorted({name for name in named if named.count(name) > 1})
  if twice:
    yield f"fields written more than once: {', '.join(twice)}"
  taken = sorted({*named} & {*_RESERVED, *(() if allow_text else ("text",))})
  # Several samples are told of by themselves.
  if taken and taken != ["text"]:
    yield f"fields that have a meaning of their own: {', '.join(taken)}"
  elif taken and "text" in taken and not allow_text and len(named) <= 2:
    yield "into='text': must be another field"


def _mapping(value: Any) -> dict[str, Any]:
  return value if isinstance(value, dict) else {}


def _scores(bounds: tuple[float, float], whole: bool) -> dict[str, Any]:
  low, high = ((int(b) if b == int(b) else b) for b in bounds)
  number = {"type": "integer" if whole else "number", "minimum": low, "maximum": high}
  return {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "score": number},
    "required": ["reason", "score"],
    "additionalProperties": False,
  }


def system_message(params: ModelParams, asked: Asked) -> str:
  """Returns the system message: the task, what the answer looks like, what material is."""
  parts = [asked.system]
  if asked.schema is not None and (params.is_local or params.response != "json_schema"):
    schema = orjson.dumps(asked.schema, option=orjson.OPT_SORT_KEYS).decode()
    parts.append(f"Answer with JSON of this schema and nothing else: {schema}")
  if isinstance(params, Score) and asked.schema is None:
    low, high = asked.bounds
    whole = asked.whole or params.by == "likelihood"
    kind = "a whole number" if whole else "a number"
    parts.append(f"Answer with {kind} from {low:g} to {high:g} and nothing else.")
  if params.quote:
    parts.append(templates.NOTICE)
  return "\n\n".join(filter(None, parts))


def fixed_part(params: ModelParams, asked: Asked) -> dict[str, Any]:
  """Returns what all requests have in common."""
  sampling = params.sampling
  # A checkpoint is told apart by its parameters, wherever it lies.
  name = LOCAL if params.is_local else params.model
  held: dict[str, Any] = {"model": name, sampling.tokens_field: sampling.max_tokens}
  for name in ("temperature", "top_p"):
    if getattr(sampling, name) is not None:
      held[name] = getattr(sampling, name)
  if sampling.stop:
    held["stop"] = list(sampling.stop)
  if asked.schema is not None and not params.is_local:
    if params.response == "json_schema":
      given = {"name": "answer", "strict": True, "schema": asked.schema}
      held["response_format"] = {"type": "json_schema", "json_schema": given}
    elif params.response == "json_object":
      held["response_format"] = {"type": "json_object"}
  return {**held, **sampling.extra}
