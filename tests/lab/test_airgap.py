"""A host with no route anywhere but to the operator, brought up from one file.

The packets it sends to anybody else are counted, and refused, by the kernel of the host.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import pip_settings
from tests.fixture_model.dialogues import answer_to
from tests.lab import Host, Lab, service
from tests.lab.controller import Controller, configuration
from tests.lab.shell import run

pytestmark = pytest.mark.lab

HELLO = "你好"
BUNDLE = "qwen.tar"
STRANGER = "192.0.2.1"  # nobody has this address (RFC 5737)
# Neighbors, routers and multicast groups are sought on the link by every host that has IPv6.
LINK_ONLY = "ff02::/16"


@pytest.fixture
def controller(lab: Lab, host: Host, tmp_path: Path) -> Controller:
    """Its configuration says nothing of pip, so that pip's own on this machine holds."""
    controller = Controller(lab, tmp_path / "operator")
    sections = configuration(host)
    del sections["pip"]
    (controller.folder / "qwen-deploy.yml").write_text(yaml.safe_dump(sections))
    settings = controller.folder / "pip.conf"
    settings.write_text(pip_settings.load().configuration())
    controller.environment["PIP_CONFIG_FILE"] = str(settings)
    return controller


@contextmanager
def strangers_counted(host: Host) -> Iterator[Callable[[], int]]:
    """How many packets the host tried to send to anybody but the operator."""
    operator = host.run("ip -4 route show default").stdout.split()[2]
    rules = {
        "iptables": ("!", "-d", operator, "-o", "host0", "-j", "REJECT"),
        "ip6tables": ("!", "-d", LINK_ONLY, "-o", "host0", "-j", "REJECT"),
    }
    inside = ("nsenter", "--target", str(host.machine_leader_pid), "--net")
    for program, rule in rules.items():
        run(*inside, program, "-w", "-I", "OUTPUT", *rule)

    def count() -> int:
        lines = [
            run(*inside, program, "-w", "-nvxL", "OUTPUT").splitlines()[2] for program in rules
        ]
        assert all("REJECT" in line for line in lines)
        return sum(int(line.split()[0]) for line in lines)

    try:
        yield count
    finally:
        for program, rule in rules.items():
            run(*inside, program, "-w", "-D", "OUTPUT", *rule)


def finished(events: list[dict[str, Any]]) -> dict[str, Any]:
    return next(event for event in events if event["event"] == "host_finished")


def test_a_bundle_brings_a_host_up_that_reaches_nobody_else(
    controller: Controller, host: Host
) -> None:
    created = controller.events("bundle", "create", BUNDLE, "--accelerator", "cpu")
    told = next(event for event in created if event["event"] == "bundle")
    assert told["bytes"] == (controller.folder / BUNDLE).stat().st_size
    host.isolate()
    with strangers_counted(host) as count:
        events = controller.events("up", "--bundle", BUNDLE, "--yes")
        assert finished(events)["outcome"] == "changed"
        key = next(str(event["key"]) for event in events if event["event"] == "key_created")
        assert service.answer(host, key, HELLO) == answer_to(HELLO)
        again = controller.events("up", "--bundle", BUNDLE, "--yes")
        assert finished(again)["outcome"] == "unchanged"
        assert count() == 0
        host.run(["curl", "--max-time", "5", f"http://{STRANGER}/"], check=False)
        assert count() > 0, "the counter counts"
    assert host.run(["dpkg-query", "-W", "git"], check=False).returncode != 0
    assert host.exists("/var/lib/qwen-deploy/models/qwen-deploy--wheels")

    host.join()
    controller.configure(host)
    without = controller.events("up", "--yes")
    assert finished(without)["release"] == finished(events)["release"]
    assert host.run(["git", "lfs", "version"]).returncode == 0


def test_a_bundle_that_was_cut_short_reaches_no_host(controller: Controller, host: Host) -> None:
    controller.run("bundle", "create", BUNDLE, "--accelerator", "cpu")
    path = controller.folder / BUNDLE
    controller.run("bundle", "verify", BUNDLE)
    os.truncate(path, path.stat().st_size // 2)
    done = controller.run("up", "--bundle", BUNDLE, "--yes", expect=2)
    assert f"{BUNDLE} is cut short" in done.stderr
    assert "hint: Copy it again" in done.stderr
    assert not host.exists("/opt/qwen-deploy")
