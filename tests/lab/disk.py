"""What the disk of a bare host holds beyond the base tree: who it is and whom it lets in.

Does not know how a disk is made of it, nor how the host boots.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from tests.lab.network import Network
from tests.lab.shell import run
from tests.lab.surroundings import known_hosts_entries, nameservers

HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"


def make_host_key(path: Path, name: str) -> None:
    """Once per lab: a reset host is still the host that the operator knows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path)


def identity(name: str, key: Path) -> Mapping[str, tuple[str, int]]:
    """Path -> text and mode."""
    own_names = f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n"
    return {
        "/etc/hostname": (f"{name}\n", 0o644),
        "/etc/hosts": (own_names + known_hosts_entries(), 0o644),
        "/etc/machine-id": (f"{uuid.uuid4().hex}\n", 0o444),
        HOST_KEY: (key.read_text(), 0o600),
        f"{HOST_KEY}.pub": (key.with_suffix(".pub").read_text(), 0o644),
    }


def connection(network: Network, address: str) -> Mapping[str, tuple[str, int]]:
    own = f"Address={address}/{network.subnet.prefixlen}\nGateway={network.gateway}\n"
    unit = f"[Match]\nName=host0\n\n[Network]\n{own}LinkLocalAddressing=no\n"
    return {
        # Below 80: Debian's own 80-container-host0.network gives a link-local address.
        "/etc/systemd/network/10-host0.network": (unit, 0o644),
        "/etc/resolv.conf": ("".join(f"nameserver {ip}\n" for ip in nameservers()), 0o644),
    }
