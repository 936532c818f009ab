"""A lab: some bare hosts on a network of their own, and an operator who may log in to them.

Owns their beginning and their end, one lab per checkout at a time. Does not know the product.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tests import pip_settings
from tests.lab import base, network, surroundings
from tests.lab.host import Host, Site
from tests.lab.names import CHECKOUT, Names, of_checkout
from tests.lab.operator import Operator
from tests.lab.shell import LabError, check_requirements, run, wait_until
from tests.lab.sweep import sweep

WAIT_FOR_SWEEP_SECONDS = 60
KEEP = b"keep"  # what tests.lab.watch understands


class Lab:
    def __init__(self, count: int, *, keep: bool = False) -> None:
        self.hosts: tuple[Host, ...] = ()
        self.keep = keep
        self._count = count
        self._names = of_checkout()
        self.directory = self._names.directory / "scratch"
        self.ssh_key = self._names.directory / "id_ed25519"
        self.known_hosts = self._names.directory / "known_hosts"
        self.environment: dict[str, str] = {}
        self._gateway = ""
        self._lock: IO[str] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        check_requirements()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def gateway(self) -> str:
        """The operator's address on the lab's network."""
        return self._gateway

    def reset(self, *hosts: Host) -> None:
        """Back to bare hosts, at the same time."""
        with ThreadPoolExecutor(max(1, len(hosts))) as pool:
            list(pool.map(Host.reset, hosts))

    def pristine(self, count: int) -> tuple[Host, ...]:
        """The first hosts, made bare again where somebody had them before."""
        chosen = self.hosts[:count]
        self.reset(*(host for host in chosen if not host.is_pristine))
        for host in chosen:
            host.is_pristine = False
        return chosen

    def make_environment(
        self, name: str, *, known_hosts: bool = True, key: bool = True
    ) -> dict[str, str]:
        """Variables for a program run by another operator, with a new home of that name."""
        operator = Operator(self.directory / name, self._names.digest)
        known = self.known_hosts.read_text() if known_hosts else ""
        operator.settle(known_hosts=known, key=self.ssh_key if key else None)
        return operator.environment

    def login_command(self, host: Host) -> str:
        """To be pasted into a terminal."""
        known_hosts = shlex.quote(f"UserKnownHostsFile={self.known_hosts}")
        return f"ssh -i {shlex.quote(str(self.ssh_key))} -o {known_hosts} root@{host.address}"

    def close(self) -> None:
        """The watch sweeps; should it have been killed, we do."""
        if self._watch and self._watch.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._watch.communicate(KEEP if self.keep else b"")
            if self._watch.returncode != 0:
                sweep(self._names)
        for host in self.hosts:
            host.let_go(is_running=self.keep)
        if self._lock:
            self._lock.close()
        self._watch = self._lock = None

    def _start(self) -> None:
        self._lock = _take_lock(self._names)
        self._watch = _start_watch(self._names, self._lock.fileno())
        sweep(self._names)
        pip = pip_settings.load()
        tree = base.load(surroundings.load(pip), self._names)
        self.directory.mkdir(parents=True)
        self._names.directory.chmod(0o700)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", self.ssh_key)
        public_key = self.ssh_key.with_suffix(".pub").read_text()
        site = Site(self._names, tree, network.make(self._names), public_key, pip)
        self._gateway = site.network.gateway
        self.hosts = tuple(Host(site, number) for number in range(1, self._count + 1))
        self.reset(*self.hosts)
        self.known_hosts.write_text("".join(host.known_hosts_line for host in self.hosts))
        self.environment = self.make_environment("home")


def _start_watch(names: Names, lock: int) -> subprocess.Popen[bytes]:
    """It outlives us and is deaf to Ctrl-C; it holds the lock as well, until it has swept."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.lab.watch", names.digest],
        stdin=subprocess.PIPE,
        cwd=CHECKOUT,
        start_new_session=True,
        pass_fds=(lock,),
    )


def remove() -> None:
    """What a lab of this checkout that was kept, or was killed with its watch, left behind."""
    names = of_checkout()
    with _take_lock(names):
        sweep(names)


def _take_lock(names: Names) -> IO[str]:
    """Held by us and, until it has swept, by our watch: a killed run's lock is soon free."""
    names.lock_path.parent.mkdir(parents=True, exist_ok=True)
    lock = names.lock_path.open("a+")

    def is_taken() -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _check_holder_is_dead(names)
            return False
        return True

    try:
        wait_until(
            is_taken, WAIT_FOR_SWEEP_SECONDS, "the sweep after an earlier lab of this checkout"
        )
    except BaseException:
        lock.close()
        raise
    lock.truncate(0)
    command = " ".join(Path(word).name for word in sys.argv[:4])
    lock.write(f"{os.getpid()} {time.strftime('%H:%M:%S')} {command}\n")
    lock.flush()
    return lock


def _check_holder_is_dead(names: Names) -> None:
    pid, _, rest = names.lock_path.read_text().strip().partition(" ")
    if pid and Path(f"/proc/{pid}").exists():
        since, _, command = rest.partition(" ")
        raise LabError(f"this checkout's lab is held by process {pid} ({command}) since {since}")
