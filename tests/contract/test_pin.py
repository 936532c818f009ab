"""Which revision the hosts are to hold, and from where: with a loopback hub and fake hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qwen_weights.manifest import Manifest

from qwen_deploy import pin
from qwen_deploy.cli import render
from qwen_deploy.config import Deployment
from qwen_deploy.errors import Refused, UsageError
from qwen_deploy.pin import Choice
from qwen_deploy.release import make
from qwen_deploy.sources import HubUnreachable
from qwen_deploy.supply import Supply
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


def test_what_a_host_holds_whole_stays_though_nothing_serves_it(
    hub: Hub, host: FakeHost, tmp_path: Path
) -> None:
    asked = deployment(hub.endpoint)
    first = replace(choose(host, asked).pinned.manifest, verified_at="2026-01-01T00:00:00Z")
    holds(host, first, asked, serves=False)
    hub.commit(MODEL, make_model(tmp_path / "newer", seed=7))
    choice = choose(host, asked)
    assert (choice.is_held, choice.pinned.manifest) == (True, first)
    assert choose(host, asked, refresh=True).pinned.manifest.revision != first.revision
    assert not choose(host, deployment(hub.endpoint, source="git-lfs")).is_held


@pytest.mark.parametrize("told", [{"verified_at": None}, {"proof": "none"}])
def test_what_is_not_whole_or_not_proven_does_not_stand_for_the_hubs(
    hub: Hub, host: FakeHost, told: dict[str, Any]
) -> None:
    asked = deployment(hub.endpoint)
    there = replace(choose(host, asked).pinned.manifest, verified_at="2026-01-01T00:00:00Z")
    holds(host, replace(there, **told), asked, serves=False)
    assert not choose(host, asked).is_held


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


def test_a_folder_that_differs_from_the_hub_is_refused(
    hub: Hub, host: FakeHost, tmp_path: Path
) -> None:
    hub.commit(MODEL, make_model(tmp_path / "newer", seed=7))
    asked = deployment(hub.endpoint, source=str(tmp_path / "model"))
    choice = pin.here(asked)
    assert choice is not None
    with pytest.raises(Refused) as refused:
        pin.supply([FakeSession(host)], asked, choice, is_held=False)
    assert refused.value.exit_code == 3
    assert f"is not {MODEL}: a hub that has it says other bytes for" in refused.value.message
    assert "model-00001-of-00002.safetensors" in refused.value.message
    assert "--weights huggingface" in (refused.value.hint or "")
    assert "--model" in (refused.value.hint or "")


def test_weights_of_another_form_than_the_hubs_are_refused(
    hub: Hub, host: FakeHost, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "own", shards=1)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tmp_path / "model" / name).read_bytes())
    asked = deployment(hub.endpoint, source=str(folder))
    with pytest.raises(Refused, match=r"other bytes for .*safetensors"):
        pin.supply([FakeSession(host)], asked, pin.here(asked) or pytest.fail(), is_held=False)


def test_a_small_file_that_the_hub_has_not_is_called_unverified(
    hub: Hub, host: FakeHost, tmp_path: Path
) -> None:
    (tmp_path / "model" / "more.json").write_text("{}")
    asked = deployment(hub.endpoint, source=str(tmp_path / "model"))
    choice = (pin.here(asked) or pytest.fail()).noted("filed as it was named")
    supply = pin.supply([FakeSession(host)], asked, choice, is_held=False)
    assert supply.pinned.manifest.proof == "none"
    filed, note = supply.pinned.notes
    assert (filed, note) == (
        "filed as it was named",
        f"unverified: {MODEL} of the hub has no more.json",
    )


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
    assert refused.value.exit_code == 3


def test_a_source_that_wants_a_token_says_where_it_is_named(hub: Hub, host: FakeHost) -> None:
    """Though this machine knows the list: it has asked before, or anybody may see it."""
    host.probed = [probed(error="401 Unauthorized", final=True, kind="auth")]
    asked = deployment(hub.endpoint, source="modelscope")
    with pytest.raises(Refused) as refused:
        pin.supply([FakeSession(host)], asked, choose(host, asked), is_held=False)
    assert refused.value.exit_code == 4
    assert "weights/modelscope_token_file" in (refused.value.hint or "")
    assert "weights/huggingface_token_file" not in (refused.value.hint or "")


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
    assert render.way(10**7, route) == "from huggingface, 5.0 MB/s measured, about 00:02"
    (limited,) = replace(supply, limit=2_000_000).routes([member], "auto").values()
    assert render.way(10**6, limited) == "from huggingface, at most 2.0 MB/s, about 00:01"


def test_a_folder_of_the_host_is_told_to_be_shared(host: FakeHost) -> None:
    local = {"gpu-1": ({"kind": "folder", "name": "host:/srv/Tiny", "path": "/srv/Tiny"},)}
    supply = Supply(fakes.pinned(), local, {})
    member = supply.member(FakeSession(host), fakes.facts_of(), (), holds=False)
    (route,) = supply.routes([member], "auto").values()
    shared = "(shared with it, not copied: do not write into its files)"
    assert route.text == f"from host:/srv/Tiny {shared}"
