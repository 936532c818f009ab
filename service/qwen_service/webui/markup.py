"""What people and models wrote, as Markdown that shows it: code, formulas, and no HTML.

Changes only what is shown; what is kept and sent to the model stays as it was said.
"""

from __future__ import annotations

import re

# Code, and formulas whose marks are known to the page, stay as they are.
VERBATIM = re.compile(
    r"(?P<fence>^ {0,3}(?P<marks>`{3,}|~{3,})[^\n]*\n.*?(?:^ {0,3}(?P=marks)[`~]*[ \t]*$|\Z))"
    r"|(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)"
    r"|\$\$.+?\$\$"
    r"|\\\[.+?\\\]"
    r"|\\\(.+?\\\)",
    re.DOTALL | re.MULTILINE,
)
# As pandoc does: no space inside the dollars and no digit behind them, so that prices stay prices.
DOLLARS = re.compile(r"(?<![\\$\w])\$(?=[^\s$])([^$\n]*[^\s$\\])\$(?![\d$])")
# Models break lines in tables with the first, and have no other way to write the rest.
HARMLESS = r"(?:br ?/?|/?su[bp])>"
OPENING = re.compile(rf"<(?=[a-z/!?])(?!{HARMLESS})", re.IGNORECASE)


def shown(text: str) -> str:
    parts = []
    end = 0
    for match in VERBATIM.finditer(text):
        parts += [_prose(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, _prose(text[end:])])


def _prose(text: str) -> str:
    """Formulas get marks that nothing else has, and every tag is shown as it was written."""
    parts = []
    end = 0
    for match in DOLLARS.finditer(text):
        parts += [OPENING.sub("&lt;", text[end : match.start()]), rf"\({match[1]}\)"]
        end = match.end()
    return "".join([*parts, OPENING.sub("&lt;", text[end:])])
