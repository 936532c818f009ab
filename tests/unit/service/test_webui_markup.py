"""Answers as Markdown: code and formulas as they are, tags as text."""

from __future__ import annotations

import pytest
from qwen_service.webui.markup import shown


@pytest.mark.parametrize(
    "text",
    [
        "plain & **bold** text, 3 < 4 > 2",
        "```html\n<b>$x$</b>\n```",
        "~~~\n<b>\n~~~",
        "```\n<b> of a fence that never ends",
        "in `List<int>` and ``a ` <b>``",
        r"\(a<b\) and \[a<b\] and $$a<b$$",
        "it costs $5 and $6, or US$7$",
        "line<br>line<BR/> H<sub>2</sub>O x<sup>2</sup>",
    ],
)
def test_what_is_safe_stays_as_it_is(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("List<int>", "List&lt;int>"),
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("<br onload=x>", "&lt;br onload=x>"),
        ("<!-- x --> <?x?>", "&lt;!-- x --> &lt;?x?>"),
        ("`a` <b> `c`", "`a` &lt;b> `c`"),
        ("where $x_1$ and $y$.", r"where \(x_1\) and \(y\)."),
        ("$a<b$ then <b>", r"\(a<b\) then &lt;b>"),
        ("![x](/y) and `![x](/y)`", "!&#91;x](/y) and `![x](/y)`"),
        ("```\n<i>\n```\n<i>", "```\n<i>\n```\n&lt;i>"),
        (r"costs \$5 and $x$", r"costs \$5 and \(x\)"),
    ],
)
def test_tags_become_text_and_dollars_formulas(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_long_answers_take_no_longer_than_their_length() -> None:
    for text in ("$" * 200_000, "`" * 200_001, "\\(" * 100_000, "<" * 200_000, "$a " * 70_000):
        assert shown(text)
