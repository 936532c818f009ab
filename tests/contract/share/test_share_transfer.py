"""The agent reads a folder or an archive of the operator's machine, through whatever a tunnel does:
it ends with the right bytes, and none is sent twice without need."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pytest

from qwen_deploy.content import Content
from qwen_deploy.fleet import OPERATOR
from qwen_deploy.share import Share
from tests.contract.share.serving import (
    FIRST,
    SHARD_BYTES,
    SHARDS,
    Report,
    assert_whole,
    await_hold,
    entry,
    feed,
    held,
    kill_in_the_middle,
    order,
    packed_as,
    pull,
    report_of,
)
from tests.hub.agent import Agent, ended, until
from tests.hub.outcome import sentence
from tests.model_folder import make_model
from tests.wire import Fault, Wire, refusing_port

pytestmark = pytest.mark.contract

# An answer's headers, which are carried but are no weights.
HEADER_BYTES = 300


def test_a_whole_transfer_ends_proven_and_is_not_repeated(
    host: Agent, report: Report, model: Path, share: Share
) -> None:
    total, count = report.manifest.total_bytes, len(report.manifest.artifacts)
    status = pull(host, report, share, share.token)
    assert share.served_bytes == total
    assert pull(host, report, share, share.token)["bytes_fetched"] == 0
    assert share.served_bytes == total
    assert_whole(host, report, model)
    assert host.run("verify", host.final(report.manifest)) == (0, "")
    assert status["phase"] == "done" and status["error"] is None
    assert status["bytes_done"] == status["bytes_total"] == status["bytes_fetched"] == total
    assert status["files_done"] == status["files_total"] == count
    (source,) = status["sources"]
    assert (source["name"], source["bytes"], source["state"]) == (OPERATOR, total, "idle")


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.zst", "zip"])
def test_a_connection_cut_again_and_again_costs_nothing(
    host: Agent, model: Path, kind: str
) -> None:
    report = report_of(packed_as(kind, model))
    cuts: Iterator[Fault] = itertools.repeat("drop")
    with Share(report) as share, Wire(share.port, at=300_000, faults=cuts) as wire:
        pull(host, report, wire, share.token)
        assert wire.connections > SHARDS * SHARD_BYTES // 300_000
        repeated = wire.carried_bytes - report.manifest.total_bytes
        assert repeated <= wire.connections * HEADER_BYTES
    assert_whole(host, report, model)


def test_a_silent_connection_is_asked_again(
    host: Agent, report: Report, model: Path, share: Share
) -> None:
    with Wire(share.port, faults=["stall", "stall"]) as wire:
        order(host, report, entry(wire, share.token), stall_seconds=0.3)
        assert host.run() == (0, "")
        assert wire.connections == len(report.manifest.artifacts) + 2
    assert_whole(host, report, model)


def test_a_wrong_byte_once_costs_that_file_once_more(
    host: Agent, report: Report, model: Path, share: Share
) -> None:
    with Wire(share.port, faults=["flip"]) as wire:
        status = pull(host, report, wire, share.token)
    assert status["bytes_fetched"] == report.manifest.total_bytes + (model / FIRST).stat().st_size
    (warning,) = status["warnings"]
    assert warning.startswith(f"{OPERATOR} sent other bytes than those of the manifest for ")
    assert_whole(host, report, model)


@dataclass
class Deep:
    """The artifacts of an archive where they are only found after a while: once the readers were
    asked to wait."""

    report: Report
    wires: list[Wire] = field(default_factory=list)

    def contents(self) -> Mapping[str, Content]:
        return {path: DeepContent(one, self) for path, one in self.report.contents().items()}

    def has_asked_to_wait(self) -> bool:
        return any(wire.carried_bytes > HEADER_BYTES for wire in self.wires)


@dataclass
class DeepContent:
    content: Content
    deep: Deep

    @property
    def size(self) -> int:
        return self.content.size

    def open(self, offset: int) -> BinaryIO:
        until(self.deep.has_asked_to_wait)
        return self.content.open(offset)


def test_what_lies_deep_in_an_archive_is_waited_for(
    host: Agent, report: Report, model: Path
) -> None:
    deep = Deep(report)
    with Share(deep, notice_seconds=0.01) as share, Wire(share.port) as wire:
        deep.wires.append(wire)
        pull(host, report, wire, share.token)
        assert wire.connections == len(report.manifest.artifacts)
    assert_whole(host, report, model)


def test_a_kill_at_any_moment_costs_only_what_was_on_the_wire(
    new_host: Callable[[str], Agent], tmp_path: Path
) -> None:
    model = make_model(tmp_path / "large", shards=4, shard_bytes=3_000_000)
    report = report_of(model)
    total = report.manifest.total_bytes
    moments = random.Random(2)
    for run in range(3):
        host, moment = new_host(f"host-{run}"), moments.randrange(total)
        with Share(report) as share:
            order(host, report, entry(share, share.token))
            process = host.start()
            until(lambda: share.served_bytes >= moment)  # noqa: B023
            process.send_signal(signal.SIGKILL)
            ended(process)
            kept = host.kept_bytes()
            assert pull(host, report, share, share.token)["bytes_fetched"] == total - kept
        assert_whole(host, report, model)


def test_a_damaged_partial_costs_that_file_once_more(
    host: Agent, report: Report, model: Path, share: Share
) -> None:
    kept = kill_in_the_middle(host, report, share)
    partial = max(host.partials(), key=lambda path: path.stat().st_size)
    content = partial.read_bytes()
    partial.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    fetched = pull(host, report, share, share.token)["bytes_fetched"]
    once_more = (model / FIRST).stat().st_size
    assert fetched == report.manifest.total_bytes - kept + once_more
    assert_whole(host, report, model)


def test_the_status_says_who_is_read_and_how_far(host: Agent, report: Report, share: Share) -> None:
    with held(share) as wire:
        order(host, report, entry(wire, share.token))
        host.start()
        await_hold(host, wire)
        until(lambda: host.status["bytes_done"] == host.kept_bytes())
        status = host.status
    assert (status["phase"], status["source"]) == ("fetching", OPERATOR)
    assert (status["sources"][0]["state"], status["sources"][0]["error"]) == ("reading", None)
    assert status["model"] == report.manifest.model
    assert status["directory"] == str(host.final(report.manifest))
    assert status["bytes_fetched"] == status["bytes_done"] < status["bytes_total"]


def test_another_run_of_the_operator_is_read_on(host: Agent, report: Report, model: Path) -> None:
    """Its port and its token are others; the transfer on the host is the same."""
    with Share(report) as first, held(first) as wire:
        order(host, report, entry(wire, first.token))
        process = host.start()
        await_hold(host, wire)
    with Share(report) as second:
        feed(host, entry(second, second.token))
        assert ended(process) == (0, "")
        assert 0 < second.served_bytes < report.manifest.total_bytes
    assert host.status["bytes_fetched"] == report.manifest.total_bytes
    assert_whole(host, report, model)


def test_an_operator_who_is_gone_is_said_and_resumed_from(
    host: Agent, report: Report, model: Path, share: Share
) -> None:
    with held(share) as wire:
        order(host, report, entry(wire, share.token), retry_seconds=3)
        process = host.start()
        await_hold(host, wire)
    status, said = ended(process)
    assert status == 15
    told = sentence(said)
    assert OPERATOR in told and "connection refused" in told
    assert "are on this host, and the next transfer continues there" in told
    assert host.status["phase"] == "failed"
    kept = host.kept_bytes()
    fetched = pull(host, report, share, share.token)["bytes_fetched"]
    assert fetched == report.manifest.total_bytes - kept
    assert_whole(host, report, model)


def test_an_operator_who_was_never_there_is_said(host: Agent, report: Report) -> None:
    nobody = {"kind": "http", "name": OPERATOR, "token": "t", "wan": True}
    url = f"http://127.0.0.1:{refusing_port()}/{{path}}"
    order(host, report, {**nobody, "url": url}, retry_seconds=0.3)
    status, said = host.run()
    assert (status, host.status["error"]["exit_code"]) == (15, 15)
    assert "connection refused" in sentence(said) and "0 bytes of 6.0 MB" in said


def test_the_token_of_another_run_is_refused_and_not_shown(
    host: Agent, report: Report, share: Share
) -> None:
    with Share(report) as other:
        order(host, report, entry(share, other.token))
    status, said = host.run()
    assert status == 10
    assert f"{OPERATOR} refused the token" in sentence(said)
    assert other.token not in said + json.dumps(host.status)
    assert share.served_bytes == 0


@pytest.mark.parametrize("kind", ["folder", "tar.gz", "zip"])
def test_what_is_altered_while_it_is_served_is_a_changed_source(
    host: Agent, model: Path, kind: str
) -> None:
    place = packed_as(kind, model)
    report = report_of(place)
    with Share(report) as share, Wire(share.port, hold_after=100_000) as wire:
        order(host, report, entry(wire, share.token), connections=1)
        process = host.start()
        assert wire.is_held.wait(10)
        for path in (place,) if place.is_file() else place.glob("*.safetensors"):
            path.write_bytes(path.read_bytes()[::-1])
        wire.release()
        status, said = ended(process)
    assert status == 14, said
    assert "is no longer the file of the manifest" in sentence(said)
    assert "it was changed after it was inspected" in said
    assert not host.final(report.manifest).exists()


@pytest.fixture
def narrow_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("narrow_umask")
def test_who_may_read_depends_neither_on_the_umask_nor_on_the_folder(
    host: Agent, report: Report, model: Path
) -> None:
    for path in model.iterdir():
        path.chmod(0o600)
    with Share(report_of(model)) as share:
        pull(host, report, share, share.token)
    final = host.final(report.manifest)
    for folder in (final, final.parent, host.root / "models"):
        assert folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in final.iterdir()} == {0o444}
