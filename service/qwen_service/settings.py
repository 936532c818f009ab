"""The service's environment as one frozen value, with every limit in one place.

Knows neither HTTP nor torch; errors name the variable and what it should be.
"""

from __future__ import annotations

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
    max_body_bytes: int = 8 * 1024 * 1024
    max_choices: int = 8
    max_stops: int = 32

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
        max_batch=read.whole("QWEN_MAX_BATCH", 16, least=1),
        max_queue=read.whole("QWEN_MAX_QUEUE", 128, least=0),
        max_context=read.whole_or_none("QWEN_MAX_CONTEXT"),
        max_tokens_default=read.whole_or_none("QWEN_MAX_TOKENS_DEFAULT"),
        drain_seconds=read.whole("QWEN_DRAIN_SECONDS", 30, least=0),
        threads=read.whole_or_none("QWEN_THREADS"),
        listen=read.address("QWEN_LISTEN", "127.0.0.1:8000"),
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
