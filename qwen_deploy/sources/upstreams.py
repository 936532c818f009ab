"""Entries of sources.json for places beyond the hosts' own network. Knows no protocol."""

from __future__ import annotations

from collections.abc import Mapping

from qwen_deploy.sources.pinned import Upstream
from qwen_deploy.sources.settings import Settings, ca_text


def wan(
    settings: Settings,
    name: str,
    url: str,
    *,
    kind: str = "http",
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Upstream:
    return Upstream(
        {
            "kind": kind,
            "name": name,
            "url": url,
            "token": token,
            "headers": dict(headers or {}),
            "ca": ca_text(settings),
            "proxy": settings.proxy,
            "wan": True,
            "paths": None,
        }
    )
