from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from qwen_deploy import commands, fleet, weights
from qwen_deploy.chain import Member
from qwen_deploy.config import Weights
from qwen_deploy.errors import Refused
from qwen_deploy.events import Event
from qwen_deploy.inventory import Host
from qwen_deploy.sources import Pinned, Upstream
from qwen_deploy.supply import Supply
from qwen_deploy.weights import Order
from tests.fakes import MANIFEST, FakeHost, FakeSession, wanted_of

HUB = {"kind": "http", "name": "modelscope", "url": "https://hub/{path}"}
DONE = {
    "phase": "done",
    "bytes_done": 100,
    "bytes_total": 100,
    "source": "",
    "share": {"address": "192.0.2.1", "port": 7001},
}


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "POLL_SECONDS", 0.01)


class FakeFleet:
    """Hosts whose transfers are done at once; `unreachable` lists pairs (from, to)."""

    def __init__(self, count: int, holders: Sequence[int] = ()) -> None:
        self.hosts = [
            FakeHost(wanted_of(), Host(f"gpu-{at}", f"192.0.2.{at}")) for at in range(count)
        ]
        for host in self.hosts:
            host.transfer = dict(DONE)
        self.members = [
            Member(FakeSession(host), host.host.address, (MANIFEST,), holds=at in holders)
            for at, host in enumerate(self.hosts)
        ]
        self.events: list[Event] = []

    def bring(self, *, keeps: bool = False, **settings: Any) -> None:
        supply = Supply(Pinned(MANIFEST, (Upstream(HUB),), None), {}, {})
        order = Order((MANIFEST,), Weights(**settings))
        with fleet.bring(self.members, supply, order, self.events.append, keeps=keeps) as transfers:
            for transfer in transfers.values():
                transfer.wait(lambda: False)

    def sources(self, at: int) -> list[str]:
        return [str(entry["name"]) for entry in self.hosts[at].sources]


def test_one_host_reads_the_hub_and_opens_no_door() -> None:
    one = FakeFleet(1)
    one.bring()
    assert one.sources(0) == ["modelscope"]
    assert one.hosts[0].order["share"] is None


def test_each_host_reads_from_those_before_it_and_the_hub_last() -> None:
    three = FakeFleet(3)
    three.bring()
    assert three.sources(0) == ["modelscope"]
    assert three.sources(2) == ["gpu-1", "gpu-0", "modelscope"]
    tokens = {host.order["share"]["token"] for host in three.hosts}
    assert len(tokens) == 3
    assert three.hosts[2].sources[0]["token"] == three.hosts[1].order["share"]["token"]


def test_without_fan_out_every_host_reads_the_hub() -> None:
    two = FakeFleet(2)
    two.bring(fan_out="none")
    assert [two.sources(0), two.sources(1)] == [["modelscope"]] * 2
    assert two.hosts[1].order["share"] is None


def test_who_has_it_gives_and_is_not_waited_for() -> None:
    two = FakeFleet(2, holders=[1])
    two.bring()
    assert two.sources(0) == ["gpu-1", "modelscope"]
    assert "start weights" in two.hosts[1].story


def test_nobody_is_touched_where_everybody_has_it() -> None:
    two = FakeFleet(2, holders=[0, 1])
    two.bring()
    assert [host.story for host in two.hosts] == [[], []]


def test_hosts_that_may_not_talk_get_a_tunnel() -> None:
    two = FakeFleet(2)
    two.hosts[1].reaches_peers = False
    two.bring()
    peer = two.hosts[1].sources[0]
    assert peer["url"] == "http://127.0.0.1:7001"


def test_transfers_end_with_the_run_unless_they_are_kept() -> None:
    two = FakeFleet(2)
    two.bring()
    assert all(host.story[-1] == "stop weights" for host in two.hosts)
    kept = FakeFleet(2)
    kept.bring(keeps=True)
    assert not any("stop weights" in host.story for host in kept.hosts)


def test_what_somebody_else_started_is_theirs_to_end() -> None:
    one = FakeFleet(1)
    one.hosts[0].is_receiving = True
    one.bring()
    assert "stop weights" not in one.hosts[0].story


def test_a_host_that_receives_something_else_is_refused() -> None:
    one = FakeFleet(1)
    one.hosts[0].is_busy = True
    one.hosts[0].transfer = {**DONE, "phase": "fetching", "model": "Qwen/Other", "revision": "w-1"}
    with pytest.raises(Refused) as refused:
        one.bring()
    assert refused.value.message == "`gpu-0` is receiving Qwen/Other w-1"
    assert refused.value.hint == "wait for it, or end it: qwen-deploy weights cancel --host gpu-0"


def test_an_order_carries_the_limits_in_bytes_a_second() -> None:
    order = Order((MANIFEST,), Weights(limit_rate="20M", night_rate="1G", night="20:00-07:30"))
    limits = json.loads(order.to_json())["limits"]
    assert (limits["rate"], limits["night_rate"]) == (20_000_000, 1_000_000_000)
    assert limits["night"] == ["20:00", "07:30"]


def test_the_token_is_in_no_argument() -> None:
    argv = commands.start_transfer("0a1b", "/var/lib/qwen-deploy")
    two = FakeFleet(2)
    two.bring()
    assert two.hosts[0].order["share"]["token"] not in commands.quote(argv)
