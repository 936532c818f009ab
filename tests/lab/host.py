"""One host of the lab: look at it, change it and break it, all by a way other than SSH.

Knows what a test may do to a host. Does not know the other hosts, nor the product under test.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tests.lab import disk
from tests.lab.container import Container, explain, find_leader, log_tail
from tests.lab.names import Names, link
from tests.lab.network import Network
from tests.lab.shell import LabError, run, wait_until
from tests.lab.surroundings import CA_BUNDLE
from tests.pip_settings import PipSettings

BOOT_SECONDS = 60
UNMOUNT_SECONDS = 60
ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root")
SUDO_RIGHTS = {"password": "ALL=(ALL) ALL", "nopasswd": "ALL=(ALL) NOPASSWD: ALL"}


@dataclass(frozen=True, slots=True)
class Site:
    """What all hosts of a lab have in common."""

    names: Names
    tree: Path
    network: Network
    public_key: str
    pip: PipSettings


class Host:
    def __init__(self, site: Site, number: int) -> None:
        self.name = site.names.host(number)
        self.address = site.network.address(number)
        self.is_pristine = False
        self._site = site
        self._key_path = site.names.directory / "keys" / self.name
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._folder = site.names.directory / "hosts" / self.name
        self._disks = 0
        self._retired: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._container = Container(
            name=self.name,
            tree=site.tree,
            folder=self._folder / "0",
            bridge=site.names.bridge,
            read_only=site.pip.local_folders,
        )

    # Looking

    @property
    def machine_leader_pid(self) -> int:
        """The host's PID 1, as the machine numbers it; another one after every boot."""
        leader = find_leader(self._supervisor.pid) if self._supervisor else None
        if leader is None:
            raise LabError(f"{self.name} is not running")
        return leader

    @property
    def known_hosts_line(self) -> str:
        kind, key, *_ = self._key_path.with_suffix(".pub").read_text().split()
        return f"{self.address} {kind} {key}\n"

    def run(
        self,
        argv: str | Sequence[str],
        *,
        input: str | None = None,
        check: bool = True,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program, or a line of sh, as root inside the host."""
        command = ["sh", "-c", argv] if isinstance(argv, str) else list(argv)
        enter = ["nsenter", "--target", str(self.machine_leader_pid), "--all"]
        # Killing nsenter would leave the program inside behind, so that the limit is set there.
        limit = ["timeout", "--kill-after=1", str(timeout)]
        finished = subprocess.run(
            [*enter, "--", "env", "-i", *ENVIRONMENT, "LANG=C.UTF-8", *limit, *command],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout + 5,
        )
        if check and finished.returncode != 0:
            error = subprocess.CalledProcessError(
                finished.returncode, command, finished.stdout, finished.stderr
            )
            error.add_note(f"on {self.name}:\n{finished.stdout}{finished.stderr}")
            raise error
        return finished

    def read(self, path: str) -> str:
        return self.run(["cat", path]).stdout

    def exists(self, path: str) -> bool:
        return self.run(["test", "-e", path], check=False).returncode == 0

    def journal(self, unit: str) -> str:
        return self.run(["journalctl", "--no-pager", "--unit", unit]).stdout

    def listening_ports(self) -> frozenset[int]:
        lines = self.run(["ss", "-Hltn"]).stdout.splitlines()
        return frozenset(int(line.split()[3].rpartition(":")[2]) for line in lines)

    def evidence(self) -> str:
        """What a person would look at first after a test failed."""
        status = "systemctl status qwen --no-pager --lines=0"
        script = f"{status}; journalctl --no-pager -u qwen.service -n 40"
        try:
            return self.run(f"({script}) 2>&1", check=False).stdout
        except LabError as error:
            return f"{error}\n{log_tail(self._container.console_path)}"

    # Changing

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        self.run(["install", "-D", f"--mode={mode:o}", "/dev/stdin", path], input=text)

    def add_user(
        self,
        name: str,
        *,
        password: str | None = None,
        sudo: Literal["none", "password", "nopasswd"] = "none",
        key: bool = True,
    ) -> None:
        self.run(["useradd", "--create-home", "--shell", "/bin/bash", name])
        if password is not None:
            self.run(["chpasswd"], input=f"{name}:{password}\n")
        if sudo != "none":
            self.put(f"/etc/sudoers.d/{name}", f"{name} {SUDO_RIGHTS[sudo]}\n", 0o440)
        if key:
            folder = f"/home/{name}/.ssh"
            self.run(["install", "-d", "-m", "700", "-o", name, "-g", name, folder])
            self.put(f"{folder}/authorized_keys", self._site.public_key, 0o600)
            self.run(["chown", f"{name}:{name}", f"{folder}/authorized_keys"])

    # Power

    def boot(self) -> None:
        """Start on the disk as it is, and wait until SSH answers and users may log in."""
        if self._supervisor and self._supervisor.poll() is None:
            raise LabError(f"{self.name} is running already")
        self._supervisor = self._container.start()
        self._wait_for_ssh()

    def reboot(self) -> None:
        before = self.machine_leader_pid
        self.run(["systemctl", "reboot"], check=False)
        wait_until(lambda: self._has_leader_other_than(before), 90, f"{self.name}: reboot")
        self._wait_for_ssh()

    def power_loss(self) -> None:
        """Off at once. What the host had written, flushed or not, stays: the page cache is ours."""
        if self._supervisor:
            self._container.cut_power(self._supervisor)
            self._supervisor.wait(UNMOUNT_SECONDS)
            self._supervisor = None

    def reset(self) -> None:
        """A bare host on an empty disk, with the same name, address and SSH host key."""
        self._retire()
        self._site.network.join(self.address)
        self._disks += 1
        self._container = replace(self._container, folder=self._folder / str(self._disks))
        self._container.format_disk(self._files())
        self.boot()
        self._wait_until_settled()
        self.is_pristine = True

    def let_go(self, *, is_running: bool) -> None:
        """The lab is at its end: the sweep ended our supervisors, or the host shall go on."""
        for supervisor in (self._supervisor, *(old for old, _ in self._retired)):
            if supervisor and is_running:
                supervisor.returncode = 0  # Or Python warns of a child that nobody waited for.
            elif supervisor:
                supervisor.wait(UNMOUNT_SECONDS)

    def _retire(self) -> None:
        """Unmounting a disk that was much written to takes seconds: nobody waits for it."""
        if self._supervisor:
            self._container.cut_power(self._supervisor)
            self._retired.append((self._supervisor, self._container.folder))
            self._supervisor = None
        for retired in [pair for pair in self._retired if pair[0].poll() is not None]:
            shutil.rmtree(retired[1])
            self._retired.remove(retired)

    def _has_leader_other_than(self, before: int) -> bool:
        if self._supervisor is None or self._supervisor.poll() is not None:
            raise explain(self._container)
        return find_leader(self._supervisor.pid) not in (None, before)

    def _wait_for_ssh(self) -> None:
        wait_until(self._answers_ssh, BOOT_SECONDS, f"{self.name}: SSH answers")

    def _answers_ssh(self) -> bool:
        if self._supervisor is None or self._supervisor.poll() is not None:
            raise explain(self._container)
        try:
            with socket.create_connection((self.address, 22), timeout=1) as connection:
                greeting = connection.recv(4)
        except OSError:
            return False
        return greeting == b"SSH-" and not self.exists("/run/nologin")

    def _wait_until_settled(self) -> None:
        def is_settled() -> bool:
            return self.run(["systemctl", "is-system-running"], check=False).returncode == 0

        wait_until(is_settled, BOOT_SECONDS, f"{self.name}: `systemctl is-system-running`")

    # Faults

    def cut_cable(self) -> None:
        run("ip", "link", "set", link(self.name), "down")

    def plug_cable(self) -> None:
        run("ip", "link", "set", link(self.name), "up")

    def slow_link(self, rate: str = "100mbit", latency: str = "50ms") -> None:
        """Both ways. latency bounds the time that a packet queues for; it is not a distance."""
        for place in self._ends_of_cable():
            shape = ("tbf", "rate", rate, "burst", "64k", "latency", latency)
            run(*place[:-1], "tc", "qdisc", "replace", "dev", place[-1], "root", *shape)

    def normal_link(self) -> None:
        for place in self._ends_of_cable():
            run(*place[:-1], "tc", "qdisc", "delete", "dev", place[-1], "root")

    def isolate(self) -> None:
        """No route but to the operator and to the lab's other hosts."""
        self._site.network.isolate(self.address)

    def join(self) -> None:
        self._site.network.join(self.address)

    def new_host_key(self) -> None:
        """Another SSH host key than the operator knows, as after a reinstallation."""
        key = disk.HOST_KEY
        script = f"rm -f {key}* && ssh-keygen -q -t ed25519 -N '' -f {key}"
        self.run(f"{script} && systemctl restart ssh")
        self._wait_for_ssh()

    @contextmanager
    def small_disk(self, path: str, size_bytes: int) -> Iterator[None]:
        """A file system of that size on that path, until the end of the block."""
        is_new = not self.exists(path)
        self.run(["mkdir", "-p", path])
        self.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=755", "tmpfs", path])
        try:
            yield
        finally:
            self.run(["umount", "--lazy", path], check=False)
            if is_new:
                self.run(["rmdir", "--ignore-fail-on-non-empty", path], check=False)

    def _ends_of_cable(self) -> tuple[tuple[str, ...], ...]:
        inside = ("nsenter", "--target", str(self.machine_leader_pid), "--net")
        return ((link(self.name),), (*inside, "host0"))

    def _files(self) -> dict[str, tuple[str, int]]:
        disk.make_host_key(self._key_path, self.name)
        return {
            **disk.identity(self.name, self._key_path),
            **disk.connection(self._site.network, self.address),
            "/etc/pip.conf": (self._pip_settings().configuration(), 0o644),
            "/root/.ssh/authorized_keys": (self._site.public_key, 0o600),
        }

    def _pip_settings(self) -> PipSettings:
        """The machine's, but with the host's own bundle, where the machine's certificates are."""
        pip = self._site.pip
        return replace(pip, ca_file=CA_BUNDLE if pip.ca_file else None)
