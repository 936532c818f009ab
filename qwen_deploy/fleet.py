"""Weights to several hosts at once: starts their transfers, and opens the servers and tunnels that
they read through. Knows neither what a source is nor what the bytes are for.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from qwen_deploy import commands, netproxy, parallel, weights
from qwen_deploy.chain import Member, ancestors, ordered
from qwen_deploy.errors import QwenDeployError
from qwen_deploy.events import Event
from qwen_deploy.share import Share
from qwen_deploy.supply import Supply
from qwen_deploy.weights import Door, Order, Transfer

OPERATOR = "the operator's machine"
DIAL_SECONDS = 20.0


@contextmanager
def bring(
    members: Sequence[Member],
    supply: Supply,
    order: Order,
    emit: Callable[[Event], None],
    *,
    keeps: bool = False,
) -> Iterator[Mapping[str, Transfer]]:
    """Starts the transfers and follows them while entered; on leaving, those that began here are
    ended unless it `keeps` them. What reached a disk stays anyway."""
    if all(one.holds for one in members):
        yield {}
        return
    with ExitStack() as stack:
        yield Group(members, supply, order, emit, stack).start(keeps=keeps)


class Group:
    """The transfers of one run, with the servers and tunnels they read through."""

    def __init__(
        self,
        members: Sequence[Member],
        supply: Supply,
        order: Order,
        emit: Callable[[Event], None],
        stack: ExitStack,
    ) -> None:
        self._members = ordered(members)
        self._order = order
        self._stack = stack
        share = supply.pinned.share
        self._share = stack.enter_context(Share(share)) if share else None
        self._sequence = supply.pinned.sequence
        self._common = tuple(one.entry for one in supply.pinned.upstreams)
        self._proxy = stack.enter_context(netproxy.serve(_dial)) if supply.lends_network else None
        self._transfers = {one.name: Transfer(one.session, emit) for one in self._members}
        names = [one.name for one in self._members]
        self._ancestors = ancestors(names, order.settings.fan_out)
        self._has_relays = any(self._ancestors.values())

    def start(self, *, keeps: bool) -> Mapping[str, Transfer]:
        self._stack.callback(self._part, keeps=keeps)
        try:
            _raise_first(parallel.each(self._members, self._start))
            doors = self._doors() if self._has_relays else {}
            _raise_first(parallel.each(self._members, lambda one: self._feed(one, doors)))
        except BaseException:
            for transfer in self._transfers.values():
                if transfer.is_ours:  # else it waited for a group that never came to be
                    transfer.end()
            raise
        needy = {one.name: self._transfers[one.name] for one in self._members if not one.holds}
        for transfer in needy.values():
            transfer.follow()
        return needy

    def _part(self, *, keeps: bool) -> None:
        """What somebody else started is theirs to end; where everybody has everything, nobody has
        to give any more."""
        needy = [self._transfers[one.name] for one in self._members if not one.holds]
        is_over = all(transfer.phase == "done" for transfer in needy)

        def part(transfer: Transfer) -> None:
            if not keeps and transfer.is_ours:
                transfer.end()
            elif is_over and self._has_relays:
                transfer.close_door()
            else:
                transfer.leave()

        parallel.each(list(self._transfers.values()), part)

    def _start(self, member: Member) -> None:
        """With relays, nobody reads anything before it knows all it may read from."""
        port = self._order.settings.fan_out_port
        door = Door(member.address, port, weights.new_token()) if self._has_relays else None
        order = replace(self._order, manifests=member.manifests, door=door, sequence=self._sequence)
        self._transfers[member.name].start(order, member.entries)

    def _doors(self) -> dict[str, Door]:
        doors = parallel.each(self._members, lambda one: self._transfers[one.name].door())
        _raise_first(doors)
        return {
            one.name: door
            for one, door in zip(self._members, doors, strict=True)
            if isinstance(door, Door)
        }

    def _feed(self, member: Member, doors: Mapping[str, Door]) -> None:
        before = [one for one in self._ancestors[member.name] if one in doors]
        peers = self._peers(member, {one: doors[one] for one in before})
        entries = [*member.entries, *peers, *self._upstream(member), *self._own(member)]
        authority = before[-1] if before else None
        self._transfers[member.name].feed(entries, authority)

    def _peers(self, member: Member, doors: Mapping[str, Door]) -> list[dict[str, Any]]:
        if not doors:
            return []
        places = [(door.address, door.port) for door in doors.values()]
        done = member.session.run(commands.reach(places))
        reached = commands.parse_reach(done.stdout) or (False,) * len(places)
        return [
            {"kind": "peer", "name": name, "url": url, "token": door.token}
            for (name, door), is_reached in zip(doors.items(), reached, strict=True)
            for url in [
                _url(door.address, door.port) if is_reached else self._tunnel(member, name, door)
            ]
        ]

    def _tunnel(self, member: Member, name: str, door: Door) -> str:
        """Where hosts may not talk to each other, they do so through this machine."""
        there = self._transfers[name].session
        port = self._stack.enter_context(there.forward_local(door.port, door.address))
        return _url("127.0.0.1", self._stack.enter_context(member.session.forward_remote(port)))

    def _upstream(self, member: Member) -> list[dict[str, Any]]:
        """What all hosts read; through this machine's network where theirs leads nowhere."""
        entries = [dict(entry) for entry in self._common]
        if self._proxy is None or member.holds:
            return entries
        parts = urlsplit(self._proxy)
        port = self._stack.enter_context(member.session.forward_remote(int(parts.port or 0)))
        proxy = f"http://{parts.username}:{parts.password}@127.0.0.1:{port}"
        return [{**entry, "proxy": proxy} for entry in entries]

    def _own(self, member: Member) -> list[dict[str, Any]]:
        """What this machine itself serves, through a tunnel."""
        if self._share is None or member.holds:
            return []
        port = self._stack.enter_context(member.session.forward_remote(self._share.port))
        url = f"http://127.0.0.1:{port}/{{path}}"
        token = self._share.token
        return [{"kind": "http", "name": OPERATOR, "url": url, "token": token, "wan": True}]


def _dial(address: str, port: int) -> socket.socket:
    """For a host that has no network of its own; this machine's own ports are not part of it."""
    connection = socket.create_connection((address, port), DIAL_SECONDS)
    if ipaddress.ip_address(connection.getpeername()[0]).is_loopback:
        connection.close()
        raise ConnectionRefusedError(f"{address} is this machine")
    connection.settimeout(None)
    return connection


def _url(address: str, port: int) -> str:
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _raise_first(results: Sequence[object]) -> None:
    for one in results:
        if isinstance(one, QwenDeployError):
            raise one
