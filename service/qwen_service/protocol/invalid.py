"""How a wrong field is named: by the name that the caller gave it, and in words of the API.

Knows no field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwen_service.errors import ApiError
from qwen_service.protocol.base import MISSING

OBJECT, EMPTY = "should be an object", "should not be empty"
# pydantic's kinds of errors, and what is said of them.
REASONS: Mapping[str, str] = {
    "bool_type": "should be true or false",
    "dict_type": OBJECT,
    "finite_number": "should be a finite number",
    "float_type": "should be a number",
    "greater_than": "should be more than {gt}",
    "greater_than_equal": "should be at least {ge}",
    "int_type": "should be a whole number",
    "less_than_equal": "should be at most {le}",
    "list_type": "should be a list",
    "literal_error": "should be {expected}",
    "missing": MISSING,
    "model_attributes_type": OBJECT,
    "model_type": OBJECT,
    "string_pattern_mismatch": "should match {pattern}",
    "string_too_long": "should have at most {max_length} characters",
    "string_too_short": EMPTY,
    "string_type": "should be a string",
    "string_unicode": "should hold text, not halves of characters",
    "too_long": "should have at most {max_length} items",
    "too_short": EMPTY,
}
# Of a name that the caller made up.
MOST_NAME_LENGTH = 64


def invalid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first wrong field, under the name the caller gave it."""
    within = _path(errors[0]["loc"])
    if _is_of_name(errors[0]):
        errors = errors[:1]
    errors = [it for it in errors if _path(it["loc"]).startswith(within)]
    # Where a field may have several types, the one that fits is wrong otherwise or fails deepest.
    errors = [it for it in errors if not _is_of_type(it)] or errors
    path = max((_path(error["loc"]) for error in errors), key=len)
    message = _joined(_said(error) for error in errors if _path(error["loc"]) == path)
    if not path:
        return ApiError(400, f"the body {message}", code="invalid_json")
    return ApiError(400, f"{path}: {message}", param=path, code="invalid_value")


def _is_of_type(error: Mapping[str, Any]) -> bool:
    return error["type"] == "literal_error" or str(error["type"]).endswith("_type")


def _is_of_name(error: Mapping[str, Any]) -> bool:
    return bool(error["loc"][-1:] == ("[key]",))


def _path(location: Sequence[str | int]) -> str:
    path = ""
    if location[-1:] == ("[key]",):
        # The name itself is wrong: what is told is the field that holds it.
        location = location[:-2]
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif re.fullmatch(r"str|int|float|bool|[A-Z]\w*|\w*\W.*", step):
            # pydantic's name of one type among several, not a field; what follows is its inside.
            continue
        else:
            path += f".{step[:MOST_NAME_LENGTH]}" if path else step[:MOST_NAME_LENGTH]
    return path


def _said(error: Mapping[str, Any]) -> str:
    said = str(error["msg"]).removeprefix("Value error, ")
    if reason := REASONS.get(error["type"]):
        said = reason.format(**{name: _short(it) for name, it in error.get("ctx", {}).items()})
    if _is_of_name(error):
        return f"the name {str(error['loc'][-2])[:MOST_NAME_LENGTH]!r} {said}"
    return said


def _short(limit: Any) -> Any:
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _joined(reasons: Iterable[str]) -> str:
    """One for each type that a field may have."""
    first, *others = dict.fromkeys(reasons)
    return " or ".join([first, *(other.removeprefix("should be ") for other in others)])
