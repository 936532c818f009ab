"""What the operator says about sources, and what follows from it: which source, which endpoint,
whose token. Knows no protocol."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from qwen_deploy import folder
from qwen_deploy.errors import UsageError

HubName = Literal["huggingface", "modelscope"]
Kind = Literal["auto", "modelscope", "huggingface", "git-lfs", "mirror", "host", "path"]

_OFFICIAL: Mapping[HubName, tuple[str, ...]] = {
    "huggingface": ("https://huggingface.co",),
    "modelscope": ("https://www.modelscope.cn", "https://modelscope.cn"),
}
_VARIABLES: Mapping[HubName, str] = {
    "huggingface": "HF_ENDPOINT",
    "modelscope": "MODELSCOPE_ENDPOINT",
}
_WITH_URL = re.compile(r"(modelscope|huggingface|git-lfs)\+(\w+://.+)")
_PLAIN: tuple[Kind, ...] = ("auto", "modelscope", "huggingface", "git-lfs")
_CERTIFICATE = re.compile(
    rb"-----BEGIN CERTIFICATE-----[\w\s+/=]+-----END CERTIFICATE-----", re.ASCII
)
_ON_HOST = re.compile(r"host:(/.+)")


def _default_cache_dir() -> Path:
    return folder.default_cache_path().parent


@dataclass(frozen=True, slots=True)
class Settings:
    """`revision` None is the newest of the default branch. `proxy` is how hosts reach hubs; this
    machine has its own environment for that."""

    source: str
    name: str
    revision: str | None = None
    huggingface_endpoint: str | None = None
    modelscope_endpoint: str | None = None
    huggingface_token_file: Path | None = None
    modelscope_token_file: Path | None = None
    proxy: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    cache_dir: Path = field(default_factory=_default_cache_dir)


@dataclass(frozen=True, slots=True)
class Source:
    """`place` is the URL or the path that belongs to the kind, where one does."""

    kind: Kind
    place: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    url: str
    is_official: bool
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc.removeprefix("www.")


def parse(text: str) -> Source:
    """Raises UsageError for what names no source."""
    if match := _WITH_URL.fullmatch(text):
        hub = next(one for one in _PLAIN if one == match[1])
        return Source(hub, _url(text, match[2]))
    if "://" in text:
        return Source("mirror", _url(text, text))
    if match := _ON_HOST.fullmatch(text):
        return Source("host", match[1])
    if text.startswith("host:"):
        raise UsageError(f"model/source: {text}: should be host:/ and a path")
    for plain in _PLAIN:
        if text == plain:
            return Source(plain)
    return Source("path", text)


def _url(text: str, url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"model/source: {text}: a URL should begin with https:// or http://",
            hint="Fetch it here, and name the folder or archive; "
            "or host:/PATH, where it lies on the hosts",
        )
    if parts.username or parts.password:
        raise UsageError(
            f"model/source: a URL on {parts.hostname} holds a password, which would be shown",
            hint="Use weights/huggingface_token_file or weights/modelscope_token_file",
        )
    return url.rstrip("/")


def endpoint(settings: Settings, hub: HubName, url: str | None = None) -> Endpoint:
    """At the URL, else the configured one, else the environment's, else the official one. A token
    goes where its file was given for; a saved one, to the official place only, by its library."""
    configured = {
        "huggingface": (settings.huggingface_endpoint, settings.huggingface_token_file),
        "modelscope": (settings.modelscope_endpoint, settings.modelscope_token_file),
    }
    own, token_file = configured[hub]
    chosen = url or own or os.environ.get(_VARIABLES[hub]) or _OFFICIAL[hub][0]
    if "://" not in chosen:
        chosen = f"https://{chosen}"
    chosen = chosen.rstrip("/")
    is_official = chosen in _OFFICIAL[hub]
    key = f"weights/{hub}_token_file"
    return Endpoint(chosen, is_official, _token(key, token_file), token_file)


def _token(key: str, path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.expanduser().read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{key}: {path}: cannot be read") from error
    if not token or not token.isprintable() or " " in token:
        raise UsageError(f"{key}: {path}: should hold one token and nothing else")
    return token


def ca_text(settings: Settings) -> str | None:
    """The certificates alone, for hosts, which cannot read a file of this machine."""
    if settings.ca_file is None:
        return None
    try:
        content = settings.ca_file.expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"weights/ca_file: {settings.ca_file}: cannot be read") from error
    found = _CERTIFICATE.findall(content)
    if not found:
        raise UsageError(f"weights/ca_file: {settings.ca_file}: holds no certificate in PEM")
    return "".join(f"{one.decode('ascii', 'replace')}\n" for one in found)
