"""The folders of the host, without any source."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from qwen_weights.errors import Changed, DiskFull, Stopped
from qwen_weights.locks import open_locked
from qwen_weights.manifest import Artifact, Manifest
from qwen_weights.store import Store

CONTENTS = {"config.json": b"{}", "sub/deep/model.safetensors": b"weights"}


def manifest_of(contents: dict[str, bytes], revision: str = "a" * 40) -> Manifest:
    artifacts = (
        Artifact(path, len(content), hashlib.sha256(content).hexdigest())
        for path, content in sorted(contents.items())
    )
    return Manifest("Qwen/Tiny", revision, tuple(artifacts))


def prove_all(store: Store, manifest: Manifest, contents: Iterable[bytes]) -> None:
    store.stage(manifest)
    by_sha = {hashlib.sha256(content).hexdigest(): content for content in contents}
    for artifact in manifest.artifacts:
        store.partial_path(artifact).write_bytes(by_sha[artifact.sha256])
        store.place(store.partial_path(artifact), manifest, artifact)
    store.activate(manifest)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "root")


def test_a_revision_appears_whole_and_read_only(store: Store) -> None:
    manifest = manifest_of(CONTENTS)
    before = os.umask(0o077)
    try:
        with store.lock(manifest, threading.Event()):
            assert not store.holds(manifest)
            prove_all(store, manifest, CONTENTS.values())
            assert store.holds(manifest)
    finally:
        os.umask(before)
    final = store.root / "models" / "Qwen--Tiny" / ("a" * 40)
    assert (final / "sub/deep/model.safetensors").read_bytes() == b"weights"
    assert json.loads((final / "manifest.json").read_text())["verified_at"].endswith("Z")
    for path in (final, *final.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o444)
    assert [path.name for path in final.parent.iterdir()] == [final.name]
    assert list(store.partial_dir.iterdir()) == []


def test_a_damaged_revision_is_not_whole_and_is_replaced(store: Store) -> None:
    manifest = manifest_of(CONTENTS)
    with store.lock(manifest, threading.Event()):
        prove_all(store, manifest, CONTENTS.values())
        (store.final_dir(manifest) / "config.json").unlink()
        assert not store.holds(manifest)
        prove_all(store, manifest, CONTENTS.values())
        assert store.holds(manifest)
    assert [path.name for path in store.final_dir(manifest).parent.iterdir()] == ["a" * 40]


def test_one_revision_never_names_two_contents(store: Store) -> None:
    with store.lock(manifest_of(CONTENTS), threading.Event()):
        prove_all(store, manifest_of(CONTENTS), CONTENTS.values())
    with pytest.raises(Changed, match="already holds other artifacts under the revision"):
        store.holds(manifest_of({"config.json": b"[]"}))


def test_what_was_staged_for_other_artifacts_is_not_used(store: Store) -> None:
    old, new = manifest_of({"config.json": b"{}"}), manifest_of({"config.json": b"[]"})
    with store.lock(old, threading.Event()):
        store.stage(old)
        store.partial_path(old.artifacts[0]).write_bytes(b"{}")
        store.place(store.partial_path(old.artifacts[0]), old, old.artifacts[0])
        store.stage(old)
        assert store.is_staged(old, old.artifacts[0])
        store.stage(new)
        assert not store.is_staged(new, new.artifacts[0])


def test_copies_are_found_in_every_revision(store: Store) -> None:
    manifest = manifest_of(CONTENTS)
    with store.lock(manifest, threading.Event()):
        prove_all(store, manifest, CONTENTS.values())
    other = manifest_of({"other.json": b"{}", "new.json": b"new"}, "b" * 40)
    found = [list(store.copies(artifact)) for artifact in other.artifacts]
    assert found == [[], [store.final_dir(manifest) / "config.json"]]


def test_a_disk_too_small_is_named_with_its_figures(store: Store) -> None:
    with store.lock(manifest_of(CONTENTS), threading.Event()):
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
