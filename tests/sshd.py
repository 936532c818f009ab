"""A real sshd on loopback with keys of its own, and homes for those who connect to it.

Knows nothing of what is tested through it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.wire import refusing_port

PROGRAM = "/usr/sbin/sshd"
ADDRESSES = ("127.0.0.1", "127.0.0.2")
START_SECONDS = 20
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Sshd:
    """Lets root in with `key_path`, from any home that `make_home` made."""

    folder: Path
    port: int

    @property
    def key_path(self) -> Path:
        return self.folder / "client"

    @property
    def host_key(self) -> str:
        """The type and the key, as known_hosts has them."""
        return " ".join((self.folder / "host.pub").read_text().split()[:2])

    @property
    def fingerprint(self) -> str:
        listed = _run("ssh-keygen", "-l", "-f", self.folder / "host.pub").split()
        return f"ssh-ed25519 {listed[1]}"

    def make_home(self, home: Path) -> Path:
        """Knows the host, and has its key where SSH looks for one."""
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        shutil.copy(self.key_path, home / ".ssh" / "id_ed25519")
        names = ",".join(f"[{address}]:{self.port}" for address in ADDRESSES)
        (home / ".ssh" / "known_hosts").write_text(f"{names} {self.host_key}\n")
        return home


def make_key(path: Path, passphrase: str = "") -> Path:
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "test", "-f", path)
    return path


@contextmanager
def running_sshd(folder: Path, *settings: str) -> Iterator[Sshd]:
    # Not installed here: on a machine with systemd that would open its port 22.
    assert os.path.exists(PROGRAM), f"{PROGRAM} is missing: `make test` installs it"
    folder.mkdir(parents=True, exist_ok=True)
    os.makedirs("/run/sshd", exist_ok=True)  # where it drops its privileges
    for name in ("host", "client"):
        make_key(folder / name)
    port = refusing_port()
    (folder / "config").write_text(
        "\n".join(
            [
                *settings,
                f"Port {port}",
                *(f"ListenAddress {address}" for address in ADDRESSES),
                f"HostKey {folder / 'host'}",
                f"AuthorizedKeysFile {folder / 'client.pub'}",
                "PidFile none",
                "StrictModes no",
                "UsePAM yes",
                "PermitRootLogin prohibit-password",
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                "MaxStartups 100",
            ]
        )
        + "\n"
    )
    argv = [PROGRAM, "-D", "-f", str(folder / "config"), "-E", str(folder / "log")]
    with subprocess.Popen(argv) as process:
        try:
            _wait_until_it_listens(process, port, folder / "log")
            yield Sshd(folder, port)
        finally:
            process.terminate()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    ends_at = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < ends_at:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"sshd does not listen: {log.read_text() if log.exists() else ''}")


def _run(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
