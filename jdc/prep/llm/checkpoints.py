"""A jdc checkpoint as the model: prompts that wait together are generated together."""

import asyncio
import concurrent.futures
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson

from jdc.prep.llm.answers import Question, Reply
from jdc.prep.llm.params import LOCAL, Local
from jdc.prep.spec import content_hash

if TYPE_CHECKING:
  from jdc.eval.text_model import TextModel

_BATCHES = 4  # that wait for the model, of each that it can have
_Waiting = tuple[Question, "asyncio.Future[Reply]"]


class Checkpoint:
  """A run directory or a Hugging Face folder, on all devices of this process.

  A draw is keyed by what is asked and the seed in it, and rows of a batch are padded to a
  length that depends on the row alone. So an answer does not depend on what is asked beside
  it, as far as the model itself treats the rows of a batch alike.

  Args:
    folder: of the checkpoint.
    local: how it runs.
  """

  def __init__(self, folder: str, local: Local):
    self._folder, self._local = folder, local
    self.name = f"{LOCAL}{Path(folder).name}"
    self.identity = ""  # known when it is open
    self.concurrency = _BATCHES * local.batch_size
    self._waiting: list[_Waiting] = []
    self._wake = asyncio.Event()
    # One thread, so that one batch at a time is on the devices.
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")

  async def open(self) -> None:
    """Reads parameters and tokenizer."""
    loop = asyncio.get_running_loop()
    self._model, self.identity = await loop.run_in_executor(self._thread, self._open)
    self._serving = asyncio.create_task(self._serve())

  async def ask(self, question: Question) -> tuple[Reply, int]:
    """Returns the answer; or JSON with the log-likelihood of each option, in nats."""
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    self._waiting.append((question, future))
    self._wake.set()
    return await future, 0

  async def close(self) -> None:
    """Waits for the batch that is on the devices."""
    self._serving.cancel()
    await asyncio.gather(self._serving, return_exceptions=True)
    self._thread.shutdown()

  async def _serve(self) -> None:
    while True:
      await self._wake.wait()
      await asyncio.sleep(0.005)  # for others that are about to ask
      self._wake.clear()
      taken, self._waiting = self._waiting, []
      for group in _groups(taken):
        await self._answer(group)

  async def _answer(self, group: list[_Waiting]) -> None:
    loop = asyncio.get_running_loop()
    questions = [question for question, _ in group]
    run = _likelihoods if questions[0].options else _completions
    try:
      replies = await loop.run_in_executor(self._thread, run, self._model, questions)
    except BaseException as error:
      for _, future in group:
        if not future.done():
          future.set_exception(error)
      if not isinstance(error, Exception):
        raise
      return
    for (_, future), reply in zip(group, replies, strict=True):
      if not future.done():
        future.set_result(reply)

  def _open(self) -> tuple["TextModel", str]:
    from jdc.eval import text_model
    from jdc.eval.tokenizer import of_training, open_tokenizer
    from jdc.train import checkpoint, corpus, pretrained, sharding

    local = self._local
    mesh = sharding.make_mesh(data=1, fsdp=-1)
    sharding.check_batch(mesh, batch_size=local.batch_size)
    changes: dict[str, Any] = {} if local.dtype == "auto" else {"dtype": local.dtype}
    opened = pretrained.open_model(self._folder, mesh, **changes)
    config = _corpus(opened, local.tokenizer)
    if opened.run and not local.tokenizer:
      own = of_training(corpus.tokenizer(config), config.tokenizer)
    else:
      own = open_tokenizer(local.tokenizer, opened.source)
    text_model.check_vocabulary(own, opened.model)
    chosen = local.chat
    if chosen == "auto":
      chosen = "none" if opened.run and config.format == "text" else config.template
    chat = None
    if chosen != "none":
      chat = corpus.chat(dataclasses.replace(config, template=chosen))
    length = local.context_length or opened.config.context_length
    model = text_model.TextModel(
      opened.model, opened.params, own, length, local.batch_size, mesh, chat
    )
    parts: list[Any] = [checkpoint.fingerprint(opened.params), own.tokenizer.fingerprint]
    parts += [chat.fingerprint if chat else "none", dataclasses.asdict(opened.config)]
    return model, content_hash(parts)


def _corpus(opened: Any, tokenizer: str) -> Any:
  """Returns how a run reads its data; of another checkpoint its own tokenizer and template."""
  from jdc.train import config as config_lib
  from jdc.train import corpus

  if not opened.run:
    return config_lib.CorpusConfig(
      tokenizer=tokenizer or str(opened.source), format="messages", template="tokenizer"
    )
  config = config_lib.from_json(opened.run, config_lib.CorpusConfig, "corpus.")
  return corpus.with_tokenizer_of(str(opened.base or ""), config)


def _groups(waiting: Sequence[_Waiting]) -> list[list[_Waiting]]:
  """Returns questions that one call can answer together."""
  groups: dict[Any, list[_Waiting]] = {}
  for question, future in waiting:
    held = orjson.loads(question.body)
    del held["messages"]
    held.pop("seed", None)  # draws are keyed by the whole question
    key = orjson.dumps(held, option=orjson.OPT_SORT_KEYS), bool(question.options)
    groups.setdefault(key, []).append((question, future))
  return list(groups.values())


def _completions(model: "TextModel", questions: Sequence[Question]) -> list[Reply]:
  """Returns the answers to questions that differ in their messages and seeds."""
  from jdc.models.generate import generate

  held = [orjson.loads(question.body) for question in questions]
  first = held[0]
  stops = tuple(first.get("stop", ()))
  most = first.get("max_tokens") or first["max_completion_tokens"]
  prompts = [_prompt_or_refusal(model, each["messages"]) for each in held]
  ids = {i: prompt for i, prompt in enumerate(prompts) if not isinstance(prompt, Reply)}
  room = model.context_length - most
  chosen = [i for i in ids if not model.context_length or len(ids[i]) <= room]
  decode = model.own.tokenizer.decode
  made = generate(
    model.model,
    model.params,
    [ids[i] for i in chosen],
    max_new_tokens=most,
    temperature=first.get("temperature") or 0.0,
    top_p=first.get("top_p") or 1.0,
    stop_ids=model.stop_ids,
    stop=(lambda ids: any(text in decode(ids) for text in stops)) if stops else None,
    batch_size=model.batch_size,
    mesh=model.mesh,
    context_length=model.context_length,
    draws=[int.from_bytes(questions[i].key[:4]) >> 1 for i in chosen],
  )
  replies = [
    prompt if isinstance(prompt, Reply) else _too_long(len(prompt), most, model.context_length)
    for prompt in prompts
  ]
  for i, completion in zip(chosen, made, strict=True):
    text = model.text_of(completion, stops)
    count = len(completion.ids)
    replies[i] = Reply(text, completion.stopped, len(ids[i]), count)
  return replies


def _likelihoods(model: "TextModel", questions: Sequence[Question]) -> list[Reply]:
  """Returns, as JSON, log p(option | question) of each option."""
  from jdc.eval.likelihood import Request

  replies, requests = [], []
  chosen: dict[int, int] = {}  # of questions that fit, the tokens of their prompts
  for question in questions:
    prompt = _prompt_or_refusal(model, orjson.loads(question.body)["messages"])
    if isinstance(prompt, Reply):
      replies.append(prompt)
      continue
    before = "" if model.chat else "\n\n"
    options = [
      tuple(model.own.tokenizer.encode(before + option)[0].tolist())
      for option in question.options
    ]
    longest = max(map(len, options))
    replies.append(_too_long(len(prompt), longest, model.context_length))
    if not model.context_length or len(prompt) + longest <= model.context_length:
      chosen[len(replies) - 1] = len(prompt)
      requests += [Request(prompt, option) for option in options]
  found = iter(model.log_likelihoods(requests))
  for i, length in chosen.items():
    values = [next(found).log_probability for _ in questions[i].options]
    replies[i] = Reply(orjson.dumps(values).decode(), "stop", length, 0)
  return replies


def _prompt_or_refusal(
  model: "TextModel", messages: Sequence[dict[str, str]]
) -> tuple[int, ...] | Reply:
  """Returns the prompt, or why the chat template refuses what a document says.

  Raises:
    ValueError: if it refuses such messages whatever they say.
  """
  try:
    return _prompt(model, messages)
  except ValueError as error:
    _prompt(model, [{**message, "content": "1"} for message in messages])
    return Reply("", "", 0, 0, f"refused: {error}")


def _prompt(model: "TextModel", messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
  """Returns the ids after which an answer follows."""
  if model.chat is None:
    return model.encode("\n\n".join(message["content"] for message in messages))
  from jdc.data.conversations import Message

  turns = [Message(cast(Any, message["role"]), message["content"]) for message in messages]
  return tuple(model.chat.encode_prompt(turns).tolist())


def _too_long(prompt: int, answer: int, context: int) -> Reply:
  cause = (
    f"too long: a prompt of {prompt} tokens, {answer} for the answer, context of {context}"
  )
  return Reply("", "", 0, 0, cause)
