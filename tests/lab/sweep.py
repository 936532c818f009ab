"""Removing a lab: every process, cgroup, rule, link and file that carries its name.

Needs nothing but the name, so that it also removes what a killed run left. Does not know when.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

from tests.lab import network
from tests.lab.container import CGROUP_TREES, remove_cgroups
from tests.lab.names import MARK_VARIABLE, Names
from tests.lab.shell import wait_until


def sweep(names: Names) -> None:
    _end_processes(names)
    for host in _cgroup_names(names):
        remove_cgroups(host)
    network.remove(names)
    if names.directory.exists():
        shutil.rmtree(names.directory)


def _end_processes(names: Names) -> None:
    found = _processes(names)
    for pid in found:
        _kill(pid)
    wait_until(lambda: not any(map(_is_alive, found)), 30, "the lab's processes ended")


def _processes(names: Names) -> set[int]:
    """Hosts by their cgroup, supervisors by their --machine, what tests started by its mark."""
    machine = f"--machine={names.bridge}-".encode()
    mark = f"{MARK_VARIABLE}={names.digest}".encode()
    found = {
        pid
        for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
        if any(word.startswith(machine) for word in _words(pid, "cmdline"))
        or mark in _words(pid, "environ")
    }
    for tree in CGROUP_TREES:
        for path in tree.glob(f"{names.bridge}-*/**/cgroup.procs"):
            found.update(map(int, path.read_text().split()))
    return found - {os.getpid()}


def _words(pid: int, file: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().split(b"\0")
    except OSError:
        return []


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    """A zombie of a parent that is slow to look after it holds nothing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def _cgroup_names(names: Names) -> set[str]:
    return {path.name for tree in CGROUP_TREES for path in tree.glob(f"{names.bridge}-*")}
