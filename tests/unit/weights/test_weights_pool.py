"""Which source comes next, with sources that are never read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
from qwen_weights.errors import (
    BadManifest,
    Changed,
    ChecksumMismatch,
    Missing,
    SourceGone,
    Stopped,
    TokenRefused,
    WeightsError,
)
from qwen_weights.manifest import Artifact
from qwen_weights.pull.pool import Pool
from qwen_weights.pull.progress import Progress
from qwen_weights.sources import Interruption, Stubborn, TooSlow
from qwen_weights.sources.entries import Entry
from qwen_weights.sources.peer import PeerSource

from tests.unit.weights.scripts import ARTIFACT, MANIFEST, OTHER, Script


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Relays:
    """As relays.py answers."""

    def __init__(self) -> None:
        self.peers: Sequence[PeerSource] = ()
        self.picked: PeerSource | None = None
        self.is_alive = False
        self.has_more = False
        self.told: list[tuple[str, str]] = []

    def pick(self, artifact: Artifact, offset: int) -> PeerSource | None:
        return self.picked

    def is_any_alive(self) -> bool:
        return self.is_alive

    def is_ahead(self, artifact: Artifact, offset: int) -> bool:
        return self.has_more

    def failed(self, source: PeerSource) -> None:
        self.told.append(("failed", source.name))

    def refuse(self, source: PeerSource) -> None:
        self.told.append(("refused", source.name))

    def replace(self, peers: Sequence[PeerSource]) -> None:
        self.peers = peers


class Bench:
    """A pool over scripts, and what it says."""

    def __init__(self, *scripts: Script, retry_seconds: float = 0.05) -> None:
        self.scripts = {script.name: script for script in scripts}
        self.clock = Clock()
        self.relays = Relays()
        self.stop = threading.Event()
        self.progress = Progress([MANIFEST], "id")
        self.pool = Pool(
            self.make,
            self.progress,
            self.stop,
            retry_seconds=retry_seconds,
            relays=self.relays,
            clock=self.clock,
        )
        self.pool.replace([script.entry for script in scripts])

    def make(self, entry: Entry) -> Script | PeerSource:
        if entry.kind == "peer":
            return PeerSource(entry.name, entry.url, "token")
        if entry.name not in self.scripts:
            raise BadManifest(f"{entry.name}: nothing such")
        return self.scripts[entry.name]

    def pick(self, artifact: Artifact = ARTIFACT, offset: int = 0) -> str:
        return self.pool.pick(artifact, offset).name

    def fail(
        self,
        words: str = "reset",
        *,
        retry_after: float | None = None,
        kind: type[Interruption] = Interruption,
    ) -> None:
        """Of the source that comes next."""
        seat = self.pool.pick(ARTIFACT, 0)
        self.pool.failed(seat, ARTIFACT, kind(words, retry_after=retry_after))

    def refuse(self, error: WeightsError, artifact: Artifact | None = None) -> None:
        self.pool.refuse(self.pool.pick(ARTIFACT, 0), error, artifact)

    def states(self) -> list[str]:
        return [row["state"] for row in self.pool.report()]


def two() -> Bench:
    return Bench(Script("a"), Script("b"))


def test_the_first_of_the_list_is_asked() -> None:
    assert two().pick() == "a"


def test_what_lies_on_this_host_goes_before_the_wan() -> None:
    assert Bench(Script("hub"), Script("folder", is_wan=False)).pick() == "folder"


def test_a_source_is_used_for_its_files_only() -> None:
    bench = Bench(Script("a"), Script("b"))
    only = Entry("http", "a", wan=True, paths=frozenset({OTHER.path}))
    bench.pool.replace([only, bench.scripts["b"].entry])
    assert bench.pick(OTHER) == "a"
    assert bench.pick(ARTIFACT) == "b"


def test_one_cut_is_mended_where_it_was_and_two_are_left() -> None:
    bench = two()
    bench.fail()
    bench.clock.now += 0.2
    assert bench.pick() == "a"
    bench.fail()
    assert bench.pick() == "b"
    bench.clock.now += 0.3
    assert bench.pick() == "a"


def test_a_busy_source_is_left_for_as_long_as_it_asks() -> None:
    bench = two()
    bench.fail("answered 429", retry_after=20)
    assert bench.pick() == "b"
    assert bench.states() == ["paused", "idle"]
    bench.clock.now += 19
    assert bench.pick() == "b"
    bench.clock.now += 2
    assert bench.pick() == "a"


def test_several_streams_that_break_at_once_count_once() -> None:
    bench = two()
    seat = bench.pool.pick(ARTIFACT, 0)
    for _ in range(4):
        bench.pool.failed(seat, ARTIFACT, Interruption("reset"))
    bench.clock.now += 0.11
    assert bench.pick() == "a"


def test_a_better_source_is_tried_again_after_a_while() -> None:
    bench = two()
    bench.fail("answered 503", retry_after=1)
    other = bench.pool.pick(ARTIFACT, 0)
    leave = bench.pool.should_leave
    version = bench.pool.version
    bench.clock.now += 5
    assert not leave(other, ARTIFACT, 0, version)
    bench.clock.now += 30
    assert leave(other, ARTIFACT, 0, version)


def test_what_befalls_one_file_is_not_forgotten_because_others_flow() -> None:
    bench = two()
    seat = bench.pool.pick(ARTIFACT, 0)
    bench.pool.failed(seat, ARTIFACT, Interruption("answered 429", retry_after=60))
    assert bench.pick(OTHER) == "b"
    bench.pool.received(seat, OTHER, 1000)
    assert bench.pick(OTHER) == "a"
    assert bench.pick(ARTIFACT) == "b"


def test_a_slow_source_is_left_at_once_and_comes_last_for_a_while() -> None:
    bench = two()
    seat = bench.pool.pick(ARTIFACT, 0)
    bench.pool.received(seat, ARTIFACT, 10)
    bench.pool.failed(seat, ARTIFACT, TooSlow("it sent only 10 bytes in 30 s"))
    bench.clock.now += 1
    assert bench.pick() == "b"
    bench.pool.refuse(bench.pool.pick(ARTIFACT, 0), Missing("b has none"), ARTIFACT)
    assert bench.pick() == "a"


def test_what_hardly_passes_is_tried_a_few_times() -> None:
    bench = Bench(Script("a"), retry_seconds=600)
    for _ in range(5):
        bench.fail("redirects in a loop", kind=Stubborn)
        bench.clock.now += 5
    with pytest.raises(Missing, match=r"^a does not give model\.safetensors: redirects in a loop;"):
        bench.pick()


def test_whoever_asks_for_patience_gets_that_much_more() -> None:
    bench = Bench(Script("a"), retry_seconds=0)
    bench.fail("answered 429", retry_after=0)
    bench.clock.now += 1
    bench.fail("answered 429", retry_after=600)
    thread, picked = in_thread(bench.pick)
    bench.clock.now += 600
    thread.join(10)
    assert picked == ["a"]


def test_a_source_without_ranges_does_not_continue_while_another_can() -> None:
    bench = two()
    bench.scripts["a"].has_ranges = False
    assert bench.pick(offset=0) == "a"
    assert bench.pick(offset=5) == "b"


def test_what_a_source_lacks_is_not_asked_of_it_again() -> None:
    bench = two()
    bench.refuse(Missing("a has no model: 404"), ARTIFACT)
    assert bench.pick() == "b"
    assert bench.pick(OTHER) == "a"
    assert bench.progress.snapshot()["warnings"] == ["a has no model: 404"]


def test_a_refused_token_refuses_the_whole_source() -> None:
    bench = two()
    bench.refuse(TokenRefused("a refused the token"))
    assert bench.pick() == bench.pick(OTHER) == "b"
    assert bench.states() == ["refused", "idle"]


def test_wrong_bytes_once_send_to_the_others_first_and_twice_for_good() -> None:
    bench = two()
    error = ChecksumMismatch("a sent other bytes")
    seat = bench.pool.pick(ARTIFACT, 0)
    bench.pool.wrong(seat, ARTIFACT, error)
    assert bench.pick() == "b"
    assert bench.pick(OTHER) == "a"
    bench.refuse(Missing("b has none"), ARTIFACT)
    assert bench.pick() == "a"
    bench.pool.wrong(seat, ARTIFACT, error)
    with pytest.raises(ChecksumMismatch, match=r"a sent other bytes; b has none; 0 bytes of"):
        bench.pick()


REFUSALS: list[tuple[tuple[WeightsError, ...], type[WeightsError]]] = [
    ((Missing("a: 404"), Missing("b: 404")), Missing),
    ((Missing("a: 404"), TokenRefused("b: 401")), TokenRefused),
    ((Changed("a: moved"), ChecksumMismatch("b: wrong")), ChecksumMismatch),
]


@pytest.mark.parametrize(("errors", "kind"), REFUSALS)
def test_when_all_have_refused_one_sentence_names_them(
    errors: tuple[WeightsError, ...], kind: type[WeightsError]
) -> None:
    bench = two()
    for error in errors:
        bench.refuse(error, ARTIFACT)
    with pytest.raises(kind) as refused:
        bench.pick()
    assert str(refused.value) == (
        f"no source is left for model.safetensors: {errors[0]}; {errors[1]}; "
        "0 bytes of 10.2 kB are on this host, and the next transfer continues there"
    )


def test_a_single_refusal_speaks_for_itself() -> None:
    bench = Bench(Script("a"))
    bench.refuse(TokenRefused("a refused the token"))
    with pytest.raises(TokenRefused, match=r"^a refused the token; 0 bytes of"):
        bench.pick()
    assert bench.progress.snapshot()["warnings"] == []


def test_nobody_may_be_meant_for_a_file() -> None:
    bench = Bench(Script("a"))
    bench.pool.replace([Entry("http", "a", paths=frozenset())])
    with pytest.raises(Missing, match=r"no source is meant to have model\.safetensors"):
        bench.pick()


def test_a_source_that_is_gone_is_named() -> None:
    bench = Bench(Script("a"), retry_seconds=0)
    bench.fail("connection refused")
    with pytest.raises(SourceGone, match=r"^a is gone: connection refused for 0 s; 0 bytes of"):
        bench.pick()


def test_sources_that_are_gone_are_all_named() -> None:
    bench = Bench(Script("a"), Script("b"), Script("c"), retry_seconds=0)
    bench.refuse(Missing("a has no model: 404"), ARTIFACT)
    for _ in range(2):
        bench.fail("answered 503")
        bench.clock.now += 0.15
    bench.fail("connection refused")
    with pytest.raises(SourceGone) as gone:
        bench.pick()
    assert str(gone.value).startswith(
        "no source of model.safetensors is left after 0 s: a has no model: 404; "
        "b is gone: answered 503; c is gone: connection refused; 0 bytes"
    )


def test_an_empty_list_is_waited_with() -> None:
    bench = Bench(retry_seconds=0)
    with pytest.raises(SourceGone, match=r"^no source was named for 0 s; 0 bytes of"):
        bench.pick()
    assert bench.progress.phase == "waiting"


def in_thread(pick: Callable[[], str]) -> tuple[threading.Thread, list[str]]:
    picked: list[str] = []
    thread = threading.Thread(target=lambda: picked.append(pick()))
    thread.start()
    return thread, picked


def test_a_source_that_is_named_later_is_taken() -> None:
    bench = Bench(retry_seconds=30)
    bench.scripts["late"] = Script("late")
    thread, picked = in_thread(bench.pick)
    bench.pool.replace([bench.scripts["late"].entry])
    thread.join(10)
    assert picked == ["late"]


def test_a_new_list_keeps_what_is_known_and_ends_what_is_gone() -> None:
    bench = two()
    bench.scripts["c"] = Script("c")
    bench.refuse(TokenRefused("a refused the token"))
    seat, version = bench.pool.pick(ARTIFACT, 0), bench.pool.version
    entries = [bench.scripts[name].entry for name in ("a", "c")]
    bench.pool.replace(entries)
    assert bench.scripts["b"].is_closed and not bench.scripts["a"].is_closed
    assert bench.pick() == "c"
    assert bench.pool.should_leave(seat, ARTIFACT, 0, version)
    version = bench.pool.version
    bench.pool.replace(entries)
    assert bench.pool.version == version


def test_a_list_that_cannot_be_used_changes_nothing() -> None:
    bench = two()
    with pytest.raises(BadManifest):
        bench.pool.replace([Entry("http", "unknown")])
    assert bench.pick() == "a"


def test_a_stop_ends_the_wait() -> None:
    bench = Bench(retry_seconds=30)
    bench.stop.set()
    with pytest.raises(Stopped):
        bench.pick()


def with_peers() -> tuple[Bench, PeerSource]:
    bench = Bench(Script("hub"), retry_seconds=30)
    peers = [
        Entry("peer", name, url=f"http://10.0.0.{at}:1", token="t")
        for at, name in enumerate(("gpu-1", "gpu-2"), 1)
    ]
    bench.pool.replace([*peers, bench.scripts["hub"].entry])
    bench.relays.picked = bench.relays.peers[1]
    return bench, bench.relays.peers[1]


def test_relays_choose_among_themselves() -> None:
    bench, _ = with_peers()
    assert [peer.name for peer in bench.relays.peers] == ["gpu-1", "gpu-2"]
    assert bench.pick() == "gpu-2"
    bench.relays.picked = None
    assert bench.pick() == "hub"


def test_while_a_relay_is_alive_the_wan_is_left_alone() -> None:
    bench, peer = with_peers()
    bench.relays.picked, bench.relays.is_alive = None, True
    thread, picked = in_thread(bench.pick)
    assert not picked
    bench.relays.picked = peer
    thread.join(10)
    assert picked == ["gpu-2"]


def test_the_wan_is_left_for_a_relay_that_is_ahead() -> None:
    bench, _ = with_peers()
    bench.relays.picked = None
    seat, version = bench.pool.pick(ARTIFACT, 0), bench.pool.version
    assert not bench.pool.should_leave(seat, ARTIFACT, 0, version)
    bench.relays.has_more = True
    assert bench.pool.should_leave(seat, ARTIFACT, 0, version)


def test_relays_hear_what_became_of_them() -> None:
    bench, _ = with_peers()
    seat = bench.pool.pick(ARTIFACT, 0)
    bench.pool.failed(seat, ARTIFACT, Interruption("reset"))
    bench.pool.wrong(seat, ARTIFACT, ChecksumMismatch("gpu-2 lied"))
    assert bench.relays.told == [("failed", "gpu-2"), ("refused", "gpu-2")]
    assert bench.pick() == "hub"
    assert bench.states() == ["idle", "refused", "idle"]
