"""Answers as HTML: Markdown through a parser that knows no raw HTML, then through a sanitizer.

What a model writes is untrusted text. What comes out holds no attribute but the address of a safe
link (and the two we set on links ourselves), no image, no script, nothing that loads by itself.
"""

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


def render(text: str) -> str:
    """Safe HTML of a Markdown text; about a millisecond for a page of it. Too long: escaped, in one block."""
    if len(text) > MOST_CHARACTERS:
        return f"<pre>{nh3.clean_text(text)}</pre>"
    return nh3.clean(
        _parser.render(text),
        tags=set(TAGS),
        attributes={"a": {"href"}, "*": set()},  # without "*" it would let title and lang through
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
