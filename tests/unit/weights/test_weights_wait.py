from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from qwen_weights.__main__ import main
from qwen_weights.manifest import Artifact, Manifest
from qwen_weights.store import damage

EMPTY_SHA = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
MANIFEST = Manifest("Qwen/Tiny", "a" * 40, (Artifact("config.json", 0, EMPTY_SHA),))


def wait(tmp_path: Path, status: dict[str, object] | None, *, deadline: float = 5) -> int:
    path = tmp_path / "status.json"
    if status is not None:
        path.write_text(json.dumps(status))
    argv = ["wait", "--status", str(path), "--directory", str(tmp_path / "final")]
    return main([*argv, "--deadline", str(deadline), "--grace", "0.3"])


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    return ended.pid


def test_a_whole_folder_ends_the_wait(tmp_path: Path) -> None:
    final = tmp_path / "final"
    final.mkdir()
    (final / "config.json").touch()
    (final / "manifest.json").write_text(MANIFEST.to_json())
    assert wait(tmp_path, None) == 0
    (final / "config.json").write_text("longer than it should be")
    assert wait(tmp_path, None) == 17


def test_a_failed_transfer_passes_its_error_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {"kind": "disk", "message": "the disk of /x is too small", "exit_code": 12}
    assert wait(tmp_path, {"phase": "failed", "error": error, "pid": os.getpid()}) == 12
    assert capsys.readouterr().err == "error: the disk of /x is too small\n"


def test_a_transfer_that_was_killed_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = dead_pid()
    status = {"phase": "fetching", "pid": pid, "bytes_done": 3, "bytes_total": 9}
    assert wait(tmp_path, status) == 17
    assert f"(process {pid}) ended without a result: 3 of 9 bytes" in capsys.readouterr().err


def test_a_transfer_that_never_started_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wait(tmp_path, None) == 17
    assert "no transfer is running" in capsys.readouterr().err


def test_a_transfer_that_takes_too_long_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = {"phase": "fetching", "pid": os.getpid(), "bytes_done": 3, "bytes_total": 9}
    assert wait(tmp_path, status, deadline=0.5) == 18
    assert "no end after 0.5 s: 3 of 9 bytes" in capsys.readouterr().err


def test_a_folder_that_is_known_to_be_damaged_is_not_whole(tmp_path: Path) -> None:
    final = tmp_path / "final"
    final.mkdir()
    (final / "config.json").touch()
    (final / "manifest.json").write_text(MANIFEST.to_json())
    damage.record(final, ["config.json"])
    assert wait(tmp_path, None) == 17
    damage.forget(final)
    assert wait(tmp_path, None) == 0
