"""Hosts as network namespaces on one bridge, each behind a link of its own rate, and one more that
is the WAN. Bears this checkout's name and is removed by it. Does not know what runs there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.lab.names import Names, of_checkout
from tests.lab.shell import LabError, run

PREFIX = "10.99.0"
# What a link carries of TCP's own payload: 1448 of 1514 bytes.
PAYLOAD = 0.956
_QUEUE = ("burst", "64kb", "latency", "100ms")


@dataclass(frozen=True)
class Place:
    """A namespace: what runs there has this address."""

    namespace: str
    address: str

    def command(self, *argv: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *argv]

    def sent_bytes(self) -> int:
        """On the wire, headers and what was sent again included."""
        (link,) = json.loads(run("ip", "-n", self.namespace, "-s", "-j", "link", "show", "eth0"))
        return int(link["stats64"]["tx"]["bytes"])


@dataclass(frozen=True)
class Links:
    wan: Place
    hosts: tuple[Place, ...]


@contextmanager
def linked(wan_mbit: float, hosts_mbit: Sequence[float]) -> Iterator[Links]:
    names = of_checkout()
    remove(names)
    try:
        bridge = _name(names, "bridge")
        run("ip", "netns", "add", bridge)
        run("ip", "-n", bridge, "link", "add", "name", "br0", "type", "bridge")
        run("ip", "-n", bridge, "link", "set", "br0", "up")
        # The WAN's rate is that of what comes in; what hosts ask for is next to nothing.
        wan = _attach(names, 0, wan_mbit)
        hosts = tuple(_attach(names, at, rate) for at, rate in enumerate(hosts_mbit, 1))
        yield Links(wan, hosts)
    finally:
        remove(names)


def remove(names: Names) -> None:
    """Links go with their namespaces."""
    for row in json.loads(run("ip", "-j", "netns", "list") or "[]"):
        if row["name"].startswith(_name(names, "")):
            _end_processes(row["name"])
            run("ip", "netns", "delete", row["name"])


def _end_processes(namespace: str) -> None:
    pids = run("ip", "netns", "pids", namespace).split()
    if pids:
        try:
            run("kill", "-KILL", *pids)
        except LabError:
            return  # they have ended by themselves


def _attach(names: Names, number: int, mbit: float) -> Place:
    place = Place(_name(names, str(number)), f"{PREFIX}.{10 + number}")
    bridge, port = _name(names, "bridge"), f"port{number}"
    run("ip", "netns", "add", place.namespace)
    inside = ("ip", "-n", place.namespace)
    run(*inside, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", bridge)
    run("ip", "-n", bridge, "link", "set", port, "master", "br0")
    run("ip", "-n", bridge, "link", "set", port, "up")
    run(*inside, "address", "add", f"{place.address}/24", "dev", "eth0")
    for link in ("lo", "eth0"):
        run(*inside, "link", "set", link, "up")
    _shape(place.namespace, "eth0", mbit)
    if number:
        _shape(bridge, port, mbit)
    return place


def _shape(namespace: str, link: str, mbit: float) -> None:
    rate = ("rate", f"{mbit}mbit", *_QUEUE)
    run("tc", "-n", namespace, "qdisc", "add", "dev", link, "root", "tbf", *rate)


def _name(names: Names, end: str) -> str:
    return f"{names.bridge}-links-{end}"
