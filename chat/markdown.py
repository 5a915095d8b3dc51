"""Answers as HTML: Markdown through a parser that knows no raw HTML, then through a sanitizer.

What a model writes is untrusted text. What comes out holds no attribute but the address of a safe
link (and the two we set on links ourselves), no image, no script, nothing that loads by itself.
"""

from dataclasses import dataclass
from typing import Any

import nh3
from markdown_it import MarkdownIt

MOST_CHARACTERS = 100_000  # longer answers stay as they are: rendering costs time for each character

TAGS = frozenset(
    [
        "p",
        "br",
        "hr",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "strong",
        "em",
        "s",
        "code",
        "pre",
        "blockquote",
        "ul",
        "ol",
        "li",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "a",
    ]
)
_parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("image")


@dataclass(frozen=True, slots=True)
class Part:
    """A text that grows, rendered: safe HTML of its finished blocks, which are the first `lines`
    lines, and of its last block as far as it goes."""

    finished: str
    growing: str
    lines: int


def render(text: str) -> str:
    """Safe HTML of a Markdown text; about a millisecond for a page of it. Too long: escaped, in one block."""
    if len(text) > MOST_CHARACTERS:
        return f"<pre>{nh3.clean_text(text)}</pre>"
    return _clean(_parser.render(text))


def render_growing(text: str) -> Part:
    """Safe HTML of a text to which lines are still added.

    In Markdown a block is finished when the next one begins: the last block of the document may
    still become longer, or something else, and no other can (but for the address of a link that is
    only given further below).
    """
    if len(text) > MOST_CHARACTERS:
        return Part("", render(text), 0)
    environment: dict[str, Any] = {}
    tokens = _parser.parse(text, environment)
    last = max((at for at, token in enumerate(tokens) if token.level == 0 and token.nesting >= 0), default=0)
    lines = (tokens[last].map if tokens else None) or [0]
    finished, growing = (
        _clean(_parser.renderer.render(part, _parser.options, environment)) for part in (tokens[:last], tokens[last:])
    )
    return Part(finished, growing, lines[0])


def _clean(html: str) -> str:
    return nh3.clean(
        html,
        tags=set(TAGS),
        attributes={"a": {"href"}, "*": set()},  # without "*" it would let title and lang through
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
