"""The lab's network: one bridge, one subnet that nothing else uses, and rules that carry our name.

Leaves every rule, link and address of others alone. Does not know what runs on the hosts.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from tests.lab.names import BRIDGE_PATTERN, MACHINE_LOCK, SHARED_DIR, Names, link
from tests.lab.shell import LabError, locked, run
from tests.lab.surroundings import nameservers

FIRST_HOST = 10
PRIVATE_BLOCKS = tuple(map(IPv4Network, ("10.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16")))
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
FORWARDING_BEFORE = SHARED_DIR / "ip_forward"


@dataclass(frozen=True, slots=True)
class Network:
    names: Names
    subnet: IPv4Network

    @property
    def gateway(self) -> str:
        return str(self.subnet[1])

    def address(self, number: int) -> str:
        return str(self.subnet[FIRST_HOST + number])

    def isolate(self, address: str) -> None:
        _add_rule(self.names, "filter", "FORWARD", *self._isolation(address))

    def join(self, address: str) -> None:
        _remove_rules(self.names, containing=f" {address}/32 ")

    def _isolation(self, address: str) -> tuple[str, ...]:
        unreachable = ("-j", "REJECT", "--reject-with", "icmp-net-unreachable")
        return ("-s", f"{address}/32", "!", "-d", str(self.subnet), *unreachable)


def make(names: Names) -> Network:
    with locked(MACHINE_LOCK):
        network = Network(names, _free_subnet(names))
        bridge, subnet = names.bridge, network.subnet
        run("ip", "link", "add", bridge, "type", "bridge")
        run("ip", "address", "add", f"{network.gateway}/{subnet.prefixlen}", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        _forward_packets(names)
    # A machine with Docker drops what is forwarded unless a rule says otherwise.
    _add_rule(names, "filter", "FORWARD", "-o", bridge, "-j", "ACCEPT")
    _add_rule(names, "filter", "FORWARD", "-i", bridge, "-j", "ACCEPT")
    masquerade = ("-s", str(subnet), "!", "-d", str(subnet), "-j", "MASQUERADE")
    _add_rule(names, "nat", "POSTROUTING", *masquerade)
    return network


def remove(names: Names) -> None:
    """Connections that a host left open keep its network alive for a minute, and its cable."""
    _remove_rules(names)
    with locked(MACHINE_LOCK):
        for cable in Path("/sys/class/net").glob(f"{link(names.bridge)}-*"):
            with contextlib.suppress(LabError):  # it goes with its host, if nothing holds that back
                run("ip", "link", "delete", cable.name)
        if has_link(names.bridge):
            run("ip", "link", "delete", names.bridge)
        if not _other_labs(names) and FORWARDING_BEFORE.exists():
            FORWARDING.write_text(FORWARDING_BEFORE.read_text())
            FORWARDING_BEFORE.unlink()


def has_link(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


def _other_labs(names: Names) -> set[str]:
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    return {name for name in links if BRIDGE_PATTERN.fullmatch(name)} - {names.bridge}


def _free_subnet(names: Names) -> IPv4Network:
    taken = _networks_in_use()
    for block in PRIVATE_BLOCKS:
        subnets = list(block.subnets(new_prefix=24))
        start = int(names.digest, 16) % len(subnets)
        for subnet in (*subnets[start:], *subnets[:start]):
            if not any(subnet.overlaps(other) for other in taken):
                return subnet
    raise LabError("every subnet that the lab could use is in use on this machine")


def _networks_in_use() -> list[IPv4Network]:
    routes = json.loads(run("ip", "-j", "-4", "route", "show", "table", "all"))
    found = [route["dst"] for route in routes if route["dst"] != "default"]
    for device in json.loads(run("ip", "-j", "-4", "address")):
        found += [f"{own['local']}/{own['prefixlen']}" for own in device["addr_info"]]
    found += [server for server in nameservers() if ":" not in server]
    networks = [IPv4Network(text, strict=False) for text in found]
    # A tunnel that takes everything routes 0.0.0.0/1 and 128.0.0.0/1: ours is narrower and wins.
    return [network for network in networks if network.prefixlen > 1]


def _forward_packets(names: Names) -> None:
    before = FORWARDING.read_text()
    if not _other_labs(names):
        FORWARDING_BEFORE.unlink(missing_ok=True)
    if before.strip() != "1":
        FORWARDING_BEFORE.write_text(before)
        FORWARDING.write_text("1\n")


def _add_rule(names: Names, table: str, chain: str, *rule: str) -> None:
    comment = ("-m", "comment", "--comment", names.rule_comment)
    run("iptables", "-w", "-t", table, "-I", chain, *comment, *rule)


def _remove_rules(names: Names, containing: str = "") -> None:
    for table in ("filter", "nat"):
        for line in run("iptables", "-w", "-t", table, "-S").splitlines():
            words = shlex.split(line)
            if names.rule_comment in words and containing in line:
                run("iptables", "-w", "-t", table, "-D", *words[1:])
