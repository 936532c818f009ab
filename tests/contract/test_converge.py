"""One playbook run through the real ansible-runner, on this machine behind a real sshd."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_deploy import openssh
from qwen_deploy.converge import Converge, Converged, Target
from qwen_deploy.events import Event, TaskDone, TaskStarted
from qwen_deploy.inventory import Host
from qwen_deploy.openssh import SshSettings
from tests.sshd import Sshd, running_sshd
from tests.wire import refusing_port

pytestmark = pytest.mark.contract

PLAYBOOKS = sorted((Path(__file__).parents[2] / "playbooks").glob("*.yml"))
SECRET, PASSWORD = "correct horse battery staple", "a sudo password"
HEAD = "- hosts: all\n  become: '{{ qwen_become }}'\n  gather_facts: false\n  tasks:\n"


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def target(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setenv("HOME", str(sshd.make_home(tmp_path / "home")))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    settings = SshSettings(key_file=sshd.key_path)
    return Target(
        host=Host("gpu-1", "127.0.0.1", "root", sshd.port),
        user="root",
        key_file=settings.key_file,
        ssh_arguments=openssh.arguments(settings),
        become=False,
        sudo_password=None,
    )


class Runs:
    """Runs playbooks of one test and keeps their events."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.events: list[Event] = []
        self._playbook = folder / "playbook.yml"

    def apply(self, tasks: str, variables: dict[str, Any], **more: Any) -> Converged:
        self._playbook.write_text(HEAD + tasks)
        converge = Converge(self.target, self.events.append)
        return converge.apply(str(self._playbook), variables, **more)

    @property
    def done(self) -> list[tuple[str, str]]:
        return [(one.task, one.outcome) for one in self.events if isinstance(one, TaskDone)]


@pytest.fixture
def runs(target: Target, tmp_path: Path) -> Runs:
    return Runs(target, tmp_path)


CHANGES = """
    - name: Say something
      ansible.builtin.debug: {msg: x}
    - name: Write a file
      ansible.builtin.copy: {content: "{{ text }}", dest: "{{ place }}", mode: "0600"}
    - name: Do nothing
      ansible.builtin.debug: {msg: x}
      when: false
    - name: Fail and be forgiven
      ansible.builtin.command: {argv: ["false"]}
      ignore_errors: true
"""


def test_tasks_become_events_and_changes_are_counted(runs: Runs, tmp_path: Path) -> None:
    variables = {"text": "你好", "place": str(tmp_path / "written")}
    assert runs.apply(CHANGES, variables) == Converged("done", 1)
    assert (tmp_path / "written").read_text() == "你好"
    assert runs.done == [
        ("Say something", "ok"),
        ("Write a file", "changed"),
        ("Do nothing", "skipped"),
    ]
    started = [event for event in runs.events if isinstance(event, TaskStarted)]
    assert started[0] == TaskStarted("gpu-1", "playbook", "Say something")
    assert {event.host for event in runs.events} == {"gpu-1"}


FAILS = """
    - name: Run a program
      ansible.builtin.command: {argv: [sh, -c, "echo out; echo why it failed >&2; exit 3"]}
    - name: Never come here
      ansible.builtin.debug: {msg: x}
"""


def test_a_failed_task_is_told_in_the_programs_own_words(runs: Runs) -> None:
    assert runs.apply(FAILS, {}) == Converged("failed", 0, "Run a program", "why it failed")
    assert runs.done == [("Run a program", "failed")]


FAILS_IN_LOOP = """
    - name: Look at each
      ansible.builtin.command: {argv: [sh, -c, "{{ item }}"]}
      loop: ["true", "echo first >&2; false", "echo second >&2; false"]
      changed_when: false
"""


def test_of_a_loop_those_that_failed_are_told(runs: Runs) -> None:
    done = runs.apply(FAILS_IN_LOOP, {})
    assert done == Converged("failed", 0, "Look at each", "first\nsecond")


def test_a_play_that_ansible_cannot_read_is_told_in_its_words(runs: Runs) -> None:
    done = runs.apply("    - name: Do what nobody knows\n      no_such_module: {}\n", {})
    assert (done.status, done.task) == ("failed", "")
    assert "no_such_module" in done.message


def test_a_host_that_cannot_be_reached_is_no_failed_task(target: Target, tmp_path: Path) -> None:
    port = refusing_port()
    gone = Host("gpu-1", "127.0.0.1", "root", port)
    runs = Runs(replace(target, host=gone), tmp_path)
    done = runs.apply(FAILS, {})
    assert (done.status, done.task) == ("unreachable", "Run a program")
    assert "Connection refused" in done.message


def test_a_host_whose_key_is_unknown_is_not_reached(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "home/.ssh/known_hosts").write_text("")
    done = runs.apply(FAILS, {})
    assert done.status == "unreachable"
    assert "Host key verification failed" in done.message


WAITS = """
    - name: Wait for long
      ansible.builtin.command: {argv: [sleep, "600"]}
"""


def test_a_canceled_run_ends_soon_and_leaves_no_process(runs: Runs) -> None:
    began = time.monotonic()
    done = runs.apply(WAITS, {}, is_canceled=lambda: bool(runs.events))
    assert (done.status, done.task) == ("canceled", "Wait for long")
    assert time.monotonic() - began < 60, "and not with the task, ten minutes later"
    port = f"Port={runs.target.host.port}"
    while any(port in text for text in texts(Path("/proc").glob("[0-9]*/cmdline")).values()):
        assert time.monotonic() - began < 60
        time.sleep(0.05)


@pytest.fixture
def leave() -> Iterator[Callable[[str], Path]]:
    """Makes a run's folder of that name, with a secret in it."""
    left: list[Path] = []

    def make(name: str) -> Path:
        left.append(Path("/tmp", name))
        (left[-1] / "run").mkdir(parents=True)
        (left[-1] / "run/operator.key").write_text(SECRET)
        return left[-1]

    yield make
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


SPEAKS = """
    - name: Say something
      ansible.builtin.debug: {msg: x}
"""


def test_what_a_killed_run_left_behind_is_removed(runs: Runs, leave: Callable[[str], Path]) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    uid = os.getuid()
    dead = leave(f"qd-{uid}-{ended.pid}-1")
    kept = [
        leave(f"qd-{uid}-{os.getpid()}-of-a-run-that-lasts"),
        leave(f"qd-{uid + 1}-{ended.pid}-of-somebody-else"),
        leave(f"qd-{uid}-lab-1"),
    ]
    assert runs.apply(SPEAKS, {}).status == "done"
    assert not dead.exists()
    assert [path for path in kept if not (path / "run/operator.key").exists()] == []


# Says where the run's own folder is, and who may read what in it.
TELLS = """
    - name: Copy the secret
      ansible.builtin.copy: {src: "{{ secret }}", dest: "{{ place }}/secret", mode: "0600"}
      no_log: true
    - name: Look around
      ansible.builtin.command:
        argv: [find, "{{ secret | dirname | dirname }}", -printf, "%m %y %p\\n"]
      changed_when: false
      register: found
    - name: Tell
      ansible.builtin.copy: {content: "{{ found.stdout }}", dest: "{{ place }}/found", mode: "0600"}
    - name: Fail with the secret
      ansible.builtin.command: {argv: [cat, /nowhere, "{{ secret }}"]}
      no_log: true
"""


def test_a_secret_is_a_private_file_and_nothing_else(target: Target, tmp_path: Path) -> None:
    runs = Runs(replace(target, sudo_password=PASSWORD), tmp_path)
    files: dict[str, str] = {}
    processes: list[str] = []

    def look() -> bool:
        """Called while the run lasts."""
        for folder in Path("/tmp").glob("qd-*"):
            if (folder / "run" / "secret-of-this-test").exists():
                files.update(texts(folder.rglob("*")))
                processes.extend(texts(Path("/proc").glob("[0-9]*/cmdline")).values())
                processes.extend(texts(Path("/proc").glob("[0-9]*/environ")).values())
        return False

    done = runs.apply(
        TELLS,
        {"secret": "{run}/secret-of-this-test", "place": str(tmp_path)},
        files={"secret-of-this-test": SECRET.encode()},
        is_canceled=look,
    )
    assert (done.status, done.task) == ("failed", "Fail with the secret")
    assert "no_log" in done.message
    assert (tmp_path / "secret").read_text() == SECRET
    found = [line.split(" ", 2) for line in (tmp_path / "found").read_text().splitlines()]
    root = found[0][2]
    assert found[0] == ["700", "d", root]
    secrets = {f"{root}/run/secret-of-this-test", f"{root}/sudo-password"}
    assert secrets == {path for mode, kind, path in found if mode == "600" and path in secrets}
    assert not os.path.exists(root)
    holders = {path for path, text in files.items() if SECRET in text or PASSWORD in text}
    assert holders == secrets
    assert any("ANSIBLE_BECOME_PASSWORD_FILE" in text for text in processes)
    for secret in (SECRET, PASSWORD):
        assert not any(secret in text for text in processes)
        assert secret not in repr((runs.events, done))


def texts(paths: Iterable[Path]) -> dict[str, str]:
    """What can be read at this moment; some vanish while one looks."""
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_file():
                found[str(path)] = path.read_text(errors="replace")
    return found


def test_every_playbook_can_be_parsed(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "ansible-playbook"
    done = subprocess.run(
        [program, "--syntax-check", "-i", "host,", *PLAYBOOKS],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(PLAYBOOKS[0].parent / "ansible.cfg"),
            "ANSIBLE_HOME": str(tmp_path),
            "LC_ALL": "C.UTF-8",
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("playbook: ") == len(PLAYBOOKS)
