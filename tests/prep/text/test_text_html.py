"""Tests of HTML to text on pages made by hand, and of text in which marks were left."""

import pyarrow as pa
import pytest

from jdc.prep.text.html import html_to_text

PAGE = """<!DOCTYPE html><html><head><title>Title</title><style>p { color: red }</style>
<script>var x = "<p>no</p>";</script></head><body>
<nav><ul><li><a href="/a">Home</a></li><li><a href="/b">About us</a></li></ul></nav>
<header class="site-header"><a href="/">Site name</a></header>
<main><article><h1>On rivers</h1>
<p>The first paragraph is <b>long enough</b> to be taken for what the page is about, as it
has several words &amp; a full stop.</p>
<p>The second one goes on about rivers, and has a list:</p><ul><li>the Rhine</li><li>the
Rhône</li></ul><table><tr><td>length</td><td>1233 km</td></tr></table>
<pre>one  two
  three</pre><p>Last&nbsp;line &#8212; end.</p></article></main>
<footer id="footer"><p>Copyright by nobody</p></footer></body></html>"""


def one(text, **options):
  return html_to_text(pa.array([text]), **options)[0].as_py()


def test_the_main_content_of_a_page():
  found = one(PAGE)
  for part in ("On rivers", "long enough", "words & a full stop", "the Rhine", "Rhône"):
    assert part in found
  assert "end." in found
  assert "one  two\n  three" in found
  for part in ("Home", "About us", "Copyright", "color", "var x", "<", "&amp;", "1233"):
    assert part not in found
  paragraphs = [" ".join(part.split()) for part in found.split("\n\n")]
  assert any(part.endswith("several words & a full stop.") for part in paragraphs)


def test_lists_of_links_are_navigation():
  links = "".join(f'<li><a href="/{k}">Page {k}</a></li>' for k in range(5))
  page = f"<div><ul>{links}</ul><ul><li>Plain</li><li>See <a href='/'>it</a></li></ul></div>"
  found = one(page)
  assert "Plain" in found
  assert "See it" in found
  assert "Page" not in found
  assert "Page 4" in one(page, main_content=False)


def test_what_stands_around_the_content_is_told_by_its_names():
  page = """<body><header>Banner</header><form id="all"><div class="menu x">Menu</div>
<article><header><h1>Headline</h1></header><p>Story</p><p hidden>Secret</p></article>
<div role="search">Search</div><aside>Beside</aside></form></body>"""
  assert one(page).split() == ["Headline", "Story"]
  assert {"Banner", "Menu", "Search", "Beside"} <= set(one(page, main_content=False).split())


def test_tables_and_the_rest_of_a_page():
  assert "1233 km" in one(PAGE, keep_tables=True)
  assert "Copyright by nobody" in one(PAGE, main_content=False)


@pytest.mark.parametrize(
  "start", ["", " \n", "<?xml version='1.0'?>\n", "<!-- a comment -->\n", "<!doctype HTML>"]
)
def test_pages_start_with_a_tag(start):
  page = start + '<div class="x"><p>one  two</p>\n<p>three</p></div>'
  assert one(page, main_content=False).split() == ["one", "two", "three"]


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("has<br /> gone digital", "has\ngone digital"),
    ("a <b>bold</b> <a href='x' title=\"y\">link</a>", "a bold link"),
    ("one</p> <p>two", "one\n\ntwo"),
    ("R&amp;D, it&amp;#8217;s &quot;x&quot;&hellip;", 'R&D, it’s "x"…'),
    ("text<!-- a\ncomment --> on", "text on"),
    ("one &lt;br /&gt; two&lt;p&gt;three &lt;b&gt;", "one\ntwo\nthree <b>"),
    ("if a < b and c > d: x<y>z", "if a < b and c > d: x<y>z"),
    ("List<String> vector<int> &c &copy=1 &un;", "List<String> vector<int> &c &copy=1 &un;"),
    ("5 &lt; 6 <3 <br", "5 < 6 <3 <br"),
    ("<user@example.org> wrote", "<user@example.org> wrote"),
    ("no mark", "no mark"),
  ],
)
def test_marks_that_were_left_in_text(text, expected):
  assert one(text) == expected


def test_text_without_marks_is_the_same_array():
  text = pa.array(["a", "b c"])
  assert html_to_text(text) is text


def test_dirty_documents(dirty):
  pages = [text for text in dirty.to_pylist() if text.lstrip()[:9].lower() == "<!doctype"]
  found = html_to_text(pa.array(pages)).to_pylist()
  assert len(pages) > 100
  assert not any("<script" in text or "</div>" in text or "{color" in text for text in found)
  shares = [len(after) / len(before) for before, after in zip(pages, found, strict=True)]
  assert sum(share > 0.1 for share in shares) > 0.9 * len(pages)
