"""Whole transfers from what lies on the host: nothing is copied that can be linked."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from qwen_weights.errors import WeightsError
from qwen_weights.manifest import Manifest
from qwen_weights.pull import order as orders
from qwen_weights.pull.command import Pulling
from qwen_weights.store import damage, pieces
from qwen_weights.store.inspection import load, problems

from tests.holdings import manifest_of, record
from tests.packed import pack

pytestmark = pytest.mark.contract

CONTENTS = {
    "z.safetensors": random.Random(1).randbytes(1_300_000),
    "sub/config.json": b"{}",
    "a.safetensors": random.Random(2).randbytes(200_000),
}
MANIFEST = manifest_of(CONTENTS)
KINDS = ["tar", "zip", "tar.gz", "tar.zst"]


def folder_at(path: Path) -> dict[str, str]:
    for name, content in CONTENTS.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return {"kind": "folder", "name": f"host:{path}", "path": str(path)}


def archive_at(path: Path, kind: str) -> dict[str, str]:
    pack(path, kind, {f"Qwen/{name}": content for name, content in CONTENTS.items()})
    return {"kind": "archive", "name": f"host:{path}", "path": str(path), "prefix": "Qwen/"}


class Host:
    def __init__(self, place: Path) -> None:
        self.root = place / "root"
        self._run_dir = place / "run"

    def pull(
        self, *sources: dict[str, str], repair: bool = False, retry_seconds: float = 0.2
    ) -> dict[str, Any]:
        """The status at the end; what ends the transfer is raised."""
        self._run_dir.mkdir(exist_ok=True)
        limits = {"connections": 2, "stall_seconds": 5, "reserve_bytes": 0}
        order = {
            "schema": 1,
            "root": str(self.root),
            "manifests": [json.loads(MANIFEST.to_json())],
            "limits": limits | {"retry_seconds": retry_seconds},
            "share": None,
            "repair": repair,
        }
        (self._run_dir / "order.json").write_text(json.dumps(order))
        (self._run_dir / "sources.json").write_text(
            json.dumps({"schema": 1, "authority": None, "sources": sources})
        )
        pulling = Pulling(orders.read(self._run_dir), self._run_dir, look_seconds=0.01)
        pulling.run()
        return pulling.progress.snapshot()

    @property
    def final(self) -> Path:
        return self.root / "models" / "Qwen--Tiny" / MANIFEST.revision

    @property
    def manifest(self) -> Manifest:
        return load(self.final)

    def is_sound(self) -> bool:
        return problems(self.final, MANIFEST, quick=False, jobs=1) == ()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_folder_of_this_host_ends_as_one_copy(host: Host, tmp_path: Path) -> None:
    status = host.pull(folder_at(tmp_path / "model"))
    assert host.is_sound()
    for name in CONTENTS:
        assert os.path.samefile(host.final / name, tmp_path / "model" / name)
    assert (status["phase"], status["bytes_fetched"]) == ("done", 0)
    assert status["bytes_done"] == MANIFEST.total_bytes
    assert set(pieces.load(host.final).by_sha256) == {a.sha256 for a in MANIFEST.artifacts}


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_of_this_host_is_unpacked_in_place(
    host: Host, tmp_path: Path, kind: str
) -> None:
    status = host.pull(archive_at(tmp_path / "x", kind))
    assert host.is_sound()
    assert status["bytes_fetched"] == MANIFEST.total_bytes
    assert list((host.root / "partial").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_continued_where_the_partials_end(
    host: Host, tmp_path: Path, kind: str
) -> None:
    (host.root / "partial").mkdir(parents=True)
    large = max(MANIFEST.artifacts, key=lambda artifact: artifact.size)
    partial = host.root / "partial" / f"{large.sha256}.part"
    partial.write_bytes(CONTENTS[large.path][:1_000_000])
    status = host.pull(archive_at(tmp_path / "x", kind))
    assert host.is_sound()
    assert status["bytes_fetched"] == MANIFEST.total_bytes - 1_000_000


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_an_archive_that_was_cut_off_says_so(host: Host, tmp_path: Path, kind: str) -> None:
    entry = archive_at(tmp_path / "x", kind)
    os.truncate(tmp_path / "x", (tmp_path / "x").stat().st_size // 2)
    with pytest.raises(WeightsError, match="x is damaged or was cut off") as ended:
        host.pull(entry)
    assert "the next transfer continues there" in str(ended.value)
    assert not host.final.exists()


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_what_a_broken_archive_lacks_comes_from_elsewhere(
    host: Host, tmp_path: Path, kind: str
) -> None:
    entry = archive_at(tmp_path / "x", kind)
    os.truncate(tmp_path / "x", (tmp_path / "x").stat().st_size // 2)
    host.pull(entry, folder_at(tmp_path / "model"))
    assert host.is_sound()


def test_a_folder_that_was_altered_since_is_not_believed(host: Host, tmp_path: Path) -> None:
    entry = folder_at(tmp_path / "model")
    (tmp_path / "model/z.safetensors").write_bytes(bytes(1_300_000))
    with pytest.raises(WeightsError):
        host.pull(entry)
    assert not host.final.exists()
    host.pull(entry, archive_at(tmp_path / "x", "tar.gz"))
    assert host.is_sound()


@pytest.mark.parametrize("kind", ["folder", *KINDS])
def test_a_damaged_revision_is_repaired_from_this_host(
    host: Host, tmp_path: Path, kind: str
) -> None:
    host.pull(archive_at(tmp_path / "x", "zip"))
    record(host.final, CONTENTS)
    shard = host.final / "z.safetensors"
    shard.chmod(0o644)
    content = bytearray(shard.read_bytes())
    content[500_500] ^= 1
    shard.write_bytes(content)
    is_folder = kind == "folder"
    entry = folder_at(tmp_path / "m") if is_folder else archive_at(tmp_path / "x", kind)
    status = host.pull(entry, repair=True)
    assert host.is_sound()
    assert status["bytes_fetched"] == 1000
    assert status["phase"] == "done"


def test_a_repair_of_what_is_not_there_brings_it(host: Host, tmp_path: Path) -> None:
    host.pull(folder_at(tmp_path / "model"), repair=True)
    assert host.is_sound()


def test_damage_that_is_known_is_mended_without_being_asked_for(host: Host, tmp_path: Path) -> None:
    host.pull(archive_at(tmp_path / "x", "zip"))
    record(host.final, CONTENTS)
    shard = host.final / "z.safetensors"
    shard.chmod(0o644)
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    assert host.pull(archive_at(tmp_path / "x", "zip"))["bytes_fetched"] == 0
    damage.record(host.final, ["z.safetensors"])
    assert host.pull(archive_at(tmp_path / "x", "zip"))["bytes_fetched"] == 1000
    assert host.is_sound()
    assert damage.known(host.final) is None
