"""The agent ended in the middle, by its host or its hub: what had reached the disk stays there."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub, Rule
from tests.hub.agent import (
    Agent,
    ended,
    entries_of,
    huggingface,
    manifest_of,
    modelscope,
    until,
)
from tests.hub.outcome import assert_whole, sentence, total
from tests.hub.repository import Commit
from tests.hub.sample import FIRST, HUBS, LARGE, REPO, SHARD_BYTES, SHARDS

pytestmark = pytest.mark.contract

CONTINUES = "the next transfer continues"


@pytest.mark.parametrize("name", HUBS)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_on_the_disk_when_it_ended_is_not_fetched_again(
    agent: Agent, hub: Hub, commit: Commit, name: str, end: signal.Signals
) -> None:
    hub.rules.append(Rule(LARGE, "stall", after=600_000))
    agent.order(manifest_of(commit), *entries_of(name, hub, commit), stall_seconds=10)
    process = agent.start()
    until(lambda: agent.kept_bytes() == total(commit) - SHARDS * rest(commit))
    process.send_signal(end)
    status, said = ended(process)
    assert status == (130 if end == signal.SIGTERM else -signal.SIGKILL)
    assert end == signal.SIGKILL or "stopped" in sentence(said)
    hub.rules.clear()
    assert agent.run() == (0, "")
    assert_whole(agent, commit)
    assert hub.sent_bytes.total() == total(commit)


def rest(commit: Commit) -> int:
    """What a stall after 600 kB leaves of each shard."""
    return commit.files[FIRST].size - 600_000


def stopped_in_the_middle(agent: Agent, hub: Hub, commit: Commit) -> None:
    hub.rules.append(Rule(LARGE, "stall", after=600_000))
    agent.order(manifest_of(commit), huggingface(hub, commit), stall_seconds=10)
    process = agent.start()
    until(lambda: agent.kept_bytes() == total(commit) - SHARDS * rest(commit))
    process.kill()
    ended(process)
    hub.rules.clear()


def test_a_damaged_partial_is_not_continued(agent: Agent, hub: Hub, commit: Commit) -> None:
    stopped_in_the_middle(agent, hub, commit)
    for partial in agent.partials():
        content = bytearray(partial.read_bytes())
        content[0] ^= 1
        partial.write_bytes(content)
    assert agent.run()[0] == 0
    assert_whole(agent, commit)


def test_a_partial_longer_than_the_file_is_begun_again(
    agent: Agent, hub: Hub, commit: Commit
) -> None:
    stopped_in_the_middle(agent, hub, commit)
    for partial in agent.partials():
        partial.write_bytes(partial.read_bytes() + bytes(SHARD_BYTES))
    assert agent.run()[0] == 0
    assert_whole(agent, commit)


def test_a_hub_gone_in_the_middle_is_another_hubs_turn(
    agent: Agent, hub: Hub, commit: Commit, folder: Path
) -> None:
    with Hub() as other:
        other.add(REPO, folder)
        hub.rules.append(Rule(LARGE, "stall", after=600_000))
        entries = modelscope(hub, commit), huggingface(other, commit)
        agent.order(manifest_of(commit), *entries, stall_seconds=10)
        process = agent.start()
        until(lambda: agent.kept_bytes() == total(commit) - SHARDS * rest(commit))
        hub.close()
        assert ended(process)[0] == 0
        assert hub.sent_bytes.total() + other.sent_bytes.total() == total(commit)
        assert other.sent_bytes.total() == SHARDS * rest(commit)
    assert_whole(agent, commit)


def test_no_hub_left_is_one_sentence_that_says_how_far_it_got(
    agent: Agent, hub: Hub, commit: Commit, folder: Path
) -> None:
    hub.rules.append(Rule(LARGE, "stall", after=600_000))
    agent.order(manifest_of(commit), huggingface(hub, commit), stall_seconds=10)
    process = agent.start()
    until(lambda: agent.kept_bytes() == total(commit) - SHARDS * rest(commit))
    hub.close()
    status, said = ended(process)
    assert status == 15
    told = sentence(said)
    assert "huggingface" in told and "1.2 MB of 2.0 MB" in told and CONTINUES in told
    with Hub() as other:
        agent.order(manifest_of(commit), huggingface(other, other.add(REPO, folder)))
        assert agent.run() == (0, "")
        assert other.sent_bytes.total() == SHARDS * rest(commit)
    assert_whole(agent, commit)


@pytest.fixture
def disk(agent: Agent) -> Iterator[Path]:
    """The root on a file system of 4 MB."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a file system of its own")
    agent.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", agent.root], check=True)
    yield agent.root
    subprocess.run(["umount", "--lazy", agent.root], check=True)


def test_a_small_disk_is_said_before_anything_is_fetched(
    agent: Agent, hub: Hub, commit: Commit, disk: Path
) -> None:
    (disk / "filler").write_bytes(bytes(3_000_000))
    agent.order(manifest_of(commit), huggingface(hub, commit))
    status, said = agent.run()
    assert status == 12
    assert "need 2.0 MB" in sentence(said) and str(disk) in said
    assert hub.sent_bytes.total() == 0


def test_a_disk_that_fills_in_the_middle_keeps_its_reserve_and_what_came(
    agent: Agent, hub: Hub, commit: Commit, disk: Path
) -> None:
    hub.rules.append(Rule(LARGE, "stall", after=600_000))
    limits = {"stall_seconds": 10.0, "reserve_bytes": 500_000}
    agent.order(manifest_of(commit), huggingface(hub, commit), **limits)
    process = agent.start()
    until(lambda: agent.kept_bytes() == total(commit) - SHARDS * rest(commit))
    (disk / "filler").write_bytes(bytes(free_bytes(disk) - 600_000))
    hub.rules.clear()
    hub.release()
    status, said = ended(process)
    assert status == 12
    assert CONTINUES in sentence(said) and str(disk) in said
    assert free_bytes(disk) > 0
    kept, sent = agent.kept_bytes(), hub.sent_bytes.total()
    assert kept >= total(commit) - SHARDS * rest(commit)
    (disk / "filler").unlink()
    assert agent.run() == (0, "")
    assert_whole(agent, commit)
    assert hub.sent_bytes.total() - sent == total(commit) - kept


def free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
