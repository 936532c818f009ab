"""A tunnel by the system's `ssh`: for many streams at once, which Python's own could not keep up
with. Knows no service.
"""

from __future__ import annotations

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

POLL_SECONDS = 0.05
START_SECONDS = 60.0
END_SECONDS = 5.0


@contextmanager
def forwarded(host: Host, settings: SshSettings, address: str, port: int) -> Iterator[Path]:
    """A socket in a folder of ours, so no port is guessed and nobody else of this machine can use
    it, that reaches `address:port` as seen from the host."""
    with tempfile.TemporaryDirectory(prefix="qd-") as folder, tempfile.TemporaryFile() as said:
        path = Path(folder) / "socket"
        process = subprocess.Popen(
            _argv(host, settings, f"{path}:{_bracketed(address)}:{port}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # Ctrl-C is for us: what was measured is shown first
        )
        try:
            _wait_until_it_listens(process, path, host, said)
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
    words = [*shlex.split(openssh.arguments(settings)), *options, "-N", "-L", forward]
    return ["ssh", *words, *shlex.split(openssh.destination(host, settings))]


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _wait_until_it_listens(
    process: subprocess.Popen[bytes], path: Path, host: Host, said: IO[bytes]
) -> None:
    ends_at = time.monotonic() + START_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() >= ends_at:
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").strip().splitlines()
            raise Unreachable(
                f"`ssh` opens no tunnel to `{host}`",
                host=host.name,
                evidence=tuple(lines[-5:]),
                origin="standard error of ssh" if lines else None,
                hint="`--direct` goes without one, straight to the port",
            )
        time.sleep(POLL_SECONDS)
