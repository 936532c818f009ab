"""Who may read, and whom the agent believes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub import Certificate, Hub, Rule
from tests.hub.agent import Agent, entries_of, huggingface, manifest_of
from tests.hub.outcome import assert_whole, sentence
from tests.hub.repository import Commit
from tests.hub.sample import HUBS, LARGE, REPO

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("name", HUBS)
def test_a_wrong_token_is_said_and_not_shown(
    agent: Agent, hub: Hub, folder: Path, name: str
) -> None:
    commit = hub.add(REPO, folder, token="hf_right", is_gated=True)
    entries = entries_of(name, hub, commit)
    agent.order(manifest_of(commit), *({**entry, "token": "hf_wrong"} for entry in entries))
    status, said = agent.run()
    assert status == 10
    assert "refused the token" in sentence(said)
    assert "hf_wrong" not in said + str(agent.status)
    agent.order(manifest_of(commit), *({**entry, "token": "hf_right"} for entry in entries))
    assert agent.run() == (0, "")
    assert {asked.token for asked in hub.requests if asked.origin == "cdn"} == {None}
    assert_whole(agent, commit)


UNTRUSTED = {
    "a stranger's": (Certificate(), False, "certificate"),
    "for another name": (Certificate("127.0.0.2"), True, "127.0.0.1"),
    "not valid yet": (Certificate(begins_in_days=1), True, "clock"),
    "expired": (Certificate(begins_in_days=-40), True, "expired"),
}


@pytest.mark.parametrize("what", UNTRUSTED)
def test_a_certificate_that_proves_nothing_is_said_at_once(
    agent: Agent, folder: Path, what: str
) -> None:
    certificate, is_known, words = UNTRUSTED[what]
    with Hub(certificate=certificate) as hub:
        commit = hub.add(REPO, folder)
        ca = certificate.pem if is_known else None
        agent.order(manifest_of(commit), huggingface(hub, commit, ca=ca), retry_seconds=60)
        status, said = agent.run()
    assert status == 20
    assert hub.endpoint in sentence(said) and words in said


def test_a_private_authority_is_trusted_where_it_is_given(agent: Agent, folder: Path) -> None:
    certificate = Certificate()
    with Hub(certificate=certificate) as hub:
        commit = hub.add(REPO, folder)
        agent.order(manifest_of(commit), huggingface(hub, commit, ca=certificate.pem))
        assert agent.run() == (0, "")
    assert_whole(agent, commit)


def test_a_way_from_https_to_http_is_not_taken(
    agent: Agent, hub: Hub, commit: Commit, folder: Path
) -> None:
    certificate = Certificate()
    with Hub(certificate=certificate) as secure:
        secure.add(REPO, folder)
        secure.rules.append(Rule(LARGE, "redirect", text=f"{hub.endpoint}/elsewhere"))
        agent.order(manifest_of(commit), huggingface(secure, commit, ca=certificate.pem))
        status, said = agent.run()
    assert status == 20
    assert "from https to http" in sentence(said)
    assert hub.requests == []
