"""Tests of chat templates: against pieces tokenized by hand, and against transformers."""

import dataclasses
import datetime
import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from jdc.data.chat_template import from_folder
from jdc.data.conversations import Message
from jdc.train import corpus
from jdc.train.config import CorpusConfig

CHATML = (
  "{% for message in messages %}"
  "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
  "{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_MARKED = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
{%- else %}
{{- message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# The marks take the line break in, or leave the end of the turn out.
CHATML_WIDE = CHATML_MARKED.replace("end|>' }}{% endg", "end|>\n' }}{% endg").replace(
  "{{- '\n' }}", "{{- '' if message['role'] == 'assistant' else '\n' }}"
)
CHATML_NARROW = CHATML_MARKED.replace(
  "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}",
  "{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}",
)
LLAMA3 = (
  "{{ bos_token }}{% for message in messages %}"
  "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
  "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
  "{% if add_generation_prompt %}"
  "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = """{{ bos_token }}
{%- set first = '' %}
{%- if messages[0]['role'] == 'system' %}
{%- set first = messages[0]['content'] + '\n\n' %}
{%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate') }}
{%- endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}
{{- message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
# What a response was thought over is only kept in the last turn.
THINKING = (
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
  "{% if message['role'] == 'assistant' and loop.last %}"
  "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
  "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
  "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
  "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>",
)  # fmt: skip
TEMPLATES = {
  "chatml": CHATML,
  "marked": CHATML_MARKED,
  "wide": CHATML_WIDE,
  "narrow": CHATML_NARROW,
  "llama3": LLAMA3,
  "gemma": GEMMA,
}
TEXTS = ["What is the capital of France? It is Paris.", "assistant user model \n\n 1 + 2 = 3"]
TALK = (
  Message("system", "Be brief."),
  Message("user", "Say  é🙂 twice."),
  Message("assistant", "é🙂 é🙂"),
  Message("user", "And 三?", "[data]"),
  Message("assistant", "三, of course.\nYes 🙂"),
)


def byte_level():
  model = tokenizers.Tokenizer(models.BPE())
  model.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(LLAMA3_WORDS), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  model.decoder = decoders.ByteLevel()
  # As Llama 3 has it: adds BOS and trims offsets, neither of which may happen to a chat.
  model.post_processor = processors.Sequence(
    [
      processors.ByteLevel(trim_offsets=True),
      processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)]),
    ]
  )
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=400, special_tokens=["<bos>", *SPECIAL], initial_alphabet=alphabet
  )
  model.train_from_iterator(TEXTS, trainer)
  model.enable_truncation(8)
  return model


def sentencepiece_like():
  """As Gemma has it: spaces are made underscores, no prefix; bytes where nothing else fits."""
  model = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<eos>"))
  model.normalizer = normalizers.Replace(" ", "▁")
  model.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  pieces = [f"<0x{byte:02X}>" for byte in range(256)]
  trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*SPECIAL, *pieces])
  model.train_from_iterator(TEXTS, trainer)
  content = json.loads(model.to_str())
  added = content["added_tokens"]
  content["added_tokens"] = [token for token in added if token["content"] in SPECIAL]
  return tokenizers.Tokenizer.from_str(json.dumps(content))


def write_folder(folder, model, template, **config):
  folder.mkdir(exist_ok=True)
  model.save(str(folder / "tokenizer.json"))
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    **config,
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  if template is not None:
    (folder / "chat_template.jinja").write_text(template)
  return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("chat")
  model = byte_level()
  return {name: write_folder(root / name, model, text) for name, text in TEMPLATES.items()}


def pieces_of(name, messages):
  """The conversation by hand: texts and whether they are predicted."""
  if name in ("chatml", "marked", "wide", "narrow"):
    for message in messages:
      yield f"<|im_start|>{message.role}\n", False
      yield message.text + "<|im_end|>", message.role == "assistant"
      yield "\n", False
  elif name == "llama3":
    yield "<bos>", False
    for message in messages:
      yield f"<|start_header_id|>{message.role}<|end_header_id|>\n\n", False
      yield message.text.strip() + "<|eot_id|>", message.role == "assistant"
  else:
    yield "<bos>", False
    system = messages[0].role == "system"
    first = messages[0].content + "\n\n" if system else ""
    for message in messages[system:]:
      role = {"assistant": "model"}.get(message.role, message.role)
      yield f"<start_of_turn>{role}\n" + first, False
      first = ""
      yield message.text.strip() + "<end_of_turn>", message.role == "assistant"
      yield "\n", False


def tokens_by_hand(folder, name, messages, last_only=False):
  model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  model.no_truncation()
  ids, counts, num_bytes = [], [], 0
  last = max(k for k, (_, counted) in enumerate(pieces_of(name, messages)) if counted)
  for k, (text, counted) in enumerate(pieces_of(name, messages)):
    counted = counted and (k == last or not last_only)
    piece = model.encode(text, add_special_tokens=False).ids
    ids += piece
    counts += [counted] * len(piece)
    if counted:
      for special in SPECIAL:
        text = text.replace(special, "")
      num_bytes += len(text.encode())
  return ids, counts, num_bytes


@pytest.mark.parametrize("turns", ["all", "last"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_agrees_with_pieces_tokenized_by_hand(folders, name, turns):
  chat = from_folder(folders[name], turns=turns)
  for messages in (TALK, TALK[1:], TALK[:3], TALK[1:3]):
    ids, counts, num_bytes = chat.encode(messages)
    expected = tokens_by_hand(folders[name], name, messages, turns == "last")
    assert (ids.tolist(), counts.tolist(), num_bytes.sum()) == expected
    assert not num_bytes[~counts].any()
    assert (ids.dtype, counts.dtype, num_bytes.dtype) == (np.int32, bool, np.int32)
    # Generation starts where the response does.
    prompt = chat.encode_prompt(messages[:-1])
    assert prompt.tolist() == expected[0][: len(prompt)]
    assert counts[len(prompt) :].tolist()[0]
    assert set(ids[counts][-1:].tolist()) <= set(chat.stop_ids)
    assert chat.decode(ids[len(prompt) :]).strip() == messages[-1].text


TEXT = st.text(st.sampled_from("ab .\n\té三🙂<|>_"), max_size=12).map(lambda text: f"x{text}y")


@settings(max_examples=40)
@given(st.lists(TEXT, min_size=1, max_size=5), st.booleans(), st.sampled_from([*TEMPLATES]))
def test_agrees_on_any_text(folders, texts, system, name):
  texts = texts if len(texts) % 2 == 0 else [*texts, "end"]
  messages = [Message(("user", "assistant")[k % 2], text) for k, text in enumerate(texts)]
  messages = [Message("system", "s"), *messages] if system else messages
  ids, counts, num_bytes = from_folder_cached(folders[name]).encode(messages)
  expected = tokens_by_hand(folders[name], name, messages)
  assert (ids.tolist(), counts.tolist(), num_bytes.sum()) == expected


_CHATS = {}


def from_folder_cached(folder):
  if folder not in _CHATS:
    _CHATS[folder] = from_folder(folder)
  return _CHATS[folder]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_transformers(folders, name):
  tokenizer = AutoTokenizer.from_pretrained(str(folders[name]))
  chat = from_folder(folders[name])
  as_dicts = [{"role": message.role, "content": message.text} for message in TALK]
  expected = tokenizer.apply_chat_template(as_dicts, return_dict=False)
  assert chat.encode(TALK).ids.tolist() == expected
  expected = tokenizer.apply_chat_template(
    as_dicts[:-1], add_generation_prompt=True, return_dict=False
  )
  assert chat.encode_prompt(TALK[:-1]).tolist() == expected
  if name == "marked":
    masked = tokenizer.apply_chat_template(
      as_dicts, return_dict=True, return_assistant_tokens_mask=True
    )
    assert chat.encode(TALK).counts.tolist() == [bool(x) for x in masked["assistant_masks"]]
  assert chat.vocab_size == len(tokenizer)
  assert set(chat.stop_ids) <= set(range(len(tokenizer)))


def test_byte_fallback(tmp_path):
  """Tokens that are no characters: the bytes of a response are still all counted."""
  folder = write_folder(tmp_path / "gemma", sentencepiece_like(), GEMMA)
  chat = from_folder(folder)
  ids, counts, num_bytes = chat.encode(TALK)
  assert (ids.tolist(), counts.tolist(), num_bytes.sum()) == tokens_by_hand(
    folder, "gemma", TALK
  )
  assert num_bytes.sum() == len(TALK[2].text.encode()) + len(TALK[4].text.encode())


def test_a_token_over_the_boundary_counts(tmp_path):
  """Line breaks merge here; of the token's bytes, those in the response count."""
  model = byte_level()
  folder = write_folder(tmp_path / "a", model, CHATML)
  chat = from_folder(folder)
  messages = [Message("user", "a"), Message("assistant", "\nb")]
  ids, counts, num_bytes = chat.encode(messages)
  assert model.token_to_id("ĊĊ") in ids[counts]
  assert num_bytes.sum() == 2
  assert counts.sum() == 3  # the line breaks, b, and the end of the turn


def test_spaces_before_a_word_are_the_response(folders):
  """The tokenizer file asks for offsets that leave them out."""
  messages = [Message("user", "a"), Message("assistant", " is of")]
  assert from_folder(folders["chatml"]).encode(messages).num_bytes.sum() == 6


def test_no_extension_of_its_prefixes(tmp_path):
  folder = write_folder(tmp_path / "a", byte_level(), THINKING)
  chat = from_folder(folder)
  with pytest.raises(ValueError, match=r"the first 3 messages alone in another way.*marks"):
    chat.encode(TALK)
  one = chat.encode(TALK[:3])
  assert chat.decode(one.ids[one.counts]) == "<think>\n\n</think>\n\né🙂 é🙂"
  last = from_folder(folder, turns="last").encode(TALK)
  assert chat.decode(last.ids[last.counts]) == "<think>\n\n</think>\n\n" + TALK[-1].text
  backwards = "{{ messages | length }}" + CHATML
  with pytest.raises(ValueError, match="another way than at the start of the whole"):
    from_folder(write_folder(tmp_path / "c", byte_level(), backwards))


@pytest.mark.parametrize("role", [1, 2])
def test_special_tokens_in_a_message(folders, role):
  chat = from_folder(folders["chatml"])
  messages = [*TALK[:3]]
  messages[role] = messages[role]._replace(content="so <|im_end|>")
  with pytest.raises(ValueError, match=rf"message {role + 1} .* special token '<\|im_end\|>'"):
    chat.encode(messages)
  with pytest.raises(ValueError, match=r"message 2 .* special token '<\|im_start\|>'"):
    chat.encode_prompt([TALK[0], Message("user", "b", "<|im_start|>")])
  chat.encode([Message("user", "<|im_end"), Message("assistant", "<| im_end |>")])


@pytest.mark.parametrize(
  ("template", "wrong"),
  [
    (None, "no chat template"),
    ("{{ raise_exception('never') }}", "refuses the messages: never"),
    ("{{ messages[5].content.nothing.at_all }}", "refuses the messages"),
    (CHATML.replace("<|im_end|>", ""), "with no special token"),
    (
      CHATML.replace("{% if add_generation_prompt %}", "{% if false %}"),
      "add_generation_prompt",
    ),
    (
      "{% for m in messages %}{{ m.role + ': ' + m.content + '<eos>' }}{% endfor %}",
      "add_generation_prompt",
    ),
    (
      CHATML_MARKED.replace("{%- if add_generation_prompt %}", "{%- if false %}"),
      "add_generation_prompt",
    ),
    (CHATML_MARKED.replace("== 'assistant'", "== 'model'"), "marks no response"),
  ],
)
def test_unusable_templates(tmp_path, template, wrong):
  with pytest.raises(ValueError, match=wrong):
    from_folder(write_folder(tmp_path / "a", byte_level(), template))


def test_unusable_folders(tmp_path):
  with pytest.raises(ValueError, match="no such folder"):
    from_folder(tmp_path / "a")
  (tmp_path / "a").mkdir()
  with pytest.raises(ValueError, match="holds no tokenizer"):
    from_folder(tmp_path / "a")
  with pytest.raises(ValueError, match="turns must be 'all' or 'last', got 'first'"):
    from_folder(tmp_path / "a", turns="first")


def test_a_template_refuses_one_conversation(folders):
  template = (folders["gemma"] / "chat_template.jinja").read_text()
  folder = folders["gemma"].with_name("no_system")
  text = template.replace(
    "{%- set first = messages", "{{- raise_exception('no system') }}{%- set first = messages"
  )
  chat = from_folder(write_folder(folder, byte_level(), text))
  with pytest.raises(ValueError, match="refuses the messages: no system"):
    chat.encode(TALK)
  chat.encode(TALK[1:])


def test_templates_that_write_the_date(tmp_path):
  dated = (
    "  {% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}"
  )
  dated += "{% endif %}\n{{ '[' + date_string + ']' }}" + CHATML
  folder = write_folder(tmp_path / "a", byte_level(), dated)
  with pytest.raises(ValueError, match="writes the date: give `today`"):
    from_folder(folder)
  day = from_folder(folder, today=datetime.date(2024, 7, 26))
  named = from_folder(folder, arguments={"date_string": "26 Jul 2024"})
  assert day.encode(TALK).ids.tolist() == named.encode(TALK).ids.tolist()
  tokenizer = AutoTokenizer.from_pretrained(str(folder))
  as_dicts = [{"role": message.role, "content": message.text} for message in TALK]
  expected = tokenizer.apply_chat_template(
    as_dicts, return_dict=False, date_string="26 Jul 2024"
  )
  assert day.encode(TALK).ids.tolist() == expected
  assert day.fingerprint != from_folder(folder, today=datetime.date(2024, 7, 27)).fingerprint
  config = CorpusConfig(tokenizer=str(folder), format="auto", template="tokenizer")
  of_run = corpus.chat(dataclasses.replace(config, template_date="2024-07-26"))
  assert of_run.fingerprint == day.fingerprint
  with pytest.raises(ValueError, match=r"corpus\.template_date"):
    corpus.chat(config)


@pytest.mark.parametrize(
  ("template", "wrong"),
  [("plain", "is for corpus.template='tokenizer'"), ("tokenizer", "must be a date such as")],
)
def test_dates_that_no_template_writes(tmp_path, template, wrong):
  config = CorpusConfig(str(tmp_path), format="auto", template=template, template_date="today")
  with pytest.raises(ValueError, match=f"corpus.template_date.*{wrong}"):
    corpus.check("data", config)


def test_fingerprint(tmp_path, folders):
  first = from_folder(folders["chatml"])
  assert from_folder(folders["chatml"]).fingerprint == first.fingerprint
  others = [
    from_folder(folders["marked"]),
    from_folder(folders["chatml"], turns="last"),
    from_folder(folders["chatml"], arguments={"a": 1}),
    from_folder(write_folder(tmp_path / "a", sentencepiece_like(), CHATML)),
  ]
  assert len({first.fingerprint, *(chat.fingerprint for chat in others)}) == 5


def test_template_in_the_configuration(tmp_path):
  folder = write_folder(tmp_path / "a", byte_level(), None, chat_template=CHATML)
  assert from_folder(folder).encode(TALK).counts.any()
