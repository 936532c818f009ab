"""One playbook run on one host. The only module that imports ansible_runner.

Each run has a private directory of its own, removed afterwards: the library writes variables
there and would obey files left from an earlier run. Knows not what comes before or after.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwen_deploy import bundle
from qwen_deploy.events import Event, TaskDone, TaskOutcome, TaskStarted
from qwen_deploy.inventory import Host

RUNS_DIR = Path("/tmp")
# Root's, and gone after a reboot like the jobs themselves.
ASYNC_DIR = "/run/qwen-deploy-async"
# How often the library asks whether to go on.
CANCEL_SECONDS = 1
Status = Literal["done", "failed", "unreachable", "canceled"]

_OUTCOMES: Mapping[str, TaskOutcome] = {
    "runner_on_ok": "ok",
    "runner_on_skipped": "skipped",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "failed",
}


@dataclass(frozen=True, slots=True)
class Target:
    """How Ansible reaches a host: arguments for the `ssh` program, and the sudo password."""

    host: Host
    user: str | None
    key_file: Path | None
    ssh_arguments: str
    become: bool
    sudo_password: str | None


@dataclass(frozen=True, slots=True)
class Converged:
    status: Status
    changed: int
    task: str = ""
    message: str = ""


@dataclass(slots=True)
class _Progress:
    """What the events of a run add up to."""

    host: str
    emit: Callable[[Event], None]
    changed: int = 0
    task: str = ""
    failure: tuple[str, str] = ("", "")
    unreachable: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def handle(self, event: Mapping[str, Any]) -> bool:
        """Returns False, so that the library does not store the event."""
        content = event.get("event_data", {})
        name, kind = content.get("task", ""), event["event"]
        stage = content.get("role", "").removeprefix("qwen_") or "playbook"
        if kind == "runner_on_start":
            self.task = name
            self.emit(TaskStarted(self.host, stage, name))
        elif kind in _OUTCOMES and not (
            kind == "runner_on_failed" and content.get("ignore_errors")
        ):
            self._done(kind, stage, name, content)
        return False

    def _done(self, kind: str, stage: str, name: str, content: Mapping[str, Any]) -> None:
        result = content.get("res") or {}
        outcome = _OUTCOMES[kind]
        if outcome == "ok" and result.get("changed"):
            outcome = "changed"
            self.changed += 1
        if outcome == "failed":
            self.failure = (name, _message(result))
            self.unreachable = kind == "runner_on_unreachable"
        seconds = float(content.get("duration") or 0)
        self.emit(TaskDone(self.host, stage, name, outcome, seconds))


def _message(result: Mapping[str, Any]) -> str:
    """The program's own words where it has any, else Ansible's; of a loop, those that failed."""
    items = [_message(item) for item in result.get("results", ()) if item.get("failed")]
    if items:
        return "\n".join(items)
    places = ("stderr", "module_stderr", "msg", "stdout", "censored")
    return str(next((result[place] for place in places if result.get(place)), "")).strip()


class Converge:
    """Runs playbooks on one target. `secrets` are files for the run, by name, never variables."""

    def __init__(self, target: Target, emit: Callable[[Event], None]) -> None:
        self._target = target
        self._emit = emit

    def apply(
        self,
        playbook: str,
        variables: Mapping[str, Any],
        *,
        files: Mapping[str, bytes] | None = None,
        is_canceled: Callable[[], bool] = lambda: False,
    ) -> Converged:
        """`{run}` in a variable's text stands for the directory that holds `files`."""
        import ansible_runner

        progress = _Progress(self._target.host.name, self._emit)
        with _private_directory(files or {}) as directory:
            run = ansible_runner.run(
                private_data_dir=str(directory),
                playbook=str(bundle.playbooks_dir() / playbook),
                inventory={"all": {"hosts": {self._target.host.name: self._host_variables()}}},
                extravars=_placed(variables, directory) | {"qwen_become": self._target.become},
                envvars=self._environment(directory),
                event_handler=progress.handle,
                cancel_callback=is_canceled,
                settings={"pexpect_timeout": CANCEL_SECONDS},
                quiet=True,
                json_mode=True,
            )
            status = _status(run.status, progress.unreachable)
            task, message = progress.failure
            if status == "canceled":
                task = progress.task
            if status == "failed" and not task:
                with run.stdout as output:
                    message = _tail(output.read())
        return Converged(status, progress.changed, task, message)

    def _host_variables(self) -> dict[str, Any]:
        target = self._target
        optional = {
            "ansible_user": target.user,
            "ansible_port": target.host.port,
            "ansible_ssh_private_key_file": str(target.key_file) if target.key_file else None,
        }
        return {
            "ansible_host": target.host.address,
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_async_dir": ASYNC_DIR,
            "ansible_ssh_common_args": target.ssh_arguments,
            **{key: value for key, value in optional.items() if value is not None},
        }

    def _environment(self, directory: Path) -> dict[str, str]:
        programs = str(Path(sys.executable).parent)
        environment = {
            "PATH": f"{programs}:{os.environ.get('PATH', '')}",
            "ANSIBLE_CONFIG": str(bundle.playbooks_dir() / "ansible.cfg"),
            "ANSIBLE_HOME": str(directory / "home"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(directory / "cp"),
            # ansible-runner would set it to False.
            "ANSIBLE_HOST_KEY_CHECKING": "True",
            # Ansible refuses to run under a locale that is not UTF-8.
            "LC_ALL": "C.UTF-8",
        }
        if self._target.sudo_password is not None:
            path = directory / "sudo-password"
            _write_private(path, f"{self._target.sudo_password}\n".encode())
            environment["ANSIBLE_BECOME_PASSWORD_FILE"] = str(path)
        return environment


def _status(status: str, unreachable: bool) -> Status:
    if status == "successful":
        return "done"
    if unreachable:
        return "unreachable"
    return "canceled" if status == "canceled" else "failed"


def _tail(output: str) -> str:
    """The last words of a run that ended without any task failing: an error of the playbook."""
    lines = []
    for line in output.splitlines():
        try:
            lines.append(str(json.loads(line).get("stdout", "")))
        except ValueError:
            lines.append(line)
    return "\n".join(line for line in lines if line.strip())[-1000:]


@contextmanager
def _private_directory(files: Mapping[str, bytes]) -> Iterator[Path]:
    _sweep()
    # Short, because the control socket of ssh lies inside (unix(7) allows 108 bytes).
    prefix = f"qd-{os.getuid()}-{os.getpid()}-"
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=RUNS_DIR))
    try:
        (directory / "run").mkdir(mode=0o700)
        for name, data in files.items():
            _write_private(directory / "run" / name, data)
        yield directory
    finally:
        _hang_up(directory)
        shutil.rmtree(directory, ignore_errors=True)


def _sweep() -> None:
    """Removes what runs that were killed left behind: secrets may be among it."""
    for path in RUNS_DIR.glob(f"qd-{os.getuid()}-*-*"):
        pid = path.name.split("-")[2]
        if not pid.isdecimal() or Path("/proc", pid).exists():
            continue
        with suppress(FileNotFoundError):  # another run may sweep at the same time
            if path.lstat().st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)


def _hang_up(directory: Path) -> None:
    """Ends the connections that `ssh` keeps open; a canceled run leaves its task's open too."""
    for control in directory.glob("cp/*"):
        argv = ["ssh", "-O", "exit", "-o", f"ControlPath={control}", "any-host"]
        subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _placed(variables: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    text = json.dumps(dict(variables)).replace("{run}", str(directory / "run"))
    placed: dict[str, Any] = json.loads(text)
    return placed
