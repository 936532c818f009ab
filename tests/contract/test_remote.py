"""Sessions against a real sshd on loopback."""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from qwen_deploy import openssh, remote
from qwen_deploy.errors import (
    AuthRefused,
    HostKeyChanged,
    HostKeyUnknown,
    Unreachable,
    UsageError,
)
from qwen_deploy.inventory import Host
from qwen_deploy.openssh import SshSettings
from qwen_deploy.remote import Completed, Session
from tests.sshd import Sshd, make_key, running_sshd
from tests.wire import Wire, refusing_port

pytestmark = pytest.mark.contract

MEGABYTE = 1 << 20
DEADLINE_SECONDS = 20.0
JUMP = "127.0.0.2"  # the same sshd under another name, for ssh refuses to jump in a circle
DATA = random.Random(0).randbytes(3 * MEGABYTE)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def home(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the client looks for its keys and settings."""
    monkeypatch.setenv("HOME", str(sshd.make_home(tmp_path / "home")))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path / "home"


def host(port: int, user: str = "root") -> Host:
    return Host(f"127.0.0.1:{port}", "127.0.0.1", user, port)


@pytest.fixture
def session(sshd: Sshd, home: Path) -> Iterator[Session]:
    with remote.connect(host(sshd.port), SshSettings()) as opened:
        yield opened


def wait_for(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.01)


def test_a_command_ends_with_its_status_and_both_streams(session: Session) -> None:
    done = session.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert done == Completed(3, "out\n", "err\n")
    assert not done.ok


def test_words_reach_the_command_unchanged(session: Session) -> None:
    words = ["$HOME", "a b", "'", "你好", "*", ""]
    assert session.run(["printf", "%s|", *words]).stdout == "|".join(words) + "|"


def test_root_runs_as_root(session: Session) -> None:
    assert session.run(["id", "-u"], root=True) == Completed(0, "0\n", "")
    assert session.user == "root"


def test_standard_input_reaches_the_command_whole(session: Session) -> None:
    done = session.run(["sha256sum"], stdin=DATA, root=True)
    assert done.stdout.split()[0] == hashlib.sha256(DATA).hexdigest()


def test_a_password_that_root_does_not_need_is_no_input(sshd: Sshd, home: Path) -> None:
    settings = SshSettings(sudo_password="secret")
    with remote.connect(host(sshd.port), settings) as opened:
        assert opened.run(["cat"], root=True, stdin=b"input").stdout == "input"
    assert "secret" not in repr(settings)


@pytest.mark.parametrize("status", [0, 7])
def test_a_command_that_reads_nothing_still_tells_how_it_ended(
    session: Session, status: int
) -> None:
    done = session.run(["sh", "-c", f"echo why >&2; exit {status}"], stdin=DATA)
    assert done == Completed(status, "", "why\n")


def test_both_streams_may_be_large_at_once(session: Session) -> None:
    program = "head -c 1048576 /dev/zero >&2 & head -c 1048576 /dev/zero; wait"
    done = session.run(["sh", "-c", program])
    assert (done.exit_status, len(done.stdout), len(done.stderr)) == (0, MEGABYTE, MEGABYTE)


def test_bytes_that_are_no_text_are_replaced(session: Session) -> None:
    program = r"printf 'a\377b\n'; printf '\377' >&2"
    assert session.run(["sh", "-c", program]) == Completed(0, "a\ufffdb\n", "\ufffd")
    assert list(session.stream(["printf", r"a\377b\n\377"])) == ["a\ufffdb", "\ufffd"]


def test_a_command_that_is_killed_is_not_a_lost_connection(session: Session) -> None:
    assert not session.run(["sh", "-c", "kill -9 $$"]).ok
    assert session.run(["true"]).ok


def test_a_command_that_stays_silent_is_given_up(session: Session) -> None:
    with pytest.raises(Unreachable, match=r"^`127.0.0.1:\d+` was silent for too long$"):
        session.run(["sleep", "60"], timeout=0.2)


def test_lines_come_while_the_command_runs(session: Session, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "more")
    lines = session.stream(["sh", "-c", f"echo 一; cat {tmp_path}/more >&2"])
    assert next(lines) == "一"
    (tmp_path / "more").write_text("two\n\nfour\n")
    assert list(lines) == ["two", "", "four"]


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("echo seen; echo why >&2; exit 3", "seen\nwhy"),
        ("exit 3", "exit status 3"),
    ],
)
def test_a_stream_whose_command_fails_says_why(session: Session, program: str, said: str) -> None:
    lines = session.stream(["sh", "-c", program], root=True)
    with pytest.raises(UsageError) as failed:
        for line in lines:
            assert line in said
    assert failed.value.message == f"`sh` on `{session.host}` failed: {said}"


def test_a_held_command_ends_with_its_holder(session: Session, tmp_path: Path) -> None:
    program = f"echo held; cat; echo over > {tmp_path}/end"
    with session.hold(["sh", "-c", program]) as (first, ended):
        assert (first, ended) == ("held", None)
        assert not (tmp_path / "end").exists()
    wait_for((tmp_path / "end").exists)


def test_a_held_command_hears_heartbeats(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "HEARTBEAT_SECONDS", 0.01)
    program = f"echo held; read a; read b; echo beaten > {tmp_path}/beaten; cat"
    with session.hold(["sh", "-c", program]):
        wait_for((tmp_path / "beaten").exists)


def test_a_command_that_does_not_hold_tells_how_it_ended(session: Session) -> None:
    with session.hold(["sh", "-c", "echo somebody else; exit 75"]) as (first, ended):
        assert (first, ended) == ("somebody else", 75)


class Echo:
    """A server on loopback that sends back what it gets, to one client after the other."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Echo:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client:
                while piece := client.recv(1 << 16):
                    client.sendall(piece)


def send(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)


def echoed(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as client:
        threading.Thread(target=send, args=(client, data)).start()
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


def test_the_host_reaches_a_port_of_ours(session: Session) -> None:
    with Echo() as echo, session.forward_remote(echo.port) as port:
        assert echoed(port, DATA) == DATA
        assert echoed(port, b"again") == b"again"
    with pytest.raises(OSError):
        echoed(port, b"over")


def test_we_reach_a_port_of_the_host(session: Session) -> None:
    with Echo() as echo, session.forward_local(echo.port) as port:
        assert port != echo.port
        assert echoed(port, DATA) == DATA
    with pytest.raises(OSError):
        echoed(port, b"over")


def test_a_host_that_refuses_to_forward_is_told_with_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_sshd(tmp_path / "sshd", "AllowTcpForwarding no") as closed:
        monkeypatch.setenv("HOME", str(closed.make_home(tmp_path / "home")))
        with remote.connect(host(closed.port), SshSettings()) as opened:
            with pytest.raises(Unreachable) as refused, opened.forward_remote(1):
                pass
            assert "AllowTcpForwarding yes" in (refused.value.hint or "")
            assert opened.run(["true"]).ok


def refusal(port: int, settings: SshSettings, user: str = "root") -> Unreachable:
    with pytest.raises(Unreachable) as refused:
        remote.connect(host(port, user), settings).close()
    assert refused.value.host == f"127.0.0.1:{port}"
    assert refused.value.exit_code == 4
    return refused.value


def test_an_unknown_host_key_is_refused_with_the_command_that_accepts_it(
    sshd: Sshd, home: Path
) -> None:
    (home / ".ssh/known_hosts").unlink()
    error = refusal(sshd.port, SshSettings())
    assert isinstance(error, HostKeyUnknown)
    assert error.message == (
        f"the host key of `[127.0.0.1]:{sshd.port}` is unknown: {sshd.fingerprint}"
    )
    assert (error.hint or "").endswith(
        f"qwen-deploy status --host 127.0.0.1:{sshd.port} --accept-new-host-key"
    )
    assert not (home / ".ssh/known_hosts").exists()


def test_an_unknown_host_key_is_accepted_once_and_then_known(sshd: Sshd, home: Path) -> None:
    known_hosts = home / ".ssh/known_hosts"
    known_hosts.write_text("other.example " + sshd.host_key)
    remote.connect(host(sshd.port), SshSettings(accept_new_host_key=True)).close()
    assert known_hosts.read_text().splitlines() == [
        f"other.example {sshd.host_key}",
        f"[127.0.0.1]:{sshd.port} {sshd.host_key}",
    ]
    remote.connect(host(sshd.port), SshSettings()).close()


@pytest.mark.parametrize("accept", [False, True])
def test_a_changed_host_key_is_never_accepted(
    sshd: Sshd, home: Path, tmp_path: Path, accept: bool
) -> None:
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text()
    (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {other}")
    error = refusal(sshd.port, SshSettings(accept_new_host_key=accept))
    assert isinstance(error, HostKeyChanged)
    assert error.message.endswith(f", now {sshd.fingerprint}")
    command = (error.hint or "").rpartition(": ")[2]
    subprocess.run(shlex.split(f"{command} -f {home}/.ssh/known_hosts"), check=True)
    assert isinstance(refusal(sshd.port, SshSettings()), HostKeyUnknown)


def test_a_wrong_key_is_named(sshd: Sshd, home: Path, tmp_path: Path) -> None:
    (home / ".ssh/id_ed25519").unlink()
    error = refusal(sshd.port, SshSettings(key_file=make_key(tmp_path / "other")))
    assert isinstance(error, AuthRefused)
    assert error.message.startswith(
        f"`127.0.0.1:{sshd.port}` does not let `root` in with {tmp_path}/other: "
    )
    assert error.hint == "ssh-copy-id root@127.0.0.1, or name another key: --key-file"


def test_a_wrong_user_is_named(sshd: Sshd, home: Path) -> None:
    error = refusal(sshd.port, SshSettings(), user="no-such-user")
    assert isinstance(error, AuthRefused)
    assert (
        "does not let `no-such-user` in with the keys of the agent and of ~/.ssh" in error.message
    )


def test_somebody_without_any_key_is_not_let_in(sshd: Sshd, home: Path) -> None:
    (home / ".ssh/id_ed25519").unlink()
    assert isinstance(refusal(sshd.port, SshSettings()), AuthRefused)


def test_a_key_with_a_passphrase_is_not_tried_without_it(
    sshd: Sshd, home: Path, tmp_path: Path
) -> None:
    (home / ".ssh/id_ed25519").unlink()
    key_file = make_key(tmp_path / "locked", passphrase="secret")
    assert isinstance(refusal(sshd.port, SshSettings(key_file=key_file)), AuthRefused)


@pytest.mark.parametrize("setting", ["key_file", "config_file"])
def test_a_file_that_does_not_exist_is_a_wrong_setting(
    sshd: Sshd, home: Path, setting: str
) -> None:
    missing = home / "nowhere"
    key_settings, config_settings = SshSettings(key_file=missing), SshSettings(config_file=missing)
    with pytest.raises(UsageError) as refused:
        remote.connect(host(sshd.port), key_settings if setting == "key_file" else config_settings)
    assert refused.value.message == f"ssh/{setting}: {home}/nowhere: no such file"


def test_a_port_where_nobody_listens_is_unreachable(home: Path) -> None:
    port = refusing_port()
    error = refusal(port, SshSettings())
    assert error.message == f"`127.0.0.1:{port}` cannot be reached: Connection refused"
    assert error.hint == f"ssh -p {port} -l root 127.0.0.1 true"


def test_a_host_that_does_not_answer_is_given_up(home: Path) -> None:
    with socket.socket() as full, ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # what does not fit into the backlog gets no answer
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        error = refusal(full.getsockname()[1], SshSettings(connect_seconds=1))
    assert "cannot be reached: no answer from 127.0.0.1:" in error.message


def test_a_host_that_is_no_sshd_is_given_up(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = refusal(silent.getsockname()[1], SshSettings(connect_seconds=0.2))
    assert "cannot be reached: " in error.message


@pytest.fixture
def cable(sshd: Sshd, home: Path) -> Iterator[tuple[Session, ExitStack]]:
    """A session, and what cuts its connection when closed."""
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(sshd.port))
        port = int(urlsplit(wire.url).port or 0)
        (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{port} {sshd.host_key}\n")
        yield remote.connect(host(port), SshSettings()), stack


Cable = tuple[Session, ExitStack]


def test_a_connection_lost_in_the_middle_of_a_command(cable: Cable, tmp_path: Path) -> None:
    session, stack = cable

    def cut() -> None:
        wait_for((tmp_path / "begun").exists)
        stack.close()

    threading.Thread(target=cut).start()
    with pytest.raises(Unreachable, match=r"^lost the connection to "):
        session.run(["sh", "-c", f"echo half; echo > {tmp_path}/begun; exec sleep 60"])


def test_a_connection_lost_in_the_middle_of_a_stream(cable: Cable) -> None:
    session, stack = cable
    lines = session.stream(["sh", "-c", "echo first; exec sleep 60"])
    assert next(lines) == "first"
    stack.close()
    with pytest.raises(Unreachable, match=r"^lost the connection to "):
        next(lines)


def test_a_connection_lost_before_anything_is_held(cable: Cable, tmp_path: Path) -> None:
    session, stack = cable

    def cut() -> None:
        wait_for((tmp_path / "begun").exists)
        stack.close()

    threading.Thread(target=cut).start()
    argv = ["sh", "-c", f"echo > {tmp_path}/begun; exec sleep 60"]
    with pytest.raises(Unreachable, match=r"^lost the connection to "), session.hold(argv):
        pass


def test_a_connection_lost_before_a_command(cable: Cable) -> None:
    session, stack = cable
    stack.close()
    with pytest.raises(Unreachable, match=r"^lost the connection to "):
        session.run(["true"])


@pytest.fixture
def configured(sshd: Sshd, home: Path) -> str:
    """SSH's configuration knows a host behind another."""
    return (
        f"Host inner\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User root\n"
        f"  ProxyJump root@{JUMP}:{sshd.port}\n"
        f"Host *\n  UserKnownHostsFile {home}/.ssh/known_hosts\n"
        f"  IdentityFile {home}/.ssh/id_ed25519\n"
    )


def asked_openssh(host: Host, settings: SshSettings, home: Path) -> str:
    """What the `ssh` program says of a command there, called as Ansible calls it."""
    words = ["-o", "BatchMode=yes", "-i", str(home / ".ssh/id_ed25519")]
    words += ["-p", str(host.port)] if host.port else []
    words += ["-l", host.user] if host.user else []
    argv = ["ssh", *shlex.split(openssh.arguments(settings)), *words, host.address]
    done = subprocess.run([*argv, "echo", "there"], capture_output=True, text=True)
    return done.stdout or done.stderr


@pytest.mark.parametrize("place", ["~/.ssh/config", "elsewhere"])
def test_a_jump_of_the_ssh_configuration_is_taken(
    configured: str, home: Path, tmp_path: Path, place: str
) -> None:
    path = home / ".ssh/config" if place == "~/.ssh/config" else tmp_path / place
    path.write_text(configured)
    settings = SshSettings(config_file=None if place == "~/.ssh/config" else path)
    inner = Host("inner", "inner")
    with remote.connect(inner, settings) as session:
        assert session.run(["sh", "-c", "echo $SSH_CONNECTION"]).stdout.startswith("127.0.0.1 ")
    assert asked_openssh(inner, settings, home) == "there\n"


def test_a_jump_of_our_settings_is_taken(sshd: Sshd, home: Path) -> None:
    jump = Host("jump", JUMP, "root", sshd.port)
    settings = SshSettings(jump=jump, key_file=sshd.key_path)
    with remote.connect(host(sshd.port), settings) as session:
        assert session.run(["echo", "there"]).stdout == "there\n"
    assert asked_openssh(host(sshd.port), settings, home) == "there\n"


def test_the_key_of_a_jump_host_is_checked_too(sshd: Sshd, home: Path, tmp_path: Path) -> None:
    with running_sshd(tmp_path / "jump") as jump:
        settings = SshSettings(jump=host(jump.port), key_file=jump.key_path)
        error = refusal(sshd.port, settings)
    assert isinstance(error, HostKeyUnknown)
    assert f"[127.0.0.1]:{jump.port}" in error.message


def test_the_home_of_the_operator_is_that_of_ssh_too(sshd: Sshd, home: Path) -> None:
    assert asked_openssh(host(sshd.port), SshSettings(), home) == "there\n"
