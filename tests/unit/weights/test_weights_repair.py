"""Damage of every kind, and a source that counts what it is asked for."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from qwen_weights.errors import Changed, ChecksumMismatch, DiskFull, Stopped, WrongPiece
from qwen_weights.manifest import Artifact, Manifest
from qwen_weights.store import Store, pieces
from qwen_weights.store import damage as known_damage
from qwen_weights.store.inspection import load, problems
from qwen_weights.store.repair import Means, Repair

from tests.holdings import hold, manifest_of, record

LARGE = random.Random(3).randbytes(9_500)
SMALL = b"{}"
CONTENTS = {"config.json": SMALL, "sub/model.safetensors": LARGE}
MANIFEST = manifest_of(CONTENTS)
WEIGHTS = "sub/model.safetensors"
Range = tuple[int, int]


class Hub:
    """Serves what it is given; `lies` are bytes that it gets wrong, once each."""

    def __init__(self, *lies: int) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self._lies = set(lies)
        self.ends_after: int | None = None

    def fetch(
        self, artifact: Artifact, first: int, end: int, write: Callable[[memoryview], None]
    ) -> None:
        self.asked.append((artifact.path, first, end))
        while first < end:
            until = min(first + 300, end)
            if self.ends_after is not None and first >= self.ends_after:
                raise Stopped("stopped")
            try:
                write(memoryview(self._bytes(artifact.path, first, until)))
                first = until
            except WrongPiece as wrong:
                first = wrong.first_byte

    def _bytes(self, path: str, first: int, end: int) -> bytes:
        content = bytearray(CONTENTS[path][first:end])
        for lie in sorted(self._lies):
            if first <= lie < end:
                content[lie - first] ^= 1
                self._lies.remove(lie)
        return bytes(content)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "root")


@pytest.fixture
def final(store: Store) -> Path:
    final = hold(store, MANIFEST, CONTENTS)
    record(final, CONTENTS)
    old = replace(load(final), verified_at="2026-01-01T00:00:00Z")
    (final / "manifest.json").unlink()
    (final / "manifest.json").write_text(old.to_json())
    return final


def mend(
    store: Store, hub: Hub, manifest: Manifest = MANIFEST, reserve_bytes: int = 0
) -> tuple[str, ...]:
    means = Means(hub.fetch, lambda: None, threading.Event(), reserve_bytes, jobs=2)
    with store.lock(manifest, means.stop):
        repair = Repair(store, manifest, means)
        repair.find()
        return repair.mend()


def damage(path: Path, *places: int) -> None:
    """In place, as a failing disk does it: every name of the file shows it."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 1
    path.write_bytes(content)


def assert_sound(store: Store, final: Path) -> None:
    assert problems(final, MANIFEST, quick=False, jobs=1) == ()
    assert load(final) == MANIFEST
    assert (load(final).verified_at or "") > "2026-01-01T00:00:00Z"
    for path in CONTENTS:
        assert (final / path).stat().st_mode & 0o777 == 0o444
    assert list(store.partial_dir.iterdir()) == []


def test_a_sound_revision_is_only_read(store: Store, final: Path) -> None:
    before = (final / WEIGHTS).stat()
    hub = Hub()
    assert mend(store, hub) == ()
    assert hub.asked == []
    assert os.path.samestat((final / WEIGHTS).stat(), before)
    assert_sound(store, final)


def test_only_bad_pieces_are_fetched(store: Store, final: Path) -> None:
    damage(final / WEIGHTS, 1500, 2999, 9400)
    with open(final / WEIGHTS, "rb") as serving:
        hub = Hub()
        mend(store, hub)
        assert serving.read() != LARGE, "whoever has the damaged file open keeps it"
    assert hub.asked == [(WEIGHTS, 1000, 3000), (WEIGHTS, 9000, 9500)]
    assert_sound(store, final)


def cut_off(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 4200)


def lengthen(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"more")


def remove(path: Path) -> None:
    path.unlink()


def link_away(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


SHAPES = [
    (cut_off, [(WEIGHTS, 4000, 9500)]),
    (lengthen, []),
    (remove, [(WEIGHTS, 0, 9500)]),
    (link_away, [(WEIGHTS, 0, 9500)]),
]


@pytest.mark.parametrize(("harm", "asked"), SHAPES)
def test_a_file_of_another_shape_is_mended(
    store: Store, final: Path, harm: Callable[[Path], None], asked: list[tuple[str, int, int]]
) -> None:
    harm(final / WEIGHTS)
    hub = Hub()
    mend(store, hub)
    assert hub.asked == asked
    assert_sound(store, final)


def test_a_folder_without_its_manifest_gets_it_back(store: Store, final: Path) -> None:
    (final / "manifest.json").unlink()
    (final / "sub/model.safetensors").unlink()
    (final / "sub").rmdir()
    mend(store, Hub())
    assert_sound(store, final)


def test_a_repair_that_was_cut_off_goes_on(store: Store, final: Path) -> None:
    damage(final / WEIGHTS, 100, 5100, 8100)
    hub = Hub()
    hub.ends_after = 8000
    with pytest.raises(Stopped):
        mend(store, hub)
    hub.ends_after = None
    hub.asked.clear()
    mend(store, hub)
    assert hub.asked == [(WEIGHTS, 8000, 9000)]
    assert_sound(store, final)


def test_a_piece_that_comes_wrong_is_asked_for_again(store: Store, final: Path) -> None:
    damage(final / WEIGHTS, 1500, 2500)
    mend(store, Hub(2100))
    assert_sound(store, final)


def test_without_recorded_pieces_the_whole_file_is_fetched(store: Store, final: Path) -> None:
    (final / pieces.NAME).unlink()
    damage(final / WEIGHTS, 1500)
    hub = Hub()
    mend(store, hub)
    assert hub.asked == [(WEIGHTS, 0, 9500)]
    assert_sound(store, final)
    assert pieces.load(final).of(MANIFEST.artifacts[1].sha256, len(LARGE)) is not None


def test_a_whole_file_is_continued_too(store: Store, final: Path) -> None:
    (final / pieces.NAME).unlink()
    damage(final / WEIGHTS, 1500)
    hub = Hub()
    hub.ends_after = 6000
    with pytest.raises(Stopped):
        mend(store, hub)
    hub.ends_after = None
    mend(store, hub)
    assert hub.asked[-1] == (WEIGHTS, 6000, 9500)
    assert_sound(store, final)


def test_a_whole_file_that_comes_wrong_is_refused(store: Store, final: Path) -> None:
    (final / pieces.NAME).unlink()
    damage(final / WEIGHTS, 1500)
    with pytest.raises(ChecksumMismatch, match="brought with other bytes than the manifest says"):
        mend(store, Hub(7))
    assert (final / WEIGHTS).read_bytes() != LARGE
    mend(store, Hub())
    assert_sound(store, final)


def test_a_wrong_record_of_pieces_is_made_anew(store: Store, final: Path) -> None:
    (final / pieces.NAME).unlink()
    record(final, CONTENTS)
    text = (final / pieces.NAME).read_text()
    good = pieces.load(final).by_sha256[MANIFEST.artifacts[1].sha256][4]
    (final / pieces.NAME).write_text(text.replace(good, "0" * 64))
    hub = Hub()
    mend(store, hub)
    assert hub.asked == []
    assert_sound(store, final)


def test_damage_under_a_wrong_record_ends_in_the_right_bytes(store: Store, final: Path) -> None:
    """SHA-256 has the last word: a piece that is recorded wrong is not believed."""
    wrong = bytearray(LARGE)
    wrong[1500] ^= 1
    record(final, {"config.json": SMALL})
    rows = pieces.load(final)
    lies = {**rows.by_sha256, MANIFEST.artifacts[1].sha256: _digests(bytes(wrong))}
    (final / pieces.NAME).write_text(pieces.Pieces(lies, rows.piece_bytes).to_json())
    damage(final / WEIGHTS, 1500, 8000)
    hub = Hub()
    mend(store, hub)
    assert hub.asked == [(WEIGHTS, 8000, 9000), (WEIGHTS, 0, 9500)]
    assert_sound(store, final)


def _digests(content: bytes) -> tuple[str, ...]:
    hashes = pieces.RunningHashes(1000)
    hashes.update(content)
    return hashes.all


def test_revisions_that_share_the_damaged_file_are_mended_with_it(
    store: Store, final: Path
) -> None:
    twin = hold(store, manifest_of(CONTENTS, model="Mine/Copy"), {})
    assert os.path.samefile(twin / WEIGHTS, final / WEIGHTS)
    damage(final / WEIGHTS, 1500)
    hub = Hub()
    mend(store, hub)
    assert hub.asked == [(WEIGHTS, 1000, 2000)]
    assert (twin / WEIGHTS).read_bytes() == LARGE
    assert os.path.samefile(twin / WEIGHTS, final / WEIGHTS)


def test_a_sound_copy_in_another_revision_costs_nothing(store: Store, final: Path) -> None:
    twin = hold(store, manifest_of(CONTENTS, model="Mine/Copy"), {})
    (final / WEIGHTS).unlink()
    hub = Hub()
    mend(store, hub)
    assert hub.asked == []
    assert_sound(store, final)
    assert os.path.samefile(twin / WEIGHTS, final / WEIGHTS)


def test_the_file_of_a_user_that_was_linked_stays_the_users(
    store: Store, final: Path, tmp_path: Path
) -> None:
    os.link(final / WEIGHTS, tmp_path / "theirs")
    damage(final / WEIGHTS, 1500)
    mend(store, Hub())
    assert_sound(store, final)
    assert (tmp_path / "theirs").read_bytes() != LARGE
    assert (tmp_path / "theirs").stat().st_mode & 0o777 == 0o644


def test_strangers_are_left_and_named(store: Store, final: Path) -> None:
    (final / "notes.txt").write_text("mine")
    [warning] = mend(store, Hub())
    assert warning == (
        f"{final}/notes.txt: is not in the manifest and was left there: remove it by hand"
    )


def test_a_folder_of_other_artifacts_is_not_mended(store: Store, final: Path) -> None:
    other = manifest_of({"config.json": b"[]"}, revision=MANIFEST.revision)
    with pytest.raises(Changed, match="already holds other artifacts"):
        mend(store, Hub(), other)


def test_a_full_disk_is_noticed_before_anything_is_written(store: Store, final: Path) -> None:
    damage(final / WEIGHTS, 1500)
    hub = Hub()
    with pytest.raises(DiskFull):
        mend(store, hub, reserve_bytes=1 << 60)
    assert hub.asked == []
    assert (final / WEIGHTS).stat().st_size == len(LARGE)


def test_a_repair_ends_what_is_known_of_damage_and_records_pieces(
    store: Store, final: Path
) -> None:
    (final / pieces.NAME).unlink()
    known_damage.record(final, [WEIGHTS])
    hub = Hub()
    mend(store, hub)
    assert hub.asked == []
    assert known_damage.known(final) is None
    assert {artifact.sha256 for artifact in MANIFEST.artifacts} <= set(pieces.load(final).by_sha256)
