"""However a lab ends, nothing of it stays, and it touches no other: seen on a copy's lab."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Lab, LabError
from tests.lab.container import CGROUP_TREES
from tests.lab.names import CHECKOUT, Names, of_checkout
from tests.lab.shell import run, wait_until

pytestmark = pytest.mark.lab
SWEEP_SECONDS = 30


@dataclass(frozen=True, slots=True)
class OtherLab:
    checkout: Path
    process: subprocess.Popen[str]
    description: dict[str, Any]

    @property
    def names(self) -> Names:
        return of_checkout(self.checkout)


Start = Callable[[], OtherLab]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the lab of a copy of this checkout, again and again if asked."""
    checkout = tmp_path / "checkout"
    shutil.copytree(CHECKOUT / "tests" / "lab", checkout / "tests" / "lab")
    for name in ("__init__.py", "pip_settings.py"):
        shutil.copy(CHECKOUT / "tests" / name, checkout / "tests" / name)
    started: list[subprocess.Popen[str]] = []

    def start_one() -> OtherLab:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.lab", "1", "--json"],
            cwd=checkout,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout
        return OtherLab(checkout, process, json.loads(process.stdout.readline()))

    yield start_one
    for process in started:
        process.kill()
        process.communicate()
    names = of_checkout(checkout)
    wait_until(lambda: not traces(names), SWEEP_SECONDS, "swept")


def traces(names: Names) -> list[str]:
    """All that a machine shows of a lab, read in other ways than the sweep does."""
    processes = run("ps", "-e", "-o", "pid,stat,args").splitlines()
    rules = [*run("iptables-save").splitlines(), *run("ip", "-o", "link").splitlines()]
    mounts = [*run("losetup", "--all").splitlines(), *run("mount").splitlines()]
    found = [
        line for line in (*processes, *rules, *mounts) if names.digest in line and " Z" not in line
    ]
    folders = [path for tree in CGROUP_TREES for path in tree.glob(f"{names.bridge}-*")]
    return found + [str(path) for path in (*folders, names.directory) if path.exists()]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_however_the_lab_ends(start: Start, ending: signal.Signals) -> None:
    other = start()
    assert traces(other.names)
    other.process.send_signal(ending)
    other.process.wait(SWEEP_SECONDS)
    wait_until(lambda: not traces(other.names), SWEEP_SECONDS, "nothing left")


def test_ctrl_c_pressed_twice_leaves_nothing(start: Start) -> None:
    other = start()
    other.process.send_signal(signal.SIGINT)
    other.process.send_signal(signal.SIGINT)
    other.process.wait(SWEEP_SECONDS)
    wait_until(lambda: not traces(other.names), SWEEP_SECONDS, "nothing left")


def test_programs_that_a_killed_run_had_started_end_with_it(start: Start) -> None:
    other = start()
    environment = {**os.environ, "QWEN_LAB": other.names.digest}
    orphan = subprocess.Popen(["sleep", "1000"], env=environment)
    other.process.kill()
    assert orphan.wait(SWEEP_SECONDS) == -signal.SIGKILL


def test_a_new_start_removes_what_a_run_killed_with_its_watch_left(start: Start) -> None:
    other = start()
    for pid in _watches(other.names):
        os.kill(pid, signal.SIGKILL)
    other.process.kill()
    other.process.wait()
    first = [host["name"] for host in other.description["hosts"]]
    assert traces(other.names)
    again = start()
    assert [host["name"] for host in again.description["hosts"]] == first
    again.process.terminate()
    assert again.process.wait(SWEEP_SECONDS) == 0
    assert not traces(again.names)


def _watches(names: Names) -> list[int]:
    lines = run("ps", "-e", "-o", "pid,args").splitlines()
    return [int(line.split()[0]) for line in lines if f"tests.lab.watch {names.digest}" in line]


def test_a_second_lab_of_one_checkout_is_refused_and_harms_nothing(lab: Lab) -> None:
    with pytest.raises(LabError, match=f"held by process {os.getpid()}"):
        Lab(1).__enter__()
    assert lab.hosts[0].run("true").returncode == 0


def test_labs_of_two_checkouts_live_side_by_side(lab: Lab, start: Start) -> None:
    other = start()
    addresses = {host["address"] for host in other.description["hosts"]}
    assert addresses.isdisjoint(host.address for host in lab.hosts)
    other.process.terminate()
    other.process.wait(SWEEP_SECONDS)
    # Packets of this lab are still forwarded, with the other one gone.
    server = lab.hosts[0].read("/etc/resolv.conf").split()[1]
    probe = f"import socket; socket.create_connection(('{server}', 53), 5)"
    assert lab.hosts[0].run(["python3", "-c", probe]).returncode == 0


def test_other_peoples_rules_stay(start: Start) -> None:
    rule = ("FORWARD", "-s", "192.0.2.77/32", "-m", "comment", "--comment", "mine", "-j", "ACCEPT")
    run("iptables", "-w", "-A", *rule)
    try:
        other = start()
        other.process.terminate()
        other.process.wait(SWEEP_SECONDS)
        run("iptables", "-w", "-C", *rule)
    finally:
        run("iptables", "-w", "-D", *rule)
