"""How this machine reaches hubs: directly, by the proxy of its environment, or by one that leads
through a host; and how long it waits for them. Asks nothing itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_SCHEMES = ("http", "https")


@dataclass(frozen=True, slots=True)
class Network:
    """`proxy` holds a password and is not shown."""

    proxy: str | None = field(default=None, repr=False)

    def proxy_for(self, url: str, environ: Mapping[str, str] | None = None) -> str | None:
        """Where a connection to the URL begins, if not there; other kinds than HTTP are left."""
        if self.proxy:
            return self.proxy
        proxies = _of_environment(os.environ if environ is None else environ)
        parts = urlsplit(url)
        found = proxies.get(parts.scheme) or proxies.get("all")
        if not found or _is_excepted(parts.hostname or "", proxies.get("no", "")):
            return None
        return found if urlsplit(found).scheme in _SCHEMES else None


@dataclass(frozen=True, slots=True)
class Patience:
    """`pause` is time.sleep outside of tests."""

    tries: int = 3
    connect_seconds: float = 10.0
    silence_seconds: float = 20.0
    pause: Callable[[float], None] = time.sleep


direct = Network()


def through(proxy: str) -> Network:
    return Network(proxy)


def _of_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Lower case wins, as in curl and in Python itself."""
    ordered = sorted(environ.items(), key=lambda item: item[0].islower())
    found = {name.lower(): value for name, value in ordered if name.lower().endswith("_proxy")}
    return {name.removesuffix("_proxy"): value for name, value in found.items() if value}


def _is_excepted(host: str, no_proxy: str) -> bool:
    """By name, or by the end of one: `no_proxy` as curl reads it."""
    names = [name.strip().lstrip(".").lower() for name in no_proxy.split(",")]
    return any(name == "*" or host == name or host.endswith(f".{name}") for name in names if name)
