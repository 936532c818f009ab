"""A model of the operator's machine, and the order by which a host reads it there."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen_deploy import archive, folder
from qwen_deploy.archive import ArchiveReport
from qwen_deploy.config import Weights
from qwen_deploy.fleet import OPERATOR
from qwen_deploy.folder import FolderReport
from qwen_deploy.share import Share
from qwen_deploy.weights import Order, packed, sources_json
from tests.hub.agent import Agent, Entry, ended, until
from tests.hub.sample import REPO
from tests.model_folder import shard_name
from tests.packed import pack
from tests.wire import Wire

SHARDS, SHARD_BYTES = 3, 2_000_000
FIRST = shard_name(1, SHARDS)
HOLD_BYTES = 1_000_000
Report = FolderReport | ArchiveReport


def report_of(place: Path) -> Report:
    inspect = folder.inspect if place.is_dir() else archive.inspect
    return inspect(place, model=REPO, cache_path=place.parent / "hashes.json")


def packed_as(kind: str, model: Path) -> Path:
    """The folder itself, or an archive of it."""
    if kind == "folder":
        return model
    contents = {f"Tiny/{path.name}": path.read_bytes() for path in sorted(model.iterdir())}
    return pack(model.with_name(f"model.{kind}"), kind, contents)


def entry(server: Share | Wire, token: str) -> Entry:
    url = f"{server.url}/{{path}}"
    return {"kind": "http", "name": OPERATOR, "url": url, "token": token, "wan": True}


def order(host: Agent, report: Report, *entries: Entry, **limits: float) -> None:
    """Unpacks on the host what the product sends it; only the root and the patience differ."""
    sent = packed(Order((report.manifest,), Weights()), entries)
    with tarfile.open(fileobj=io.BytesIO(sent)) as files:
        files.extractall(host.run_dir, filter="data")
    path = host.run_dir / "order.json"
    document = json.loads(path.read_text()) | {"root": str(host.root)}
    document["limits"] |= {"retry_seconds": 5, "reserve_bytes": 0} | limits
    path.write_text(json.dumps(document))


def feed(host: Agent, *entries: Entry) -> None:
    """Other sources for a transfer that runs."""
    beside = host.run_dir / "sources.json.new"
    beside.write_bytes(sources_json(entries))
    beside.replace(host.run_dir / "sources.json")


def pull(host: Agent, report: Report, server: Share | Wire, token: str) -> dict[str, Any]:
    """A transfer that ends well; its last status."""
    order(host, report, entry(server, token))
    assert host.run() == (0, "")
    return host.status


@contextmanager
def held(share: Share) -> Iterator[Wire]:
    """Everything stands still in the middle until the wire is released, or is gone."""
    with Wire(share.port, hold_after=HOLD_BYTES) as wire:
        yield wire


def await_hold(host: Agent, wire: Wire) -> None:
    assert wire.is_held.wait(10)
    until(lambda: host.kept_bytes() > HOLD_BYTES / 2)


def kill_in_the_middle(host: Agent, report: Report, share: Share) -> int:
    """The bytes that it leaves to its successor."""
    with held(share) as wire:
        order(host, report, entry(wire, share.token))
        process = host.start()
        await_hold(host, wire)
        process.kill()
        ended(process)
    return host.kept_bytes()


def assert_whole(host: Agent, report: Report, model: Path) -> None:
    final = host.final(report.manifest)
    listed = {artifact.path for artifact in report.manifest.artifacts}
    extra = {"manifest.json", "manifest.pieces.json"}
    assert {path.name for path in final.iterdir()} == listed | extra
    assert all((final / path).read_bytes() == (model / path).read_bytes() for path in listed)
    assert host.partials() == []
    assert [path.name for path in final.parent.iterdir()] == [report.manifest.revision]
