"""The folders of the host, without any source."""

from __future__ import annotations

import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from qwen_weights import disk
from qwen_weights.errors import Changed, DiskFull, Stopped
from qwen_weights.manifest import Manifest, Origin
from qwen_weights.store import Store, pieces
from qwen_weights.store.inspection import load
from qwen_weights.store.locks import open_locked

from tests.holdings import digests, hold, manifest_of, sha256

CONTENTS = {"config.json": b"{}", "sub/deep/model.safetensors": b"weights"}
MANIFEST = manifest_of(CONTENTS, revision="a" * 40)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "root")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def staged(store: Store, manifest: Manifest) -> Path:
    disk.make_dirs(store.partial_dir)
    store.stage(manifest)
    return store.staging_dir(manifest)


def test_a_revision_appears_whole_and_read_only(store: Store) -> None:
    before = os.umask(0o077)
    try:
        with store.lock(MANIFEST, threading.Event()):
            assert not store.holds(MANIFEST)
        final = hold(store, MANIFEST, CONTENTS)
        assert store.holds(MANIFEST)
    finally:
        os.umask(before)
    assert final == store.root / "models" / "Qwen--Tiny" / ("a" * 40)
    assert (final / "sub/deep/model.safetensors").read_bytes() == b"weights"
    assert json.loads((final / "manifest.json").read_text())["verified_at"].endswith("Z")
    for path in (final, *final.rglob("*")):
        assert mode(path) == (0o755 if path.is_dir() else 0o444)
    assert [path.name for path in final.parent.iterdir()] == [final.name]
    assert list(store.partial_dir.iterdir()) == []


def test_the_pieces_of_every_artifact_are_recorded_with_it(store: Store) -> None:
    recorded = pieces.load(hold(store, MANIFEST, CONTENTS))
    assert recorded.by_sha256 == {sha256(one): digests(one) for one in CONTENTS.values()}


def test_pieces_are_recorded_before_a_kill_could_forget_them(store: Store) -> None:
    staging = staged(store, MANIFEST)
    artifact = MANIFEST.artifacts[0]
    store.partial_path(artifact).write_bytes(b"{}")
    store.place(store.partial_path(artifact), MANIFEST, artifact, digests(b"{}"))
    assert pieces.load(staging).of(artifact.sha256, artifact.size) == digests(b"{}")
    store.stage(MANIFEST)
    assert pieces.load(staging).of(artifact.sha256, artifact.size) == digests(b"{}")


def test_a_damaged_revision_is_not_whole_and_is_replaced(store: Store) -> None:
    final = hold(store, MANIFEST, CONTENTS)
    (final / "config.json").unlink()
    assert not store.holds(MANIFEST)
    hold(store, MANIFEST, CONTENTS)
    assert store.holds(MANIFEST)
    assert [path.name for path in final.parent.iterdir()] == ["a" * 40]


def test_one_revision_never_names_two_contents(store: Store) -> None:
    hold(store, MANIFEST, CONTENTS)
    with pytest.raises(Changed, match="already holds other artifacts under the revision"):
        store.holds(manifest_of({"config.json": b"[]"}, revision="a" * 40))


def test_what_was_staged_for_other_artifacts_is_not_used(store: Store) -> None:
    old = manifest_of({"config.json": b"{}"}, revision="a" * 40)
    new = manifest_of({"config.json": b"[]"}, revision="a" * 40)
    staged(store, old)
    store.partial_path(old.artifacts[0]).write_bytes(b"{}")
    store.place(store.partial_path(old.artifacts[0]), old, old.artifacts[0], ())
    store.stage(old)
    assert store.is_staged(old, old.artifacts[0])
    store.stage(new)
    assert not store.is_staged(new, new.artifacts[0])


def test_a_proof_that_is_known_later_is_recorded(store: Store) -> None:
    final = hold(store, MANIFEST, CONTENTS)
    proven_at = load(final).verified_at
    hub = replace(MANIFEST, origin=Origin("modelscope", "master"), proof="hub")
    store.record_proof(hub)
    assert (load(final).proof, load(final).origin) == ("hub", hub.origin)
    store.record_proof(replace(MANIFEST, origin=Origin("folder"), proof="none"))
    assert (load(final).proof, load(final).verified_at) == ("hub", proven_at)


def test_copies_are_found_in_every_revision(store: Store) -> None:
    final = hold(store, MANIFEST, CONTENTS)
    other = manifest_of({"new.json": b"new", "other.json": b"{}"}, revision="b" * 40)
    found = [list(store.copies(artifact)) for artifact in other.artifacts]
    assert found == [[], [final / "config.json"]]


def test_the_same_model_under_two_names_lies_there_once(store: Store) -> None:
    first = hold(store, MANIFEST, CONTENTS)
    second = hold(store, manifest_of(CONTENTS, model="Mine/Copy"), {})
    assert first != second
    for path in CONTENTS:
        assert (first / path).read_bytes() == (second / path).read_bytes()
        assert os.path.samefile(first / path, second / path)
    assert pieces.load(second) == pieces.load(first)


def adopt(store: Store, path: Path) -> bool:
    staged(store, MANIFEST)
    return store.adopt(path, MANIFEST, MANIFEST.artifacts[0], lambda: None)


@pytest.mark.parametrize(("before", "after"), [(0o644, 0o644), (0o600, 0o644), (0o4750, 0o4754)])
def test_a_file_of_a_user_is_linked_and_stays_the_users(
    store: Store, tmp_path: Path, before: int, after: int
) -> None:
    theirs = tmp_path / "config.json"
    theirs.write_bytes(b"{}")
    if os.geteuid() == 0:
        os.chown(theirs, 65534, 65534)
    theirs.chmod(before)
    owner = theirs.stat().st_uid
    assert adopt(store, theirs)
    ours = store.staging_dir(MANIFEST) / "config.json"
    assert os.path.samefile(ours, theirs)
    status = theirs.stat()
    assert (status.st_uid, status.st_mode & 0o7777) == (owner, after)
    assert list(store.partial_dir.iterdir()) == []


def test_a_link_is_followed_to_its_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"{}")
    (tmp_path / "link").symlink_to("blob")
    assert adopt(store, tmp_path / "link")
    ours = store.staging_dir(MANIFEST) / "config.json"
    assert not ours.is_symlink() and os.path.samefile(ours, tmp_path / "blob")


def test_other_bytes_are_not_taken_and_not_touched(store: Store, tmp_path: Path) -> None:
    theirs = tmp_path / "config.json"
    theirs.write_bytes(b"[]")
    theirs.chmod(0o600)
    assert not adopt(store, theirs)
    assert not adopt(store, tmp_path / "absent")
    assert not store.is_staged(MANIFEST, MANIFEST.artifacts[0])
    assert mode(theirs) == 0o600
    assert list(store.partial_dir.iterdir()) == []


def test_what_lies_on_another_file_system_can_only_be_copied(store: Store) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == store.root.parent.stat().st_dev:
        pytest.skip("no second file system")
    theirs = elsewhere / f"qwen-weights-{os.getpid()}"
    theirs.write_bytes(b"{}")
    try:
        assert not adopt(store, theirs)
    finally:
        theirs.unlink()
    assert list(store.partial_dir.iterdir()) == []


def test_without_reflinks_the_file_stays_empty(tmp_path: Path) -> None:
    """What a file system without them answers, which most test machines have."""
    (tmp_path / "a").write_bytes(b"content")
    with open(tmp_path / "a", "rb") as source, open(tmp_path / "b", "wb") as target:
        is_done = disk.reflink_into(source.fileno(), target.fileno())
    assert (tmp_path / "b").read_bytes() == (b"content" if is_done else b"")


def test_a_disk_that_fails_is_not_taken_for_one_without_reflinks(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor") as failed:
        disk.reflink_into(descriptor, descriptor)
    assert failed.value.errno == errno.EBADF


def test_room_is_asked_only_for_what_is_not_there(store: Store, tmp_path: Path) -> None:
    contents = {"a": b"a" * 100, "b": b"b" * 200, "c": b"c" * 400, "d": b"d" * 800, "e": b"e"}
    twice = {"again": contents["d"]}
    hold(store, manifest_of({"old": contents["a"]}), {"old": contents["a"]})
    (tmp_path / "b").write_bytes(contents["b"])
    wanted = manifest_of(contents)
    by_path = {artifact.path: artifact for artifact in wanted.artifacts}
    store.partial_path(by_path["c"]).write_bytes(b"c" * 150)
    staged(store, wanted)
    store.partial_path(by_path["e"]).write_bytes(b"e")
    store.place(store.partial_path(by_path["e"]), wanted, by_path["e"], ())

    def elsewhere(artifact: object) -> Path | None:
        return tmp_path / "b" if artifact == by_path["b"] else None

    assert store.missing_bytes([wanted, manifest_of(twice)], elsewhere) == 250 + 800
    assert store.missing_bytes([wanted], lambda artifact: None) == 200 + 250 + 800


def test_a_disk_too_small_is_named_with_its_figures(store: Store) -> None:
    with store.lock(MANIFEST, threading.Event()):
        store.require_room(0, 1 << 60)
        with pytest.raises(DiskFull) as refused:
            store.require_room(1 << 60, 64 << 20)
    assert str(store.root) in str(refused.value)
    assert "need 1152921504.6 GB more" in str(refused.value)


def test_a_lock_is_waited_for_until_a_stop(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    held = open_locked(path, threading.Event())
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        open_locked(path, stop)
    os.close(held)
    os.close(open_locked(path, stop))


def test_a_lock_that_was_removed_while_waiting_is_taken_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    held = open_locked(path, threading.Event())
    opened: list[int] = []
    waiter = threading.Thread(target=lambda: opened.append(open_locked(path, threading.Event())))
    waiter.start()
    path.unlink()
    os.close(held)
    waiter.join(10)
    assert os.path.samestat(os.fstat(opened[0]), path.stat())
    os.close(opened[0])


def test_pieces_that_a_kill_left_out_are_recorded_with_a_proof(store: Store) -> None:
    final = hold(store, MANIFEST, CONTENTS)
    first, *others = MANIFEST.artifacts
    (final / pieces.NAME).unlink()
    damaged = final / first.path
    damaged.chmod(0o644)
    damaged.write_bytes(b"x" * first.size)
    store.record_pieces(MANIFEST, {}, lambda: None)
    assert set(pieces.load(final).by_sha256) == {one.sha256 for one in others}
