"""Whole transfers in this process, from servers on loopback and folders of this host."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from qwen_weights.__main__ import main
from qwen_weights.errors import (
    ChecksumMismatch,
    DiskFull,
    Missing,
    SourceGone,
    Stopped,
    TokenRefused,
    WeightsError,
)
from qwen_weights.pull import order as orders
from qwen_weights.pull.command import Pulling
from qwen_weights.pull.progress import StatusFile

from tests.contract.agent.loopback import Answer, Server, answering, files, in_turn, serving

pytestmark = pytest.mark.contract

MODEL = {"config.json": b"{}", "a.safetensors": b"a" * 300_000, "sub/b.safetensors": b"b" * 9}
WHEELS = {"one.whl": b"wheel one", "two.whl": b"wheel two"}


def manifest_of(contents: dict[str, bytes], model: str = "Qwen/Tiny") -> dict[str, Any]:
    artifacts = [
        {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in sorted(contents.items())
    ]
    return {"schema": 1, "model": model, "revision": "a" * 40, "artifacts": artifacts}


@dataclass
class Host:
    place: Path

    def __post_init__(self) -> None:
        self.run_dir.mkdir(parents=True)
        self.order()
        self.sources()

    @property
    def run_dir(self) -> Path:
        return self.place / "run"

    @property
    def root(self) -> Path:
        return self.place / "root"

    @property
    def status(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.run_dir / "status.json").read_text())
        return read

    def order(self, *manifests: dict[str, Any], limits: Any = None, **changed: Any) -> None:
        document = {
            "schema": 1,
            "root": str(self.root),
            "manifests": manifests or [manifest_of(MODEL)],
            "limits": {
                "connections": 2,
                "retry_seconds": 5,
                "stall_seconds": 5,
                "reserve_bytes": 0,
                **(limits or {}),
            },
            **changed,
        }
        (self.run_dir / "order.json").write_text(json.dumps(document))

    def sources(self, *sources: dict[str, Any]) -> None:
        self.put_sources(json.dumps({"schema": 1, "authority": None, "sources": sources}))

    def put_sources(self, text: str) -> None:
        beside = self.run_dir / "sources.json.new"
        beside.write_text(text)
        os.replace(beside, self.run_dir / "sources.json")

    def begin(self) -> Pulling:
        return Pulling(orders.read(self.run_dir), self.run_dir, look_seconds=0.02)

    def pull(self, pulling: Pulling | None = None) -> dict[str, Any]:
        """Its status, also where it fails."""
        pulling = pulling or self.begin()
        with StatusFile(self.run_dir / "status.json", pulling.progress):
            pulling.run()
        return self.status

    def fails(self, kind: type[WeightsError]) -> str:
        with pytest.raises(kind) as failed:
            self.pull()
        error = self.status["error"]
        assert self.status["phase"] == "failed"
        assert (error["kind"], error["message"]) == (kind.kind, str(failed.value))
        return str(failed.value)

    def final(self, model: str = "Qwen--Tiny") -> Path:
        return self.root / "models" / model / ("a" * 40)

    def files(self, model: str = "Qwen--Tiny") -> dict[str, bytes]:
        own = ("manifest.json", "manifest.pieces.json")
        return {
            str(path.relative_to(self.final(model))): path.read_bytes()
            for path in self.final(model).rglob("*")
            if path.is_file() and path.name not in own
        }


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def web(server: Server, name: str = "hub", **more: Any) -> dict[str, Any]:
    return {"kind": "http", "name": name, "url": server.url + "/{path}", **more}


@contextmanager
def hub(answer: Answer | None = None) -> Iterator[Server]:
    with serving(answer or files(MODEL)) as server:
        yield server


def until(is_so: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to be so"
        time.sleep(0.002)


@contextmanager
def pulling(host: Host, *, ends: type[WeightsError] | None = None) -> Iterator[Pulling]:
    """In another thread, which has ended well on leaving, or as it should."""
    begun, errors = host.begin(), list[BaseException]()

    def run() -> None:
        try:
            host.pull(begun)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield begun
        thread.join(20)
        assert not thread.is_alive()
        assert [type(error) for error in errors] == ([ends] if ends else [])
    finally:
        begun.stop()
        thread.join(20)


def test_manifests_come_in_their_order_and_are_not_asked_for_again(host: Host) -> None:
    host.order(manifest_of(WHEELS, "wheels"), manifest_of(MODEL))
    with hub(files({**MODEL, **WHEELS})) as server:
        host.sources(web(server))
        status = host.pull()
        asked = len(server.asked)
        assert {target for target, _ in server.asked[:2]} == {"/one.whl", "/two.whl"}
        assert host.pull()["bytes_fetched"] == 0
        assert len(server.asked) == asked == 5
    assert host.files("wheels") == WHEELS and host.files() == MODEL
    total = sum(len(content) for content in (*MODEL.values(), *WHEELS.values()))
    assert status["phase"] == "done" and status["error"] is None
    assert status["bytes_done"] == status["bytes_total"] == status["bytes_fetched"] == total
    assert status["files_done"] == status["files_total"] == 5
    assert status["directory"] == str(host.final())
    assert (status["model"], status["revision"]) == ("Qwen/Tiny", "a" * 40)
    assert status["manifest_id"] == orders.read(host.run_dir).manifest_id
    (source,) = status["sources"]
    assert (source["name"], source["bytes"], source["state"]) == ("hub", total, "idle")
    assert (status["share"], status["served_bytes"], status["warnings"]) == (None, 0, [])


def test_another_source_continues_where_the_first_one_ends(host: Host) -> None:
    with hub(files(MODEL, stop_at=100_000)) as first, hub() as second:
        host.sources(web(first, "first"), web(second, "second"))
        status = host.pull()
    assert host.files() == MODEL
    assert status["bytes_fetched"] == status["bytes_total"]
    ranges = [headers.get("Range") for target, headers in second.asked if "a.safe" in target]
    assert ranges == ["bytes=100000-"]


def test_a_kill_costs_nothing_that_reached_the_disk(host: Host) -> None:
    with hub(files(MODEL, stop_at=100_000, holds=True)) as server:
        host.sources(web(server))
        with pulling(host, ends=Stopped) as begun:
            partials = host.root / "partial"
            until(lambda: any(p.stat().st_size == 100_000 for p in partials.glob("*.part")))
            begun.stop()
    with hub() as server:
        host.sources(web(server))
        status = host.pull()
    assert status["bytes_fetched"] <= status["bytes_total"] - 100_000
    assert host.files() == MODEL


def test_a_new_list_of_sources_is_taken_while_the_old_one_hangs(host: Host) -> None:
    with hub(files(MODEL, stop_at=100_000, holds=True)) as old, hub() as new:
        host.sources(web(old, "old"))
        with pulling(host) as begun:
            until(lambda: begun.progress.snapshot()["bytes_done"] >= 100_000)
            host.sources(web(new, "new"))
    assert host.files() == MODEL
    assert [row["name"] for row in host.status["sources"]] == ["new"]
    assert "bytes=100000-" in [headers.get("Range") for _, headers in new.asked]


def test_sources_may_come_later(host: Host) -> None:
    with hub() as server, pulling(host) as begun:
        until(lambda: begun.progress.phase == "waiting")
        host.sources(web(server))
    assert host.files() == MODEL


def test_a_list_that_cannot_be_read_leaves_the_old_one(host: Host) -> None:
    with hub(files(MODEL, stop_at=100_000, holds=True)) as server:
        host.sources(web(server))
        with pulling(host) as begun:
            until(lambda: begun.progress.snapshot()["bytes_done"] >= 100_000)
            host.put_sources("{")
            until(lambda: begun.progress.snapshot()["warnings"])
            server.answer = files(MODEL)
            server.released.set()
    (warning,) = host.status["warnings"]
    assert "sources.json: not JSON" in warning and "the sources before stay" in warning


def test_nobody_may_be_named_for_too_long(host: Host) -> None:
    host.order(limits={"retry_seconds": 0.05})
    assert "no source was named for 0 s; 0 bytes of 300.0 kB" in host.fails(SourceGone)


FAULTS: list[tuple[Answer, type[WeightsError], str]] = [
    (answering(404), Missing, "hub has no"),
    (answering(401), TokenRefused, "hub wants a token for"),
    (
        files(
            {name: content[::-1] + b"" for name, content in MODEL.items()} | {"config.json": b"}{"}
        ),
        ChecksumMismatch,
        "hub sent other bytes than those of the manifest for config.json",
    ),
]


@pytest.mark.parametrize(("answer", "kind", "words"), FAULTS)
def test_a_fault_that_stays_ends_in_one_sentence(
    host: Host, answer: Answer, kind: type[WeightsError], words: str
) -> None:
    with hub(answer) as server:
        host.sources(web(server))
        message = host.fails(kind)
    assert words in message
    assert message.endswith("are on this host, and the next transfer continues there")
    assert not host.final().exists()


def test_faults_that_pass_cost_only_time(host: Host) -> None:
    def hang_up(request: object) -> None:
        pass

    busy = answering(503, Retry_After="0")
    with hub(in_turn(busy, hang_up, busy, hang_up, files(MODEL))) as server:
        host.sources(web(server))
        status = host.pull()
    assert host.files() == MODEL
    assert status["bytes_fetched"] == status["bytes_total"]


def test_a_disk_too_small_is_said_before_anything_is_asked(host: Host) -> None:
    host.order(limits={"reserve_bytes": 1 << 62})
    with hub() as server:
        host.sources(web(server))
        assert f"the disk of {host.root} is too small: need 300.0 kB more" in host.fails(DiskFull)
        assert not server.asked


def test_a_folder_of_this_host_is_linked_and_not_copied(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "carried"
    for name, content in MODEL.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "config.json").write_bytes(b"[]")
    with hub() as server:
        host.sources({"kind": "folder", "name": "host:/x", "path": str(folder)}, web(server))
        status = host.pull()
        assert [target for target, _ in server.asked] == ["/config.json"]
    assert host.files() == MODEL
    assert status["bytes_fetched"] == 4  # both tries at the file that was altered


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_an_archive_of_this_host_is_read(host: Host, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"carried.{kind}"
    with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as archive:
        for name, content in MODEL.items():
            (tmp_path / "member").write_bytes(content)
            archive.add(tmp_path / "member", f"Tiny/{name}")
    archive_source = {"kind": "archive", "name": "host:x", "path": str(path), "prefix": "Tiny/"}
    host.sources(archive_source)
    host.pull()
    assert host.files() == MODEL


def test_a_damaged_revision_is_repaired(host: Host) -> None:
    with hub() as server:
        host.sources(web(server))
        host.pull()
        asked = len(server.asked)
        damaged = host.final() / "a.safetensors"
        damaged.chmod(0o644)
        damaged.write_bytes(b"x" * 300_000)
        host.order(repair=True)
        status = host.pull()
        assert [target for target, _ in server.asked[asked:]] == ["/a.safetensors"]
    assert host.files() == MODEL
    assert (status["phase"], status["bytes_fetched"]) == ("done", 300_000)


def test_a_peer_reads_what_this_host_has(host: Host, tmp_path: Path) -> None:
    share = {"address": "127.0.0.1", "port": 0, "token": "t", "idle_seconds": 30}
    host.order(share=share)
    other = Host(tmp_path / "other")
    with hub() as server:
        host.sources(web(server))
        with pulling(host) as begun:
            until(lambda: begun.progress.phase == "done")
            url = f"http://127.0.0.1:{begun.progress.snapshot()['share']['port']}"
            other.sources({"kind": "peer", "name": "gpu-1", "url": url, "token": "t"}, web(server))
            asked = len(server.asked)
            assert other.pull()["sources"][0]["bytes"] == 300_011
            assert len(server.asked) == asked
            until(lambda: begun.progress.snapshot()["served_bytes"] == 300_011)
            begun.stop()
    assert other.files() == MODEL


def test_an_address_that_is_not_here_is_a_warning(host: Host) -> None:
    share = {"address": "203.0.113.1", "port": 0, "token": "t", "idle_seconds": 30}
    host.order(share=share)
    with hub() as server:
        host.sources(web(server))
        status = host.pull()
    assert status["phase"] == "done"
    (warning,) = status["warnings"]
    assert warning.startswith("nobody can read from this host: 203.0.113.1: ")


def test_an_order_that_cannot_be_read_is_a_status_too(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    (host.run_dir / "order.json").write_text("{}")
    assert main(["pull", "--dir", str(host.run_dir)]) == 2
    assert capsys.readouterr().err == "error: order.json: limits: is missing\n"
    status = host.status
    assert (status["phase"], status["error"]["kind"]) == ("failed", "manifest")
    assert (status["bytes_done"], status["bytes_total"], status["source"]) == (0, 0, "")


def test_a_signal_stops_the_process_and_keeps_what_came(host: Host) -> None:
    with hub(files(MODEL, stop_at=100_000, holds=True)) as server:
        host.sources(web(server))
        argv = [sys.executable, "-m", "qwen_weights", "pull", "--dir", str(host.run_dir)]
        service = Path(orders.__file__).parents[1]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=service) as process:
            until(lambda: len(server.asked) == 3)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.startswith("error: stopped; ")
    assert host.status["error"]["kind"] == "stopped"
