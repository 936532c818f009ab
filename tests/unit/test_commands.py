from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen_deploy import agent, commands

SIMPLE = {
    "journal": (
        commands.journal("qwen.service", lines=40),
        "journalctl --unit qwen.service --no-pager --output short-iso --lines 40",
    ),
    "journal since": (
        commands.journal("qwen.service", lines=1, since="10 min ago"),
        "journalctl --unit qwen.service --no-pager --output short-iso --lines 1 "
        "--since '10 min ago'",
    ),
    "journal followed": (
        commands.journal("qwen.service", lines=5, follow=True),
        "journalctl --unit qwen.service --no-pager --output short-iso --lines 5 --follow",
    ),
    "file": (commands.read_file("/etc/a b"), "cat -- '/etc/a b'"),
    "folder": (commands.has_folder("/var/a b"), "test -d '/var/a b'"),
    "lock file": (commands.remove_lock(), "rm -f /run/qwen-deploy.lock"),
}


@pytest.mark.parametrize(("argv", "line"), SIMPLE.values(), ids=SIMPLE)
def test_a_command_is_exactly_this_line(argv: Sequence[str], line: str) -> None:
    assert commands.quote(argv) == line


@pytest.mark.parametrize("name", ["facts", "lock", "record", "keys"])
def test_a_program_travels_as_text_and_its_argument_as_json(name: str) -> None:
    argument = {"who": "anna's", "at": "北京"}
    argv = getattr(commands, name)(argument)
    source = Path(commands.__file__).parent / "host_side" / f"{name}.py"
    check = 'command -v python3 >/dev/null 2>&1 || exit 93; exec python3 -I -c "$@"'
    assert argv[:-1] == ["sh", "-c", check, "sh", source.read_text()]
    assert json.loads(argv[-1]) == argument


def test_quoted_words_reach_the_program_unchanged() -> None:
    words = ["$HOME", "a b", "'", '"', "你好", "\\", "*", "", "a\nb"]
    line = commands.quote(["printf", "%s\\0", *words])
    printed = subprocess.run(["sh", "-c", line], capture_output=True, check=True, text=True)
    assert printed.stdout.split("\0")[:-1] == words


def test_a_host_without_python_is_told_apart_from_a_failing_program(programs: Path) -> None:
    absent = subprocess.run(
        [str(programs / "sh"), *commands.record({})[1:]], env={"PATH": str(programs)}
    )
    failing = subprocess.run(
        ["sh", "-c", commands.record({})[2], "sh", "raise SystemExit(7)", "{}"]
    )
    assert (absent.returncode, failing.returncode) == (commands.NO_PYTHON, 7)


SANDBOX = (
    "-p ProtectSystem=strict "
    "-p 'ReadWritePaths=/var/lib/qwen-deploy /run/qwen-deploy-weights' "
    "-p ProtectHome=yes -p PrivateTmp=yes "
)


@pytest.mark.parametrize(("reads_host", "sandbox"), [(False, SANDBOX), (True, "")])
def test_a_transfer_starts_in_a_unit_of_its_own(reads_host: bool, sandbox: str) -> None:
    argv = commands.start_transfer("0a1b", "/var/lib/qwen-deploy", reads_host=reads_host)
    assert argv[:2] == ["sh", "-c"]
    line = commands.quote(argv[3:])
    assert line == (
        "sh qwen-weights.service /run/qwen-deploy-weights /var/lib/qwen-deploy 0a1b "
        "systemd-run --quiet --collect --unit qwen-weights.service "
        "-p Nice=10 -p IOSchedulingClass=idle -p NoNewPrivileges=yes "
        "-p Restart=on-failure -p RestartSec=2 "
        "-p 'RestartPreventExitStatus=2 10 11 12 13 14 16 19 20 130' -p SuccessExitStatus=130 "
        f"{sandbox}python3 /run/qwen-deploy-weights/agent.pyz pull --dir /run/qwen-deploy-weights"
    )


def start_here(folder: Path, order_id: str, unit: str) -> subprocess.CompletedProcess[bytes]:
    """The script itself, with a systemctl that says the unit is in this state."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    install(programs, "systemctl", f"[ $1 = show ] && echo {unit}; :")
    script = commands.start_transfer("", "")[2]
    places = ["u.service", str(folder / "run"), str(folder / "state"), order_id]
    return subprocess.run(
        ["sh", "-c", script, "sh", *places, "touch", str(folder / "ran")],
        input=agent.archive({"order.json": b"{}"}),
        capture_output=True,
        env={"PATH": f"{programs}:{os.defpath}"},
    )


def test_a_transfer_finds_its_files_unpacked_and_for_root_alone(tmp_path: Path) -> None:
    done = start_here(tmp_path, "0a1b", "inactive")
    assert (done.returncode, done.stdout) == (0, b"started\n")
    assert (tmp_path / "ran").exists()
    assert (tmp_path / "run" / "order.json").read_bytes() == b"{}"
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("unit", ["active", "activating"])
def test_the_same_transfer_is_joined_and_another_one_keeps_the_host_busy(
    tmp_path: Path, unit: str
) -> None:
    start_here(tmp_path, "0a1b", "inactive")
    (tmp_path / "ran").unlink()
    joined = start_here(tmp_path, "0a1b", unit)
    assert (joined.returncode, joined.stdout) == (0, b"joined\n")
    assert start_here(tmp_path, "ffff", unit).returncode == commands.BUSY
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
def test_a_transfer_that_is_done_makes_room(tmp_path: Path, separators: tuple[str, str]) -> None:
    start_here(tmp_path, "0a1b", "inactive")
    status = json.dumps(
        {"sources": [{"phase": "fetching"}], "phase": "done"}, separators=separators
    )
    (tmp_path / "run" / "status.json").write_text(status)
    done = start_here(tmp_path, "ffff", "active")
    assert (done.returncode, done.stdout) == (0, b"started\n")


@pytest.mark.parametrize(
    "status", ["", "null", '{"phase"', '{"phase": "fetching", "sources": [{"phase": "done"}]}']
)
def test_a_transfer_that_is_not_known_to_be_done_is_left_alone(tmp_path: Path, status: str) -> None:
    start_here(tmp_path, "0a1b", "inactive")
    (tmp_path / "run" / "status.json").write_text(status)
    assert start_here(tmp_path, "ffff", "active").returncode == commands.BUSY


@pytest.mark.parametrize(
    ("status", "is_active", "said"),
    [
        ('{"phase": "fetching"}', True, "canceled"),
        ('{"phase":"done"}', True, "nothing to cancel"),
        ("", True, "canceled"),
        ('{"phase": "fetching"}', False, "nothing to cancel"),
    ],
)
def test_a_cancel_says_what_became_of_the_transfer(
    tmp_path: Path, programs: Path, status: str, is_active: bool, said: str
) -> None:
    install(programs, "systemctl", f"[ $1 = stop ] || exit {0 if is_active else 3}")
    (programs / "python3").symlink_to(sys.executable)
    path = tmp_path / "status.json"
    path.write_text(status)
    script, mark = commands.cancel_transfer()[2], tmp_path / "canceled"
    done = subprocess.run(
        [str(programs / "sh"), "-c", script, "sh", "u.service", str(path), str(mark)],
        capture_output=True,
        text=True,
        env={"PATH": str(programs)},
    )
    assert (done.returncode, done.stdout) == (0, f"{said}\n")
    assert mark.exists() == is_active


def test_a_transfer_that_ends_while_it_is_canceled_is_not_called_canceled(
    tmp_path: Path, programs: Path
) -> None:
    path, mark = tmp_path / "status.json", tmp_path / "canceled"
    path.write_text('{"phase": "verifying"}')
    done_now = f"""echo '{{"phase": "done"}}' >{path}"""
    install(programs, "systemctl", f"[ $1 = stop ] && {done_now}; exit 0")
    (programs / "python3").symlink_to(sys.executable)
    script = [str(programs / "sh"), "-c", commands.cancel_transfer()[2], "sh", "u.service"]
    done = subprocess.run(
        [*script, str(path), str(mark)], capture_output=True, env={"PATH": str(programs)}
    )
    assert done.stdout == b"nothing to cancel\n"


@pytest.mark.parametrize(("state", "code"), [("degraded", 1), ("stopping", 76), ("", 76)])
def test_a_host_that_goes_down_is_told_apart_from_one_that_starts_nothing(
    tmp_path: Path, state: str, code: int
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    says = f"[ $1 = is-system-running ] && echo {state}; [ $1 != is-system-running ]"
    install(programs, "systemctl", says)
    places = ["u.service", str(tmp_path / "run"), str(tmp_path / "state"), "0a1b"]
    done = subprocess.run(
        ["sh", "-c", commands.start_transfer("", "")[2], "sh", *places, "false"],
        input=agent.archive({}),
        env={"PATH": f"{programs}:{os.defpath}"},
    )
    assert done.returncode == code


STATUS = {"phase": "fetching", "bytes_done": 1}
DIED = {
    **STATUS,
    "phase": "failed",
    "error": {
        "kind": "died",
        "message": "the transfer ended without a result",
        "exit_code": 17,
    },
}

WENT_DOWN = {
    **STATUS,
    "phase": "failed",
    "error": {
        "kind": "down",
        "message": "the transfer was stopped, as by a restart of the host",
    },
}
STOPPED = {**STATUS, "phase": "failed", "error": {"kind": "stopped", "message": "stopped"}}


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("null\ninactive\n", {}),
        ("", {}),
        (f"{json.dumps(STATUS)}\nactive\n", STATUS),
        (f"{json.dumps(STATUS)}\nactivating\n", STATUS),
        (f"{json.dumps(STATUS)}\ninactive\n", DIED),
        ('{"phase": "done"}\ninactive\n', {"phase": "done"}),
        ('{"phase": "failed"}\nfailed\n', {"phase": "failed"}),
        (f"{json.dumps(STATUS)}\ndeactivating\n", STATUS),
        (f"{json.dumps(STATUS)}\n\n", WENT_DOWN),
        (f"{json.dumps(STOPPED)}\ninactive\n", WENT_DOWN),
        (f"{json.dumps(STOPPED)}\ninactive\ncanceled\n", STOPPED),
        ('{"phase": "done"}\n\n', {"phase": "done"}),
    ],
)
def test_a_status_is_read_with_the_state_of_its_unit(text: str, status: dict[str, Any]) -> None:
    assert commands.parse_transfer_status(text) == status


def test_a_secret_replaces_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "sources.json"
    path.write_text("old")
    path.chmod(0o644)
    subprocess.run(commands.replace_secret(str(path)), input=b"new", check=True)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["sources.json"]


def test_a_run_in_the_foreground_leaves_nothing() -> None:
    before = set(Path("/run").glob("qwen-deploy-agent.*"))
    done = subprocess.run(
        commands.agent(["verify", "/nowhere"]), input=agent.archive({}), capture_output=True
    )
    assert done.returncode == 11
    assert set(Path("/run").glob("qwen-deploy-agent.*")) == before


def test_what_a_host_reaches_is_told_place_by_place() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        argv = commands.reach([("127.0.0.1", port), ("127.0.0.1", 9)])
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert commands.parse_reach(done.stdout) == (True, False)


def test_a_stopped_transfer_leaves_no_folder() -> None:
    assert commands.quote(commands.stop_transfer()[3:]) == (
        "sh qwen-weights.service /run/qwen-deploy-weights"
    )


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The only folder on PATH: a test puts the programs there that its host has."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cat", "env", "true"):
        (folder / name).symlink_to(f"/bin/{name}")
    return folder


def install(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


# As sudo does: `-n` never asks; `-S` takes the first line of standard input for the password.
SUDO = """\
user={user}
while [ "${{1#-}}" != "$1" ]; do
  case $1 in
    -n) never_asks=yes;; -S) read -r given;; -p) shift;; --) shift; break;;
  esac
  shift
done
if [ "$never_asks" = yes ]; then [ $user = nopasswd ] || exit 1; exec "$@"; fi
[ "$given" = secret ] || {{ echo "sudo: 1 incorrect password attempt" >&2; exit 1; }}
exec "$@"
"""


def as_root(programs: Path, *, with_password: bool, stdin: str) -> tuple[int, str]:
    argv = commands.as_root(["cat"], with_password=with_password)
    done = subprocess.run(
        [str(programs / argv[0]), *argv[1:]],
        env={"PATH": str(programs)},
        input=stdin,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("with_password", [False, True])
@pytest.mark.parametrize("user", ["root", "nopasswd", "password"])
def test_a_password_never_reaches_the_program(
    programs: Path, user: str, with_password: bool
) -> None:
    install(programs, "id", f"echo {0 if user == 'root' else 1000}")
    install(programs, "sudo", SUDO.format(user=user))
    stdin = "secret\nthe rest" if with_password else "the rest"
    status, output = as_root(programs, with_password=with_password, stdin=stdin)
    if user == "password" and not with_password:
        assert (status, output) == (commands.NEEDS_PASSWORD, "")
    else:
        assert (status, output) == (0, "the rest")


def test_a_wrong_password_runs_nothing(programs: Path) -> None:
    install(programs, "id", "echo 1000")
    install(programs, "sudo", SUDO.format(user="password"))
    assert as_root(programs, with_password=True, stdin="wrong\nthe rest") == (1, "")


def test_a_host_without_sudo_is_recognized(programs: Path) -> None:
    install(programs, "id", "echo 1000")
    assert as_root(programs, with_password=False, stdin="") == (commands.NO_SUDO, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_runs_the_program_itself() -> None:
    argv = commands.as_root(["sh", "-c", "id -u; cat"], with_password=False)
    done = subprocess.run(argv, input="x", capture_output=True, text=True, check=True)
    assert done.stdout == "0\nx"


# Captured from sudo 1.9.13p3 under LC_ALL=C, on a host that does not know its own name.
UNKNOWN_HOST = "sudo: unable to resolve host gpu-1: Name or service not known\n"
CAPTURED = {
    "wrong password": (
        1,
        UNKNOWN_HOST
        + "Sorry, try again.\n\nsudo: no password was provided\nsudo: 1 incorrect password attempt",
        "gave a wrong sudo password",
    ),
    "wrong password thrice": (
        1,
        "Sorry, try again.\nSorry, try again.\nsudo: 3 incorrect password attempts\n",
        "gave a wrong sudo password",
    ),
    "not in sudoers": (
        1,
        UNKNOWN_HOST + "carl is not in the sudoers file.\n",
        "may not use sudo",
    ),
    "other programs only": (
        1,
        UNKNOWN_HOST + "Sorry, user dora is not allowed to execute '/usr/bin/sh -c x' as root on "
        "gpu-1.\n",
        "may not use sudo",
    ),
    "no rule for the host": (
        1,
        "Sorry, user dora may not run sudo on gpu-1.\n",
        "may not use sudo",
    ),
    "broken sudoers": (
        1,
        "sudo: /etc/sudoers is world writable\nsudo: no valid sudoers sources found, quitting\n",
        "cannot use sudo (sudo: /etc/sudoers is world writable)",
    ),
    "no sudo": (commands.NO_SUDO, "", "is not root and the host has no sudo"),
    "no password": (commands.NEEDS_PASSWORD, "", "needs a password for sudo"),
    "the program failed": (1, "Traceback (most recent call last):\n", None),
    "the program failed beside a warning": (1, UNKNOWN_HOST + "cat: /x: No such file\n", None),
    "the lock is held, beside a warning": (75, UNKNOWN_HOST, None),
    "silence": (1, "", None),
}


@pytest.mark.parametrize(("status", "stderr", "refusal"), CAPTURED.values(), ids=CAPTURED)
def test_what_sudo_says_is_told_apart_from_what_the_program_says(
    status: int, stderr: str, refusal: str | None
) -> None:
    assert commands.sudo_refusal(status, stderr) == refusal


@pytest.mark.parametrize(
    ("line", "owner"),
    [
        ('{"who": "anna", "pid": 7}', {"who": "anna", "pid": 7}),
        ("{}", {}),
        ("", {}),
        ('{"who": "an', {}),
        ("[1]", {}),
    ],
)
def test_a_lock_owner_that_cannot_be_read_is_nobody(line: str, owner: dict[str, object]) -> None:
    assert commands.parse_lock_owner(line) == owner


def test_what_ansible_leaves_in_a_home_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".qwen-deploy/tmp").mkdir(parents=True)
    line = shlex.join(commands.forget_runs())
    subprocess.run(["sh", "-c", line], env={"HOME": str(tmp_path), "PATH": "/bin"}, check=True)
    assert list(tmp_path.iterdir()) == []
