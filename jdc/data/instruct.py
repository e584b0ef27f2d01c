"""From files of instruction data to tables of records, kept in a cache."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

from jdc.data import cache, conversations, records
from jdc.data.chat import Chat, Example
from jdc.data.conversations import Conversation, Format, read_conversations
from jdc.data.pack import Domain, open_domain
from jdc.data.records import RecordTable, RecordWriter
from jdc.data.sources import DomainFiles, OnBadRecord, ReadReport, set_aside

OnLong = Literal["error", "truncate", "drop_turns", "quarantine"]
ON_LONG = ("error", "truncate", "drop_turns", "quarantine")
_LOG = logging.getLogger("jdc")


class _Options(NamedTuple):
  sequence_length: int
  validation_fraction: float
  format: Format
  on_bad_record: OnBadRecord
  on_long: OnLong
  seed: int
  target_fraction: float


class _Long(NamedTuple):
  """Records that are too long, where that is an error."""

  num_records: int = 0
  longest: int = 0
  where: str = ""


def prepare(
  domains: Mapping[str, DomainFiles],
  chat: Chat,
  sequence_length: int,
  validation_fraction: float,
  cache_dir: str | Path,
  *,
  format: Format = "auto",  # noqa: A002
  on_bad_record: OnBadRecord = "error",
  quarantine: str | Path | None = None,
  seed: int = 0,
  on_long: OnLong = "error",
  target_fraction: float = 0.0,
) -> dict[str, Domain[RecordTable]]:
  """Tokenizes every domain's conversations, or opens what an earlier call left in the cache.

  A record is an example of at most T + 1 tokens. The splits and the cache are those of
  `pack.prepare`, with conversations in the place of texts. How many records and tokens were
  cut is kept in the tables and logged.

  A bad record is one that `read_conversations` refuses, that `chat` cannot write, or of which
  `on_long` leaves no response.

  Args:
    domains: as `find_domains` returns them.
    chat: conversations to ids.
    sequence_length: T, target positions of a row.
    validation_fraction: in [0, 1); 0 holds nothing out. Not used where validation files are
      given.
    cache_dir: holds the tables; made where missing.
    format: of the records: "auto", "alpaca", "sharegpt" or "messages".
    on_bad_record: "error" or "quarantine", as in `sources.read_documents`.
    quarantine: with one of the two "quarantine", holds after the call all records of these
      domains that were set aside.
    seed: of the held-out splits.
    on_long: what becomes of a record of more than T + 1 tokens. "error": an error that counts
      them all. "truncate": its first T + 1 tokens are kept. "drop_turns": the earliest pairs of
      user and assistant messages are dropped until it fits; the system message stays.
      "quarantine": it is set aside and counted as a bad record.
    target_fraction: in [0, 1), below 1 - validation_fraction; 0 makes no target set. Not used
      where target files are given.

  Returns:
    The domains by name, in the order given.

  Raises:
    ValueError: lists what is wrong with all domains: files, bad records, records that are too
      long, too few conversations for the splits, no records.
  """
  options = _Options(
    sequence_length,
    validation_fraction,
    format,
    on_bad_record,
    on_long,
    seed,
    target_fraction,
  )
  aside = quarantine if "quarantine" in (on_bad_record, on_long) else None
  _check(domains, options, quarantine)

  def build(folder: Path, files: DomainFiles) -> None:
    _build(folder, files, chat, options)

  parts = ("records", records.FORMAT_VERSION, chat.fingerprint, cache.parts_of(options))
  folders = cache.prepare_all(domains, parts, build, cache_dir, aside)
  prepared = {name: open_domain(name, folder, RecordTable) for name, folder in folders.items()}
  for domain in prepared.values():
    _report(domain, on_long)
  return prepared


def fit(
  messages: Sequence[conversations.Message], chat: Chat, max_tokens: int, on_long: OnLong
) -> tuple[Example, int]:
  """Writes a conversation in at most `max_tokens` tokens by the rule `on_long`.

  Returns:
    The example and how many tokens it lost; longer than `max_tokens` where the rule is "error"
    or "quarantine".

  Raises:
    ValueError: if the conversation cannot be written, or no response is left of it.
  """
  example = chat.encode(messages)
  num_tokens = len(example.ids)
  if on_long == "drop_turns":
    system = int(messages[0].role == "system")
    turns = messages[system:]
    while len(example.ids) > max_tokens and len(turns) > 2:
      turns = turns[2:]
      example = chat.encode([*messages[:system], *turns])
    if len(example.ids) > max_tokens:
      raise ValueError(
        f"the last question and its response alone are {len(example.ids)} tokens, more than "
        f"{max_tokens}"
      )
  elif on_long == "truncate":
    example = Example(*(part[:max_tokens] for part in example))
    if not example.counts.any():
      raise ValueError(f"of {num_tokens} tokens, the first {max_tokens} hold no response")
  return example, num_tokens - len(example.ids)


def _check(
  domains: Mapping[str, DomainFiles], options: _Options, quarantine: str | Path | None
) -> None:
  fractions = cache.Fractions(options.validation_fraction, options.target_fraction)
  problems = cache.problems_of(
    domains, options.sequence_length, fractions, options.on_bad_record, quarantine
  )
  if options.format not in conversations.FORMATS:
    problems.append(
      f"format must be one of {', '.join(conversations.FORMATS)}, got {options.format!r}"
    )
  if options.on_long not in ON_LONG:
    problems.append(f"on_long must be one of {', '.join(ON_LONG)}, got {options.on_long!r}")
  if options.on_long == "quarantine" and quarantine is None:
    problems.append("on_long='quarantine' needs a quarantine file, got None")
  if problems:
    raise ValueError("\n".join(problems))


def _build(folder: Path, files: DomainFiles, chat: Chat, options: _Options) -> None:
  split_of = _split_of(folder, files, options)
  report, long = ReadReport(), _Long()
  with ExitStack() as stack:
    writers = {
      name: stack.enter_context(
        RecordWriter(folder / name, options.sequence_length, chat.vocab_size)
      )
      for name in cache.splits(files, options)
    }
    for name, sources in files._asdict().items():
      for conversation, example, lost in _encoded(sources, folder, chat, options, report):
        if len(example.ids) > options.sequence_length + 1:
          long = _longer(long, len(example.ids), conversation.where)
          continue
        split = split_of(_text(conversation)) if name == "train" else None
        writers[split or name].add(conversation.where, example, lost)
    problems = [_too_long(long, report, options)] if long.num_records else []
    for name, writer in writers.items():
      try:
        writer.finish()
      except ValueError as error:
        problems.append(f"{name}: {error} ({report.num_bad_records} bad records)")
  if problems:
    raise ValueError("; ".join(problems))
  meta = {"num_bad_records": report.num_bad_records}
  (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _longer(long: _Long, num_tokens: int, where: str) -> _Long:
  if num_tokens > long.longest:
    return _Long(long.num_records + 1, num_tokens, where)
  return long._replace(num_records=long.num_records + 1)


def _too_long(long: _Long, report: ReadReport, options: _Options) -> str:
  length = options.sequence_length
  return (
    f"{long.num_records} of {report.num_documents} records have more than {length + 1} tokens, "
    f"the longest {long.longest} ({long.where}); accepted: sequence_length of at least "
    f"{long.longest - 1}, or on_long 'truncate', 'drop_turns' or 'quarantine'"
  )


def _split_of(
  folder: Path, files: DomainFiles, options: _Options
) -> Callable[[str], str | None]:
  """Returns where a text of the training files is held out; `None` is training."""
  fractions = cache.held_out(files, options)
  if not any(fractions):
    return lambda text: None
  first_pass = folder / "first_pass.jsonl"  # the second pass sets bad records aside for good
  found = read_conversations(files.train, options.format, options.on_bad_record, first_pass)
  texts = (_text(conversation) for conversation in found)
  split_of = cache.split_by_hash(texts, fractions, options.seed)
  first_pass.unlink(missing_ok=True)
  return split_of


def _text(conversation: Conversation) -> str:
  return json.dumps(conversation.messages)


def _encoded(
  sources: Sequence[Path], folder: Path, chat: Chat, options: _Options, report: ReadReport
) -> Iterator[tuple[Conversation, Example, int]]:
  """Yields what was read, as tokens, and how many of them were cut off."""
  if not sources:
    return
  aside, max_tokens = folder / cache.BAD_RECORDS, options.sequence_length + 1
  found = read_conversations(sources, options.format, options.on_bad_record, aside, report)
  for conversation in found:
    wrong, rule = "", options.on_bad_record
    try:
      example, lost = fit(conversation.messages, chat, max_tokens, options.on_long)
    except ValueError as error:
      wrong = str(error)
    else:
      if options.on_long == "quarantine" and len(example.ids) > max_tokens:
        wrong, rule = f"{len(example.ids)} tokens, more than {max_tokens}", "quarantine"
    if not wrong:
      yield conversation, example, lost
    elif rule == "error":
      raise ValueError(
        f"{conversation.where}: {wrong}; on_bad_record='quarantine' sets such records aside"
      )
    else:
      set_aside(aside, conversation.where, wrong, conversation.raw)
      report.num_documents -= 1
      report.num_bad_records += 1


def _report(domain: Domain[RecordTable], on_long: OnLong) -> None:
  for split, table in domain.splits.items():
    if not table.num_truncated_records:
      continue
    total = table.num_tokens + table.num_truncated_tokens
    _LOG.warning(
      "domain %s, %s: on_long=%s cut %d of %d tokens (%.2f %%) from %d of %d records",
      domain.name,
      split,
      on_long,
      table.num_truncated_tokens,
      total,
      100 * table.num_truncated_tokens / total,
      table.num_truncated_records,
      len(table),
    )
  if domain.num_bad_records:
    _LOG.warning("domain %s: %d records set aside", domain.name, domain.num_bad_records)
