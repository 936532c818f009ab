"""The agent against the loopback hub, where everything goes wrong that goes wrong with hubs:
it ends in the right bytes, or in one sentence, and the next transfer continues."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.hub import Hub, Rule
from tests.hub.agent import Agent, ended, entries_of, huggingface, manifest_of, modelscope
from tests.hub.outcome import assert_whole, sentence, total
from tests.hub.repository import Commit
from tests.hub.sample import FIRST, HUBS, LARGE, REPO, SHARD_BYTES, SHARDS
from tests.model_folder import make_model

pytestmark = pytest.mark.contract

PASSING = {
    "cut once": Rule(LARGE, "drop", after=300_000, times=1),
    "cut again and again": Rule(LARGE, "drop", after=150_000),
    "silent once": Rule(LARGE, "stall", after=300_000, times=1),
    "busy": Rule(LARGE, "status", status=503, times=2),
    "too many requests": Rule(LARGE, "status", status=429, times=1, headers={"Retry-After": "0"}),
}


@pytest.mark.parametrize(
    ("name", "fault"),
    [*(("huggingface", fault) for fault in PASSING)]
    + [(name, fault) for name in HUBS[1:] for fault in ("cut again and again", "busy")],
)
def test_a_passing_fault_costs_nothing(
    agent: Agent, hub: Hub, commit: Commit, name: str, fault: str
) -> None:
    hub.rules.append(replace(PASSING[fault]))
    agent.order(manifest_of(commit), *entries_of(name, hub, commit), retry_seconds=5)
    assert agent.run() == (0, "")
    assert_whole(agent, commit)
    assert hub.sent_bytes.total() == total(commit)


def test_a_hub_that_names_a_time_is_asked_then(agent: Agent, hub: Hub, commit: Commit) -> None:
    headers = {"Retry-After": "1"}
    hub.rules.append(Rule(FIRST, "status", status=429, times=1, headers=headers))
    agent.order(manifest_of(commit), huggingface(hub, commit), retry_seconds=5)
    assert agent.run() == (0, "")
    assert_whole(agent, commit)
    refused, again, *_ = (asked for asked in hub.requests if FIRST in asked.path)
    assert again.at - refused.at >= 1


LASTING: dict[str, tuple[Rule, int, str]] = {
    "closes at once": (Rule(FIRST, "drop"), 15, "closed"),
    "silent": (Rule(FIRST, "stall"), 15, "nothing"),
    "slow": (Rule(FIRST, "slow", rate=500), 15, "only"),
    "busy": (Rule(FIRST, "status", status=503), 15, "503"),
    "too many requests": (
        Rule(FIRST, "status", status=429, headers={"Retry-After": "60"}),
        15,
        "429",
    ),
    "no token": (Rule(FIRST, "status", status=401), 10, "401"),
    "gated": (
        Rule(FIRST, "status", status=403, headers={"X-Error-Code": "GatedRepo"}),
        10,
        "ask for access",
    ),
    "no such file": (Rule(FIRST, "status", status=404), 11, "404"),
    "a wrong byte": (Rule(FIRST, "flip", after=500_000), 13, "expected sha256"),
    "short": (Rule(FIRST, "short", after=600_000), 14, "600000"),
    "a loop": (Rule(FIRST, "loop"), 15, "redirects in a loop"),
}
# Where there is nothing better, the transfer goes on as the hub allows it.
ENDURED = {"slow", "too many requests"}


@pytest.mark.parametrize("fault", sorted(LASTING.keys() - ENDURED))
def test_a_lasting_fault_is_one_sentence_and_the_next_transfer_continues(
    agent: Agent, hub: Hub, commit: Commit, fault: str
) -> None:
    rule, code, words = LASTING[fault]
    hub.rules.append(replace(rule))
    agent.order(manifest_of(commit), huggingface(hub, commit), slow_seconds=0.3)
    status, said = agent.run()
    told = sentence(said)
    assert status == code, said
    assert "huggingface" in told and words in told
    assert not agent.final(manifest_of(commit)).exists()
    assert agent.status["error"]["exit_code"] == code
    hub.rules.clear()
    kept = agent.kept_bytes()
    assert agent.run() == (0, "")
    assert_whole(agent, commit)
    assert agent.status["bytes_fetched"] == total(commit) - kept


@pytest.mark.parametrize("fault", LASTING)
def test_a_lasting_fault_of_one_hub_is_another_hubs_turn(
    agent: Agent, hub: Hub, commit: Commit, fault: str
) -> None:
    hub.rules.append(replace(LASTING[fault][0], hub="modelscope"))
    entries = modelscope(hub, commit), huggingface(hub, commit)
    agent.order(manifest_of(commit), *entries, slow_seconds=0.3, retry_seconds=5)
    status, said = agent.run()
    assert status == 0, said
    assert_whole(agent, commit)


def test_a_wrong_byte_once_costs_that_file_once_more(
    agent: Agent, hub: Hub, commit: Commit
) -> None:
    hub.rules.append(Rule(FIRST, "flip", after=500_000, times=1))
    agent.order(manifest_of(commit), huggingface(hub, commit))
    status, said = agent.run()
    assert status == 0, said
    assert_whole(agent, commit)
    assert hub.sent_bytes.total() == total(commit) + commit.files[FIRST].size


def test_wrong_bytes_from_both_hubs_name_both(agent: Agent, hub: Hub, commit: Commit) -> None:
    hub.rules.append(Rule(FIRST, "flip", after=500_000))
    agent.order(manifest_of(commit), modelscope(hub, commit), huggingface(hub, commit))
    status, said = agent.run()
    assert status == 13
    assert "modelscope" in sentence(said) and "huggingface" in sentence(said)
    assert not agent.final(manifest_of(commit)).exists()


def test_a_hub_without_ranges_costs_what_it_must(agent: Agent, hub: Hub, commit: Commit) -> None:
    hub.rules += [Rule(FIRST, "no-ranges"), Rule(FIRST, "drop", after=400_000, times=1)]
    agent.order(manifest_of(commit), huggingface(hub, commit))
    assert agent.run() == (0, "")
    assert_whole(agent, commit)
    assert hub.sent_bytes.total() == total(commit) + 400_000


def moved(hub: Hub, tmp_path: Path) -> None:
    hub.commit(REPO, make_model(tmp_path / "next", shards=SHARDS, shard_bytes=SHARD_BYTES, seed=7))


def test_a_branch_that_moved_is_said(
    agent: Agent, hub: Hub, commit: Commit, tmp_path: Path
) -> None:
    moved(hub, tmp_path)
    agent.order(manifest_of(commit), modelscope(hub, commit))
    status, said = agent.run()
    assert status == 14
    assert "modelscope" in sentence(said) and ".safetensors" in said
    assert not agent.final(manifest_of(commit)).exists()


def test_a_branch_that_moves_in_the_middle_is_never_mixed(
    agent: Agent, hub: Hub, commit: Commit, tmp_path: Path
) -> None:
    rule = Rule(FIRST, "stall", after=600_000, times=1, hub="modelscope")
    hub.rules.append(rule)
    entries = modelscope(hub, commit), huggingface(hub, commit)
    agent.order(manifest_of(commit), *entries, stall_seconds=0.5, retry_seconds=5)
    process = agent.start()
    assert rule.met.wait(10)
    moved(hub, tmp_path)
    status, said = ended(process)
    assert status == 0, said
    assert_whole(agent, commit)


def test_a_repository_that_is_not_there_is_said(agent: Agent, hub: Hub, commit: Commit) -> None:
    hub.repositories.clear()
    agent.order(manifest_of(commit), modelscope(hub, commit))
    status, said = agent.run()
    assert status == 11 and "404" in sentence(said)
