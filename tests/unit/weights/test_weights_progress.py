from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from qwen_weights.errors import DiskFull, in_units
from qwen_weights.manifest import Artifact, Manifest
from qwen_weights.pull.progress import Progress, StatusFile, failed_before

MANIFEST = Manifest(
    "Qwen/Tiny", "a" * 40, (Artifact("a", 900, "0" * 64), Artifact("b", 100, "1" * 64))
)
OTHER = Manifest("wheels", "b" * 40, (Artifact("c", 5, "2" * 64),))


def test_the_status_says_how_far_the_transfer_is(tmp_path: Path) -> None:
    path = tmp_path / "run" / "status.json"
    progress = Progress([MANIFEST], "the id")
    progress.begin(MANIFEST, tmp_path / "final")
    with StatusFile(path, progress):
        assert json.loads(path.read_text())["phase"] == "checking"
        progress.kept(100)
        progress.files(1)
        progress.fetched(450)
    status = json.loads(path.read_text())
    assert status["phase"] == "fetching"
    assert (status["bytes_done"], status["bytes_total"], status["bytes_fetched"]) == (
        550,
        1000,
        450,
    )
    assert (status["files_done"], status["files_total"]) == (1, 2)
    assert status["rate"] > 0 and status["eta_seconds"] >= 0
    assert status["pid"] == os.getpid()
    assert status["error"] is None
    assert [entry.name for entry in path.parent.iterdir()] == ["status.json"]


def test_the_status_ends_with_the_error(tmp_path: Path) -> None:
    progress = Progress([MANIFEST], "the id")
    with StatusFile(tmp_path / "status.json", progress):
        progress.failed(DiskFull("the disk is full", hint="make room"))
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["phase"] == "failed"
    assert status["error"] == {
        "kind": "disk",
        "message": "the disk is full",
        "exit_code": 12,
        "hint": "make room",
    }


@dataclass(frozen=True)
class Door:
    address: str = "10.0.0.11"
    port: int = 40001
    served_bytes: int = 7


def test_the_status_names_sources_peers_and_warnings() -> None:
    progress = Progress([MANIFEST, OTHER], "the id")
    rows = [{"name": "a", "state": "reading"}, {"name": "b", "state": "idle"}]
    progress.ask_sources(lambda: [*rows, {"name": "c", "state": "reading"}])
    progress.shared_at(Door())
    for warning in ("a lying relay", "a lying relay", "a source left behind"):
        progress.warn(warning)
    progress.begin(OTHER, Path("/final"))
    status = progress.snapshot()
    assert (status["source"], len(status["sources"])) == ("a, c", 3)
    assert status["share"] == {"address": "10.0.0.11", "port": 40001}
    assert status["served_bytes"] == 7
    assert status["warnings"] == ["a lying relay", "a source left behind"]
    assert (status["manifest_id"], status["model"], status["directory"]) == (
        "the id",
        "wheels",
        "/final",
    )
    assert (status["bytes_total"], status["files_total"]) == (1005, 3)
    progress.whole()
    status = progress.snapshot()
    assert (status["phase"], status["bytes_done"], status["files_done"]) == ("done", 1005, 3)


def test_a_transfer_that_could_not_begin_has_every_field_that_is_read() -> None:
    whole = Progress([MANIFEST], "the id").snapshot()
    assert whole.keys() - failed_before(DiskFull("x")).keys() == {
        "model",
        "revision",
        "directory",
        "started_at",
    }


def test_bytes_are_shown_in_the_unit_a_person_would_choose() -> None:
    shown = [in_units(count) for count in (0, 999, 1000, 1_234_567, 15_200_000_000)]
    assert shown == ["0 bytes", "999 bytes", "1.0 kB", "1.2 MB", "15.2 GB"]
