"""Kinds of values that keys hold, each checked with a sentence that says what it should be, and the
base of sections. Knows no keys.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from qwen_weights.manifest import MODEL

from qwen_deploy.errors import UsageError
from qwen_deploy.inventory import parse_host
from qwen_deploy.sizes import RATES, rate_bytes


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def checked(is_valid: Callable[[str], object], expected: str) -> AfterValidator:
    """`is_valid` returns something false, or raises, for what it does not take."""

    def check(text: str) -> str:
        with suppress(ValueError, UsageError):
            if is_valid(text):
                return text
        raise ValueError(f"should be {expected}")

    return AfterValidator(check)


def _is_address(text: str) -> bool:
    # systemd.socket(5) takes no names, and an interface only after the port.
    return "%" not in text and bool(ipaddress.ip_address(text))


Text = Annotated[str, Field(min_length=1), checked(str.isprintable, "a text on one line")]
Name = Annotated[str, checked(MODEL.fullmatch, "a name like Qwen/Qwen2.5-7B-Instruct")]
Alias = Annotated[str, checked(re.compile(r"[^\s,]+").fullmatch, "a name without blank or comma")]
Origin = Annotated[
    str,
    checked(
        re.compile(r"\*|https?://[^\s/,*]+").fullmatch,
        "an origin like https://chat.example.com, or *",
    ),
]
Address = Annotated[str, checked(_is_address, "an IPv4 or IPv6 address")]
HostText = Annotated[str, checked(parse_host, "[user@]address[:port]")]
Gpu = Annotated[
    str,
    checked(
        re.compile(r"(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch,
        "a UUID like GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
    ),
]
Positive = Annotated[int, Field(gt=0)]
LocalPath = Annotated[
    Path, BeforeValidator(lambda text: Path(text).expanduser() if isinstance(text, str) else text)
]
Rate = Annotated[str, checked(rate_bytes, f"{RATES}, as text")]
Memory = Annotated[
    str,
    checked(
        re.compile(r"0?\.[0-9]+|[0-9]+(?:[KMGT]i?B?)?").fullmatch, 'a text like "8GiB" or "0.5"'
    ),
]
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
Hours = Annotated[str, checked(re.compile(rf"{_CLOCK}-{_CLOCK}").fullmatch, "like 22:00-06:00")]
Url = Annotated[
    str, checked(re.compile(r"https?://[^\s/]+(?:/\S*)?").fullmatch, "an http(s):// URL")
]
