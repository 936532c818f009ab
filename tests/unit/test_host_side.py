"""The programs for hosts, run for real by this machine's python3, with their paths moved."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import http.server
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_deploy import commands, facts, release
from tests.fakes import raw_facts

PROGRAMS = sorted((Path(commands.__file__).parent / "host_side").glob("[!_]*.py"))
PLACES = ("/run/qwen-deploy.lock", "/opt/qwen-deploy", "/var/lib/qwen-deploy", "/etc/qwen-deploy")
DEADLINE_SECONDS = 20
ENVIRONMENT = {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def make_root(folder: Path) -> Path:
    for place in (*PLACES[1:], "/run"):
        (folder / place[1:]).mkdir(parents=True)
    return folder


def moved(argv: list[str], root: Path, **constants: str) -> list[str]:
    """The same command with its places below `root` instead of `/`."""
    *before, program, argument = argv
    for place in PLACES:
        program = program.replace(f'"{place}"', f'"{root}{place}"')
    for name, value in constants.items():
        changed = "".join(
            f"{name} = {value}\n" if line.startswith(f"{name} = ") else line
            for line in program.splitlines(keepends=True)
        )
        assert changed != program
        program = changed
    return [*before, program, argument]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_a_program_needs_nothing_but_an_old_python(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {str(name).split(".")[0] for name in imported} <= sys.stdlib_module_names


QUESTION = {**facts.question((), service=None, probe="none"), "units": []}


def inspect(root: Path, **question: Any) -> dict[str, Any]:
    argv = moved(commands.facts({**QUESTION, **question}), root)
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A host with everything, and its facts: one run of the program for many tests."""
    root = make_root(tmp_path_factory.mktemp("full"))
    (root / "file").write_bytes(b"content")
    (root / "link").symlink_to("/nowhere")
    (root / "model/sub").mkdir(parents=True)
    (root / "model/config.json").write_bytes(b"12")
    (root / "model/sub/a").write_bytes(b"123")
    (root / "model/dangling").symlink_to("/nowhere")
    (root / "model-link").symlink_to(root / "model")
    releases = root / "opt/qwen-deploy/releases"
    for name, text in (("r-2", '{"model": "m"}'), ("r-1", '{"model": "m"}'), ("r-3", '{"mod')):
        (releases / name).mkdir(parents=True)
        (releases / name / "release.json").write_text(text)
        (releases / name / "venv").symlink_to(f"{root}/opt/qwen-deploy/venvs/v{name}")
        os.utime(releases / name, (1, 1))
    (releases / "empty").mkdir()
    (root / "opt/qwen-deploy/current").symlink_to(releases / "r-2")
    (root / "etc/qwen-deploy/keys").write_text(
        f"# who may\noperator {'0' * 64}\n\ntorn\ndefault 11 rpm=6\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        printed = inspect(
            root,
            paths=[f"{root}/{name}" for name in ("file", "link", "run", "absent")],
            trees=[f"{root}/model-link"],
            disks=[f"{root}/not/yet/there", "/proc/sys"],
            port=server.getsockname()[1],
            packages=["dpkg", "no-such-package"],
            python=sys.executable,
            units=list(commands.UNITS),
        )
    yield root, printed


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The facts of a host with nothing, but for somebody on a port of IPv6."""
    root = make_root(tmp_path_factory.mktemp("bare"))
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        return inspect(root, trees=[f"{root}/absent"], port=port, python="/no/such/python")


Full = tuple[Path, dict[str, Any]]


def test_facts_are_what_the_controller_reads(full: Full, bare: dict[str, Any]) -> None:
    for printed in (full[1], bare):
        facts.parse(json.dumps(printed))
        assert printed.keys() == raw_facts().keys()
        assert printed["machine"] == os.uname().machine
        assert printed["memory_bytes"] > 0
        assert printed["service"] is None
    assert full[1]["units"].keys() == set(commands.UNITS)


def test_digests_tell_files_links_and_folders_apart(full: Full) -> None:
    root, printed = full
    assert printed["digests"] == {
        f"{root}/file": hashlib.sha256(b"content").hexdigest(),
        f"{root}/link": "-> /nowhere",
        f"{root}/run": "directory",
        f"{root}/absent": None,
    }


ENVIRONMENTS: dict[str, tuple[str | None, set[str], bool]] = {
    "whole": ("torch\nuvicorn", {"torch", "uvicorn"}, True),
    "used by root": ("torch\nuvicorn", {"torch", "uvicorn", "__pycache__"}, True),
    "with a package too few": ("torch\nuvicorn", {"torch"}, False),
    "with a package too many": ("torch\nuvicorn", {"numpy", "torch", "uvicorn"}, False),
    "emptied": ("torch\nuvicorn", set(), False),
    "without a list": (None, {"torch", "uvicorn"}, False),
}


@pytest.mark.parametrize(("listed", "there", "counts"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_the_marker_of_an_environment_counts_only_if_all_that_is_listed_is_there(
    root: Path, listed: str | None, there: set[str], counts: bool
) -> None:
    venv = root / "venv"
    for name in there:
        (venv / "lib/python3.11/site-packages" / name).mkdir(parents=True)
    venv.mkdir(exist_ok=True)
    (venv / ".complete").write_bytes(b"lock")
    if listed is not None:
        (venv / ".names").write_text(listed)
    marker = f"{venv}/.complete"
    expected = hashlib.sha256(b"lock").hexdigest() if counts else None
    assert inspect(root, paths=[marker])["digests"] == {marker: expected}


def test_a_tree_is_listed_with_sizes_through_one_link(full: Full, bare: dict[str, Any]) -> None:
    (model,) = full[1]["trees"].values()
    assert model == {"config.json": 2, "sub/a": 3}
    assert list(bare["trees"].values()) == [{}]


def test_a_disk_is_measured_where_a_path_would_lie(full: Full) -> None:
    root, printed = full
    disk = printed["disks"][f"{root}/not/yet/there"]
    assert os.path.ismount(disk["mount"])
    assert str(root).startswith(disk["mount"])
    assert 0 < disk["free_bytes"] <= disk["total_bytes"]
    assert printed["disks"]["/proc/sys"]["mount"].startswith("/proc")


def test_the_owner_of_a_port_is_found(full: Full, bare: dict[str, Any]) -> None:
    for printed in (full[1], bare):
        assert printed["port_owner"]["pid"] == os.getpid()
        assert printed["port_owner"]["command"]


def test_releases_are_listed_and_a_torn_one_is_not(full: Full, bare: dict[str, Any]) -> None:
    root, printed = full
    assert printed["current"] == "r-2"
    listed = [(one["id"], one["venv"], one["model"]) for one in printed["releases"]]
    assert listed == [("r-1", "vr-1", "m"), ("r-2", "vr-2", "m")]
    for one in printed["releases"]:
        # Not by the archive, which dates everything alike.
        assert one["made_at"] == (root / "opt/qwen-deploy/releases" / one["id"]).stat().st_ctime
    assert (bare["current"], bare["releases"]) == (None, [])


def test_keys_are_read_without_what_is_no_key(full: Full) -> None:
    assert full[1]["keys"] == [["operator", "0" * 64], ["default", "11", "rpm=6"]]


def test_packages_are_installed_or_not(full: Full) -> None:
    assert full[1]["packages"] == {"dpkg": True, "no-such-package": False}


def test_the_interpreter_answers_for_itself(full: Full, bare: dict[str, Any]) -> None:
    assert full[1]["runtime_python"] == list(sys.version_info[:2])
    assert bare["runtime_python"] is None


class Service(http.server.BaseHTTPRequestHandler):
    """Ready at once, and answers who has the key."""

    def do_GET(self) -> None:
        self.answer(200, {"status": "ready", "release": "r-1", "model": "Qwen/Tiny"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        has_key = self.headers["Authorization"] == "Bearer sk-operator"
        if has_key and asked["model"] == "Qwen/Tiny":
            self.answer(200, {"choices": [{"message": {"content": "你好"}}]})
        else:
            self.answer(401, {"error": {"message": "no key"}})

    def answer(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


NVIDIA_SMI = """#!/bin/sh
if [ "$1" = -L ]; then
    echo "GPU 0: NVIDIA H200 (UUID: GPU-0)"
    echo "GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-1)"
    echo "  MIG 3g.40gb     Device  0: (UUID: MIG-a)"
    echo "  MIG 3g.40gb     Device  1: (UUID: MIG-b)"
else
    echo "GPU-0, NVIDIA H200, 143771, 4, 570.1, 9.0"
    echo "GPU-1, NVIDIA A100-SXM4-80GB, 81920, 0, 570.1, 8.0"
fi
"""


def test_gpus_are_told_with_their_mig_instances(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = root / "bin"
    programs.mkdir()
    (programs / "nvidia-smi").write_text(NVIDIA_SMI)
    (programs / "nvidia-smi").chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "PATH", f"{programs}:{ENVIRONMENT['PATH']}")
    first, second = inspect(root)["gpus"]
    assert (first["uuid"], first["memory.total"], first["mig"]) == ("GPU-0", "143771", "")
    assert (second["uuid"], second["name"]) == ("GPU-1", "NVIDIA A100-SXM4-80GB")
    assert second["mig"] == "MIG-a,MIG-b"


@pytest.fixture
def served(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A host whose systemctl says that the unit runs, and whose release names a real port."""
    programs = root / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text(f"#!/bin/sh\necho MainPID={os.getpid()}\n")
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "PATH", f"{programs}:{ENVIRONMENT['PATH']}")
    monkeypatch.setitem(ENVIRONMENT, "http_proxy", "http://127.0.0.1:9")
    with http.server.HTTPServer(("127.0.0.1", 0), Service) as server:
        current = root / "opt/qwen-deploy/current"
        current.mkdir()
        listen = f"0.0.0.0:{server.server_port}"
        (current / "release.json").write_text(json.dumps({"listen": listen}))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield root
        server.shutdown()
        thread.join()


def ask_service(root: Path, probe: str) -> Any:
    return inspect(root, units=["qwen.service"], probe=probe)["service"]


def test_the_service_is_asked_for_a_completion_with_the_operators_key(served: Path) -> None:
    (served / "etc/qwen-deploy/operator.key").write_text("sk-operator\n")
    answer = ask_service(served, "completion")
    assert (answer["status"], answer["ready"]["release"]) == (200, "r-1")
    completion = answer["completion"]
    assert (completion["ok"], completion["status"], completion["error"]) == (True, 200, None)


def test_a_completion_that_is_refused_is_told_as_the_service_told_it(served: Path) -> None:
    completion = ask_service(served, "completion")["completion"]
    assert (completion["ok"], completion["status"]) == (False, 401)
    assert completion["error"] == {"error": {"message": "no key"}}


def test_a_completion_is_asked_for_only_where_it_is_wanted(served: Path) -> None:
    assert ask_service(served, "ready") == {
        "status": 200,
        "ready": {"status": "ready", "release": "r-1", "model": "Qwen/Tiny"},
    }


def test_a_service_that_does_not_listen_is_told_with_the_reason(served: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{bound.getsockname()[1]}"
        path = served / "opt/qwen-deploy/current/release.json"
        path.write_text(json.dumps({"listen": listen}))
        answer = ask_service(served, "completion")
    assert answer == {"status": 0, "ready": "[Errno 111] Connection refused"}


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-x\r\n"])
def test_somebody_who_speaks_no_http_is_told_as_no_answer(served: Path, said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(65536)
                client.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        listen = json.dumps({"listen": f"127.0.0.1:{server.getsockname()[1]}"})
        (served / "opt/qwen-deploy/current/release.json").write_text(listen)
        answered = ask_service(served, "completion")
        thread.join()
    assert answered == {"status": 0, "ready": "no answer in HTTP"}


def record(root: Path, **line: Any) -> None:
    subprocess.run(moved(commands.record(line), root), check=True, env=ENVIRONMENT)


def test_audit_lines_follow_each_other_even_after_one_that_a_power_loss_tore(root: Path) -> None:
    (root / "var/lib/qwen-deploy").rmdir()
    path = root / "var/lib/qwen-deploy/audit.log"
    record(root, who="anna", release="r-1")
    assert path.stat().st_mode & 0o777 == 0o640
    with path.open("a") as file:
        file.write('{"release": "r-2", "prov')
    record(root, who="伯特", release=None)
    first, second = inspect(root)["audit"]
    assert (first["who"], first["release"]) == ("anna", "r-1")
    assert (second["who"], second["release"]) == ("伯特", None)
    assert first["time"] <= second["time"]


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], DEADLINE_SECONDS)
    assert ready, "the program says nothing"
    return process.stdout.readline().strip()


@contextlib.contextmanager
def lock(root: Path, who: str, **constants: str) -> Iterator[subprocess.Popen[str]]:
    argv = moved(commands.lock({"who": who, "since": "today"}), root, **constants)
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=ENVIRONMENT) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_second_is_told_who_holds_the_lock(root: Path) -> None:
    with lock(root, "anna") as holder:
        assert first_line(holder) == "held"
        with lock(root, "bert", PATIENCE_SECONDS="0.2") as second:
            owner = {"who": "anna", "since": "today", "pid": holder.pid}
            assert commands.parse_lock_owner(first_line(second)) == owner
            assert second.wait(DEADLINE_SECONDS) == 75


def test_a_lock_ends_with_its_standard_input(root: Path) -> None:
    with lock(root, "anna") as holder:
        assert first_line(holder) == "held"
        assert holder.stdin is not None
        holder.stdin.close()
        assert holder.wait(DEADLINE_SECONDS) == 0
        assert_free(root)


def test_a_lock_ends_with_a_killed_holder(root: Path) -> None:
    with lock(root, "anna") as holder:
        assert first_line(holder) == "held"
        holder.send_signal(signal.SIGKILL)
        holder.wait(DEADLINE_SECONDS)
        assert_free(root)


def test_who_comes_while_the_holder_ends_gets_the_lock(root: Path) -> None:
    with lock(root, "anna") as holder:
        assert first_line(holder) == "held"
        with lock(root, "bert", PATIENCE_SECONDS=str(DEADLINE_SECONDS)) as second:
            wait_until_open(root / "run/qwen-deploy.lock", second)
            holder.kill()
            assert first_line(second) == "held"
    assert json.loads((root / "run/qwen-deploy.lock").read_text())["who"] == "bert"


def wait_until_open(path: Path, process: subprocess.Popen[str]) -> None:
    ends_at = time.monotonic() + DEADLINE_SECONDS
    descriptors = Path(f"/proc/{process.pid}/fd")
    while not any(os.path.realpath(one) == str(path) for one in descriptors.iterdir()):
        assert time.monotonic() < ends_at
        time.sleep(0.01)


def test_a_lock_ends_with_silence(root: Path) -> None:
    with lock(root, "anna", SILENCE_SECONDS="0.05") as holder:
        assert first_line(holder) == "held"
        assert holder.wait(DEADLINE_SECONDS) == 0
        assert_free(root)


def test_heartbeats_keep_a_lock(root: Path) -> None:
    with lock(root, "anna") as holder:
        assert first_line(holder) == "held"
        assert holder.stdin is not None
        holder.stdin.write("\n" * 3)
        holder.stdin.flush()
        with lock(root, "bert", PATIENCE_SECONDS="0") as second:
            assert "anna" in first_line(second)


def assert_free(root: Path) -> None:
    with lock(root, "carl") as next_holder:
        assert first_line(next_holder) == "held"


def test_the_places_are_those_of_the_controller() -> None:
    texts = [path.read_text() for path in PROGRAMS]
    assert PLACES[0] in commands.remove_lock()
    assert (PLACES[1], PLACES[2]) == (release.ROOT, release.STATE)
    assert all(any(f'"{place}"' in text for text in texts) for place in PLACES)
