"""What people and models wrote, as Markdown that shows it: code, formulas, no HTML, no pictures.

Changes only what is shown; what is kept and sent to the model stays as it was said. Takes time in
proportion to the text, whatever it is: an answer is shown anew many times while it comes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Where code or a formula may begin; those whose marks the page knows stay as they are.
BEGINNING = re.compile(r"^ {0,3}(`{3,}|~{3,})[^`\n]*$|`+|\$\$|\\\[|\\\(", re.MULTILINE)
FORMULAS = {"$$": re.escape("$$"), r"\[": re.escape(r"\]"), r"\(": re.escape(r"\)")}
# As pandoc does: no space inside the dollars and no digit behind them, so that prices stay prices.
DOLLARS = re.compile(r"(?<![\\$\w])\$(?=[^\s$])([^$\n]*[^\s$\\])\$(?![\d$])")
# Models break lines in tables with the first, and have no other way to write the rest.
HARMLESS = r"(?:br ?/?|/?su[bp])>"
OPENING = re.compile(rf"<(?=[a-z/!?])(?!{HARMLESS})", re.IGNORECASE)
# Where a picture begins, whose address the page would ask for.
PICTURE = "!["


def shown(text: str) -> str:
    parts = []
    end = 0
    for start, stop in _verbatim(text):
        parts += [_prose(text[end:start]), text[start:stop]]
        end = stop
    return "".join([*parts, _prose(text[end:])])


def _verbatim(text: str) -> Iterator[tuple[int, int]]:
    # An end that was once looked for in vain is not there further on either.
    missing: set[str] = set()
    position = 0
    while match := BEGINNING.search(text, position):
        position = match.end()
        ending = _ending(match)
        if ending in missing:
            continue
        if closing := re.compile(ending, re.MULTILINE).search(text, position):
            position = closing.end()
        elif match[1]:
            # A fence that never ends goes on to the end, as while an answer still comes.
            position = len(text)
        else:
            missing.add(ending)
            continue
        yield match.start(), position


def _ending(beginning: re.Match[str]) -> str:
    if fence := beginning[1]:
        return rf"^ {{0,3}}{fence[0]}{{{len(fence)},}}[ \t]*$"
    mark = beginning[0]
    return FORMULAS.get(mark) or rf"(?<!`){mark}(?!`)"


def _prose(text: str) -> str:
    """Formulas get marks that nothing else has; tags and pictures are shown as they came."""
    parts = []
    end = 0
    for match in DOLLARS.finditer(text):
        parts += [_words(text[end : match.start()]), rf"\({match[1]}\)"]
        end = match.end()
    return "".join([*parts, _words(text[end:])])


def _words(text: str) -> str:
    return OPENING.sub("&lt;", text).replace(PICTURE, "!&#91;")
