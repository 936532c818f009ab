"""A tunnel by the system's `ssh`: for many streams at once, which Python's own could not keep up
with. Knows no service.
"""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from qwen_deploy import openssh
from qwen_deploy.errors import Unreachable
from qwen_deploy.inventory import Host
from qwen_deploy.openssh import SshSettings

START_SECONDS = 60.0
END_SECONDS = 5.0
OPEN = "tunnel-is-open"


@contextmanager
def forwarded(host: Host, settings: SshSettings, address: str, port: int) -> Iterator[Path]:
    """A socket in a folder of ours, so no port is guessed and nobody else of this machine can use
    it, that reaches `address:port` as seen from the host."""
    with tempfile.TemporaryDirectory(prefix="qd-") as folder, tempfile.TemporaryFile() as said:
        path = Path(folder) / "socket"
        process = subprocess.Popen(
            _argv(host, settings, f"{path}:{_bracketed(address)}:{port}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,  # Ctrl-C is for us: what was measured is shown first
        )
        assert process.stdin and process.stdout
        try:
            with process.stdin, process.stdout:
                if not _says_open(process.stdout):
                    raise _not_opened(host, said)
                yield path
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _argv(host: Host, settings: SshSettings, forward: str) -> list[str]:
    options = ["-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-o", "ControlPath=none"]
    words = [*shlex.split(openssh.arguments(settings)), *options, "-T", "-L", forward]
    # Not -N: without a session sshd never turns Nagle's algorithm off, so that tokens arrive in
    # bursts. This one lasts until its input ends.
    command = ["-o", "RemoteCommand=none", *shlex.split(openssh.destination(host, settings))]
    return ["ssh", *words, *command, f"echo {OPEN}; cat"]


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _says_open(stdout: IO[bytes]) -> bool:
    """Whatever else the start of a shell says. By then the socket is there."""
    ends_at = time.monotonic() + START_SECONDS
    told = b""
    while OPEN.encode() not in told:
        left = max(0.0, ends_at - time.monotonic())
        is_readable, _, _ = select.select([stdout], [], [], left)
        chunk = os.read(stdout.fileno(), 1 << 12) if is_readable else b""
        if not chunk:
            return False
        told += chunk
    return True


def _not_opened(host: Host, said: IO[bytes]) -> Unreachable:
    said.seek(0)
    lines = said.read().decode("utf-8", "replace").strip().splitlines()
    return Unreachable(
        f"`ssh` opens no tunnel to `{host}`",
        host=host.name,
        evidence=tuple(lines[-5:]),
        origin="standard error of ssh" if lines else None,
        hint="`--direct` goes without one, straight to the port",
    )
