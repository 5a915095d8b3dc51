"""Answers as HTML: what Markdown says is shown, nothing in it acts."""

import re

import pytest

from chat.markdown import MOST_CHARACTERS, render, render_growing


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**bold** and *not*", "<p><strong>bold</strong> and <em>not</em></p>"),
        ("- one\n- two", "<ul>\n<li>one</li>\n<li>two</li>\n</ul>"),
        ("```python\nx < 1\n```", "<pre><code>x &lt; 1\n</code></pre>"),
        ("~~old~~", "<p><s>old</s></p>"),
        ("# Title", "<h1>Title</h1>"),
    ],
)
def test_it_shows_what_markdown_says(text: str, html: str) -> None:
    assert render(text).strip() == html


def test_it_draws_tables() -> None:
    assert "<table>" in render("|a|b|\n|-|-|\n|1|2|")


@pytest.mark.parametrize("address", ["https://example.com/a?b=1", "http://example.com", "mailto:bob@example.com"])
def test_it_keeps_safe_links_and_nothing_else_of_them(address: str) -> None:
    html = render(f'[here]({address} "title")')
    assert f'href="{address}"' in html
    assert set(re.findall(r' ([a-z-]+)="', html)) == {"href", "target", "rel"}
    assert 'rel="noopener noreferrer nofollow"' in html


@pytest.mark.parametrize(
    "text",
    [
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert(1))",
        "[x](data:text/html;base64,PHNjcmlwdD4=)",
        "[x](vbscript:x)",
        "[x](/logout/)",
        "[x](//evil.example/x)",
        "![x](https://evil.example/p.png)",
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<b x-init=alert(1) hx-get=/admin/ onclick=alert(1) style=position:fixed class=panel id=people>x</b>",
        "<svg/onload=alert(1)>",
        "<iframe src=https://evil.example></iframe>",
        "<a href='java&#x73;cript:alert(1)'>x</a>",
        "<style>*{display:none}</style>",
        "<form action=/logout/ method=post><button>x</button></form>",
        "`<script>`",
    ],
)
def test_it_leaves_nothing_that_acts(text: str) -> None:
    html = render(text)
    tags = re.findall(r"<\s*([a-z0-9]+)([^>]*)>", html)
    assert {tag for tag, _ in tags} <= {"p", "a", "code"}
    for tag, attributes in tags:
        names = set(re.findall(r'([a-z-]+)="', attributes))
        assert names <= ({"href", "rel", "target"} if tag == "a" else set())
    assert not re.search(r'href="(?!https?://|mailto:)', html)


def test_a_very_long_answer_stays_text() -> None:
    html = render("<b>" + "*a* " * MOST_CHARACTERS)
    assert html.startswith("<pre>&lt;b&gt;")
    assert html.count("<") == 2


def test_deep_nesting_ends() -> None:
    assert render(">" * 5000 + "x")
    assert render("[" * 5000)
    assert render("*" * 5000)


GROWN = """# Title

Some *text*
on two lines.

1. one
2. two

   still two

| a | b |
|---|---|
| 1 | 2 |

```
code

more
```
> quoted
- a

- b
***
the end"""


@pytest.mark.parametrize("every", [1, 2, 5])
def test_what_is_rendered_line_by_line_is_the_whole(every: int) -> None:
    lines = GROWN.splitlines(keepends=True)
    finished, begin = "", 0
    for end in [*range(every, len(lines), every), len(lines)]:
        part = render_growing("".join(lines[begin:end]))
        finished += part.finished
        begin += part.lines
        assert render("".join(lines[:end])) == finished + part.growing
    assert begin > len(lines) // 2


def test_a_growing_text_is_as_safe_as_a_whole_one() -> None:
    part = render_growing("<script>alert(1)</script>\n\n![x](https://evil.example/p.png) [y](javascript:alert(1))\n")
    assert part.finished == "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>\n"
    assert not re.search(r"<(?!/?(p|a)\b)|javascript:[^)]*\"", part.growing)
