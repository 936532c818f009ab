"""The service's environment as one frozen value, with every limit in one place.

Knows neither HTTP nor torch; errors name the variable and what it should be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DTYPES = ("auto", "float32", "bfloat16", "float16")


class SettingsError(Exception):
    """A variable of the environment is missing or makes no sense."""


@dataclass(frozen=True, slots=True)
class Settings:
    release: str
    model_dir: Path
    model_name: str
    model_revision: str
    model_aliases: tuple[str, ...]
    engine: str
    device: str
    dtype: str
    keys_file: Path | None
    max_batch: int
    max_queue: int
    max_context: int | None
    max_tokens_default: int | None
    drain_seconds: float
    threads: int | None
    listen: tuple[str, int]
    # UUIDs; none means all there are.
    gpus: tuple[str, ...] = ()
    web_ui: bool = True
    # A share of the free memory, or bytes; None leaves it to the engine.
    kv_memory: float | int | None = None
    metrics: str = "open"
    log_prompts: bool = False
    basic_auth: bool = False
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 1024 * 1024
    # From a connection's first byte, or its opening, to the end of a request's head.
    head_seconds: float = 20.0
    # From the head to the end of the body.
    body_seconds: float = 60.0
    max_headers: int = 100
    max_connections: int = 4096
    max_choices: int = 8
    max_stops: int = 32
    # Answers of one request for text completions, over all its prompts.
    max_prompts: int = 64
    # Silence in a stream after which a comment says that the connection lives.
    keep_alive_seconds: float = 10.0

    @property
    def model_names(self) -> tuple[str, ...]:
        return (self.model_name, *self.model_aliases)


def load(environment: Mapping[str, str]) -> Settings:
    read = _Reader(environment)
    model_dir = Path(read.required("QWEN_MODEL_DIR"))
    return Settings(
        release=read.text("QWEN_RELEASE", "unreleased"),
        model_dir=model_dir,
        model_name=read.text("QWEN_MODEL_NAME", model_dir.name),
        model_revision=read.text("QWEN_MODEL_REVISION", ""),
        model_aliases=read.names("QWEN_MODEL_ALIASES"),
        engine=read.choice("QWEN_ENGINE", ("transformers",), "transformers"),
        device=read.device("QWEN_DEVICE"),
        dtype=read.choice("QWEN_DTYPE", DTYPES, "auto"),
        keys_file=read.keys_file(),
        max_batch=read.whole("QWEN_MAX_BATCH", 32, least=1),
        max_queue=read.whole("QWEN_MAX_QUEUE", 128, least=0),
        max_context=read.whole_or_none("QWEN_MAX_CONTEXT"),
        max_tokens_default=read.whole_or_none("QWEN_MAX_TOKENS_DEFAULT"),
        kv_memory=read.share_or_bytes("QWEN_KV_MEMORY"),
        drain_seconds=read.whole("QWEN_DRAIN_SECONDS", 30, least=0),
        threads=read.whole_or_none("QWEN_THREADS"),
        listen=read.address("QWEN_LISTEN", "127.0.0.1:8000"),
        gpus=read.names("CUDA_VISIBLE_DEVICES"),
        web_ui=read.switch("QWEN_WEB_UI", default=True),
        metrics=read.choice("QWEN_METRICS", ("open", "key", "off"), "open"),
        log_prompts=read.switch("QWEN_LOG_PROMPTS", default=False),
        basic_auth=read.switch("QWEN_BASIC_AUTH", default=False),
        cors_origins=read.names("QWEN_CORS_ORIGINS"),
        head_seconds=read.whole("QWEN_HEAD_SECONDS", 20, least=1),
        body_seconds=read.whole("QWEN_BODY_SECONDS", 60, least=1),
        max_connections=read.whole("QWEN_MAX_CONNECTIONS", 4096, least=1),
    )


class _Reader:
    """An empty variable counts as one that is not set, as in a file of KEY=value lines."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, name: str, default: str) -> str:
        return self._environment.get(name, "").strip() or default

    def required(self, name: str) -> str:
        value = self.text(name, "")
        if not value:
            raise SettingsError(f"{name} is not set")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        return tuple(part for part in map(str.strip, self.text(name, "").split(",")) if part)

    def choice(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        value = self.text(name, default)
        if value not in allowed:
            raise SettingsError(f"{name} should be one of {', '.join(allowed)}, not {value!r}")
        return value

    def switch(self, name: str, *, default: bool) -> bool:
        return self.choice(name, ("on", "off"), "on" if default else "off") == "on"

    def device(self, name: str) -> str:
        value = self.text(name, "auto")
        kind, colon, index = value.partition(":")
        if value in ("auto", "cpu", "cuda") or (kind == "cuda" and colon and index.isdecimal()):
            return value
        raise SettingsError(f"{name} should be auto, cpu, cuda or cuda:N, not {value!r}")

    def whole(self, name: str, default: int, *, least: int) -> int:
        value = self.text(name, str(default))
        if not value.isdecimal() or int(value) < least:
            raise SettingsError(f"{name} should be a whole number from {least} up, not {value!r}")
        return int(value)

    def whole_or_none(self, name: str) -> int | None:
        return self.whole(name, 1, least=1) if self.text(name, "") else None

    def share_or_bytes(self, name: str) -> float | int | None:
        value = self.text(name, "")
        number = re.fullmatch(r"(0?\.\d+)|(\d+)([KMGT]i?B?)?", value)
        if not value:
            return None
        if number is None:
            raise SettingsError(f"{name} should be a share as 0.5 or bytes as 8GiB, not {value!r}")
        share, bytes_, unit = number.groups()
        base = 1024 if unit and "i" in unit else 1000
        return float(share) if share else int(bytes_) * base ** (" KMGT".index((unit or " ")[0]))

    def keys_file(self) -> Path | None:
        """None means that everyone may ask."""
        if self.choice("QWEN_AUTH", ("keys", "none"), "keys") == "none":
            return None
        return Path(self.required("QWEN_KEYS_FILE"))

    def address(self, name: str, default: str) -> tuple[str, int]:
        value = self.text(name, default)
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise SettingsError(f"{name} should be ADDRESS:PORT, not {value!r}")
        return host.strip("[]"), int(port)
