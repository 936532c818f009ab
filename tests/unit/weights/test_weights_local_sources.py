"""Folders and archives that lie on the host, as sources."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from qwen_weights.archives import passing as unpacking
from qwen_weights.errors import Changed, HostRefused, Missing, NotAModel
from qwen_weights.manifest import Artifact
from qwen_weights.sources import Interruption, Source
from qwen_weights.sources.archive import ArchiveSource
from qwen_weights.sources.folder import FolderSource

from tests.holdings import sha256
from tests.packed import compress, pack, tar_bytes

NAMES = ("a/1.safetensors", "config.json", "z/2.safetensors")
CONTENTS = {
    NAMES[2]: random.Random(1).randbytes(1_300_000),
    NAMES[1]: b"{}",
    NAMES[0]: random.Random(2).randbytes(200_000),
}
ARTIFACTS = {
    path: Artifact(path, len(content), sha256(content)) for path, content in CONTENTS.items()
}
ABSENT = Artifact("absent", 3, sha256(b"abc"))
KINDS = ["tar", "zip", "zip-stored", "tar.gz", "tar.zst"]


def read(source: Source, artifact: Artifact, offset: int = 0, end: int | None = None) -> bytes:
    buffer = memoryview(bytearray(300_000))
    content = b""
    with closing(source.open(artifact, offset, end)) as stream:
        assert stream.offset == offset
        assert stream.total == artifact.size
        while count := stream.readinto(buffer):
            content += buffer[:count]
    return content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, content in CONTENTS.items():
        place = tmp_path / "model" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return tmp_path / "model"


def archive_of(tmp_path: Path, kind: str, prefix: str = "Qwen/") -> ArchiveSource:
    members = {prefix + path: content for path, content in CONTENTS.items()}
    path = pack(tmp_path / "archive", kind, members | {"README.md": b"read me"})
    return ArchiveSource("host:x", str(path), prefix)


def assert_serves(source: Source) -> None:
    for path, artifact in ARTIFACTS.items():
        content = CONTENTS[path]
        assert source.offers(artifact)
        assert read(source, artifact) == content
        assert read(source, artifact, 1) == content[1:]
        assert read(source, artifact, 1, 2) == content[1:2]
        assert read(source, artifact, len(content)) == b""
    assert not source.is_wan


def test_a_folder_serves_its_files(folder: Path) -> None:
    source = FolderSource("host:x", str(folder))
    assert_serves(source)
    assert source.local_path(ARTIFACTS["config.json"]) == folder / "config.json"


def test_a_folder_says_what_it_lacks(folder: Path) -> None:
    source = FolderSource("host:x", str(folder))
    assert source.offers(ABSENT)
    with pytest.raises(Missing, match="absent is not there"):
        source.open(ABSENT, 0)
    (folder / "config.json").write_text("longer")
    assert source.local_path(ARTIFACTS["config.json"]) is None
    with pytest.raises(Changed, match="has 6 bytes, the manifest says 2"):
        source.open(ARTIFACTS["config.json"], 0)


def test_links_of_a_hubs_cache_lead_to_the_file(folder: Path) -> None:
    (folder / "config.json").rename(folder.parent / "blob")
    (folder / "config.json").symlink_to("../blob")
    source = FolderSource("host:x", str(folder))
    assert source.local_path(ARTIFACTS["config.json"]) == folder.parent / "blob"
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    assert source.local_path(ARTIFACTS["config.json"]) is None


def test_what_git_lfs_keeps_is_preferred_to_its_checkout(folder: Path) -> None:
    artifact = ARTIFACTS[NAMES[0]]
    sha = artifact.sha256
    kept = folder / ".git/lfs/objects" / sha[:2] / sha[2:4] / sha
    kept.parent.mkdir(parents=True)
    shutil.copy(folder / artifact.path, kept)
    (folder / artifact.path).write_text("version https://git-lfs.github.com/spec/v1\n")
    source = FolderSource("host:x", str(folder))
    assert source.local_path(artifact) == kept
    assert read(source, artifact) == CONTENTS[artifact.path]


def test_the_worktree_of_a_clone_shares_its_objects(folder: Path) -> None:
    artifact = ARTIFACTS["config.json"]
    sha = artifact.sha256
    git = folder.parent / "clone/.git"
    kept = git / "lfs/objects" / sha[:2] / sha[2:4] / sha
    kept.parent.mkdir(parents=True)
    (folder / "config.json").rename(kept)
    (git / "worktrees/model").mkdir(parents=True)
    (git / "worktrees/model/commondir").write_text("../..\n")
    (folder / ".git").write_text("gitdir: ../clone/.git/worktrees/model\n")
    found = FolderSource("host:x", str(folder)).local_path(artifact)
    assert found is not None and found.samefile(kept)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "Qwen/"])
def test_an_archive_serves_its_members(tmp_path: Path, kind: str, prefix: str) -> None:
    assert_serves(archive_of(tmp_path, kind, prefix))


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_says_what_it_lacks(tmp_path: Path, kind: str) -> None:
    source = archive_of(tmp_path, kind)
    with pytest.raises(Missing, match="has no member Qwen/absent"):
        source.open(ABSENT, 0)
    with pytest.raises(Changed, match="has 2 bytes, the manifest says 3"):
        source.open(Artifact("config.json", 3, "0" * 64), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_begin_at_the_folder_itself_are_the_same(tmp_path: Path, kind: str) -> None:
    """As `tar -C DIR -c .` writes them."""
    members = {f"./{path}": content for path, content in CONTENTS.items()}
    path = pack(tmp_path / "x", kind, members)
    assert read(ArchiveSource("x", str(path)), ARTIFACTS["config.json"]) == b"{}"


@pytest.mark.parametrize("kind", ["tar", "zip", "zip-stored"])
def test_where_any_order_will_do_none_is_asked_for(tmp_path: Path, kind: str) -> None:
    assert archive_of(tmp_path, kind).reading_order(tuple(ARTIFACTS.values())) is None


class Passes:
    """Counts how often the archive is begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = unpacking.Pass.__init__

        def counted(this: unpacking.Pass, path: Path, kind: str) -> None:
            self.count += 1
            real(this, path, kind)

        monkeypatch.setattr(unpacking.Pass, "__init__", counted)


@pytest.mark.parametrize("kind", KINDS[3:])
def test_a_compressed_archive_is_read_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(monkeypatch)
    source = archive_of(tmp_path, kind)
    order = source.reading_order(tuple(ARTIFACTS.values()))
    assert order is not None
    got = {artifact.path: read(source, artifact) for artifact in order}
    assert got == CONTENTS
    assert list(got) == list(CONTENTS), "in the order of the archive"
    assert passes.count == 1


@pytest.mark.parametrize("kind", KINDS[3:])
def test_what_is_there_already_is_skipped_in_the_same_pass(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(monkeypatch)
    source = archive_of(tmp_path, kind)
    wanted = [ARTIFACTS[NAMES[2]], ARTIFACTS[NAMES[0]]]
    for artifact in source.reading_order(wanted) or ():
        half = artifact.size // 2
        assert read(source, artifact, 0, half) == CONTENTS[artifact.path][:half]
        assert read(source, artifact, half) == CONTENTS[artifact.path][half:]
    assert passes.count == 1


@pytest.mark.parametrize("kind", KINDS[3:])
def test_going_back_needs_another_pass_and_ends_right(tmp_path: Path, kind: str) -> None:
    source = archive_of(tmp_path, kind)
    for artifact in source.reading_order(tuple(ARTIFACTS.values())) or ():
        assert read(source, artifact) == CONTENTS[artifact.path]
        assert read(source, artifact) == CONTENTS[artifact.path]
        assert read(source, ARTIFACTS[NAMES[0]]) == CONTENTS[NAMES[0]]


@pytest.mark.parametrize("kind", KINDS[3:])
def test_what_the_archive_lacks_comes_last(tmp_path: Path, kind: str) -> None:
    source = archive_of(tmp_path, kind)
    order = list(source.reading_order([ABSENT, ARTIFACTS["config.json"]]) or ())
    assert order == [ARTIFACTS["config.json"], ABSENT]


@pytest.mark.parametrize("kind", KINDS[3:])
def test_behind_the_place_where_an_archive_was_cut_off_nothing_is_read(
    tmp_path: Path, kind: str
) -> None:
    source = archive_of(tmp_path, kind)
    path = tmp_path / "archive"
    os.truncate(path, path.stat().st_size * 9 // 10)
    got, refused = {}, []
    for artifact in source.reading_order(tuple(ARTIFACTS.values())) or ():
        try:
            got[artifact.path] = read(source, artifact)
        except NotAModel as error:
            refused.append(str(error))
    assert got.items() <= CONTENTS.items() and NAMES[0] not in got
    assert refused and all("is damaged or was cut off" in message for message in refused)


def test_a_host_without_zstd_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.tar.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setenv("PATH", str(tmp_path))
    source = ArchiveSource("x", str(path))
    assert list(source.reading_order([ABSENT]) or ()) == [ABSENT]
    with pytest.raises(HostRefused, match="no zstd program") as refused:
        source.open(ABSENT, 0)
    assert refused.value.hint == "apt-get install zstd"


def test_an_archive_that_went_away_is_missing(tmp_path: Path) -> None:
    source = archive_of(tmp_path, "tar.gz")
    (tmp_path / "archive").unlink()
    assert source.offers(ABSENT)
    assert source.reading_order([ABSENT]) is None
    with pytest.raises(Missing, match="archive is not there"):
        source.open(ABSENT, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_closing_an_archive_ends_its_streams(tmp_path: Path, kind: str) -> None:
    source = archive_of(tmp_path, kind)
    with closing(source.open(ARTIFACTS[NAMES[2]], 0)) as stream:
        assert stream.readinto(memoryview(bytearray(10))) == 10
        source.close()
        with pytest.raises(Interruption):
            stream.readinto(memoryview(bytearray(10)))


def test_closing_a_folder_ends_its_streams(folder: Path) -> None:
    source = FolderSource("x", str(folder))
    with closing(source.open(ARTIFACTS[NAMES[2]], 0)) as stream:
        source.close()
        with pytest.raises(Interruption):
            stream.readinto(memoryview(bytearray(10)))


def test_a_tar_within_gzip_members_is_read_through(tmp_path: Path) -> None:
    """As `pigz` and `cat a.gz b.gz` write it."""
    content = tar_bytes({path: content for path, content in CONTENTS.items()})
    parts = [
        compress("tar.gz", content[at : at + 300_000]) for at in range(0, len(content), 300_000)
    ]
    (tmp_path / "x").write_bytes(b"".join(parts))
    source = ArchiveSource("x", str(tmp_path / "x"))
    assert read(source, ARTIFACTS[NAMES[0]]) == CONTENTS[NAMES[0]]
