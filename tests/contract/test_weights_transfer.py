"""The packed agent, as a process of its own, pulling from the controller's share."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qwen_deploy.agent import pack_agent
from qwen_deploy.folder import FolderReport, inspect
from qwen_deploy.manifest import Manifest
from qwen_deploy.share import FolderShare
from tests.model_folder import INDEX, make_model, safetensors, shard_name
from tests.wire import Wire, refusing_port

pytestmark = pytest.mark.contract

SHARDS, SHARD_BYTES = 3, 2_000_000
FIRST = shard_name(1, SHARDS)
# An answer's headers, which are carried but are no weights.
HEADER_BYTES = 300


@dataclass(frozen=True)
class Host:
    """One host's root and the agent on it."""

    agent: Path
    place: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.place / "root"

    @property
    def status_path(self) -> Path:
        return self.place / "run" / "status.json"

    @property
    def status(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.status_path.read_text())
        return read

    def final(self, manifest: Manifest) -> Path:
        return self.root / "models" / manifest.directory

    def partials(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self.root.glob("partial/*")}

    def kept_bytes(self) -> int:
        """What a transfer that ended early left to its successor."""
        staged = self.root.glob("models/*/*.tmp/*")
        proven = sum(path.stat().st_size for path in staged if path.name != "manifest.json")
        return proven + sum(self.partials().values())

    def start(self, manifest: Manifest, url: str, token: str, *more: str) -> subprocess.Popen[str]:
        self.place.mkdir(exist_ok=True)
        manifest_path, token_path = self.place / f"{manifest.revision}.json", self.place / "token"
        manifest_path.write_text(manifest.to_json())
        token_path.write_text(token)
        options = {
            "--manifest": manifest_path,
            "--root": self.root,
            "--status": self.status_path,
            "--source": url,
            "--token-file": token_path,
        }
        argv = [str(part) for option in options.items() for part in option]
        return self.run("pull", *argv, "--reserve-bytes", "0", *more)

    def run(self, *argv: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-I", str(self.agent), *argv], stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        return process

    def end_all(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()

    def pull(self, manifest: Manifest, url: str, token: str, *more: str) -> tuple[int, str]:
        return ended(self.start(manifest, url, token, *more))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=20)
    return process.returncode, errors


def until(is_so: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to be so"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "weights.pyz"
    path.write_bytes(pack_agent(Path(__file__).parents[2] / "service" / "qwen_weights"))
    return path


@pytest.fixture
def new_host(agent: Path, tmp_path: Path) -> Iterator[Callable[[str], Host]]:
    hosts: list[Host] = []

    def make(name: str) -> Host:
        hosts.append(Host(agent, tmp_path / name))
        return hosts[-1]

    yield make
    for host in hosts:
        host.end_all()


@pytest.fixture
def host(new_host: Callable[[str], Host]) -> Host:
    return new_host("host")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", shards=SHARDS, shard_bytes=SHARD_BYTES)


def report_of(folder: Path) -> FolderReport:
    return inspect(folder, model="Qwen/Tiny", cache_path=folder.parent / "hashes.json")


@pytest.fixture
def report(folder: Path) -> FolderReport:
    return report_of(folder)


@pytest.fixture
def manifest(report: FolderReport) -> Manifest:
    return report.manifest


@pytest.fixture
def share(report: FolderReport) -> Iterator[FolderShare]:
    with FolderShare(report) as share:
        yield share


def assert_whole(host: Host, report: FolderReport) -> None:
    final = host.final(report.manifest)
    expected = {artifact.path for artifact in report.manifest.artifacts} | {"manifest.json"}
    assert {str(path.relative_to(final)) for path in final.rglob("*")} == expected
    for artifact in report.manifest.artifacts:
        content = (report.folder / artifact.path).read_bytes()
        assert (final / artifact.path).read_bytes() == content
    assert host.partials() == {}
    assert [path.name for path in final.parent.iterdir()] == [report.manifest.revision]


def test_a_whole_transfer_ends_proven_and_is_not_repeated(
    host: Host, report: FolderReport, share: FolderShare
) -> None:
    total = report.manifest.total_bytes
    assert host.pull(report.manifest, share.url, share.token) == (0, "")
    assert_whole(host, report)
    assert share.served_bytes == total
    status = host.status
    assert status["phase"] == "done" and status["error"] is None
    assert status["bytes_done"] == status["bytes_total"] == status["bytes_fetched"] == total
    assert status["files_done"] == status["files_total"] == len(report.manifest.artifacts)
    assert ended(host.run("verify", str(host.final(report.manifest)))) == (0, "")
    assert host.pull(report.manifest, share.url, share.token) == (0, "")
    assert share.served_bytes == total
    assert host.status["bytes_fetched"] == 0


def test_a_kill_at_any_moment_costs_only_what_was_on_the_wire(
    new_host: Callable[[str], Host], tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "large", shards=4, shard_bytes=6_000_000)
    report = report_of(folder)
    total = report.manifest.total_bytes
    moments = random.Random(2)
    for run in range(4):
        host = new_host(f"host-{run}")
        with FolderShare(report) as share:
            moment = moments.randrange(total)
            process = host.start(report.manifest, share.url, share.token)
            until(lambda: share.served_bytes >= moment)  # noqa: B023
            process.send_signal(signal.SIGKILL)
            ended(process)
            kept = host.kept_bytes()
            assert host.pull(report.manifest, share.url, share.token) == (0, "")
            assert host.status["bytes_fetched"] == total - kept
        assert_whole(host, report)


def test_a_connection_cut_again_and_again_costs_nothing(
    host: Host, report: FolderReport, share: FolderShare
) -> None:
    with Wire(share.port, at=300_000, faults=itertools.repeat("drop")) as wire:
        assert host.pull(report.manifest, wire.url, share.token) == (0, "")
        assert wire.connections > SHARDS * SHARD_BYTES // 300_000
        repeated = wire.carried_bytes - report.manifest.total_bytes
        assert repeated <= wire.connections * HEADER_BYTES
    assert_whole(host, report)


def test_a_silent_connection_is_asked_again(
    host: Host, report: FolderReport, share: FolderShare
) -> None:
    with Wire(share.port, faults=["stall", "stall"]) as wire:
        assert host.pull(report.manifest, wire.url, share.token, "--stall-seconds", "0.3") == (
            0,
            "",
        )
        assert wire.connections == len(report.manifest.artifacts) + 2
    assert_whole(host, report)


def test_a_wrong_byte_once_costs_that_file_once_more(
    host: Host, report: FolderReport, share: FolderShare
) -> None:
    with Wire(share.port, faults=["flip"]) as wire:
        assert host.pull(report.manifest, wire.url, share.token) == (0, "")
    assert share.served_bytes <= report.manifest.total_bytes + SHARD_BYTES + 1000
    assert_whole(host, report)


def test_wrong_bytes_always_never_reach_the_models(
    host: Host, manifest: Manifest, share: FolderShare
) -> None:
    with Wire(share.port, faults=itertools.repeat("flip")) as wire:
        status, errors = host.pull(manifest, wire.url, share.token)
    assert status == 13
    assert "expected sha256" in errors and ", got " in errors and ".safetensors" in errors
    assert not host.final(manifest).exists()
    assert host.status["error"]["kind"] == "checksum"
    assert host.pull(manifest, share.url, share.token) == (0, "")


def test_a_source_that_is_gone_is_said_and_resumed_from(
    host: Host, report: FolderReport, share: FolderShare
) -> None:
    with Wire(share.port, hold_after=1_000_000) as wire:
        process = host.start(
            report.manifest, wire.url, share.token, "--retry-seconds", "0.4", "--stall-seconds", "9"
        )
        assert wire.is_held.wait(10)
        until(lambda: sum(host.partials().values()) > 500_000)
    status, errors = ended(process)
    assert status == 15
    assert f"{wire.url} is gone: connection refused" in errors
    assert "are on this host, and the next transfer continues there" in errors
    assert host.status["phase"] == "failed"
    kept = host.kept_bytes()
    assert host.pull(report.manifest, share.url, share.token) == (0, "")
    assert host.status["bytes_fetched"] == report.manifest.total_bytes - kept
    assert_whole(host, report)


def test_a_source_that_was_never_there_is_said(host: Host, manifest: Manifest) -> None:
    url = f"http://127.0.0.1:{refusing_port()}"
    status, errors = host.pull(manifest, url, "token", "--retry-seconds", "0.3")
    assert (status, host.status["error"]["exit_code"]) == (15, 15)
    assert errors.startswith(f"error: {url} is gone: connection refused for 0 s; 0 bytes of 6.0 MB")


def test_a_refused_token_is_said_at_once(
    host: Host, manifest: Manifest, share: FolderShare
) -> None:
    status, errors = host.pull(manifest, share.url, "wrong")
    assert status == 10
    assert "refused the token" in errors and "wrong" not in errors


def test_a_signal_stops_and_the_next_transfer_continues(
    host: Host, report: FolderReport, share: FolderShare
) -> None:
    with Wire(share.port, hold_after=1_000_000) as wire:
        process = host.start(report.manifest, wire.url, share.token)
        assert wire.is_held.wait(10)
        until(lambda: sum(host.partials().values()) > 500_000)
        process.send_signal(signal.SIGTERM)
        status, errors = ended(process)
    assert status == 130 and errors.startswith("error: stopped; ")
    assert host.status["error"]["kind"] == "stopped"
    kept = host.kept_bytes()
    assert host.pull(report.manifest, share.url, share.token) == (0, "")
    assert host.status["bytes_fetched"] == report.manifest.total_bytes - kept
    assert_whole(host, report)


def test_two_transfers_of_one_revision_are_one(
    host: Host, report: FolderReport, share: FolderShare, tmp_path: Path
) -> None:
    other = tmp_path / "second-status.json"
    with Wire(share.port, hold_after=1_000_000) as wire:
        first = host.start(report.manifest, wire.url, share.token)
        assert wire.is_held.wait(10)
        second = host.start(report.manifest, share.url, share.token, "--status", str(other))
        wire.release()
        assert ended(first) == ended(second) == (0, "")
    assert share.served_bytes == report.manifest.total_bytes
    assert json.loads(other.read_text())["phase"] == "done"
    assert_whole(host, report)


def with_other_config(folder: Path) -> FolderReport:
    other = shutil.copytree(folder, folder.with_name("other"))
    (other / "config.json").write_text('{"model_type": "qwen2", "other": true}')
    return report_of(other)


def test_two_revisions_at_once_share_what_is_equal(
    host: Host, report: FolderReport, share: FolderShare
) -> None:
    other = with_other_config(report.folder)
    with FolderShare(other) as other_share, Wire(share.port, hold_after=1_000_000) as wire:
        first = host.start(report.manifest, wire.url, share.token)
        assert wire.is_held.wait(10)
        # The token file is common to both: the first transfer has read it already.
        second = host.start(
            other.manifest, other_share.url, other_share.token, "--status", f"{host.place}/other"
        )
        until((host.place / "other").exists)
        wire.release()
        assert ended(first) == ended(second) == (0, "")
        served = share.served_bytes + other_share.served_bytes
    both = {a.sha256: a.size for r in (report, other) for a in r.manifest.artifacts}
    assert served == sum(both.values())
    assert ended(host.run("verify", str(host.final(report.manifest)))) == (0, "")
    assert ended(host.run("verify", str(host.final(other.manifest)))) == (0, "")


def test_what_another_revision_holds_is_linked(
    host: Host, report: FolderReport, share: FolderShare
) -> None:
    assert host.pull(report.manifest, share.url, share.token) == (0, "")
    other = with_other_config(report.folder)
    with FolderShare(other) as other_share:
        assert host.pull(other.manifest, other_share.url, other_share.token) == (0, "")
        assert other_share.served_bytes == (other.folder / "config.json").stat().st_size
    old, new = host.final(report.manifest) / FIRST, host.final(other.manifest) / FIRST
    assert old.samefile(new)
    assert ended(host.run("verify", str(host.final(other.manifest)))) == (0, "")


def test_a_damaged_file_of_another_revision_is_not_linked(
    host: Host, report: FolderReport, share: FolderShare
) -> None:
    assert host.pull(report.manifest, share.url, share.token) == (0, "")
    (host.final(report.manifest) / FIRST).write_bytes(safetensors(SHARD_BYTES, seed=99))
    other = with_other_config(report.folder)
    with FolderShare(other) as other_share:
        assert host.pull(other.manifest, other_share.url, other_share.token) == (0, "")
        assert other_share.served_bytes > SHARD_BYTES
    assert ended(host.run("verify", str(host.final(other.manifest)))) == (0, "")


def test_a_revision_with_a_lost_file_is_made_whole(
    host: Host, report: FolderReport, share: FolderShare
) -> None:
    assert host.pull(report.manifest, share.url, share.token) == (0, "")
    before = share.served_bytes
    (host.final(report.manifest) / INDEX).unlink()
    assert host.pull(report.manifest, share.url, share.token) == (0, "")
    assert share.served_bytes - before == (report.folder / INDEX).stat().st_size
    assert_whole(host, report)


def test_a_source_altered_in_the_middle_is_a_changed_one(
    host: Host, report: FolderReport, share: FolderShare
) -> None:
    with Wire(share.port, hold_after=100_000) as wire:
        process = host.start(report.manifest, wire.url, share.token, "--connections", "1")
        assert wire.is_held.wait(10)
        # What the first answer still holds in its buffers stays true; the next one is refused.
        for path in report.folder.glob("*.safetensors"):
            path.write_bytes(path.read_bytes()[::-1])
        wire.release()
        status, errors = ended(process)
    assert status == 14, errors
    assert ".safetensors" in errors and "is no longer the file of the manifest" in errors
    assert "it was changed after it was inspected" in errors
    assert not host.final(report.manifest).exists()


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    options = ["-o", f"size={size_bytes}"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_disk_too_small_is_said_before_anything_is_written(
    host: Host, manifest: Manifest, share: FolderShare
) -> None:
    with small_disk(host.root, 5 << 20):
        status, errors = host.pull(manifest, share.url, share.token)
        assert status == 12
        assert f"the disk of {host.root} is too small: need 6.0 MB more, 5.2 MB are free" in errors
        assert [path for path in host.root.rglob("*") if path.is_file()] == []
    assert share.served_bytes == 0
    assert host.status["error"]["kind"] == "disk"


def test_the_reserve_of_the_disk_is_left_alone(
    host: Host, manifest: Manifest, share: FolderShare
) -> None:
    with small_disk(host.root, 20 << 20):
        reserve = ("--reserve-bytes", str(64 << 20))
        assert host.pull(manifest, share.url, share.token, *reserve)[0] == 12
        assert host.pull(manifest, share.url, share.token, "--reserve-bytes", "1000")[0] == 0


def test_a_disk_that_fills_in_the_middle_keeps_what_came(
    host: Host, report: FolderReport, share: FolderShare
) -> None:
    with small_disk(host.root, 8 << 20), Wire(share.port, hold_after=1_000_000) as wire:
        process = host.start(report.manifest, wire.url, share.token)
        assert wire.is_held.wait(10)
        filler = host.root / "filler"
        filler.write_bytes(bytes(5_000_000))
        wire.release()
        status, errors = ended(process)
        assert status == 12, errors
        assert f"the disk of {host.root} is full: No space left on device; " in errors
        assert "the next transfer continues there" in errors
        kept = host.kept_bytes()
        assert kept > 1_000_000
        filler.unlink()
        assert host.pull(report.manifest, share.url, share.token) == (0, "")
        assert host.status["bytes_fetched"] == report.manifest.total_bytes - kept
        assert_whole(host, report)


def test_two_file_systems_are_refused(host: Host, manifest: Manifest, share: FolderShare) -> None:
    with small_disk(host.root / "models", 20 << 20):
        status, errors = host.pull(manifest, share.url, share.token)
    assert status == 16
    assert "are on different file systems, so that no file can be moved" in errors
    assert f"mount {host.root} as a whole" in errors


def test_a_path_that_leaves_the_model_is_refused(
    host: Host, manifest: Manifest, share: FolderShare
) -> None:
    class Traversal(Manifest):
        def to_json(self) -> str:
            return super().to_json().replace(FIRST, "../../../../escaped")

    evil = Traversal(manifest.model, manifest.revision, manifest.artifacts)
    status, errors = host.pull(evil, share.url, share.token)
    assert status == 2
    assert "'../../../../escaped' leaves the model's folder" in errors
    assert host.status["error"]["kind"] == "manifest"
    assert not host.root.exists()


def test_who_waits_sees_the_end_of_the_transfer(
    host: Host, new_host: Callable[[str], Host], report: FolderReport, share: FolderShare
) -> None:
    waiting = (
        *("wait", "--status", str(host.status_path)),
        *("--directory", str(host.final(report.manifest)), "--deadline", "20"),
    )
    with Wire(share.port, hold_after=1_000_000) as wire:
        process = host.start(report.manifest, wire.url, share.token)
        assert wire.is_held.wait(10)
        waiter = host.run(*waiting)
        wire.release()
        assert ended(process) == ended(waiter) == (0, "")
    killed = new_host("killed")
    with Wire(share.port, hold_after=1_000_000) as wire:
        process = killed.start(report.manifest, wire.url, share.token)
        assert wire.is_held.wait(10)
        until(lambda: killed.status["phase"] == "fetching")
        process.send_signal(signal.SIGKILL)
        ended(process)
    options = ("--directory", str(killed.final(report.manifest)), "--grace", "0.2")
    waiter = killed.run("wait", "--status", str(killed.status_path), *options, "--deadline", "20")
    status, errors = ended(waiter)
    assert status == 17
    assert "ended without a result" in errors
