"""Hosts and weights that no release may go to: refused with the cause, the state and one step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixture_model import sharded_model
from tests.lab import Host, Lab
from tests.lab.controller import Controller

pytestmark = pytest.mark.lab

# A line of a .pth file, which every start of the host's Python obeys.
OLD_PYTHON = (
    "import sys, collections; sys.version_info = collections.namedtuple("
    "'version', 'major minor micro releaselevel serial')(3, 9, 2, 'final', 0)\n"
)


@pytest.fixture
def controller(lab: Lab, host: Host, tmp_path: Path) -> Controller:
    controller = Controller(lab, tmp_path / "operator")
    controller.configure(host)
    return controller


def assert_refused(controller: Controller, host: Host, *sentences: str) -> None:
    done = controller.run("up", "--yes", expect=3)
    for sentence in sentences:
        assert sentence in done.stderr
    assert f"{host.address} was not changed" in done.stderr
    assert done.stderr.count("hint: ") == 1
    assert not host.exists("/opt/qwen-deploy/releases")


def test_a_taken_port_is_told_with_the_process(controller: Controller, host: Host) -> None:
    taken = host.run(
        "setsid python3 -m http.server 8000 >/dev/null 2>&1 & echo $!; "
        "for i in $(seq 100); do ss -Hltn | grep -q :8000 && break; sleep 0.1; done"
    ).stdout.strip()
    assert_refused(controller, host, f"port 8000 is taken by `python3` (pid {taken}")


@pytest.mark.parametrize("place", ["/opt/qwen-deploy", "/var/lib/qwen-deploy"])
def test_a_small_disk_is_told_with_its_mount(
    controller: Controller, host: Host, place: str
) -> None:
    host.run(["mkdir", "-p", place])
    with host.small_disk(place, 100 << 20):
        assert_refused(controller, host, f"the disk at {place} is too small", "105 MB are free")


def test_a_system_without_apt_is_told(controller: Controller, host: Host) -> None:
    host.run("mv /usr/bin/apt-get /usr/bin/apt-get.away")
    host.run("sed -i 's/^PRETTY_NAME=.*/PRETTY_NAME=\"Fedora 41\"/' /usr/lib/os-release")
    assert_refused(controller, host, "Fedora 41 is not supported: it has no apt")


def test_a_host_without_systemd_is_told(controller: Controller, host: Host) -> None:
    host.run("mv /run/systemd/system /run/systemd/away")
    assert_refused(controller, host, "does not run systemd")


def test_an_old_python_is_told(controller: Controller, host: Host) -> None:
    host.put("/usr/lib/python3/dist-packages/old.pth", OLD_PYTHON)
    assert_refused(controller, host, "`python3` is Python 3.9: 3.11 or newer is needed")


def test_a_missing_python_is_told(controller: Controller, host: Host) -> None:
    host.run("mv /usr/bin/python3 /usr/bin/python3.away")
    assert_refused(controller, host, "has no python3")


def _without_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "config.json"


def _truncated(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1000])
    return shard.name


def _altered(folder: Path) -> str:
    import hashlib

    shard = sorted(folder.glob("*.safetensors"))[0]
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  {shard.name}\n")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    return shard.name


def _one_missing(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.unlink()
    return shard.name


@pytest.mark.parametrize("spoil", [_without_config, _truncated, _altered, _one_missing])
def test_weights_that_are_not_whole_are_told_by_file(
    controller: Controller, host: Host, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    folder = Path(shutil.copytree(sharded_model(tmp_path / "whole"), tmp_path / "spoilt"))
    name = spoil(folder)
    done = controller.run("up", "--yes", "--weights", str(folder), expect=2)
    assert name in done.stderr
    assert not host.exists("/opt/qwen-deploy")


def test_missing_weights_are_told(controller: Controller, host: Host) -> None:
    done = controller.run("up", "--yes", "--weights", "./nowhere", expect=2)
    assert "nowhere does not exist" in done.stderr


def test_a_plan_without_agreement_changes_nothing(controller: Controller, host: Host) -> None:
    done = controller.run("up", expect=3)
    assert "nothing was changed: nobody agreed" in done.stderr
    plan = controller.events("up", expect=3)[0]
    assert [step["stage"] for step in plan["steps"]] == [
        *("host", "host", "runtime", "runtime", "weights", "service", "keys")
    ]
    assert not host.exists("/opt/qwen-deploy")
