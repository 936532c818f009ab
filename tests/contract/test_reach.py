"""chat, open and bench through a real sshd to a server behind it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen_deploy import remote, sshtunnel
from qwen_deploy.cli import app as cli
from qwen_deploy.cli import reach
from qwen_deploy.cli.options import Common
from qwen_deploy.cli.output import Output
from qwen_deploy.cli.reach import Elsewhere, Served
from qwen_deploy.errors import Unreachable
from qwen_deploy.inventory import Host
from qwen_deploy.load.request import Connection, Target
from qwen_deploy.openssh import SshSettings
from qwen_deploy.remote import Session
from tests.chat_server import JSON, KEY, MODEL, ChatServer, running_chat_server
from tests.sshd import Sshd, running_sshd
from tests.wire import refusing_port

pytestmark = pytest.mark.contract
OPEN = (
    "import sys, webbrowser; from pathlib import Path; from qwen_deploy.cli import app, reach;"
    "from qwen_deploy.cli.reach import Served;"
    "host, port, log = sys.argv[1:4];"
    "reach.of = lambda session:"
    " Served(session.host, int(port), '127.0.0.1', 'k', 'm', '127.0.0.1');"
    "webbrowser.open = lambda url: bool(Path(log).write_text(url));"
    "sys.exit(app.run(['open', '--host', host, *sys.argv[4:]]))"
)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with running_chat_server() as running:
        yield running


@pytest.fixture
def host(sshd: Sshd, server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A host that serves what the server does; only reading that from its facts is left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(sshd.make_home(tmp_path / "home")))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    port = int(server.server_address[1])

    def of(session: Session) -> Served:
        return Served(session.host, port, "127.0.0.1", KEY, MODEL, "127.0.0.1")

    monkeypatch.setattr(reach, "of", of)
    monkeypatch.setattr(Output, "_current", None)
    return f"root@127.0.0.1:{sshd.port}"


def test_one_answer_comes_through_the_tunnel_with_the_operators_key(
    host: str, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["chat", "--host", host, "--once", "a"]) == 0
    assert capsys.readouterr() == ("<a>\n", "")
    assert server.keys == [f"Bearer {KEY}"]


def test_load_goes_through_the_ssh_program_and_says_so(
    host: str, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", "--host", host, "--concurrency", "4", "--requests", "8", "--output", "json"]
    assert cli.run(argv) == 0
    told = json.loads(capsys.readouterr().out)
    port = server.server_address[1]
    assert told["way"] == f"port {port} of {host.removeprefix('root@')}, through ssh -L"
    assert (told["levels"][0]["answered"], told["levels"][0]["errors"]) == (8, {})


def test_load_is_not_held_up_by_a_host_that_gathers_small_packets(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sshd sends each packet of a connection at once from its first session on."""
    begun = tmp_path / "begun"
    command = f'ForceCommand touch {begun}; echo Welcome.; $SHELL -c "$SSH_ORIGINAL_COMMAND"'
    with running_sshd(tmp_path / "sshd", command) as sshd:
        monkeypatch.setenv("HOME", str(sshd.make_home(tmp_path / "home")))
        host = Host("gpu-1", "127.0.0.1", "root", sshd.port)
        port = int(server.server_address[1])
        with sshtunnel.forwarded(host, SshSettings(), "127.0.0.1", port) as path:
            assert begun.exists()
            with closing(Connection(Target("http://localhost/v1", MODEL, KEY, path))) as connection:
                assert connection.ask({"messages": [{"content": "a"}]}).error is None


def test_load_goes_straight_to_a_port_that_listens_outward(
    host: str,
    server: ChatServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = ["bench", "--host", host, "--direct", "--concurrency", "1", "--requests", "1"]
    assert cli.run(argv) == 2
    assert "listens on 127.0.0.1 only\n\nhint: leave --direct out" in capsys.readouterr().err
    inward = reach.of
    monkeypatch.setattr(reach, "of", lambda session: replace(inward(session), listens="0.0.0.0"))
    assert cli.run(argv) == 0
    port = server.server_address[1]
    assert f"at http://127.0.0.1:{port}/v1, direct\n" in capsys.readouterr().err


def test_a_tunnel_that_ssh_cannot_open_says_why(
    host: str, sshd: Sshd, server: ChatServer, tmp_path: Path
) -> None:
    closed = Host("gpu-1", "127.0.0.1", "root", refusing_port())
    with (
        pytest.raises(Unreachable) as caught,
        sshtunnel.forwarded(closed, SshSettings(), "127.0.0.1", 1),
    ):
        pass
    assert caught.value.message == "`ssh` opens no tunnel to `gpu-1`"
    assert "Connection refused" in " ".join(caught.value.evidence)


def test_a_lost_connection_is_opened_again_for_the_next_question(
    host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Session] = []
    connect = remote.connect

    def note(*known: Any) -> Session:
        opened.append(connect(*known))
        return opened[-1]

    monkeypatch.setattr(remote, "connect", note)
    common = Common(host=[host])
    with reach.endpoint(common, Elsewhere()) as endpoint:
        url = endpoint.base_url.removesuffix("/v1") + "/ready"
        assert httpx.get(url, trust_env=False).status_code == 200
        opened[0].close()
        assert httpx.get(url, trust_env=False).status_code == 200
        opened[1].close()
        monkeypatch.setattr(remote, "connect", _unreachable)
        with pytest.raises(httpx.HTTPError):
            httpx.get(url, trust_env=False)
    name = host.removeprefix("root@")
    lost = f"{name}: the SSH connection was lost; opening another\n"
    assert capsys.readouterr().err == f"{lost}{lost}error: `x` cannot be reached\n"


def _unreachable(*_: object) -> Session:
    raise Unreachable("`x` cannot be reached")


@contextlib.contextmanager
def opening(
    host: str, server: ChatServer, log: Path, *more: str
) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", OPEN, host, str(server.server_address[1]), str(log), *more]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("more", [(), ("--no-browser",)])
def test_open_shows_the_web_ui_in_a_browser_until_ctrl_c(
    host: str, server: ChatServer, tmp_path: Path, more: tuple[str, ...]
) -> None:
    log = tmp_path / "browser"
    with opening(host, server, log, *more) as process:
        assert process.stdout and process.stderr
        url = process.stdout.readline().strip()
        assert process.stderr.readline().endswith(": tunneled until Ctrl-C\n")
        with httpx.Client(trust_env=False) as browser_tab:
            assert browser_tab.get(url).text == "<html>"
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
            assert process.stderr.read() == ""
    assert (log.read_text() if log.exists() else None) == (None if more else url)


@pytest.mark.parametrize(
    ("pages", "code", "error"),
    [
        (
            {"/ready": (503, JSON, '{"status": "loading", "reason": "reading weights"}')},
            5,
            "is not ready: reading weights\n\nhint: qwen-deploy logs --host",
        ),
        (
            {"/": (404, JSON, '{"error": {"message": "unknown"}}')},
            1,
            "has no web UI\n\nhint: set `service.web_ui: true`",
        ),
    ],
)
def test_a_host_without_a_web_ui_or_not_ready_is_an_error(
    host: str,
    server: ChatServer,
    capsys: pytest.CaptureFixture[str],
    pages: dict[str, Any],
    code: int,
    error: str,
) -> None:
    server.pages.update(pages)
    assert cli.run(["open", "--no-browser", "--host", host]) == code
    out, err = capsys.readouterr()
    assert (out, error in err) == ("", True), err


def test_several_hosts_are_asked_for_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Output, "_current", None)
    for name in ("open", "bench", "chat"):
        assert cli.run([name, "--host", "a", "--host", "b"]) == 2
        said = f"error: one host answers at a time\n\nhint: qwen-deploy {name} --host a\n"
        assert capsys.readouterr().err == said
