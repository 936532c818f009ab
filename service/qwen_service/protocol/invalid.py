"""How a wrong field is named: by the name that the caller gave it.

Knows no field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_service.errors import ApiError

LENGTHS = ("too_long", "too_short", "string_too_long", "string_too_short")


def invalid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first wrong field, under the name the caller gave it."""
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is not valid JSON: {reason}", code="invalid_json")
    errors = [it for it in errors if _path(it["loc"]).startswith(_path(first["loc"]))]
    # Where a field may have several types, the one that fits has the wrong length or fails deepest.
    errors = [it for it in errors if it["type"] in LENGTHS] or errors
    path = max((_path(error["loc"]) for error in errors), key=len)
    # One error for each type that a field may have.
    reasons = dict.fromkeys(_said(error) for error in errors if _path(error["loc"]) == path)
    message = " or ".join(reasons)
    if not path:
        return ApiError(400, f"the body should be a JSON object: {message}", code="invalid_json")
    return ApiError(400, f"{path}: {message}", param=path, code="invalid_value")


def _path(location: Sequence[str | int]) -> str:
    path = ""
    if location[-1] == "[key]":
        # The name itself is wrong: what is named is the field that holds it.
        location = location[:-2]
    for step in location[1:]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif re.fullmatch(r"str|int|float|bool|[A-Z]\w*|\w*\W.*", step):
            # pydantic's name of one type among several, not a field; what follows is its inside.
            continue
        else:
            path += f".{step}" if path else step
    return path


def _said(error: Mapping[str, Any]) -> str:
    return str(error["msg"]).removeprefix("Value error, ")
