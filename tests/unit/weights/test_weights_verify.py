from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from qwen_weights.__main__ import main
from qwen_weights.manifest import DAMAGE_NAME, parse
from qwen_weights.store import pieces
from qwen_weights.store.damage import known
from qwen_weights.store.inspection import problems

from tests.holdings import digests, manifest_of, record, sha256

LARGE = random.Random(1).randbytes(3_000_500)
CONTENTS = {"a.txt": b"a", "b.txt": LARGE, "sub/c.txt": b""}
MANIFEST = manifest_of(CONTENTS, revision="a" * 40)
LONG_AGO = "2026-01-01T00:00:00Z"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for path, content in CONTENTS.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    document = json.loads(MANIFEST.to_json()) | {"verified_at": LONG_AGO, "proof": "hub"}
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    return tmp_path


@pytest.fixture
def in_pieces(directory: Path) -> Path:
    record(directory, CONTENTS)
    return directory


def damage(path: Path, *places: int) -> None:
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 1
    path.write_bytes(content)


def verified_at(directory: Path) -> str | None:
    return parse((directory / "manifest.json").read_text()).verified_at


def verdict(directory: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    status = main(["verify", str(directory), "--json", *more])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (status == 0) == answer["ok"]
    return answer


def test_a_sound_folder_is_proven(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(directory)]) == 0
    assert capsys.readouterr().out == "3 artifacts, 3.0 MB: every byte as in the manifest\n"
    assert main(["verify", "--quick", "--jobs", "1", str(directory)]) == 0
    assert "names and sizes as in the manifest" in capsys.readouterr().out


def test_everything_wrong_is_named(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(directory / "b.txt", 7)
    wrong = (directory / "b.txt").read_bytes()
    (directory / "a.txt").unlink()
    (directory / "sub/c.txt").unlink()
    (directory / "sub/c.txt").symlink_to("/dev/null")
    (directory / "sub/d.txt").write_text("more")
    assert main(["verify", str(directory)]) == 13
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "a.txt: is missing; bytes 0-0",
        f"b.txt: expected sha256 {sha256(LARGE)}, got {sha256(wrong)}; bytes 0-3000499",
        "sub/c.txt: is not a regular file",
        "sub/d.txt: is not in the manifest",
    ]
    assert f"error: {directory}: 4 of its files are not as proven: a.txt" in shown.err


def test_the_verdict_for_programs(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(directory, capsys) == {
        "directory": str(directory),
        "model": "Qwen/Tiny",
        "revision": "a" * 40,
        "ok": True,
        "bytes": 3_000_501,
        "problems": [],
        "quick": False,
        "proof": "hub",
    }


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_bad_ranges_are_named_where_pieces_are_recorded(
    in_pieces: Path, capsys: pytest.CaptureFixture[str], jobs: str
) -> None:
    damage(in_pieces / "b.txt", 0, 5_000, 6_999, 3_000_400)
    [problem] = verdict(in_pieces, capsys, "--jobs", jobs)["problems"]
    assert problem == {
        "path": "b.txt",
        "what": "has other bytes than were proven",
        "ranges": [[0, 1000], [5000, 7000], [3_000_000, 3_000_500]],
    }


def test_a_file_cut_short_is_bad_from_there_on(
    in_pieces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_pieces / "b.txt").write_bytes(LARGE[:2_999_100])
    [problem] = verdict(in_pieces, capsys)["problems"]
    assert problem["what"] == "expected 3000500 bytes, got 2999100"
    assert problem["ranges"] == [[2_999_000, 3_000_500]]


def test_a_record_of_pieces_that_lies_does_not_condemn_a_file(
    in_pieces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((in_pieces / pieces.NAME).read_text())
    rows["pieces"][sha256(LARGE)][3] = "0" * 64
    (in_pieces / pieces.NAME).write_text(json.dumps(rows))
    [problem] = verdict(in_pieces, capsys)["problems"]
    assert problem["path"] == pieces.NAME
    assert problem["what"] == "is wrong about b.txt, whose SHA-256 is right"


def test_a_record_of_pieces_of_something_else_is_not_used(
    in_pieces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_pieces / pieces.NAME).write_text("{")
    assert verdict(in_pieces, capsys)["ok"]


def test_only_a_full_proof_renews_its_time(directory: Path) -> None:
    assert main(["verify", "--quick", str(directory)]) == 0
    assert verified_at(directory) == LONG_AGO
    damage(directory / "b.txt", 7)
    assert main(["verify", str(directory)]) == 13
    assert verified_at(directory) == LONG_AGO
    damage(directory / "b.txt", 7)
    assert main(["verify", str(directory)]) == 0
    assert (verified_at(directory) or "") > LONG_AGO
    assert parse((directory / "manifest.json").read_text()).proof == "hub"


def test_what_a_kill_left_of_renewing_is_no_stranger(directory: Path) -> None:
    (directory / ".manifest.json.new").write_text("{")
    assert main(["verify", str(directory)]) == 0


def test_a_quick_look_sees_sizes_only(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "b.txt").write_bytes(bytes(len(LARGE)))
    assert main(["verify", "--quick", str(directory)]) == 0
    (directory / "b.txt").write_bytes(b"x")
    assert main(["verify", "--quick", str(directory)]) == 13
    assert "b.txt: expected 3000500 bytes, got 1" in capsys.readouterr().out


def test_a_folder_without_manifest_is_not_proven(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path)]) == 11
    assert f"{tmp_path}/manifest.json is missing" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text("{")
    assert main(["verify", str(tmp_path)]) == 2


def test_a_folder_without_manifest_has_a_verdict_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "Qwen--Tiny" / ("a" * 40)
    folder.mkdir(parents=True)
    told = verdict(folder, capsys)
    assert (told["model"], told["revision"], told["ok"]) == ("Qwen/Tiny", "a" * 40, False)
    assert "is missing" in told["problems"][0]["what"]


def test_who_is_told_to_stop_stops_reading(in_pieces: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        problems(in_pieces, MANIFEST, quick=False, jobs=2, keep_going=stop)


def test_a_proof_records_the_pieces_that_a_kill_forgot(directory: Path) -> None:
    assert main(["verify", "--quick", str(directory)]) == 0
    assert not (directory / pieces.NAME).exists()
    assert main(["verify", str(directory)]) == 0
    there = pieces.load(directory)
    assert there.of(sha256(LARGE), len(LARGE)) == digests(LARGE)
    damage(directory / "a.txt", 0)
    (directory / pieces.NAME).unlink()
    assert main(["verify", str(directory)]) == 13
    assert set(pieces.load(directory).by_sha256) == {sha256(LARGE), sha256(b"")}


def test_damage_is_remembered_until_it_is_proven_gone(directory: Path) -> None:
    (directory / "more.txt").write_text("nobody's")
    assert main(["verify", str(directory)]) == 13
    assert known(directory) is None  # what is too much harms nothing
    damage(directory / "b.txt", 7)
    assert main(["verify", str(directory)]) == 13
    assert known(directory) == ("b.txt",)
    assert main(["verify", "--quick", str(directory)]) == 13
    assert known(directory) == ("b.txt",)
    damage(directory / "b.txt", 7)
    (directory / "more.txt").unlink()
    assert main(["verify", str(directory)]) == 0
    assert known(directory) is None


def test_a_record_of_damage_that_cannot_be_read_is_one(directory: Path) -> None:
    (directory / DAMAGE_NAME).write_text("{")
    assert known(directory) == ()
