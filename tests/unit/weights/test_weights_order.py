"""order.json and sources.json, as the agent reads them."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import time
from pathlib import Path
from typing import Any

import pytest
from qwen_weights.errors import BadManifest
from qwen_weights.pull import order as orders
from qwen_weights.pull.rate import Rates
from qwen_weights.sources import Patience
from qwen_weights.sources.entries import EntriesFile, Entry

MANIFEST = {
    "schema": 1,
    "model": "Qwen/Tiny",
    "revision": "a" * 40,
    "artifacts": [{"path": "config.json", "size": 2, "sha256": "0" * 64}],
}
LIMITS = {"connections": 4, "retry_seconds": 60, "stall_seconds": 20, "reserve_bytes": 1}
ORDER: dict[str, Any] = {
    "schema": 1,
    "root": "/var/lib/x",
    "manifests": [MANIFEST],
    "limits": LIMITS,
    "share": None,
    "repair": False,
}
HTTP = {"kind": "http", "name": "hub", "url": "https://hub/{path}"}


def order_of(directory: Path, **changed: Any) -> orders.Order:
    (directory / "order.json").write_text(json.dumps({**ORDER, **changed}))
    return orders.read(directory)


def entries_of(directory: Path, *sources: dict[str, Any]) -> tuple[Entry, ...]:
    document = {"schema": 1, "authority": None, "sources": list(sources)}
    (directory / "sources.json").write_text(json.dumps(document))
    return EntriesFile(directory).read().sources


def test_an_order_is_read(tmp_path: Path) -> None:
    share = {"address": "10.0.0.11", "port": 0, "token": "secret", "idle_seconds": 120}
    order = order_of(tmp_path, share=share, repair=True)
    assert order.root == Path("/var/lib/x") and order.repair
    assert [one.model for one in order.manifests] == ["Qwen/Tiny"]
    assert order.limits.patience == Patience(20, 1024, 30)
    assert order.limits.rates == Rates()
    assert order.share and order.share.idle_seconds == 120 and "secret" not in repr(order)


def test_who_ordered_the_same_gives_it_the_same_name(tmp_path: Path) -> None:
    order = order_of(tmp_path)
    listing = [{key: MANIFEST[key] for key in ("model", "revision", "artifacts")}]
    text = json.dumps(listing, sort_keys=True, separators=(",", ":"))
    assert order.manifest_id == hashlib.sha256(text.encode()).hexdigest()
    told = {**MANIFEST, "proof": "hub", "verified_at": "2026-01-01T00:00:00Z"}
    assert order_of(tmp_path, manifests=[told]).manifest_id == order.manifest_id


def test_rates_by_day_and_night(tmp_path: Path) -> None:
    def rates(**told: Any) -> Rates:
        return order_of(tmp_path, limits={**LIMITS, **told}).limits.rates

    assert rates(rate=5, night_rate=None, night=["22:00", "06:00"]) == Rates(5, 5)
    assert rates(rate=5, night_rate=9, night=["23:30", "05:15"]) == Rates(
        5, 9, time(23, 30), time(5, 15)
    )
    assert rates(rate=5, night_rate=0) == Rates(5, None)
    assert rates(rate=None, night_rate=9) == Rates(None, 9)


WRONG_ORDERS = [
    ({"schema": 2}, "order.json: schema: should be 1, is 2"),
    ({"root": "relative"}, "order.json: root: should be an absolute path"),
    ({"manifests": []}, "order.json: manifests: should be a list with at least one"),
    ({"manifests": [MANIFEST, MANIFEST]}, "order.json: manifests: each revision should be"),
    ({"manifests": [{**MANIFEST, "artifacts": []}]}, "manifest.json: artifacts: should be a list"),
    ({"limits": {**LIMITS, "connections": 0}}, "order.json: limits: connections: should be a who"),
    ({"limits": {**LIMITS, "rate": "fast"}}, "order.json: limits: rate: should be a number"),
    (
        {"limits": {**LIMITS, "night": ["22", "6"]}},
        "order.json: limits: night: should be two times",
    ),
    ({"limits": {**LIMITS, "speed": 1}}, "order.json: limits: speed: is unknown"),
    ({"limits": None}, "order.json: limits: should be an object"),
    ({"share": {"address": "x"}}, "order.json: share: idle_seconds: is missing"),
    ({"repair": 1}, "order.json: repair: should be true or false"),
    ({"more": 1}, "order.json: more: is unknown"),
]


@pytest.mark.parametrize(("changed", "words"), WRONG_ORDERS)
def test_a_wrong_order_is_named_by_its_key(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadManifest) as refused:
        order_of(tmp_path, **changed)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize(("text", "words"), [(None, "cannot be read"), ("{", "not JSON")])
def test_an_order_that_cannot_be_read_is_named(
    tmp_path: Path, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / "order.json").write_text(text)
    with pytest.raises(BadManifest, match=f"{tmp_path}/order.json: {words}"):
        orders.read(tmp_path)


def test_sources_keep_their_order_and_hide_their_secrets(tmp_path: Path) -> None:
    secrets = {"token": "s1", "headers": {"X": "s2"}, "proxy": "http://u:s3@p:1", "ca": "s4\n"}
    web, peer, folder, archive = entries_of(
        tmp_path,
        {**HTTP, **secrets, "paths": ["a", "b"], "wan": False},
        {"kind": "peer", "name": "gpu-1", "url": "http://10.0.0.11:4", "token": "s5"},
        {"kind": "folder", "name": "host:/x", "path": "/x", "paths": None},
        {"kind": "archive", "name": "host:/x.zip", "path": "/x.zip", "prefix": "Q/"},
    )
    assert (web.token, web.headers, web.ca) == ("s1", (("X", "s2"),), "s4\n")
    assert web.paths == frozenset({"a", "b"}) and not web.wan
    assert (peer.kind, peer.wan, folder.path, archive.prefix) == ("peer", False, "/x", "Q/")
    assert not any(f"s{number}" in repr((web, peer)) for number in range(1, 6))
    assert entries_of(tmp_path, HTTP)[0].wan


WRONG_SOURCES = [
    ({"kind": "ftp", "name": "x"}, "kind: should be one of http, git-lfs, peer, folder, archive"),
    ({"kind": "http", "name": "x"}, "url: is missing"),
    ({**HTTP, "path": "/x"}, "path: is unknown"),
    ({**HTTP, "token": "a\nb"}, "token: should be a text (the source hub)"),
    ({**HTTP, "headers": {"X": 1}}, "headers: X: should be a text (the source hub)"),
    ({**HTTP, "paths": "x"}, "paths: should be a list (the source hub)"),
    ({"kind": "folder", "name": "x", "path": "y"}, "path: should be an absolute path"),
]


@pytest.mark.parametrize(("source", "words"), WRONG_SOURCES)
def test_a_wrong_source_is_named_by_its_key(
    tmp_path: Path, source: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadManifest) as refused:
        entries_of(tmp_path, HTTP | {"name": "first"}, source)
    assert str(refused.value).startswith(f"sources.json: sources/1: {words}")


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match="each name should be there once"):
        entries_of(tmp_path, HTTP, HTTP)


def test_a_replaced_file_is_noticed(tmp_path: Path) -> None:
    entries_of(tmp_path, HTTP)
    file = EntriesFile(tmp_path)
    assert len(file.read().sources) == 1
    assert not file.has_changed()
    beside = tmp_path / "sources.json.new"
    beside.write_text('{"schema": 1, "sources": []}')
    os.replace(beside, tmp_path / "sources.json")
    assert file.has_changed()
    assert file.read().sources == ()
    (tmp_path / "sources.json").unlink()
    assert not file.has_changed()
