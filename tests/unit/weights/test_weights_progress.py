from __future__ import annotations

import json
import os
from pathlib import Path

from qwen_weights.errors import DiskFull, in_units
from qwen_weights.manifest import Artifact, Manifest
from qwen_weights.progress import Progress, StatusFile

MANIFEST = Manifest(
    "Qwen/Tiny", "a" * 40, (Artifact("a", 900, "0" * 64), Artifact("b", 100, "1" * 64))
)


def test_the_status_says_how_far_the_transfer_is(tmp_path: Path) -> None:
    path = tmp_path / "run" / "status.json"
    progress = Progress(MANIFEST, "http://source", tmp_path / "final")
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
    progress = Progress(MANIFEST, "http://source", tmp_path)
    with StatusFile(tmp_path / "status.json", progress):
        progress.failed(DiskFull("the disk is full"))
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["phase"] == "failed"
    assert status["error"] == {"kind": "disk", "message": "the disk is full", "exit_code": 12}


def test_bytes_are_shown_in_the_unit_a_person_would_choose() -> None:
    shown = [in_units(count) for count in (0, 999, 1000, 1_234_567, 15_200_000_000)]
    assert shown == ["0 bytes", "999 bytes", "1.0 kB", "1.2 MB", "15.2 GB"]
