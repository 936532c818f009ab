"""The program as a whole, from its arguments to what it prints and its exit code."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qwen_deploy import config, converge, pin, prospect, reference, remote
from qwen_deploy.cli.app import app
from qwen_deploy.converge import Converged, Target
from qwen_deploy.errors import AuthRefused, Unreachable
from qwen_deploy.events import Event
from qwen_deploy.inventory import Host, parse_host
from qwen_deploy.keys import UserKey
from qwen_deploy.openssh import SshSettings
from qwen_deploy.remote import Session
from tests.fakes import FakeConverge, FakeHost, FakeSession
from tests.model_folder import make_model
from tests.program import Printed, Program, running

COMMANDS = [command.name or "" for command in app.registered_commands]
OLD = "r-0badcafe"


@pytest.fixture
def program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    """Runs in a folder of its own, as somebody with nothing in their home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)

    return running(monkeypatch, capsys)


NO_HOST = """\
error: no host is named: give --host, or `hosts` in qwen-deploy.yml

hint: qwen-deploy init --host root@192.168.110.131
"""
EARLY: dict[str, tuple[Sequence[str], str]] = {
    "no host": (["up"], NO_HOST),
    "no file": (
        ["up", "--config", "empty.yml"],
        "error: empty.yml: no such file\n\nhint: qwen-deploy init\n",
    ),
    "unknown option": (
        ["up", "--nope"],
        "error: no such option: --nope (Possible options: --model)\n\n"
        "hint: qwen-deploy up --help\n",
    ),
    "unknown command": (["frob"], "error: no such command 'frob'\n\nhint: qwen-deploy --help\n"),
    "wrong port": (
        ["up", "--host", "gpu-1", "--port", "70000"],
        "error: command line: service/port: should be less than 65536\n\nhint: qwen-deploy docs\n",
    ),
    "wrong host": (
        ["status", "--host", "a b"],
        "error: `a b` is not a host: should be [user@]address[:port]\n\n"
        "hint: qwen-deploy up --host root@192.168.110.131:22\n",
    ),
    "host twice": (
        ["status", "--host", "a", "--host", "root@a"],
        "error: host named twice: a\n",
    ),
    "several hosts to chat with": (
        ["chat", "--host", "a", "--host", "b"],
        "error: one host answers at a time\n\nhint: qwen-deploy chat --host a\n",
    ),
    "argument too many": (
        ["rollback", "r-1", "r-2"],
        "error: got unexpected extra argument(s) (r-2)\n\nhint: qwen-deploy rollback --help\n",
    ),
    "removal without agreement": (
        ["down", "--host", "gpu-1"],
        "error: nothing was removed: nobody agreed\n\nhint: qwen-deploy down --yes\n",
    ),
}


@pytest.mark.parametrize(("argv", "err"), EARLY.values(), ids=EARLY)
def test_an_early_error_is_told_on_standard_error(
    program: Program, argv: Sequence[str], err: str
) -> None:
    printed = program(*argv)
    assert printed.err == err
    assert printed.out == ""
    assert printed.code == (3 if "nobody agreed" in err else 2)


def test_an_error_is_the_same_report_in_every_mode(program: Program) -> None:
    for mode in ("human", "json", "quiet"):
        printed = program("status", "--output", mode)
        assert (printed.code, printed.err) == (2, NO_HOST)
        if mode == "json":
            assert [one["event"] for one in printed.objects] == ["error"]
            assert printed.objects[0]["exit_code"] == 2
        else:
            assert printed.out == ""


def test_every_wrong_key_of_the_file_is_named(program: Program) -> None:
    Path("qwen-deploy.yml").write_text("service: {prot: 1, auth: maybe}\n")
    printed = program("status")
    assert printed.code == 2
    assert printed.err == (
        "error: qwen-deploy.yml: service/auth: should be true or false\n"
        "       qwen-deploy.yml: service/prot: is not a key; did you mean `port`?\n\n"
        "hint: qwen-deploy docs\n"
    )


def test_without_a_command_the_help_is_printed(program: Program) -> None:
    assert program() == program("--help")
    assert program().code == 0
    assert program().out.startswith("Usage: qwen-deploy [OPTIONS] COMMAND [ARGS]...\n")


def test_the_version_is_printed(program: Program) -> None:
    assert re.fullmatch(r"qwen-deploy \d+\.\d+\.\d+\n", program("--version").out)


def test_the_help_of_each_command_is_one_line_options_and_two_examples(program: Program) -> None:
    listed = program("--help").out
    for name in COMMANDS:
        printed = program(name, "--help")
        assert printed.code == 0
        usage, purpose, *_, first, second = printed.out.rstrip().split("\n\n")
        assert usage.startswith(f"Usage: qwen-deploy {name} [OPTIONS]")
        assert re.fullmatch(r"  [A-Z][a-z]+ .*\.", purpose), "one line that starts with a verb"
        assert f"  {name:<{max(map(len, COMMANDS))}}{purpose}\n" in listed, "uncut"
        for example in (first, second):
            assert re.fullmatch(rf"  .*\bqwen-deploy {name}\b.*", example)


def test_init_writes_a_file_that_the_other_commands_read(program: Program) -> None:
    printed = program("init", "--host", "root@gpu-1", "--weights", "./Qwen", "a.yml")
    assert printed == Printed(0, "", "wrote a.yml\n")
    made = config.load(Path("a.yml"))
    assert (made.hosts, made.model.source) == (("root@gpu-1",), "Qwen")


def test_init_never_overwrites(program: Program) -> None:
    Path("qwen-deploy.yml").write_text("mine")
    assert program("init") == Printed(
        2,
        "",
        "error: qwen-deploy.yml: exists already\n\nhint: edit it, or: rm qwen-deploy.yml\n",
    )
    assert Path("qwen-deploy.yml").read_text() == "mine"


def test_init_says_where_it_cannot_write(program: Program) -> None:
    assert program("init", "no/such/a.yml").err == (
        "error: no/such/a.yml: No such file or directory\n"
    )


def test_docs_are_the_reference(program: Program) -> None:
    assert program("docs") == Printed(0, reference.text(), "")


@dataclass
class Site:
    """The hosts that answer, and what else happens to those that do not."""

    hosts: dict[str, FakeHost]
    unreachable: dict[str, Unreachable]
    failures: dict[str, Mapping[str, Converged]]
    targets: list[Target]

    def connect(self, host: Host, settings: SshSettings) -> Session:
        if host.name in self.unreachable:
            raise self.unreachable[host.name]
        return FakeSession(self.hosts[host.name])

    def converge(self, target: Target, emit: Callable[[Event], None]) -> FakeConverge:
        self.targets.append(target)
        name = target.host.name
        return FakeConverge(self.hosts[name], self.failures.get(name))


@pytest.fixture
def site(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Two hosts in a configuration with a model."""
    make_model(tmp_path / "model")
    (tmp_path / "qwen-deploy.yml").write_text(
        "hosts: [root@gpu-1, root@gpu-2]\n"
        "model: {source: ./model, name: Qwen/Tiny}\n"
        "runtime: {accelerator: cpu}\n"
    )
    deployment = config.load(tmp_path / "qwen-deploy.yml")
    choice = pin.here(deployment)
    assert choice is not None
    wanted = prospect.want(deployment, choice.pinned, UserKey("unused-by-the-hosts"))
    hosts = {host.name: FakeHost(wanted, host) for host in map(parse_host, deployment.hosts)}
    for fake in hosts.values():
        fake.has_weights()
        fake.raw["digests"][prospect.OPERATOR_KEY] = "e" * 64
        fake.raw["keys"] = [["operator", "0" * 64], ["default", "1" * 64]]
    made = Site(hosts, {}, {}, [])
    monkeypatch.setattr(remote, "connect", made.connect)
    monkeypatch.setattr(converge, "Converge", made.converge)
    return made


def without_seconds(text: str) -> str:
    return re.sub(r"\b\d+\.\d(s?)$", r"0.0\1", text, flags=re.MULTILINE)


def new(site: Site) -> str:
    return site.hosts["gpu-1"].release.id


def test_up_shows_plan_story_and_table(program: Program, site: Site) -> None:
    printed = program("up", "--yes")
    assert printed.code == 0
    assert without_seconds(printed.out) == (
        "HOST   OUTCOME  RELEASE     PREVIOUS  CHANGED  SECONDS\n"
        f"gpu-1  changed  {new(site)}  -         3        0.0\n"
        f"gpu-2  changed  {new(site)}  -         3        0.0\n"
    )
    story = without_seconds(printed.err).splitlines()
    assert [line for line in story if "gpu-1  plan" in line] == [
        "gpu-1  plan      host: create the system user and directories",
        "gpu-1  plan      runtime: build the cpu environment",
        "gpu-1  plan      runtime: write the pip configuration",
        f"gpu-1  plan      service: release none -> {new(site)}",
    ]
    assert [line for line in story if "done" in line] == [
        "gpu-1  converge  done  0.0s",
        "gpu-1  ready     done  0.0s",
        "gpu-2  converge  done  0.0s",
        "gpu-2  ready     done  0.0s",
    ]


def test_up_again_changes_nothing_and_asks_nobody(program: Program, site: Site) -> None:
    program("up", "--yes")
    printed = program("up")
    assert printed.code == 0
    assert printed.err == ""
    assert [line.split()[1] for line in printed.out.splitlines()[1:]] == ["unchanged"] * 2


def test_up_in_json_is_a_stream_of_objects(program: Program, site: Site) -> None:
    printed = program("up", "--yes", "--output", "json", "--host", "root@gpu-1")
    assert printed.err == ""
    assert {one["schema"] for one in printed.objects} == {1}
    events = [one["event"] for one in printed.objects]
    assert events[0] == "plan"
    assert events[-1] == "host_finished"
    assert printed.objects[-1] | {"seconds": 0} == {
        "schema": 1,
        "event": "host_finished",
        "host": "gpu-1",
        "outcome": "changed",
        "release": new(site),
        "previous": None,
        "changed": 3,
        "seconds": 0,
    }


@pytest.mark.parametrize("mode", ["human", "json", "quiet"])
def test_up_without_agreement_changes_nothing(program: Program, site: Site, mode: str) -> None:
    printed = program("up", "--output", mode)
    assert printed.code == 3
    assert printed.err.endswith(
        "error: nothing was changed: nobody agreed\n\nhint: the same command again with --yes\n"
    )
    assert not [name for host in site.hosts.values() for name in host.story if name != "facts"]
    if mode == "json":
        assert [one["event"] for one in printed.objects] == ["plan", "plan", "error"]
    else:
        assert printed.out == ""


def test_up_stops_at_the_first_host_that_fails(program: Program, site: Site) -> None:
    site.hosts["gpu-1"].has_proven(OLD)
    site.failures["gpu-1"] = {"up.yml": Converged("failed", 1, "Copy uv", "no space left")}
    printed = program("up", "--yes")
    assert printed.code == 1
    assert without_seconds(printed.out) == (
        "HOST   OUTCOME      RELEASE     PREVIOUS    CHANGED  SECONDS\n"
        f"gpu-1  rolled back  {OLD}  {OLD}  0        0.0\n"
        "gpu-2  not tried    -           -           0        0.0\n"
    )
    assert "gpu-1  converge  failed  0.0s\n" in without_seconds(printed.err)
    assert printed.err.endswith(
        "error: `Copy uv` failed on `gpu-1`\n\n"
        "    no space left\n"
        "    (output of the task on gpu-1)\n\n"
        f"gpu-1 still serves {OLD}\n\n"
        "hint: qwen-deploy up --yes\n"
    )
    assert "up.yml" not in site.hosts["gpu-2"].story


def test_up_meets_every_host_before_it_changes_one(program: Program, site: Site) -> None:
    site.unreachable["gpu-2"] = Unreachable("`gpu-2` cannot be reached: no route", host="gpu-2")
    printed = program("up", "--yes")
    assert printed.code == 4
    assert printed.err == "error: `gpu-2` cannot be reached: no route\n"
    assert site.hosts["gpu-1"].story == []


def test_up_refuses_a_host_without_asking(program: Program, site: Site) -> None:
    site.hosts["gpu-1"].raw["has_systemd"] = False
    printed = program("up", "--host", "gpu-1")
    assert printed.code == 3
    assert "gpu-1  refusal  the host does not run systemd\n" in printed.err
    assert printed.err.endswith(
        "error: `gpu-1`: the host does not run systemd\n\n"
        "gpu-1 was not changed\n\n"
        "hint: use a host that boots systemd\n"
    )


def test_a_new_key_is_shown_once(program: Program, site: Site) -> None:
    program("up", "--yes")
    printed = program("up", "--yes", "--new-api-key", "--host", "gpu-1")
    assert re.search(r"\ngpu-1: API key, shown this once: sk-[\w-]{43}\n", printed.err)
    assert "sk-" not in program("up", "--yes", "--host", "gpu-1").err


def test_a_new_key_is_the_answer_in_quiet_mode(program: Program, site: Site) -> None:
    printed = program("up", "--yes", "--new-api-key", "--output", "quiet", "--host", "gpu-1")
    assert (printed.code, printed.err) == (0, "")
    assert re.fullmatch(r"sk-[\w-]{43}\n", printed.out)


def test_the_way_to_a_host_is_the_same_for_ansible(program: Program, site: Site) -> None:
    program("up", "--yes", "--host", "gpu-1", "--key-file", "/keys/gpu")
    (target,) = site.targets
    assert (target.host.name, target.user, target.become) == ("gpu-1", "root", False)
    assert target.key_file == Path("/keys/gpu")


def test_status_is_a_row_for_each_host(program: Program, site: Site) -> None:
    site.hosts["gpu-1"].has_proven(OLD)
    site.hosts["gpu-1"].raw["releases"][0]["model"] = "Qwen/Tiny"
    site.hosts["gpu-1"].raw["process"] = {"resident_bytes": 3 << 30, "uptime_seconds": 90061.5}
    site.hosts["gpu-1"].raw["gpus"] = [
        {"name": "NVIDIA H200", "memory.used": "100", "memory.total": "143771"}
    ]
    site.unreachable["gpu-2"] = AuthRefused("`gpu-2` does not let `root` in", host="gpu-2")
    printed = program("status")
    assert printed.code == 4
    assert printed.err == "error: `gpu-2` does not let `root` in\n"
    assert printed.out == (
        "HOST   RELEASE     UNIT         READY  MODEL      UPTIME       MEMORY    GPU\n"
        f"gpu-1  {OLD}  active       yes    Qwen/Tiny  1d 01:01:01  3.00 GiB  "
        "NVIDIA H200 100/143771 MiB\n"
        "gpu-2  -           unreachable  no     -          -            -         -\n"
    )


def test_status_in_json_is_an_object_for_each_host(program: Program, site: Site) -> None:
    printed = program("status", "--output", "json")
    assert printed.code == 5
    assert printed.objects[0] == {
        "schema": 1,
        "event": "status",
        "host": "gpu-1",
        "release": None,
        "unit": "inactive",
        "unit_status": "",
        "ready": False,
        "reason": "the unit is inactive",
        "model": None,
        "uptime_seconds": None,
        "memory_bytes": None,
        "gpus": [],
    }
    assert [one["host"] for one in printed.objects] == ["gpu-1", "gpu-2"]


TRANSFER: dict[str, Any] = {
    "phase": "done",
    "model": "Qwen/Tiny",
    "revision": "w-1",
    "directory": "/var/lib/qwen-deploy/models/Qwen--Tiny/w-1",
    "bytes_done": 2_000_000,
    "bytes_total": 2_000_000,
}


def test_weights_that_were_removed_since_are_not_told_as_there(
    program: Program, site: Site
) -> None:
    for fake in site.hosts.values():
        fake.transfer = TRANSFER
    site.hosts["gpu-2"].removed.add(TRANSFER["directory"])
    printed = program("weights", "status")
    assert printed.code == 0
    assert printed.err == (
        "gpu-2  weights   brought, but /var/lib/qwen-deploy/models/Qwen--Tiny/w-1 is gone now\n"
    )
    assert [line.split()[:2] for line in printed.out.splitlines()[1:]] == [
        ["gpu-1", "done"],
        ["gpu-2", "removed"],
    ]
    told = program("weights", "status", "--output", "json").objects
    assert [one["status"]["phase"] for one in told] == ["done", "removed"]


def test_the_gravest_failure_is_the_exit_code(program: Program, site: Site) -> None:
    site.unreachable["gpu-2"] = Unreachable("`gpu-2` cannot be reached", host="gpu-2")
    assert program("status").code == 5


def test_releases_and_history_tell_what_lies_on_the_hosts(program: Program, site: Site) -> None:
    program("up", "--yes", "--host", "gpu-1")
    for one in site.hosts["gpu-1"].raw["releases"]:
        one |= {"model": "Qwen/Tiny", "revision": "w-1"}
    assert program("releases", "--host", "gpu-1").out == (
        "HOST   RELEASE     STATE    MODEL      REVISION  MADE_AT\n"
        f"gpu-1  {new(site)}  current  Qwen/Tiny  w-1       1970-01-01T00:00:02Z\n"
    )
    (change,) = program("history", "--host", "gpu-1", "--output", "json").objects
    assert "tried" in change and change["tried"] is None
    assert change["event"] == "change"
    assert (change["action"], change["release"], change["outcome"]) == ("up", new(site), "changed")
    assert program("history", "--host", "gpu-2") == Printed(0, "", "")


def test_logs_name_the_host_where_there_are_several(program: Program, site: Site) -> None:
    site.hosts["gpu-1"].journal = ("一", "two")
    site.hosts["gpu-2"].journal = ("three",)
    assert program("logs", "--host", "gpu-1") == Printed(0, "一\ntwo\n", "")
    lines = program("logs").out.splitlines()
    assert sorted(lines) == ["gpu-1  two", "gpu-1  一", "gpu-2  three"]


def test_logs_in_json_are_an_object_for_each_line(program: Program, site: Site) -> None:
    site.hosts["gpu-1"].journal = ("一", "two")
    printed = program("logs", "--host", "gpu-1", "--output", "json")
    assert (printed.code, printed.err) == (0, "")
    assert printed.objects == [
        {"schema": 1, "event": "log", "host": "gpu-1", "line": line} for line in ("一", "two")
    ]


def test_logs_that_end_with_their_connection_are_a_failure(program: Program, site: Site) -> None:
    site.hosts["gpu-1"].journal = ("one", "never seen")
    site.hosts["gpu-1"].lost_after = "line"
    printed = program("logs", "--host", "gpu-1", "-f")
    assert printed == Printed(4, "one\n", "error: lost the connection to `gpu-1`: it was closed\n")


def test_a_rollback_has_its_table(program: Program, site: Site) -> None:
    for release_id in ("r-00000001", OLD):
        site.hosts["gpu-1"].has_proven(release_id)
    printed = program("rollback", "--host", "gpu-1")
    assert printed.code == 0
    assert f"gpu-1  changed  r-00000001  {OLD}  3" in printed.out


def test_a_bug_is_told_with_the_place_and_a_file_for_a_report(
    program: Program, site: Site, tmp_path: Path
) -> None:
    del site.hosts["gpu-1"].raw["units"]
    printed = program("status", "--host", "gpu-1")
    assert printed.code == 1
    path = tmp_path / "home/.local/state/qwen-deploy/traceback.log"
    assert printed.err.startswith("error: a bug in qwen-deploy: KeyError: 'units'\n\n    facts.py:")
    assert f"hint: report it with {path};" in printed.err
    assert path.read_text().startswith("Traceback (most recent call last):\n")
    assert "Traceback" not in printed.err


def start(*argv: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qwen_deploy", *argv]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, text=True, env=environment, **options)


def test_a_reader_that_has_seen_enough_is_no_bug(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with start("docs", stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        os.close(writing)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")


def test_ctrl_c_at_a_prompt_ends_with_130(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    argv = ["status", "--host", "192.0.2.1", "--ask-sudo-password"]
    with start(*argv, stdin=follower, stderr=follower, cwd=tmp_path, start_new_session=True) as one:
        try:
            asked = b""
            while b"sudo password" not in asked:
                assert select.select([leader], [], [], 60)[0], asked
                asked += os.read(leader, 1024)
            one.send_signal(signal.SIGINT)
            assert one.wait(60) == 130
        finally:
            one.kill()
    os.close(leader)
    os.close(follower)
