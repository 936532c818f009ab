"""Running this machine's tools, and the one error of the lab. Knows no host and no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path

POLL_SECONDS = 0.05

PACKAGE_OF_PROGRAM = {
    "systemd-nspawn": "systemd-container",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "tc": "iproute2",
    "iptables": "iptables",
    "mkfs.ext4": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
ADMINISTRATION_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


class LabError(Exception):
    """The lab cannot do what was asked; the message says why and what to do."""


def check_requirements(package_of_program: Mapping[str, str] = PACKAGE_OF_PROGRAM) -> None:
    if os.geteuid() != 0:
        raise LabError("the lab boots hosts and makes a bridge: it needs root")
    needed = package_of_program.items()
    missing = sorted({package for program, package in needed if not _find(program)})
    if missing:
        packages = " ".join(missing)
        raise LabError(f"the lab needs packages that are not here: apt-get install {packages}")


def run(
    *argv: str | Path,
    input: str | None = None,
    timeout: float = 60,
    environment: Mapping[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> str:
    """Run one program to its end; what it printed, or a LabError with what it printed."""
    command = [str(word) for word in argv]
    finished = subprocess.run(
        command,
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        pass_fds=pass_fds,
        env={**os.environ, "PATH": _path(), "LC_ALL": "C.UTF-8", **(environment or {})},
    )
    if finished.returncode != 0:
        evidence = "\n".join(finished.stdout.splitlines()[-10:])
        raise LabError(f"`{' '.join(command)}` ended with {finished.returncode}:\n{evidence}")
    return finished.stdout


def wait_until(
    condition: Callable[[], bool], seconds: float, what: str, *, poll_seconds: float = POLL_SECONDS
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {seconds:g} s")
        time.sleep(poll_seconds)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Its descriptor: a program that gets it holds the lock too, should we be killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        flock(lock, LOCK_EX)
        yield lock.fileno()


def _find(program: str) -> str | None:
    return shutil.which(program, path=_path())


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:{ADMINISTRATION_FOLDERS}"
