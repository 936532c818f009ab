from __future__ import annotations

import hashlib
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest

from qwen_deploy import archive, folder
from qwen_deploy.archive import ArchiveReport
from qwen_deploy.checkpoint import CheckpointRefused
from qwen_deploy.share import Share
from tests.model_folder import make_model, shard_name
from tests.packed import compress, pack, special, tar_bytes

KINDS = ("tar", "tar.gz", "tar.zst", "zip", "zip-stored")
FIRST, SECOND = shard_name(1, 2), shard_name(2, 2)
Inspect = Callable[[Path], ArchiveReport]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", shard_bytes=50_000)


@pytest.fixture
def look(tmp_path: Path) -> Inspect:
    cache_path = tmp_path / "cache/hashes.json"
    return lambda path: archive.inspect(path, model="Qwen/Tiny", cache_path=cache_path)


def contents_of(model: Path, top: str = "") -> dict[str, bytes]:
    return {
        f"{top}{path.relative_to(model)}": path.read_bytes()
        for path in sorted(model.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("top", ["", "./", "Qwen-Tiny/", "data/models/Qwen-Tiny/"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_the_same_as_its_folder(
    look: Inspect, model: Path, tmp_path: Path, kind: str, top: str
) -> None:
    (model / "README.md").write_text("left out")
    (model / "assets").mkdir()
    (model / "assets/vocab.txt").write_text("a part of it")
    report = look(pack(tmp_path / "archive", kind, contents_of(model, top)))
    cache_path = tmp_path / "hashes.json"
    manifest = folder.inspect(model, model="Qwen/Tiny", cache_path=cache_path).manifest
    assert report.manifest == manifest
    assert report.manifest.proof == "none"
    assert report.manifest.origin and report.manifest.origin.source == "archive"
    for path, content in report.contents().items():
        with content.open(0) as reader:
            assert reader.read(content.size) == (model / path).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_are_served_in_any_order(
    look: Inspect, model: Path, tmp_path: Path, kind: str
) -> None:
    report = look(pack(tmp_path / "archive", kind, contents_of(model, "Qwen/")))
    with Share(report) as share, httpx.Client(base_url=share.url, trust_env=False) as client:
        client.headers["Authorization"] = f"Bearer {share.token}"
        for path, first in ((SECOND, 40_000), (FIRST, 0), (SECOND, 7), (FIRST, 49_999)):
            answer = client.get(f"/{path}", headers={"Range": f"bytes={first}-"})
            assert answer.status_code == 206
            assert answer.content == (model / path).read_bytes()[first:]


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_changed_is_not_served(
    look: Inspect, model: Path, tmp_path: Path, kind: str
) -> None:
    path = pack(tmp_path / "archive", kind, contents_of(model))
    report = look(path)
    path.write_bytes(path.read_bytes())
    with Share(report) as share:
        headers = {"Authorization": f"Bearer {share.token}"}
        assert httpx.get(f"{share.url}/{FIRST}", headers=headers).status_code == 409
        path.unlink()
        assert httpx.get(f"{share.url}/{FIRST}", headers=headers).status_code == 409


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_archive_is_read_once(model: Path, tmp_path: Path, kind: str) -> None:
    path = pack(tmp_path / "archive", kind, contents_of(model, "Qwen/"))
    reads: list[int] = []

    def look(model_name: str = "Qwen/Tiny") -> ArchiveReport:
        reads.clear()
        return archive.inspect(
            path,
            model=model_name,
            cache_path=tmp_path / "cache/hashes.json",
            progress=lambda done, total: reads.append(done),
            now_ns=lambda: time.time_ns() + 10_000_000_000,
        )

    first = look()
    assert reads
    again = look()
    assert not reads
    assert again.manifest == first.manifest
    with again.contents()[SECOND].open(10) as reader:
        assert reader.read(100) == (model / SECOND).read_bytes()[10:110]
    assert look("Other/Name").manifest.model == "Other/Name"
    path.write_bytes(path.read_bytes())
    look()
    assert reads
    for content in ("", "[]", '{"schema": 1, "archives": 3}'):
        (tmp_path / "cache/archives.json").write_text(content)
        assert look().manifest == first.manifest


def test_lists_that_came_along_are_compared(look: Inspect, model: Path, tmp_path: Path) -> None:
    contents = contents_of(model)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    listed = "".join(f"{sha256}  {name}\n" for name, sha256 in sums.items()).encode()
    report = look(pack(tmp_path / "a.tar.gz", "tar.gz", contents | {"SHA256SUMS": listed}))
    assert report.manifest.proof == "sums"
    wrong = contents | {"SHA256SUMS": listed.replace(sums[FIRST].encode(), b"0" * 64)}
    with pytest.raises(
        CheckpointRefused, match=f"{FIRST} was altered: SHA256SUMS says sha256 0000"
    ):
        look(pack(tmp_path / "b.tar.gz", "tar.gz", wrong))


def without(name: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda contents: {key: contents[key] for key in contents if key != name}


def replaced(name: str, content: bytes) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda contents: contents | {name: content}


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
NO_MODEL: list[tuple[str, Callable[[dict[str, bytes]], Mapping[str, bytes]], str]] = [
    ("no config", without("config.json"), "has no config.json"),
    ("shard missing", without(SECOND), f"lacks {SECOND}, which"),
    ("pointer", replaced(FIRST, POINTER), f"holds git-lfs pointers instead of {FIRST}"),
    ("cut shard", replaced(FIRST, b"\x10" + bytes(7) + b"{"), f"{FIRST} is cut short in its"),
    ("bad JSON", replaced("config.json", b"{"), "config.json is not JSON"),
    ("leads out", replaced("../evil", b""), "'../evil' would lie outside the folder"),
    ("absolute", replaced("/etc/evil", b""), "'/etc/evil' would lie outside the folder"),
    ("inner", replaced("a/../../evil", b""), "would lie outside the folder"),
    ("odd name", replaced("a\nb", b""), "is not a file name"),
]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize(
    ("change", "reason"), [row[1:] for row in NO_MODEL], ids=[r[0] for r in NO_MODEL]
)
def test_what_is_no_model_is_refused(
    look: Inspect,
    model: Path,
    tmp_path: Path,
    kind: str,
    change: Callable[[dict[str, bytes]], Mapping[str, bytes]],
    reason: str,
) -> None:
    path = pack(tmp_path / "archive", kind, change(contents_of(model)))
    with pytest.raises(CheckpointRefused) as refused:
        look(path)
    assert reason in str(refused.value)
    assert str(path) in str(refused.value)


SPECIAL = [
    (special("link.json", tarfile.SYMTYPE, "/etc/passwd"), "a link to '/etc/passwd'"),
    (special("hard.json", tarfile.LNKTYPE, "config.json"), "a link to 'config.json'"),
    (special("device", tarfile.CHRTYPE), "no ordinary file"),
    (special("pipe", tarfile.FIFOTYPE), "no ordinary file"),
    (tarfile.TarInfo("config.json"), "holds config.json twice"),
    (tarfile.TarInfo("./config.json"), "holds config.json twice"),
]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.zst"])
@pytest.mark.parametrize(("member", "reason"), SPECIAL)
def test_members_that_are_no_files_are_refused(
    look: Inspect, model: Path, tmp_path: Path, kind: str, member: tarfile.TarInfo, reason: str
) -> None:
    path = tmp_path / "archive"
    path.write_bytes(compress(kind, tar_bytes(contents_of(model), member)))
    with pytest.raises(CheckpointRefused) as refused:
        look(path)
    assert reason in str(refused.value)


def test_a_link_in_a_zip_is_refused(look: Inspect, model: Path, tmp_path: Path) -> None:
    path = pack(tmp_path / "archive.zip", "zip", contents_of(model))
    with zipfile.ZipFile(path, "a") as packed:
        info = zipfile.ZipInfo("link.json")
        info.external_attr = 0o120777 << 16
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(CheckpointRefused, match=r"'link\.json' is a link"):
        look(path)


def test_an_encrypted_zip_is_refused(look: Inspect, model: Path, tmp_path: Path) -> None:
    path = pack(tmp_path / "archive.zip", "zip", contents_of(model))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # general purpose bit 0: encrypted
    path.write_bytes(content)
    with pytest.raises(CheckpointRefused, match="is encrypted") as refused:
        look(path)
    assert refused.value.hint == "Unpack it and name the folder"


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_refused_wherever_it_was_cut(
    look: Inspect, model: Path, tmp_path: Path, kind: str
) -> None:
    path = pack(tmp_path / "archive", kind, contents_of(model))
    whole = path.read_bytes()
    # The last block of a tar is padding, which nobody misses.
    last = len(whole) - 10_240 if kind == "tar" else len(whole)
    for size in (600, len(whole) // 3, len(whole) // 2, last * 9 // 10):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointRefused, match=r"is damaged or was cut off|is neither"):
            look(path)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.zst", "zip", "zip-stored"])
def test_damage_is_noticed(look: Inspect, model: Path, tmp_path: Path, kind: str) -> None:
    path = pack(tmp_path / "archive", kind, contents_of(model))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointRefused, match="is damaged or was cut off"):
        look(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty: tar, tar.gz, tar.zst and zip are read"),
        (b"hello", "neither a folder nor an archive of a known kind"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), "is a 7z archive: tar, tar.gz, tar.zst and zip are"),
        (b"\xfd7zXZ\x00" + bytes(600), "is an xz archive"),
    ],
)
def test_other_files_are_refused(
    look: Inspect, tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(CheckpointRefused, match=reason):
        look(tmp_path / "archive")


@pytest.mark.parametrize(("form", "has_one"), [("tar", False), ("tar.gz", True), ("zip", False)])
def test_what_has_to_be_unpacked_from_its_start_says_in_which_order(
    look: Inspect, model: Path, tmp_path: Path, form: str, has_one: bool
) -> None:
    report = look(pack(tmp_path / f"a.{form}", form, contents_of(model)))
    paths = {artifact.path for artifact in report.manifest.artifacts}
    assert set(report.sequence) == (paths if has_one else set())
    starts = [getattr(report.members[path], "start", 0) for path in report.sequence]
    assert starts == sorted(starts)
