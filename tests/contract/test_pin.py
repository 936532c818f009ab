"""Which revision the hosts are to hold, and from where: with a loopback hub and fake hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qwen_weights.manifest import Manifest

from qwen_deploy import pin
from qwen_deploy.config import Deployment
from qwen_deploy.errors import Refused, UsageError
from qwen_deploy.pin import Choice
from qwen_deploy.release import make
from qwen_deploy.sources import HubUnreachable
from tests import fakes
from tests.fakes import FakeHost, FakeSession, lying, wanted_of
from tests.hub import Hub
from tests.model_folder import make_model

pytestmark = pytest.mark.contract

MODEL = "Qwen/Tiny"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub() as hub:
        hub.add(MODEL, make_model(tmp_path / "model"))
        yield hub


@pytest.fixture
def host() -> FakeHost:
    return FakeHost(wanted_of())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def deployment(endpoint: str, **model: Any) -> Deployment:
    endpoints = {"huggingface_endpoint": endpoint, "modelscope_endpoint": endpoint}
    return fakes.deployment(model={"name": MODEL, **model}, weights=endpoints)


def holds(host: FakeHost, manifest: Manifest, asked: Deployment, *, serves: bool) -> None:
    """As an earlier `up`, or `weights pull`, left it."""
    host.raw["models"] = [json.loads(manifest.to_json())]
    if serves:
        release = make(asked, manifest, "cpu")
        host.raw |= {"current": release.id, "releases": [lying(release, made_at=1.0)]}


def probed(**told: Any) -> dict[str, Any]:
    """What the weights program on a host says of one source."""
    found = {"name": "modelscope", "rate": None, "error": None, "reached": True, "final": False}
    return found | told


def choose(host: FakeHost, asked: Deployment, *, refresh: bool = False) -> Choice:
    return pin.choose([FakeSession(host)], asked, refresh=refresh)


def test_a_bare_host_gets_what_the_hub_has_now(hub: Hub, host: FakeHost) -> None:
    choice = choose(host, deployment(hub.endpoint))
    assert choice.is_reached
    assert not choice.is_held
    assert {one.name for one in choice.pinned.upstreams} == {"modelscope", "huggingface"}


def test_what_a_host_serves_stays_and_no_hub_is_asked(hub: Hub, host: FakeHost) -> None:
    asked = deployment(hub.endpoint)
    first = choose(host, asked).pinned.manifest
    holds(host, first, asked, serves=True)
    hub.close()
    choice = choose(host, asked)
    assert choice.is_held
    assert choice.pinned.manifest == first


def test_refresh_asks_the_hub_again(hub: Hub, host: FakeHost, tmp_path: Path) -> None:
    asked = deployment(hub.endpoint)
    first = choose(host, asked).pinned.manifest
    holds(host, first, asked, serves=True)
    hub.commit(MODEL, make_model(tmp_path / "newer", seed=7))
    assert choose(host, asked).pinned.manifest == first
    assert choose(host, asked, refresh=True).pinned.manifest.revision != first.revision


@pytest.mark.parametrize("change", [{"revision": "v2"}, {"source": "git-lfs"}])
def test_who_asks_for_something_else_asks_the_source(
    hub: Hub, host: FakeHost, change: dict[str, str]
) -> None:
    asked = deployment(hub.endpoint)
    holds(host, choose(host, asked).pinned.manifest, asked, serves=True)
    hub.close()
    with pytest.raises(UsageError):
        choose(host, deployment(hub.endpoint, **change))


def test_without_a_hub_what_lies_there_is_taken_if_it_is_beyond_doubt(
    hub: Hub, host: FakeHost, tmp_path: Path
) -> None:
    asked = deployment(hub.endpoint)
    first = choose(host, asked).pinned.manifest
    hub.commit(MODEL, make_model(tmp_path / "newer", seed=7))
    second = choose(host, asked).pinned.manifest
    hub.close()
    holds(host, first, asked, serves=False)
    assert choose(host, asked).pinned.manifest == first
    host.raw["models"].append(json.loads(second.to_json()))
    with pytest.raises(HubUnreachable):
        choose(host, asked)


def test_a_new_host_is_given_what_the_other_one_has_though_the_hub_moved_on(
    hub: Hub, host: FakeHost, tmp_path: Path
) -> None:
    asked = deployment(hub.endpoint)
    first = choose(host, asked).pinned.manifest
    holds(host, first, asked, serves=True)
    hub.commit(MODEL, make_model(tmp_path / "newer", seed=7))
    new = FakeSession(FakeHost(wanted_of()))
    supply = pin.supply([new], asked, choose(host, asked), is_held=True)
    assert supply.pinned.manifest == first


def test_a_revision_that_only_lies_there_in_part_and_is_gone_from_the_hub_is_told(
    hub: Hub, host: FakeHost, tmp_path: Path
) -> None:
    asked = deployment(hub.endpoint, source="modelscope")
    first = choose(host, asked).pinned.manifest
    holds(host, first, asked, serves=True)
    hub.commit(MODEL, make_model(tmp_path / "newer", seed=7))
    with pytest.raises(UsageError) as refused:
        pin.supply([FakeSession(host)], asked, choose(host, asked), is_held=False)
    assert refused.value.hint == "take the new one: the same command with --refresh"


def test_a_folder_is_compared_with_the_hub(hub: Hub, host: FakeHost, tmp_path: Path) -> None:
    asked = deployment(hub.endpoint, source=str(tmp_path / "model"))
    choice = pin.here(asked)
    assert choice is not None
    assert choice.pinned.manifest.proof == "none"
    supply = pin.supply([FakeSession(host)], asked, choice, is_held=False)
    assert supply.pinned.manifest.proof == "hub"
    assert supply.pinned.notes == ()


def test_a_folder_that_differs_from_the_hub_is_called_unverified(
    hub: Hub, host: FakeHost, tmp_path: Path
) -> None:
    hub.commit(MODEL, make_model(tmp_path / "newer", seed=7))
    asked = deployment(hub.endpoint, source=str(tmp_path / "model"))
    choice = pin.here(asked)
    assert choice is not None
    supply = pin.supply([FakeSession(host)], asked, choice, is_held=False)
    assert supply.pinned.manifest.proof == "none"
    (note,) = supply.pinned.notes
    assert note.startswith(f"unverified: differs from {MODEL} of the hub in model-00001-of-00002")


def test_a_folder_where_no_hub_answers_is_called_unverified(host: FakeHost, tmp_path: Path) -> None:
    asked = deployment(NOWHERE, source=str(make_model(tmp_path / "model")))
    choice = pin.here(asked)
    assert choice is not None
    notes = pin.supply([FakeSession(host)], asked, choice, is_held=False).pinned.notes
    assert notes[0].startswith("unverified: ")
    assert notes[1].startswith("not compared with a hub: ")


def test_hosts_that_reach_no_source_use_this_machines_network(hub: Hub, host: FakeHost) -> None:
    host.probed = [probed(error="no route to host", reached=False)]
    asked = deployment(hub.endpoint, source="modelscope")
    supply = pin.supply([FakeSession(host)], asked, choose(host, asked), is_held=False)
    assert supply.lends_network


def test_a_hub_that_is_busy_is_read_by_the_host_itself(hub: Hub, host: FakeHost) -> None:
    host.probed = [probed(error="answered 429 Too Many Requests")]
    asked = deployment(hub.endpoint, source="modelscope")
    supply = pin.supply([FakeSession(host)], asked, choose(host, asked), is_held=False)
    assert not supply.lends_network


def test_a_hub_that_says_no_is_told_before_anything_starts(hub: Hub, host: FakeHost) -> None:
    host.probed = [probed(error="it is gated", final=True)]
    asked = deployment(hub.endpoint, source="modelscope")
    with pytest.raises(Refused) as refused:
        pin.supply([FakeSession(host)], asked, choose(host, asked), is_held=False)
    assert refused.value.evidence == ("modelscope: it is gated",)


def test_nobody_reaches_a_source_that_this_machine_does_not_reach_either(
    hub: Hub, host: FakeHost
) -> None:
    host.probed = [probed(error="no route to host", reached=False)]
    asked = deployment(hub.endpoint, source="modelscope")
    listed = Choice(choose(host, asked).pinned)
    with pytest.raises(Refused) as refused:
        pin.supply([FakeSession(host)], asked, listed, is_held=False)
    assert refused.value.evidence == ("modelscope: no route to host",)
    assert refused.value.state == "gpu-1 was not changed"


def test_the_quickest_source_comes_first_with_its_rate(hub: Hub, host: FakeHost) -> None:
    host.probed = [
        probed(rate=1e6),
        probed(name="huggingface", rate=5e6),
    ]
    asked = deployment(hub.endpoint)
    supply = pin.supply([FakeSession(host)], asked, choose(host, asked), is_held=False)
    assert [one.name for one in supply.pinned.upstreams] == ["huggingface", "modelscope"]
    member = supply.member(FakeSession(host), fakes.facts_of(), (), holds=False)
    (route,) = supply.routes([member], "auto").values()
    assert (route.text, route.rate, route.eta_seconds(10**7)) == ("from huggingface", 5e6, 2.0)
