"""`list` and `prune`: who needs what, and what may go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from qwen_weights import disk
from qwen_weights.__main__ import main
from qwen_weights.housekeeping import take_lock
from qwen_weights.manifest import Manifest
from qwen_weights.store import Store, damage

from tests.holdings import hold, manifest_of, sha256

CONTENTS = {"config.json": b"{}", "model.safetensors": b"w" * 20_000}
MANIFEST = manifest_of(CONTENTS)
OTHER = manifest_of({**CONTENTS, "config.json": b"[]"})
WHEELS = manifest_of({"x.whl": b"x" * 5_000}, model="qwen-deploy/wheels")
UNUSED: dict[str, Any] = {"model": "Qwen/Gone", "revision": "b" * 40}


@dataclass(frozen=True)
class Host:
    root: Path
    releases: Path
    run_dir: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def store(self) -> Store:
        return Store(self.root)

    def ask(self, command: str, *more: str) -> dict[str, Any]:
        options = ["--root", self.root, "--releases", self.releases, "--run-dir", self.run_dir]
        assert main([command, *map(str, options), *more]) == 0
        answer: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return answer

    def prune(self, *more: str) -> list[str]:
        """Paths below the root; what a dry run says is what goes."""
        dry = self.ask("prune", "--dry-run", *more)
        done = self.ask("prune", *more)
        assert dry == done | {"dry_run": True}
        assert sum(one["bytes"] for one in done["removed"]) == done["bytes"]
        assert self.ask("prune", *more)["removed"] == []
        return [str(Path(one["path"]).relative_to(self.root)) for one in done["removed"]]

    def release(self, name: str, manifest: Manifest, *, link: bool = True) -> Path:
        directory = self.releases / name
        directory.mkdir(parents=True)
        record = {"model": manifest.model, "revision": manifest.revision}
        (directory / "release.json").write_text(json.dumps(record))
        if link:
            (directory / "model").symlink_to(self.store.final_dir(manifest))
        return directory

    def partial(self, content: bytes, suffix: str = ".part") -> Path:
        disk.make_dirs(self.store.partial_dir)
        path = self.store.partial_dir / f"{sha256(content)}{suffix}"
        path.write_bytes(content[:1000])
        return path

    def run(self, *manifests: Manifest, pid: int | None = None) -> None:
        """A transfer whose process is this one."""
        self.run_dir.mkdir()
        order = {
            "schema": 1,
            "root": str(self.root),
            "manifests": [json.loads(one.to_json()) for one in manifests],
            "limits": {
                "connections": 1,
                "retry_seconds": 1,
                "stall_seconds": 1,
                "reserve_bytes": 0,
            },
        }
        (self.run_dir / "order.json").write_text(json.dumps(order))
        status = {"phase": "fetching", "model": "Qwen/Tiny", "bytes_done": 1, "bytes_total": 2}
        (self.run_dir / "status.json").write_text(json.dumps(status | {"pid": pid or os.getpid()}))


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Host:
    return Host(tmp_path / "root", tmp_path / "releases", tmp_path / "run", capsys)


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    return ended.pid


def place_of(manifest: Manifest, suffix: str = "") -> str:
    return f"models/{manifest.model.replace('/', '--')}/{manifest.revision}{suffix}"


def test_an_empty_host_holds_nothing(host: Host) -> None:
    assert host.ask("list")["models"] == []
    assert host.prune() == []


def test_the_list_says_who_needs_what(host: Host) -> None:
    final = hold(host.store, MANIFEST, CONTENTS)
    hold(host.store, OTHER, {"config.json": b"[]"})
    host.release("r-1", MANIFEST)
    host.release("r-2", MANIFEST, link=False)
    listing = host.ask("list")
    used, unused = sorted(listing["models"], key=lambda one: -len(one["used_by"]))
    assert used["used_by"] == ["r-1", "r-2"] and unused["used_by"] == []
    assert used["directory"] == str(final)
    assert (used["model"], used["revision"]) == (MANIFEST.model, MANIFEST.revision)
    assert used["bytes"] == MANIFEST.total_bytes and used["is_whole"]
    assert used["verified_at"].endswith("Z")
    assert (used["origin"], used["proof"]) == (None, None)
    assert listing["transfer"] is None
    assert listing["free_bytes"] > 0


def test_the_list_shows_damage_and_what_is_unfinished(host: Host) -> None:
    final = hold(host.store, MANIFEST, CONTENTS)
    (final / "manifest.json").unlink()
    host.partial(b"p" * 5000)
    staging = host.store.staging_dir(OTHER)
    staging.mkdir()
    (staging / "config.json").write_bytes(b"[]")
    os.link(final / "model.safetensors", staging / "model.safetensors")
    host.run(OTHER)
    listing = host.ask("list")
    [model] = listing["models"]
    assert (model["model"], model["is_whole"]) == ("Qwen/Tiny", False)
    assert model["verified_at"] is None
    assert listing["partial_bytes"] == 1002
    assert listing["transfer"]["phase"] == "fetching"


def test_what_a_release_needs_stays(host: Host) -> None:
    hold(host.store, MANIFEST, CONTENTS)
    hold(host.store, OTHER, {"config.json": b"[]"})
    host.release("r-1", MANIFEST)
    assert host.prune() == [place_of(OTHER)]
    [model] = host.ask("list")["models"]
    assert model["is_whole"]
    assert (host.store.final_dir(MANIFEST) / "model.safetensors").stat().st_nlink == 1


def test_a_release_needs_what_its_link_or_its_record_says(host: Host) -> None:
    hold(host.store, MANIFEST, CONTENTS)
    hold(host.store, OTHER, {"config.json": b"[]"})
    host.release("r-1", MANIFEST, link=False)
    linked = host.release("r-2", OTHER)
    (linked / "release.json").write_text("{")
    assert host.prune() == []


def test_a_root_behind_a_link_is_the_same_root(host: Host, tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    host.root.symlink_to("large disk")
    hold(host.store, MANIFEST, CONTENTS)
    directory = host.release("r-1", MANIFEST, link=False)
    (directory / "release.json").unlink()
    (directory / "model").symlink_to(tmp_path / "large disk" / place_of(MANIFEST))
    assert host.prune() == []


def test_a_release_that_says_nothing_keeps_everything(host: Host) -> None:
    hold(host.store, MANIFEST, CONTENTS)
    directory = host.release("r-1", MANIFEST, link=False)
    (directory / "release.json").write_text('{"model": "Qwen/Tiny"}')
    assert main(["prune", "--root", str(host.root), "--releases", str(host.releases)]) == 16
    shown = host.capsys.readouterr().err
    assert f"{directory} does not say which model it needs" in shown
    assert f"hint: remove {directory}" in shown
    (directory / "release.json").unlink()
    assert host.prune() == [place_of(MANIFEST)]


def test_freed_bytes_count_a_shared_file_once_and_only_if_it_goes(host: Host) -> None:
    hold(host.store, MANIFEST, CONTENTS)
    hold(host.store, OTHER, {"config.json": b"[]"})
    host.release("r-1", MANIFEST)
    assert host.ask("prune", "--dry-run")["bytes"] < len(CONTENTS["model.safetensors"])
    shutil.rmtree(host.releases)
    answer = host.ask("prune")
    assert len(answer["removed"]) == 2
    assert 20_000 <= answer["bytes"] < 60_000
    assert list(host.store.models_dir.iterdir()) == []


def test_wheels_go_only_when_they_are_meant(host: Host) -> None:
    hold(host.store, WHEELS, {"x.whl": b"x" * 5_000})
    assert host.prune() == []
    assert host.prune("--wheels") == [place_of(WHEELS)]


def test_what_ended_transfers_left_goes(host: Host) -> None:
    host.run(MANIFEST, pid=dead_pid())
    kinds = [host.partial(bytes([at]) * 2000, kind) for at, kind in enumerate((".part", ".repair"))]
    for suffix in (".tmp", ".damaged", ".pruned"):
        place = host.root / place_of(MANIFEST, suffix)
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
    assert sorted(host.prune()) == sorted(
        [place_of(MANIFEST, one) for one in (".tmp", ".damaged", ".pruned")]
        + [f"partial/{path.name}" for path in kinds]
    )
    assert list(host.store.models_dir.iterdir()) == []


def test_a_transfer_that_runs_keeps_all_that_it_brings(host: Host) -> None:
    hold(host.store, WHEELS, {"x.whl": b"x" * 5_000})
    host.partial(CONTENTS["model.safetensors"])
    staging = host.root / place_of(MANIFEST, ".tmp")
    staging.mkdir(parents=True)
    host.run(WHEELS, MANIFEST)
    useless = host.partial(b"of another one" * 100)
    assert host.prune("--wheels") == [f"partial/{useless.name}"]


def test_a_transfer_without_an_order_keeps_what_it_holds(host: Host) -> None:
    """One that another program started: its locks say what it needs."""
    staging = host.root / place_of(MANIFEST, ".tmp")
    staging.mkdir(parents=True)
    (staging / "manifest.json").write_text(MANIFEST.to_json())
    host.partial(CONTENTS["model.safetensors"])
    held = take_lock(host.root / place_of(MANIFEST, ".lock"))
    try:
        assert host.prune() == []
    finally:
        os.close(held)
    assert len(host.prune()) == 2


def hold_partial(host: Host) -> int:
    return take_lock(host.partial(b"q" * 2000))


def hold_revision(host: Host) -> int:
    hold(host.store, MANIFEST, CONTENTS)
    return take_lock(host.root / place_of(MANIFEST, ".lock"))


@pytest.mark.parametrize("begin", [hold_partial, hold_revision])
def test_what_a_transfer_takes_meanwhile_is_left(host: Host, begin: Callable[[Host], int]) -> None:
    held = begin(host)
    try:
        assert host.ask("prune")["removed"] == []
    finally:
        os.close(held)
    assert len(host.prune()) == 1


def test_what_is_none_of_ours_is_not_touched(host: Host) -> None:
    for name in ("models/Qwen--Tiny/mine", "models/Qwen--Tiny/mine.tmp", "models/x", "other"):
        (host.root / name).mkdir(parents=True)
    (host.root / "models/Qwen--Tiny/notes.txt").write_text("x")
    assert host.prune() == []


def test_what_a_release_needs_and_nobody_has_is_listed(host: Host) -> None:
    host.release("r-1", MANIFEST)
    host.release("r-2", MANIFEST, link=False)
    (model,) = host.ask("list")["models"]
    assert (model["model"], model["revision"]) == ("Qwen/Tiny", MANIFEST.revision)
    assert (model["is_there"], model["used_by"]) == (False, ["r-1", "r-2"])
    hold(host.store, MANIFEST, CONTENTS)
    (model,) = host.ask("list")["models"]
    assert (model["is_there"], model["damaged"]) == (True, None)
    damage.record(host.store.final_dir(MANIFEST), ["config.json"])
    assert host.ask("list")["models"][0]["damaged"] == ["config.json"]


def test_wheels_are_no_model(host: Host) -> None:
    hold(host.store, WHEELS, {"x.whl": b"x" * 5_000})
    told = host.ask("list")
    assert told["models"] == []
    assert told["wheels_bytes"] >= 5_000


def test_the_list_says_how_far_an_unfinished_transfer_came(host: Host) -> None:
    hold(host.store, OTHER, CONTENTS | {"config.json": b"[]"})
    large = manifest_of({"config.json": b"{}", "model.safetensors": b"v" * 20_000})
    host.store.stage(large)
    host.partial(b"v" * 20_000)
    (one,) = host.ask("list")["unfinished"]
    assert (one["model"], one["revision"]) == (large.model, large.revision)
    assert (one["bytes_done"], one["bytes_total"]) == (1000, large.total_bytes)
    descriptor = take_lock(host.store.final_dir(large).with_name(f"{large.revision}.lock"))
    try:
        assert host.ask("list")["unfinished"] == []  # it runs
    finally:
        os.close(descriptor)
