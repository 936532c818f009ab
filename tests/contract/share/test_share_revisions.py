"""Several transfers on one host, and what another revision there already holds."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen_deploy.share import Share
from tests.contract.share.serving import (
    FIRST,
    SHARD_BYTES,
    Report,
    assert_whole,
    await_hold,
    entry,
    held,
    kill_in_the_middle,
    order,
    pull,
    report_of,
)
from tests.hub.agent import Agent, ended
from tests.hub.outcome import sentence
from tests.model_folder import INDEX, safetensors

pytestmark = pytest.mark.contract


@pytest.fixture
def second(host: Agent, new_host: Callable[[str], Agent]) -> Agent:
    """Another transfer on the same host."""
    second = new_host("second")
    second.root = host.root
    return second


@pytest.fixture
def other_model(model: Path) -> Path:
    other = shutil.copytree(model, model.with_name("other"))
    (other / "config.json").write_text('{"model_type": "qwen2", "other": true}')
    return other


@pytest.fixture
def other_report(other_model: Path) -> Report:
    return report_of(other_model)


@pytest.fixture
def other_share(other_report: Report) -> Iterator[Share]:
    with Share(other_report) as share:
        yield share


def test_two_transfers_of_one_revision_are_one(
    host: Agent, second: Agent, report: Report, model: Path, share: Share
) -> None:
    with held(share) as wire:
        order(host, report, entry(wire, share.token))
        order(second, report, entry(share, share.token))
        transfers = [host.start()]
        await_hold(host, wire)
        transfers.append(second.start())
        wire.release()
        assert [ended(one) for one in transfers] == [(0, "")] * 2
    assert share.served_bytes == report.manifest.total_bytes
    assert (second.status["phase"], second.status["bytes_fetched"]) == ("done", 0)
    assert_whole(host, report, model)


def test_two_revisions_at_once_share_what_is_equal(
    host: Agent,
    second: Agent,
    report: Report,
    other_report: Report,
    share: Share,
    other_share: Share,
) -> None:
    with held(share) as wire:
        order(host, report, entry(wire, share.token))
        order(second, other_report, entry(other_share, other_share.token))
        transfers = [host.start()]
        await_hold(host, wire)
        transfers.append(second.start())
        wire.release()
        assert [ended(one) for one in transfers] == [(0, "")] * 2
    reports = (report, other_report)
    both = {one.sha256: one.size for each in reports for one in each.manifest.artifacts}
    assert share.served_bytes + other_share.served_bytes == sum(both.values())
    for one in reports:
        assert host.run("verify", host.final(one.manifest)) == (0, "")


def test_what_another_revision_holds_is_linked(
    host: Agent,
    report: Report,
    share: Share,
    other_model: Path,
    other_report: Report,
    other_share: Share,
) -> None:
    pull(host, report, share, share.token)
    fetched = pull(host, other_report, other_share, other_share.token)["bytes_fetched"]
    assert fetched == (other_model / "config.json").stat().st_size
    old, new = host.final(report.manifest) / FIRST, host.final(other_report.manifest) / FIRST
    assert old.samefile(new)
    assert host.run("verify", host.final(other_report.manifest)) == (0, "")


def test_a_damaged_file_of_another_revision_is_not_linked(
    host: Agent, report: Report, share: Share, other_report: Report, other_share: Share
) -> None:
    pull(host, report, share, share.token)
    damaged = host.final(report.manifest) / FIRST
    damaged.chmod(0o644)
    damaged.write_bytes(safetensors(SHARD_BYTES, seed=99))
    pull(host, other_report, other_share, other_share.token)
    assert other_share.served_bytes > SHARD_BYTES
    assert host.run("verify", host.final(other_report.manifest)) == (0, "")


def test_a_revision_with_a_lost_file_is_made_whole(
    host: Agent, report: Report, model: Path, share: Share
) -> None:
    pull(host, report, share, share.token)
    (host.final(report.manifest) / INDEX).unlink()
    fetched = pull(host, report, share, share.token)["bytes_fetched"]
    assert fetched == (model / INDEX).stat().st_size
    assert_whole(host, report, model)


def test_content_that_a_model_has_twice_is_sent_once(host: Agent, model: Path) -> None:
    size = 500_000
    for name in ("vocab.txt", "vocab.copy.txt"):
        (model / name).write_bytes(b"v" * size)
    report = report_of(model)
    with Share(report) as share:
        fetched = pull(host, report, share, share.token)["bytes_fetched"]
    assert fetched == report.manifest.total_bytes - size
    final = host.final(report.manifest)
    assert (final / "vocab.txt").samefile(final / "vocab.copy.txt")
    assert_whole(host, report, model)


def test_a_path_that_leaves_the_model_is_refused(host: Agent, report: Report, share: Share) -> None:
    order(host, report, entry(share, share.token))
    path = host.run_dir / "order.json"
    path.write_text(path.read_text().replace(FIRST, "../../../../escaped"))
    status, said = host.run()
    assert status == 2
    assert "'../../../../escaped' leaves the model's folder" in sentence(said)
    assert host.status["error"]["kind"] == "manifest"
    assert not host.root.exists()


@pytest.fixture
def models_mount(host: Agent) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root for a file system of its own")
    models = host.root / "models"
    models.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", models], check=True)
    yield models
    subprocess.run(["umount", "--lazy", models], check=True)


@pytest.mark.usefixtures("models_mount")
def test_two_file_systems_are_refused(host: Agent, report: Report, share: Share) -> None:
    order(host, report, entry(share, share.token))
    status, said = host.run()
    assert status == 16
    assert "are on different file systems, so that no file can be moved" in sentence(said)
    assert f"mount {host.root} as a whole" in said
    assert share.served_bytes == 0


def waiting_for(host: Agent, report: Report) -> list[str | Path]:
    status, final = host.run_dir / "status.json", host.final(report.manifest)
    return ["wait", "--status", status, "--directory", final, "--deadline", "20"]


def test_who_waits_sees_the_end_of_the_transfer(host: Agent, report: Report, share: Share) -> None:
    with held(share) as wire:
        order(host, report, entry(wire, share.token))
        transfer = host.start()
        await_hold(host, wire)
        waiter = host.start(*waiting_for(host, report))
        wire.release()
        assert ended(transfer) == ended(waiter) == (0, "")


def test_who_waits_for_a_transfer_that_was_killed_is_told(
    host: Agent, report: Report, share: Share
) -> None:
    kill_in_the_middle(host, report, share)
    status, said = host.run(*waiting_for(host, report), "--grace", "0.2")
    assert status == 17
    assert "ended without a result" in sentence(said)
