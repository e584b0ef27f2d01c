"""A model as EleutherAI's lm-eval asks for one, so that its tasks can be run on it."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jdc.data.formats import import_extra
from jdc.eval.likelihood import Request
from jdc.eval.text_model import TextModel
from jdc.models.batching import listed

if TYPE_CHECKING:
  from lm_eval.api.model import LM

Pair = tuple[tuple[str, str] | None, list[int], list[int]]


def adapt(model: TextModel, max_length: int = 0, max_gen_toks: int = 256) -> "LM":
  """Returns a model for `lm_eval.simple_evaluate(model=...)`; needs the extra `lm_eval`.

  BOS is put before a text as the tokenizer's own config says, once. As in lm-eval, what does
  not fit is cut off at the left, texts without a prompt follow BOS or else EOS, and generation
  is greedy unless a task asks for samples.

  It departs from lm-eval's own model for transformers where the tokenizer puts BOS: there
  `loglikelihood_rolling` puts a second one. Names of special tokens in a text are text here.

  Args:
    model: with its tokenizer.
    max_length: positions; 0 for the model's context, or 2,048 where that is not known.
    max_gen_toks: the most tokens of a completion, where the task does not say.

  Raises:
    ImportError: if the package lm-eval, version 0.4, is not installed.
    ValueError: if `max_length` is beyond the model's context, or the tokenizer has neither BOS
      nor EOS.

  References:
    Gao et al., "The Language Model Evaluation Harness", 2024, zenodo.12608602.
  """
  api = import_extra("lm_eval.api.model", "lm_eval")
  utils = import_extra("lm_eval.utils", "lm_eval")
  length = max_length or model.context_length or 2048
  problems = []
  if max_length < 0 or 0 < model.context_length < length:
    problems.append(f"max_length must be in [0, {model.context_length}], got {max_length}")
  if not 0 < max_gen_toks < length:
    problems.append(f"max_gen_toks must be in [1, {length}), got {max_gen_toks}")
  if model.own.start_id is None:
    problems.append(f"the tokenizer {model.own.source} has neither BOS nor EOS")
  if problems:
    raise ValueError("; ".join(problems))
  model = model._replace(context_length=length)

  class Adapter(api.TemplateLM):  # type: ignore[name-defined]
    """Calls the model in batches over all requests."""

    max_length = length
    tokenizer_name = model.own.source

    @property
    def eot_token_id(self) -> int | None:
      return next(iter(model.own.stop_ids), None)

    @property
    def prefix_token_id(self) -> int | None:
      return model.own.start_id

    def tok_encode(
      self, string: str, add_special_tokens: bool | None = None, **unused: Any
    ) -> list[int]:
      if add_special_tokens is False:
        return model.own.tokenizer.encode(string)[0].tolist()
      return list(model.encode(string))

    def _loglikelihood_tokens(
      self, requests: list[Pair], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
      del disable_tqdm
      results = _scored(model, [(context, ids) for _, context, ids in requests])
      for (texts, _, _), result in zip(requests, results, strict=True):
        if texts is not None:
          self.cache_hook.add_partial("loglikelihood", texts, result)
      return results

    def loglikelihood_rolling(
      self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[float]:
      del disable_tqdm
      windows: list[tuple[list[int], list[int]]] = []
      of_request: list[int] = []
      for i, (text,) in enumerate(request.args for request in requests):
        ids = self.tok_encode(text, add_special_tokens=False)
        rolling = utils.get_rolling_token_windows(ids, self.prefix_token_id, length, 1)
        new = [utils.make_disjoint_window(window) for window in rolling]
        windows += new
        of_request += [i] * len(new)
      totals = [0.0] * len(requests)
      for i, (log_probability, _) in zip(of_request, _scored(model, windows), strict=True):
        totals[i] += log_probability
      for request, total in zip(requests, totals, strict=True):
        self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
      return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
      del disable_tqdm
      groups: dict[str, list[int]] = {}
      for i, request in enumerate(requests):
        groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
      texts = [""] * len(requests)
      for group in groups.values():
        prompts = [requests[i].args[0] for i in group]
        completed = _completed(model, prompts, requests[group[0]].args[1], max_gen_toks)
        for i, text in zip(group, completed, strict=True):
          texts[i] = text
          self.cache_hook.add_partial("generate_until", requests[i].args, text)
      return texts

  return Adapter()


def _scored(
  model: TextModel, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[tuple[float, bool]]:
  """Log-likelihoods of ids after ids, and whether they are the greedy ones."""
  if long := [i for i, (_, ids) in enumerate(pairs) if len(ids) > model.context_length]:
    raise ValueError(
      f"continuations longer than {model.context_length} positions: of requests {listed(long)}"
    )
  requests = []
  for context, ids in pairs:
    kept = [*context, *ids][-(model.context_length + 1) :]
    cut = len(kept) - len(ids)
    requests.append(Request(tuple(kept[:cut]), tuple(kept[cut:])))
  found = model.log_likelihoods(requests, greedy=True)
  return [(likelihood.log_probability, bool(likelihood.is_greedy)) for likelihood in found]


def _completed(
  model: TextModel, prompts: list[str], arguments: dict[str, Any], max_gen_toks: int
) -> list[str]:
  """Completions under the generation arguments of a task."""
  model_utils = import_extra("lm_eval.models.utils", "lm_eval")
  options = model_utils.normalize_gen_kwargs(arguments, max_gen_toks)
  until = [text for text in options.pop("until", None) or [] if text]
  max_new_tokens = options.pop("max_gen_toks")
  options.pop("do_sample", None)  # the temperature is 0 where it is false
  known = ("temperature", "top_k", "top_p", "seed")
  if unknown := sorted(options.keys() - set(known)):
    raise ValueError(f"generation_kwargs {unknown} are not known; accepted: {list(known)}")
  room = model.context_length - max_new_tokens
  if room < 1:
    raise ValueError(
      f"max_gen_toks {max_new_tokens} leaves no room for a prompt in {model.context_length} "
      "positions"
    )
  ids = [model.encode(prompt)[-room:] for prompt in prompts]
  completions = model.generate(ids, max_new_tokens, until, **options)
  return [model.text_of(completion, until) for completion in completions]
