"""A language model with its tokenizer, as evaluation uses them."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax

from jdc.data.chat import Chat
from jdc.data.conversations import Message
from jdc.eval.likelihood import Likelihood, Request, log_likelihoods
from jdc.eval.tokenizer import OwnTokenizer
from jdc.models.base import LanguageModel, Params
from jdc.models.generate import Completion, generate


class TextModel(NamedTuple):
  """What is evaluated, and how it is run."""

  model: LanguageModel
  params: Params
  own: OwnTokenizer
  context_length: int = 0  # positions; 0: any number
  batch_size: int = 8  # rows in one call, over all devices
  mesh: jax.sharding.Mesh | None = None
  chat: Chat | None = None  # writes a prompt as a user's message, after which it answers

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """Tokens that end an answer."""
    ends = () if self.chat is None else self.chat.stop_ids
    return tuple(sorted({*self.own.stop_ids, *ends}))

  def prompts(self, texts: Iterable[str]) -> list[tuple[int, ...]]:
    """Returns the ids after which the answer to each text follows."""
    texts = list(texts)
    if self.chat is None:
      ids = self.encode_all(texts)
      return [ids[text] for text in texts]
    encode = self.chat.encode_prompt
    return [tuple(encode([Message("user", text)]).tolist()) for text in texts]

  def encode(self, text: str) -> tuple[int, ...]:
    """Returns the ids of a prompt, after BOS where the tokenizer puts it."""
    return self.encode_all([text])[text]

  def encode_all(self, texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Returns the ids of each text, as `encode`; equal texts are tokenized once."""
    tokenizer = self.own.tokenizer
    before = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    distinct = list(dict.fromkeys(texts))
    encoded = tokenizer.encode_batch(distinct)
    return {
      text: (*before, *ids.tolist()) for text, (ids, _) in zip(distinct, encoded, strict=True)
    }

  def requests(self, pairs: Sequence[tuple[str, str]]) -> list[Request]:
    """Returns prompts and their continuations as the ids of their joined texts.

    Spaces at the end of a prompt are taken for the continuation's, since tokens of words begin
    with a space. The continuation is what the joined text has beyond as many tokens as the
    prompt alone has, as in lm-eval. In a chat it is a text of its own.
    """
    if self.chat is not None:
      encode = self.own.tokenizer.encode
      answers = [tuple(encode(b.lstrip())[0].tolist()) for _, b in pairs]
      prompts = self.prompts(a for a, _ in pairs)
      return [Request(*each) for each in zip(prompts, answers, strict=True)]
    ids = self.encode_all(text for a, b in pairs for text in (a.rstrip(), a + b))
    return [Request(ids[a.rstrip()], ids[a + b][len(ids[a.rstrip()]) :]) for a, b in pairs]

  def log_likelihoods(
    self, requests: Sequence[Request], *, greedy: bool = False
  ) -> list[Likelihood]:
    """Returns those of the requests, in order."""
    return log_likelihoods(
      self.model,
      self.params,
      requests,
      batch_size=self.batch_size,
      mesh=self.mesh,
      context_length=self.context_length,
      greedy=greedy,
    )

  def generate(
    self,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_texts: Sequence[str] = (),
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
  ) -> list[Completion]:
    """Returns completions that end with a stop id or where a stop text is complete."""
    return generate(
      self.model,
      self.params,
      prompts,
      max_new_tokens=max_new_tokens,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      stop_ids=self.stop_ids,
      stop=self._ends_with(stop_texts) if stop_texts else None,
      seed=seed,
      batch_size=self.batch_size,
      mesh=self.mesh,
      context_length=self.context_length,
    )

  def text_of(self, completion: Completion, stop_texts: Sequence[str] = ()) -> str:
    """Returns the text of a completion up to the first stop text."""
    ids = completion.ids
    if ids and ids[-1] in self.stop_ids:
      ids = ids[:-1]
    text = self.own.tokenizer.decode(ids)
    return text[: min((at for s in stop_texts if (at := text.find(s)) >= 0), default=None)]

  def _ends_with(self, stop_texts: Sequence[str]) -> Callable[[list[int]], bool]:
    decode = self.own.tokenizer.decode
    return lambda ids: any(text in decode(ids) for text in stop_texts)


def check_vocabulary(own: OwnTokenizer, model: LanguageModel) -> None:
  """Raises a ValueError where the tokenizer has ids that the model has not."""
  if own.tokenizer.vocab_size > model.vocab_size:
    raise ValueError(
      f"the tokenizer {own.source} has {own.tokenizer.vocab_size} tokens, more than the "
      f"model's vocabulary of {model.vocab_size}; give the tokenizer that it was trained with"
    )
