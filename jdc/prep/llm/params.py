"""The parameters of operators that ask a language model."""

import re
import urllib.parse
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from jdc.prep import problems
from jdc.prep.catalog import Params

LOCAL = "jdc:"  # what the name of a model begins with that is a checkpoint
FIELD = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
FieldName = Annotated[str, pydantic.StringConstraints(pattern=FIELD)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Least = Annotated[int, Field(ge=0)]
# A line "name: text" of a section Attributes, and the lines that go on.
_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {6,}.*)*)", re.MULTILINE)
_ENVIRONMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = ("model", "messages", "response_format", "seed", "temperature", "top_p", "stop")
_NEVER = ("stream", "n")


class Described(Params):
  """Parameters whose help is the section Attributes of their docstrings."""

  @classmethod
  def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
    super().__pydantic_init_subclass__(**kwargs)
    for parent in cls.__mro__:
      for name, text in _ATTRIBUTE.findall(parent.__doc__ or ""):
        field = cls.model_fields.get(name)
        if field is not None and field.description is None:
          text = " ".join(text.split())
          field.description = text[0].upper() + text[1:]


class Server(Described):
  """An OpenAI-compatible server, and how it is asked; none of it changes what comes out.

  Attributes:
    base_url: such as `http://127.0.0.1:8000/v1`; `/chat/completions` is added.
    api_key_env: the environment variable that holds the key; empty for servers without.
    concurrency: most requests under way, of all steps with the same server.
    timeout_s: of one request, from sending it to the end of its answer.
    tries: of a request that the server fails at while it answers others.
    patience_s: how long no request may be answered until the run stops.
  """

  base_url: str
  api_key_env: str = ""
  concurrency: Annotated[int, Field(ge=1, le=4096)] = 64
  timeout_s: Positive = 300.0
  tries: Count = 6
  patience_s: Positive = 600.0

  @pydantic.field_validator("base_url")
  @classmethod
  def _is_url(cls, value: str) -> str:
    parts = urllib.parse.urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
      raise ValueError("must be http://HOST or https://HOST, with port and path if need be")
    if parts.username or parts.password or parts.query or parts.fragment:
      raise ValueError("must hold no user, password, query or fragment; keys go by api_key_env")
    return value.rstrip("/")

  @pydantic.field_validator("api_key_env")
  @classmethod
  def _is_name(cls, value: str) -> str:
    if value and not _ENVIRONMENT.fullmatch(value):
      raise ValueError("must be the name of an environment variable, not a key")
    return value


class Local(Described):
  """How a jdc checkpoint runs.

  Attributes:
    batch_size: prompts generated at once, over all devices.
    chat: writes the messages; `auto`: as the run was trained, for Hugging Face folders their
      own template; `none` joins them by blank lines.
    context_length: positions at most; 0: as many as the checkpoint states.
    dtype: of activations; `auto`: the checkpoint's.
    tokenizer: `bytes` or a tokenizer.json, where the checkpoint has none of its own.
  """

  batch_size: Count = 8
  chat: Literal["auto", "none", "plain", "alpaca", "tokenizer"] = "auto"
  context_length: Least = 0
  dtype: Literal["auto", "float32", "bfloat16"] = "auto"
  tokenizer: str = ""


class Sampling(Described):
  """How answers are drawn; a null is not sent.

  Attributes:
    temperature: of the first attempt.
    retry_temperature: of further ones, if higher, after an answer of no use.
    top_p: share of the likeliest tokens.
    max_tokens: of an answer; one that is longer counts as no answer.
    tokens_field: what servers call that.
    seed: of the first sample and attempt; others count up from it.
    stop: texts that end an answer.
    extra: further fields of the request, for servers that have them.
  """

  temperature: Annotated[float, Field(ge=0)] | None = 0.0
  retry_temperature: Annotated[float, Field(ge=0)] = 0.5
  top_p: Annotated[float, Field(gt=0, le=1)] | None = None
  max_tokens: Count = 1024
  tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
  seed: Annotated[int, Field(ge=0, lt=1 << 31)] | None = 0
  stop: tuple[str, ...] = ()
  extra: dict[str, Any] = Field(default_factory=dict)

  @pydantic.field_validator("extra")
  @classmethod
  def _adds(cls, value: dict[str, Any]) -> dict[str, Any]:
    taken = sorted({*_OURS, *_NEVER, "max_tokens", "max_completion_tokens"} & set(value))
    if taken:
      raise ValueError(f"must not set {', '.join(taken)}")
    return value


class Budget(Described):
  """What all steps with the same model may use in a run's folder, over all its runs.

  Attributes:
    requests: that the server answered.
    prompt_tokens: as the server counts them.
    completion_tokens: as the server counts them.
    money: in the currency of the prices.
    prompt_price: of a million tokens.
    completion_price: of a million tokens.
    when_used_up: `stop` stops the run, which goes on with a larger budget; `quarantine` sets
      the documents aside that are left.
  """

  requests: Least | None = None
  prompt_tokens: Least | None = None
  completion_tokens: Least | None = None
  money: Annotated[float, Field(ge=0)] | None = None
  prompt_price: Annotated[float, Field(ge=0)] = 0.0
  completion_price: Annotated[float, Field(ge=0)] = 0.0
  when_used_up: Literal["stop", "quarantine"] = "stop"

  @pydantic.model_validator(mode="after")
  def _has_prices(self) -> Self:
    if self.money is not None and not (self.prompt_price or self.completion_price):
      raise ValueError("money needs prompt_price and completion_price, of a million tokens")
    return self


class ModelParams(Described):
  """What all operators have that ask a model.

  Attributes:
    model: the server's name of a model, or `jdc:FOLDER`, a run or a Hugging Face checkpoint.
    server: of a served model.
    local: of a checkpoint.
    prompt: one of `prompts.PROMPTS`, in the place of `system`, `user`, `fields` and what the
      answer looks like; what is given beside it counts instead.
    system: the system message, without places.
    user: the user's message, with a place `{name}` for each of `fields`.
    fields: of the document; `text` is its text.
    quote: whether values stand between tags that they cannot close, of which the system
      message tells.
    response: how the server is asked for JSON: by its schema, as any object, or by the prompt
      alone. Answers are checked against the schema in any case.
    sampling: how answers are drawn.
    attempts: at an answer of use, until the document is set aside.
    version: a number that makes all requests new, where answers of the cache are not wanted.
    budget: what may be used.
    on_error: whether a document without an answer of use is set aside, or stops the run.
  """

  model: Annotated[str, Field(min_length=1)]
  server: Server | None = None
  local: Local = Local()
  prompt: str = ""
  system: str = ""
  user: str = ""
  fields: tuple[FieldName, ...] = ()
  quote: bool = True
  response: Literal["json_schema", "json_object", "text"] = "json_schema"
  sampling: Sampling = Sampling()
  attempts: Count = 3
  version: Least = 0
  budget: Budget = Budget()
  on_error: Literal["quarantine", "error"] = "quarantine"

  @property
  def is_local(self) -> bool:
    """Whether the model is a checkpoint."""
    return self.model.startswith(LOCAL)

  @property
  def folder(self) -> str:
    """The folder of the checkpoint."""
    return self.model.removeprefix(LOCAL)

  @pydantic.model_validator(mode="after")
  def _fits(self) -> Self:
    from jdc.prep.llm import asked

    problems.raise_all(asked.problems_of(self), "parameters")
    return self

  def at(self, root: Path) -> Self:
    if not self.is_local:
      return self
    local = self.local
    if local.tokenizer not in ("", "bytes"):
      local = local.model_copy(update={"tokenizer": str(root / local.tokenizer)})
    return self.model_copy(update={"model": f"{LOCAL}{root / self.folder}", "local": local})

  def files(self) -> tuple[str, ...]:
    if not self.is_local:
      return ()
    from jdc.prep import language_model

    own = [self.local.tokenizer] if self.local.tokenizer not in ("", "bytes") else []
    return (*language_model.files(self.model), *own)

  def essence(self) -> dict[str, Any]:
    """Returns what changes what comes out: not the server, its prices, nor what may be spent.

    A budget that sets documents aside does.
    """
    held = self.model_dump(mode="json", exclude={"server", "budget", "on_error"})
    if self.budget.when_used_up == "quarantine":
      held["budget"] = self.budget.model_dump(mode="json")
    return held


class Score(ModelParams):
  """See `llm_score`.

  Attributes:
    minimum: the least score; the prompt's own where neither bound is given.
    maximum: the greatest.
    whole: whether scores are whole numbers.
    into: the field for the score.
    reason_into: a field for the reason; empty for none.
    by: `answer` reads the number that the model writes; `likelihood`, of checkpoints, takes the
      mean of the whole numbers in range, each weighted by its likelihood as the answer.
  """

  minimum: float | None = None
  maximum: float | None = None
  whole: bool | None = None
  into: FieldName = "score"
  reason_into: FieldName | Literal[""] = ""
  by: Literal["answer", "likelihood"] = "answer"


class Map(ModelParams):
  """See `llm_map`.

  Attributes:
    into: the field for the answer; `text` replaces the text.
    json_schema: of answers that are JSON objects.
    outputs: of these, property -> field; `text` replaces the text.
    keep_as: a field for the text as it was.
    samples: answers for each document; of several, fields hold lists.
  """

  into: FieldName = "text"
  json_schema: dict[str, Any] | None = None
  outputs: dict[str, FieldName] = Field(default_factory=dict)
  keep_as: FieldName | Literal[""] = ""
  samples: Annotated[int, Field(ge=1, le=256)] = 1


class Generate(ModelParams):
  """See `llm_generate`.

  Attributes:
    json_schema: of answers; an object with the array `items`.
    items: the property with the array.
    outputs: property of an item -> field of the new document.
    text: the new document's text, with places for its fields; empty for the outputs in their
      order, with blank lines between.
    keep_as: a field for the text that it was made of.
  """

  json_schema: dict[str, Any] | None = None
  items: str = "items"
  outputs: dict[str, FieldName] = Field(default_factory=dict)
  text: str = ""
  keep_as: FieldName | Literal[""] = ""
