"""Hosts: parse and select them. Knows neither SSH nor Ansible."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from qwen_deploy.errors import UsageError

# Nothing begins with a dash: `ssh` would take it for an option.
_WORD = r"[^@\s:\[\]-][^@\s:\[\]]*"
_HOST = re.compile(
    rf"(?:(?P<user>{_WORD})@)?"
    rf"(?:(?P<bare>[^@\s\[\]]*:[^@\s\[\]]*:[^@\s\[\]]*)"
    rf"|(?:\[(?P<v6>[^@\s\[\]]+)\]|(?P<name>{_WORD}))(?::(?P<port>[0-9]{{1,5}}))?)"
)


@dataclass(frozen=True, slots=True)
class Host:
    """One machine reached by SSH. Where `user` or `port` is None, SSH's configuration decides."""

    name: str
    address: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def text(self) -> str:
        """What stands after `--host` to mean this host again."""
        return f"{self.user}@{self.name}" if self.user else self.name


def parse_host(text: str) -> Host:
    """`[user@]address[:port]`; an IPv6 address with a port stands in brackets."""
    match = _HOST.fullmatch(text)
    port = int(match["port"]) if match and match["port"] else None
    v6 = match and (match["v6"] or match["bare"])
    if not match or (v6 and not _is_ipv6(v6)) or (port is not None and not 0 < port < 65536):
        raise UsageError(
            f"`{text}` is not a host: should be [user@]address[:port]",
            hint="qwen-deploy up --host root@192.168.110.131:22",
        )
    address = v6 or match["name"]
    bracketed = f"[{address}]" if v6 else address
    name = f"{bracketed}:{port}" if port else address
    return Host(name=name, address=address, user=match["user"], port=port)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def parse_hosts(texts: Iterable[str]) -> tuple[Host, ...]:
    hosts = tuple(parse_host(text) for text in texts)
    names = [host.name for host in hosts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"host named twice: {', '.join(twice)}")
    return hosts
