"""What playbooks, units and controller promise each other, as far as no host is needed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_deploy import prospect, release, removal, rollout
from qwen_deploy.steps import Run
from tests.fakes import (
    FakeConverge,
    FakeHost,
    FakeSession,
    release_of,
    wanted_of,
)

ROOT = Path(__file__).parents[2]
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))
ROLES = sorted((ROOT / "playbooks" / "roles").iterdir())
# Variables of a play that are no role's.
OF_PLAYS = {"qwen_become", "qwen_stages"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def options(role: Path) -> dict[str, dict[str, Any]]:
    """Every public variable of a role, over all its entry points."""
    specs = read(role / "meta" / "argument_specs.yml")["argument_specs"]
    return {name: option for spec in specs.values() for name, option in spec["options"].items()}


def tasks(role: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((role / "tasks").glob("*.yml")):
        yield from read(path)


def name_of(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("role", ROLES, ids=name_of)
def test_defaults_are_those_of_the_argument_specs(role: Path) -> None:
    main = read(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    documented = {name: option.get("default") for name, option in main.items()}
    assert read(role / "defaults" / "main.yml") == documented
    for name, option in options(role).items():
        assert name.startswith(f"{role.name}_")
        assert option["description"].endswith(".")
        assert option.get("required", False) is ("default" not in option)


@pytest.mark.parametrize("role", ROLES, ids=name_of)
def test_every_variable_that_a_role_uses_is_documented(role: Path) -> None:
    files = [*(role / "tasks").glob("*.yml"), *(role / "templates").glob("*")]
    text = "\n".join(re.sub(r"^ *#.*", "", path.read_text()) for path in files)
    used = set(re.findall(rf"(?<![\w.]){role.name}_\w+", text)) - {f"{role.name}_"}
    assert used == options(role).keys()


@pytest.mark.parametrize("role", ROLES, ids=name_of)
def test_tasks_are_sentences_in_the_imperative(role: Path) -> None:
    for task in tasks(role):
        assert re.fullmatch(r"[A-Z][a-z]+ ?[^{}]*[^.{}]|[A-Z][a-z]+", task["name"]), task["name"]
        assert not {"ignore_errors", "set_fact", "ansible.builtin.shell"} & task.keys()


@pytest.mark.parametrize("path", PLAYBOOKS, ids=name_of)
def test_a_playbook_leaves_order_and_health_to_the_controller(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 25
    for play in read(path):
        assert not {"serial", "max_fail_percentage", "any_errors_fatal", "strategy"} & play.keys()
        assert play["gather_facts"] is False


class Recorded:
    """The variables that the controller gives to each playbook."""

    def __init__(self, folder: Path) -> None:
        self.host = FakeHost(wanted_of())
        self.host.has_weights()
        self.converge = FakeConverge(self.host)

    def variables(self) -> dict[str, set[str]]:
        session = FakeSession(self.host)
        run = Run(self.converge, lambda event: None, "anna@laptop")
        rollout.up(prospect.look(session, self.host.wanted), self.host.wanted, run)
        given = {"up.yml": set(self.converge.variables)}
        self.host.has_proven("r-0badcafe")
        rollout.rollback(session, run, None)
        given["rollback.yml"] = set(self.converge.variables)
        removal.down(session, run, purge=True)
        given["down.yml"] = set(self.converge.variables)
        return given


def test_the_controller_gives_documented_variables_only(tmp_path: Path) -> None:
    documented = {name for role in ROLES for name in options(role)} | OF_PLAYS
    for playbook, given in Recorded(tmp_path).variables().items():
        assert given <= documented, playbook


def test_up_is_given_everything_that_is_required(tmp_path: Path) -> None:
    specs = [read(role / "meta" / "argument_specs.yml")["argument_specs"] for role in ROLES]
    required = {
        name
        for spec in specs
        for name, option in spec["main"]["options"].items()
        if option.get("required")
    }
    assert required <= Recorded(tmp_path).variables()["up.yml"]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with a program and folders that this machine has, and else as they are."""
    made = release_of()
    for name, installed in release.INSTALLED.items():
        target = tmp_path / Path(installed).relative_to("/etc/systemd/system")
        target.parent.mkdir(exist_ok=True)
        text = made.files[name].decode()
        target.write_text(re.sub(r"(?<==)/opt/qwen-deploy/\S*/python", "/usr/bin/env", text))
    return tmp_path


def analyze(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "NO_COLOR": "1"}
    command = ["systemd-analyze", *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_systemd_has_nothing_to_say_about_the_units(units: Path) -> None:
    done = analyze("verify", "--man=no", units / "qwen.service", units / "qwen.socket")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_rates_the_sandbox_as_tight(units: Path) -> None:
    done = analyze("security", "--offline=true", "--threshold=25", units / "qwen.service")
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_the_unit_does_not_vary() -> None:
    """What varies lies in the release, so that an unchanged unit needs no reload."""
    one, other = release_of(), release_of(service={"port": 9000, "max_batch": 2})
    for name in ("units/qwen.service", "units/qwen.socket"):
        assert one.files[name] == other.files[name] == (ROOT / "systemd" / name[6:]).read_bytes()
