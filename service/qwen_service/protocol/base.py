"""Types that all requests are made of, and what to do with fields that are not among them.

Knows no route.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    model_validator,
)

from qwen_service.errors import ApiError

# Deeper than any schema of a sane tool, and safe for every recursion that may follow.
MOST_NESTED = 64
SEEDS = 2**63
MISSING = "is missing"
# Names that may stand in a header.
PLAIN = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII)
MOST_NAMED = 20
# No object of the API has half as many; whoever sends more means to keep the service busy.
MOST_FIELDS = 128
# What other servers offer and this one does not, with the values that ask for nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "documents": ([],),
    "chat_template": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1, 1.0),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_logprobs": (),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "thinking_budget": (),
    "truncate_prompt_tokens": (),
    "typical_p": (1, 1.0),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=-SEEDS, le=SEEDS - 1)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


def plain(value: Any) -> Any:
    """JSON that may be nested, written and read again without surprise."""
    level = [value]
    for _ in range(MOST_NESTED):
        if not level:
            return value
        level = [inner for outer in level for inner in _inside(outer)]
    raise ValueError(f"should be nested at most {MOST_NESTED} deep")


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, str):
        whole(value)
    elif isinstance(value, float) and not -1e308 <= value <= 1e308:
        raise ValueError("should hold finite numbers")
    elif isinstance(value, dict):
        for key in value:
            whole(key)
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("should hold text, not halves of characters") from None
    return text


Words = Annotated[str, AfterValidator(whole)]

Item = TypeVar("Item")
# The first wrong item is told, not a million of them.
Listed = Annotated[list[Item], Field(fail_fast=True)]

Json = Annotated[dict[str, Any], AfterValidator(plain)]


class Strict(BaseModel):
    """No silent conversions: a number in quotes is a mistake."""

    model_config = ConfigDict(strict=True, extra="allow")

    @model_validator(mode="wrap")
    @classmethod
    def _bounded(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, dict) and len(value) > MOST_FIELDS:
            raise ValueError(f"should have at most {MOST_FIELDS} fields")
        return handler(value)

    # Fields of answers that clients send back as they came.
    echoed: ClassVar[frozenset[str]] = frozenset()

    def unread(self, path: str = "") -> Iterator[str]:
        """The names of fields that ask for something and are not known here."""
        for name, value in (self.model_extra or {}).items():
            if value is not None and value != [] and value != {} and name not in self.echoed:
                yield f"{path}{name}"
        for name in self.model_fields_set:
            value = getattr(self, name)
            for inner in value if isinstance(value, list) else (value,):
                if isinstance(inner, Strict):
                    yield from inner.unread(f"{path}{name}.")


class Request(Strict):
    model: str

    def ignored(self) -> tuple[str, ...]:
        """What is accepted without effect; refuses what cannot be had."""
        for name, neutral in REFUSED.items():
            self.refuse_unless(name, neutral)
        return tuple(dict.fromkeys(name for name in self.unread() if name not in REFUSED))

    def refuse_unless(self, name: str, neutral: tuple[Any, ...]) -> None:
        value = (self.model_extra or {}).get(name)
        # True is not 1 here.
        if value is not None and not any(value == it and type(value) is type(it) for it in neutral):
            raise not_supported(name)


class StreamOptions(Strict):
    include_usage: bool | None = None


def not_supported(field: str) -> ApiError:
    return ApiError(400, f"{field} is not supported", param=field, code="unsupported_parameter")


def wrong(param: str, reason: str) -> ApiError:
    return ApiError(400, f"{param}: {reason}", param=param, code="invalid_value")


def header_of(ignored: tuple[str, ...]) -> dict[str, str]:
    names = [name for name in dict.fromkeys(ignored) if PLAIN.fullmatch(name)][:MOST_NAMED]
    return {"x-qwen-ignored": ",".join(names)} if names else {}
