"""`qwen-deploy keys` from its arguments to keys files that the host's real program changes."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qwen_deploy import commands, remote
from qwen_deploy.errors import Unreachable
from qwen_deploy.inventory import Host
from qwen_deploy.openssh import SshSettings
from qwen_deploy.remote import Completed, Session
from tests.fakes import FakeHost, FakeSession, wanted_of
from tests.program import Program, running

OPERATOR = f"operator {'0' * 64}\n"
ANNA = f"anna {'1' * 64} created=2026-11-22T17:00:00Z rpm=60\n"
ENVIRONMENT = {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}


class KeysSession(FakeSession):
    """A host whose files lie below a folder."""

    def __init__(self, fake: FakeHost, root: Path, lost: bool) -> None:
        super().__init__(fake)
        self.root = root
        self.lost = lost

    def run(
        self, argv: Sequence[str], *, root: bool = False, stdin: bytes = b"", timeout: float = 120
    ) -> Completed:
        if argv[:-1] != commands.keys({})[:-1]:
            return super().run(argv, root=root, stdin=stdin, timeout=timeout)
        *before, program, argument = argv
        for place in ("/etc/qwen-deploy", "/opt/qwen-deploy"):
            assert f'"{place}"' in program
            program = program.replace(f'"{place}"', f'"{self.root}{place}"')
        done = subprocess.run(
            [*before, program, argument], capture_output=True, text=True, env=ENVIRONMENT
        )
        action = json.loads(argument)["action"]
        self.fake.story.append(action)
        if self.lost and action != "list":
            raise Unreachable(f"lost the connection to `{self.host}`", host=self.host.name)
        return Completed(done.returncode, done.stdout, done.stderr)


@dataclass
class Site:
    folder: Path
    hosts: dict[str, FakeHost]
    unreachable: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)

    def connect(self, host: Host, settings: SshSettings) -> Session:
        if host.name in self.unreachable:
            raise Unreachable(f"`{host}` cannot be reached: timed out", host=host.name)
        fake = self.hosts[host.name]
        return KeysSession(fake, self.folder / host.name, host.name in self.lost)

    def keys_path(self, host: str) -> Path:
        return self.folder / host / "etc/qwen-deploy/keys"

    def keys(self, host: str) -> str:
        return self.keys_path(host).read_text()

    def actions(self, host: str) -> list[tuple[str, str]]:
        return [(line["who"], line["action"]) for line in self.hosts[host].audit]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    (tmp_path / "qwen-deploy.yml").write_text("hosts: [root@gpu-1, root@gpu-2]\n")
    monkeypatch.chdir(tmp_path)
    wanted = wanted_of()
    hosts = {name: FakeHost(wanted, Host(name, name, "root")) for name in ("gpu-1", "gpu-2")}
    made = Site(tmp_path / "hosts", hosts)
    for name in hosts:
        made.keys_path(name).parent.mkdir(parents=True)
        made.keys_path(name).write_text("# kept\n" + OPERATOR + ANNA)
        made.keys_path(name).chmod(0o640)
    monkeypatch.setattr(remote, "connect", made.connect)
    monkeypatch.setattr(remote, "operator", lambda: "olga@desk")
    return made


@pytest.fixture
def program(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    return running(monkeypatch, capsys, "keys")


def test_one_key_is_made_for_all_hosts_and_shown_once(program: Program, site: Site) -> None:
    printed = program("create", "bert", "--rpm", "7")
    key = printed.out.strip()
    assert (printed.code, key.startswith("sk-")) == (0, True)
    assert printed.err == (
        "the key `bert`, shown this once:\n"
        "gpu-1  keys      bert: created\ngpu-2  keys      bert: created\n"
    )
    first, second = site.keys("gpu-1"), site.keys("gpu-2")
    assert first == second
    kept, line = first[: -len(first.splitlines()[-1]) - 1], first.splitlines()[-1].split()
    assert kept == "# kept\n" + OPERATOR + ANNA
    assert line[:2] == ["bert", hashlib.sha256(key.encode()).hexdigest()]
    assert line[2].startswith("created=20")
    assert line[3:] == ["rpm=7"]
    assert key not in first
    assert site.actions("gpu-2") == [("olga@desk", "keys create bert")]
    assert site.hosts["gpu-1"].story == ["list", "lock", "create", "record", "unlock"]


def test_the_file_is_replaced_whole_and_keeps_its_owner_and_mode(
    program: Program, site: Site
) -> None:
    path = site.keys_path("gpu-1")
    before = path.stat()
    # What a run that died in between left behind is in nobody's way.
    path.with_name("keys.new").write_text("half")
    assert program("create", "bert").code == 0
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert [one.name for one in path.parent.iterdir()] == ["keys"]


def test_json_tells_the_key_and_each_host(program: Program) -> None:
    key, *hosts = [
        json.loads(line) for line in program("create", "bert", "--output", "json").out.splitlines()
    ]
    assert key["key"].startswith("sk-")
    assert (key["event"], key["name"], key["rpm"]) == ("key", "bert", None)
    assert key["hosts"] == ["gpu-1", "gpu-2"]
    assert [(one["event"], one["host"], one["name"], one["outcome"]) for one in hosts] == [
        ("host_key", "gpu-1", "bert", "created"),
        ("host_key", "gpu-2", "bert", "created"),
    ]


def test_a_name_that_exists_anywhere_changes_nothing_anywhere(program: Program, site: Site) -> None:
    site.keys_path("gpu-1").write_text(OPERATOR)
    printed = program("create", "anna")
    assert (printed.code, printed.out) == (3, "")
    assert printed.err == (
        "gpu-1  keys      anna: not tried\n"
        "error: `gpu-2` has a key `anna` already\n\n"
        "gpu-2 was not changed\n\n"
        "hint: choose another name, or: qwen-deploy keys revoke anna --host root@gpu-2\n"
        "gpu-2  keys      anna: refused\n"
    )
    assert site.keys("gpu-1") == OPERATOR


def test_a_key_that_came_meanwhile_is_not_replaced(
    program: Program, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two operators at once: the lock lets one in after the other, and the second is told."""
    host = site.hosts["gpu-1"]
    line = f"bert {'2' * 64}\n"

    class Meanwhile(KeysSession):
        @contextlib.contextmanager
        def hold(self, argv: Sequence[str]) -> Iterator[tuple[str, int | None]]:
            with self.root.joinpath("etc/qwen-deploy/keys").open("a") as file:
                file.write(line)
            with super().hold(argv) as held:
                yield held

    session = Meanwhile(host, site.folder / "gpu-1", False)
    monkeypatch.setattr(remote, "connect", lambda host, settings: session)
    printed = program("create", "bert", "--host", "gpu-1")
    assert (printed.code, printed.out) == (3, "")
    assert site.keys("gpu-1").endswith(ANNA + line)


def test_a_lock_that_somebody_holds_is_told(program: Program, site: Site) -> None:
    site.hosts["gpu-2"].locked_by = {"who": "carl", "purpose": "up", "since": "today"}
    printed = program("create", "bert")
    assert printed.code == 3
    assert "`gpu-2` is locked by carl for `up` since today" in printed.err
    assert "gpu-1  keys      bert: created\n" in printed.err
    # It works on the other host, so it is shown.
    assert printed.out.startswith("sk-")


def test_an_unreachable_host_keeps_a_key_from_being_made(program: Program, site: Site) -> None:
    site.unreachable = {"gpu-1"}
    printed = program("create", "bert")
    assert (printed.code, printed.out) == (4, "")
    assert printed.err.endswith(
        "gpu-1  keys      bert: unreachable\ngpu-2  keys      bert: not tried\n"
    )
    assert site.keys("gpu-2") == "# kept\n" + OPERATOR + ANNA


def test_a_host_that_was_lost_on_the_way_is_in_doubt(program: Program, site: Site) -> None:
    site.lost = {"gpu-2"}
    printed = program("create", "bert")
    assert (printed.code, printed.out[:3]) == (4, "sk-")
    assert "nobody can tell whether gpu-2 accepts `bert`" in printed.err


ENDS = "what it has begun runs to its end; it begins nothing more"


def test_a_revoked_key_is_gone_and_the_others_stay(program: Program, site: Site) -> None:
    site.keys_path("gpu-2").write_text(OPERATOR)
    printed = program("revoke", "anna")
    assert (printed.code, printed.out) == (0, "")
    assert printed.err == (
        f"gpu-1  keys      anna: revoked\ngpu-2  keys      anna: unknown\n`anna`: {ENDS}\n"
    )
    assert site.keys("gpu-1") == "# kept\n" + OPERATOR
    assert site.actions("gpu-1") == [("olga@desk", "keys revoke anna")]
    assert site.actions("gpu-2") == []


def test_several_keys_are_revoked_at_once(program: Program, site: Site) -> None:
    bert = f"bert {'2' * 64}\n"
    site.keys_path("gpu-1").write_text(bert + OPERATOR + ANNA)
    site.keys_path("gpu-2").write_text(OPERATOR + bert)
    printed = program("revoke", "anna", "bert", "anna")
    assert (printed.code, printed.out) == (0, "")
    assert printed.err == (
        "gpu-1  keys      anna: revoked\ngpu-1  keys      bert: revoked\n"
        "gpu-2  keys      anna: unknown\ngpu-2  keys      bert: revoked\n"
        f"`anna`: {ENDS}\n`bert`: {ENDS}\n"
    )
    assert (site.keys("gpu-1"), site.keys("gpu-2")) == (OPERATOR, OPERATOR)
    assert site.actions("gpu-1") == [("olga@desk", "keys revoke anna bert")]
    assert site.actions("gpu-2") == [("olga@desk", "keys revoke bert")]


def test_each_revoked_key_is_told_in_json(program: Program) -> None:
    argv = ("revoke", "anna", "carl", "--host", "gpu-1", "--output", "json")
    *told, error = map(json.loads, program(*argv).out.splitlines())
    assert [(one["host"], one["name"], one["outcome"]) for one in told] == [
        ("gpu-1", "anna", "revoked"),
        ("gpu-1", "carl", "unknown"),
    ]
    assert (error["event"], error["exit_code"]) == ("error", 1)


def test_a_wrong_name_keeps_no_other_key_alive(program: Program, site: Site) -> None:
    printed = program("revoke", "carl", "anna", "--host", "root@gpu-1")
    assert printed.code == 1
    assert printed.err.endswith(
        "error: there is no key `carl` on gpu-1\n\nthe others were revoked\n\n"
        "hint: qwen-deploy keys list --host root@gpu-1\n"
    )
    assert site.keys("gpu-1") == "# kept\n" + OPERATOR


def test_a_key_is_revoked_where_that_is_possible(program: Program, site: Site) -> None:
    site.unreachable = {"gpu-1"}
    printed = program("revoke", "anna")
    assert printed.code == 4
    assert "gpu-1 may still accept `anna`" in printed.err
    assert site.keys("gpu-2") == "# kept\n" + OPERATOR


def test_an_unknown_name_is_an_error(program: Program, site: Site) -> None:
    printed = program("revoke", "carl", "dora")
    assert (printed.code, printed.out) == (3, "")
    assert printed.err.endswith(
        "gpu-2  keys      dora: unknown\n"
        "error: there is no key `carl`, `dora` on gpu-1, gpu-2\n\nnothing was changed\n\n"
        "hint: qwen-deploy keys list\n"
    )


@pytest.mark.parametrize(
    "argv",
    [
        ("create", "a b"),
        ("create", "operator"),
        ("revoke", "operator"),
        ("revoke", "anna", "a b"),
        ("revoke",),
    ],
)
def test_a_bad_name_reaches_no_host(program: Program, site: Site, argv: Sequence[str]) -> None:
    site.unreachable = {"gpu-1", "gpu-2"}
    assert program(*argv).code == 2


def test_a_host_without_keys_is_told_apart(program: Program, site: Site) -> None:
    site.keys_path("gpu-1").unlink()
    printed = program("create", "bert", "--host", "gpu-1")
    assert printed.code == 3
    assert "`gpu-1` has no API keys: /etc/qwen-deploy/keys is not there" in printed.err


def test_a_file_that_cannot_be_changed_stays_as_it_was(program: Program, site: Site) -> None:
    path = site.keys_path("gpu-1")
    path.with_name("keys.new").mkdir()
    printed = program("create", "bert", "--host", "gpu-1")
    assert printed.code == 5
    assert "gpu-1 accepts the keys that it accepted before" in printed.err
    assert path.read_text() == "# kept\n" + OPERATOR + ANNA


METRICS = """\
# HELP qwen_requests_total Requests.
qwen_requests_total{code="200",key="anna",route="/v1/chat/completions"} 3.0
qwen_requests_total{code="429",key="anna",route="/v1/chat/completions"} 1.0
qwen_requests_total{code="401",key="-",route="other"} 9.0
qwen_prompt_tokens_total{key="anna",route="/v1/chat/completions"} 1e+06
qwen_completion_tokens_total{key="anna",route="/v1/chat/completions"} 20.0
"""


class Service(http.server.BaseHTTPRequestHandler):
    """Tells its numbers to the operator alone."""

    def do_GET(self) -> None:
        knows = self.headers["Authorization"] == "Bearer sk-operator" and self.path == "/metrics"
        self.send_response(200 if knows else 401)
        self.end_headers()
        self.wfile.write(METRICS.encode() if knows else b"")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def served(site: Site) -> Iterator[None]:
    with http.server.HTTPServer(("127.0.0.1", 0), Service) as server:
        current = site.folder / "gpu-1/opt/qwen-deploy/current"
        current.mkdir(parents=True)
        listen = {"listen": f"0.0.0.0:{server.server_port}"}
        (current / "release.json").write_text(json.dumps(listen))
        site.keys_path("gpu-1").with_name("operator.key").write_text("sk-operator\n")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("served")
def test_a_list_tells_what_each_key_asked(program: Program) -> None:
    assert program("list", "--host", "gpu-1").out == (
        "HOST   NAME      CREATED               RPM  REQUESTS  TOKENS IN  TOKENS OUT\n"
        "gpu-1  operator  -                     -    0         0          0\n"
        "gpu-1  anna      2026-11-22T17:00:00Z  60   4         1000000    20\n"
    )


def test_a_list_does_without_a_service(program: Program) -> None:
    printed = program("list", "--output", "json")
    found = [json.loads(line) for line in printed.out.splitlines()]
    assert [(one["host"], one["name"], one["rpm"], one["usage"]) for one in found] == [
        ("gpu-1", "operator", None, None),
        ("gpu-1", "anna", 60, None),
        ("gpu-2", "operator", None, None),
        ("gpu-2", "anna", 60, None),
    ]


def test_a_list_needs_every_host(program: Program, site: Site) -> None:
    site.unreachable = {"gpu-2"}
    assert program("list").code == 4
