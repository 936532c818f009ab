"""Server-sent events, and JSON whose beginning and end are written once for a whole stream.

Knows nothing of what is sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from json.encoder import encode_basestring
from typing import Any

DONE = "data: [DONE]\n\n"
KEEP_ALIVE = ": keep-alive\n\n"
# Stands for the text of an event while its surroundings are written.
GAP = "\x00text\x00"

# The text of a string in JSON; written in C, and all that a token costs.
quoted = encode_basestring


def dump(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def event(data: Mapping[str, Any]) -> str:
    return f"data: {dump(data)}\n\n"


def around(data: Mapping[str, Any]) -> tuple[str, str]:
    """The event up to the gap, and from there on."""
    before, _, after = event(data).partition(quoted(GAP))
    return before, after
