from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from qwen_weights.__main__ import main
from qwen_weights.manifest import Artifact, Manifest

CONTENTS = {"a.txt": b"a", "b.txt": b"b" * 3_000_000, "sub/c.txt": b""}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    artifacts = []
    for path, content in CONTENTS.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
        artifacts.append(Artifact(path, len(content), hashlib.sha256(content).hexdigest()))
    manifest = Manifest("Qwen/Tiny", "a" * 40, tuple(artifacts))
    (tmp_path / "manifest.json").write_text(manifest.to_json(verified_at="2026-01-01T00:00:00Z"))
    return tmp_path


def test_a_sound_folder_is_proven(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(directory)]) == 0
    assert capsys.readouterr().out == "3 artifacts, 3.0 MB: every byte as in the manifest\n"
    assert main(["verify", "--quick", "--jobs", "1", str(directory)]) == 0
    assert "names and sizes as in the manifest" in capsys.readouterr().out


def test_everything_wrong_is_named(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = b"b" * 2_999_999 + b"x"
    (directory / "b.txt").write_bytes(wrong)
    (directory / "a.txt").unlink()
    (directory / "sub/c.txt").unlink()
    (directory / "sub/c.txt").symlink_to("/dev/null")
    (directory / "sub/d.txt").write_text("more")
    assert main(["verify", str(directory)]) == 13
    shown = capsys.readouterr()
    expected = hashlib.sha256(CONTENTS["b.txt"]).hexdigest()
    assert shown.out.splitlines() == [
        "a.txt: is missing",
        f"b.txt: expected sha256 {expected}, got {hashlib.sha256(wrong).hexdigest()}",
        "sub/c.txt: is not a regular file",
        "sub/d.txt: is not in the manifest",
    ]
    assert shown.err == f"error: {directory}: 4 of its files are not as proven\n"


def test_a_quick_look_sees_sizes_only(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "b.txt").write_bytes(b"x" * 3_000_000)
    assert main(["verify", "--quick", str(directory)]) == 0
    (directory / "b.txt").write_bytes(b"x")
    assert main(["verify", "--quick", str(directory)]) == 13
    assert "b.txt: expected 3000000 bytes, got 1" in capsys.readouterr().out


def test_a_folder_without_manifest_is_not_proven(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path)]) == 11
    assert f"{tmp_path}/manifest.json is missing" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text("{")
    assert main(["verify", str(tmp_path)]) == 2
