"""What is wrong with a key of qwen-deploy.yml, in words. Knows no keys: a schema is given to it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any, get_args


def complaint(item: Mapping[str, Any], schema: Any) -> str:
    """`item` is one of the errors that pydantic lists, `schema` the model that it checked."""
    location = "/".join(str(part) for part in item["loc"])
    return f"{location}: {_expected(item, schema)}"


_EXPECTED = {
    "bool_type": "should be true or false",
    "extra_forbidden": "is not a key",
    "int_type": "should be a whole number",
    "invalid_key": "is not a key",
    "is_instance_of": "should be a path",
    "literal_error": "should be {expected}",
    "greater_than": "should be greater than {gt}",
    "greater_than_equal": "should be at least {ge}",
    "less_than": "should be less than {lt}",
    "string_too_short": "should not be empty",
    "string_type": "should be a text",
    "tuple_type": "should be a list",
    "value_error": "{error}",
}


def _expected(item: Mapping[str, Any], schema: Any) -> str:
    if item["type"] in ("model_type", "model_attributes_type", "dataclass_type"):
        return "should be a mapping of keys"
    template = _EXPECTED.get(item["type"], item["msg"])
    sentence: str = template.format(**item.get("ctx", {}))
    return sentence + _suggestion(item, schema) if item["type"] == "extra_forbidden" else sentence


def _suggestion(item: Mapping[str, Any], schema: Any) -> str:
    import difflib

    keys = list(reduce(_at, item["loc"][:-1], schema).model_fields)
    near = difflib.get_close_matches(str(item["loc"][-1]), keys, n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; should be one of {', '.join(keys)}"


def _at(annotation: Any, part: str | int) -> Any:
    """What a schema says of one key of a section, or of one item of a list or a mapping."""
    if hasattr(annotation, "model_fields"):
        return annotation.model_fields[part].annotation
    return [kind for kind in get_args(annotation) if kind is not Ellipsis][-1]
