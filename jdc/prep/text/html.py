"""Text of HTML pages, and text in which marks of HTML were left."""

import functools
import html as entities
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jdc.prep.text.buffers import map_rows

_BLOCK = (
  "address|article|aside|blockquote|body|br|caption|center|dd|details|div|dl|dt|fieldset|"
  "figcaption|figure|footer|form|h[1-6]|head|header|hr|html|li|main|nav|ol|option|p|pre|section|"
  "select|summary|table|tbody|td|tfoot|th|thead|title|tr|ul"
)
_INLINE = (
  "a|abbr|acronym|b|bdi|bdo|big|button|cite|code|del|dfn|em|font|i|iframe|img|input|ins|kbd|"
  "label|mark|nobr|path|polygon|q|s|samp|small|span|strike|strong|sub|sup|svg|time|tt|u|var|wbr"
)
_ATTRIBUTES = (
  r"(?:\s+[A-Za-z_:@][\w:.-]*(?:\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>=`]+))?)*\s*/?"
)
_BLOCK_TAG = re.compile(rf"[ \t]*</?(?:{_BLOCK}){_ATTRIBUTES}>[ \t]*", re.IGNORECASE)
_INLINE_TAG = re.compile(
  rf"</?(?:{_INLINE}){_ATTRIBUTES}>|<!--.*?-->", re.IGNORECASE | re.DOTALL
)
_ENTITY = re.compile("&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_PAGE = re.compile(
  rf"\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+html|!--|(?:{_BLOCK}|script|style|meta|link|base)\b"
  rf"{_ATTRIBUTES}>)",
  re.IGNORECASE,
)
_ANY = r"<[A-Za-z/!?]|&[#A-Za-z][0-9A-Za-z]+;"
# What was escaped twice and is a line break all the same.
_BREAK = re.compile(r"[ \t]*<(?:br|/?p)\s*/?>[ \t]*", re.IGNORECASE)
# Elements, roles, names and classes of what stands around the content of a page. Articles have
# headers of their own, and some pages are one form.
_NAMES = (
  "nav", "navbar", "navigation", "menu", "footer", "sidebar", "breadcrumb", "breadcrumbs",
  "site-header", "site-footer", "share", "social", "cookie", "cookies", "advertisement", "ads",
  "newsletter", "related",
)  # fmt: skip
_AROUND = (
  "nav", "footer", "aside", "dialog", "menu", "body > header", "#header", "[hidden]",
  "[aria-hidden=true]", "[role=navigation]", "[role=banner]", "[role=contentinfo]",
  "[role=search]", "[role=complementary]", "[role=menu]", "[role=dialog]",
  *(mark + name for mark in ".#" for name in _NAMES),
)  # fmt: skip
# Of the text of a list, the share in links from which it is navigation.
_LINK_DENSITY = 0.8


def html_to_text(
  text: pa.StringArray,
  main_content: bool = True,
  keep_tables: bool = False,
  repeat: bool = False,
) -> pa.StringArray:
  """Replaces HTML by the text that it shows.

  A document that starts with a tag of a page or a block (after white space, an XML declaration
  or a comment) is parsed as HTML by Resiliparse, as a browser would: paragraphs, list items and
  lines of `pre` become lines. In any other document lie marks that were left when text was
  taken from HTML: tags of known elements with well-formed attributes are removed, a line break
  in the place of those of blocks, then entities that end with ";" are decoded, twice, as they
  are often escaped twice; line breaks and paragraphs that this brings out count as tags.
  Program text that holds HTML is such a document too, so the operator is for prose. Documents
  without a mark of HTML are not touched.

  Args:
    text: n documents.
    main_content: of pages, leave out what HTML's elements, ARIA's roles or usual names of
      classes and ids say is navigation, header, footer, sidebar and the like, and lists of
      which 0.8 or more of the text is links.
    keep_tables: of pages, whether to keep the text of tables.
    repeat: go on until nothing changes, so that a second run finds nothing: what was escaped
      several times is decoded, and tags that this brings out go, too, also those that prose
      about HTML names.

  Returns:
    n documents.

  References:
    Bevendorff et al., Elastic ChatNoir, ECIR 2018 (Resiliparse); chosen over other extractors
    for pre-training by Li et al., DataComp-LM, 2024, arXiv:2406.11794. Its own choice of the
    main content is not used, as it drops lists. Link density: Kohlschütter et al., Boilerplate
    Detection using Shallow Text Features, WSDM 2010.

  Example:
    >>> pages = pa.array(["<p>One <b>two</b></p><p>A&amp;B</p>", "was<br /> R&amp;D&hellip;"])
    >>> html_to_text(pages, main_content=False).to_pylist()
    ['One two\\n\\nA&B', 'was\\nR&D…']
  """
  rows = np.asarray(pc.match_substring_regex(text, _ANY))
  change = functools.partial(_change, main_content=main_content, keep_tables=keep_tables)
  return map_rows(text, rows, functools.partial(_repeated, change=change) if repeat else change)


def _repeated(text: str, change: Callable[[str], str]) -> str:
  before = ""
  while text != before:
    before, text = text, change(text)
  return text


def _change(text: str, main_content: bool, keep_tables: bool) -> str:
  if not _PAGE.match(text):
    text = _INLINE_TAG.sub("", _BLOCK_TAG.sub("\n", text))
    for _ in range(2):
      text = _ENTITY.sub(lambda match: entities.unescape(match[0]), text)
      text = _BREAK.sub("\n", text)
    return text
  from resiliparse.extract.html2text import extract_plain_text
  from resiliparse.parse.html import HTMLTree

  tree = HTMLTree.parse(text)
  skipped = [] if keep_tables else ["table"]
  if main_content:
    skipped += _AROUND
    _drop_navigation(tree)
  return extract_plain_text(tree, alt_texts=False, skip_elements=skipped)


def _drop_navigation(tree: Any) -> None:
  """Removes the lists that are mostly links."""
  lists = tree.body.query_selector_all("ul, ol") if tree.body else ()
  # In document order, so that backwards a list goes after those in it.
  for node in reversed([node for node in lists if _is_navigation(node)]):
    node.decompose()


def _is_navigation(node: Any) -> bool:
  size = len("".join(node.text.split()))
  links = sum(len("".join(link.text.split())) for link in node.query_selector_all("a"))
  return size > 0 and links >= _LINK_DENSITY * size
