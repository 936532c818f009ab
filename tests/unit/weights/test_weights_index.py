"""Folders and archives that someone carried to the host by hand."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qwen_weights import manifest as of_the_host
from qwen_weights.__main__ import main
from qwen_weights.errors import HostRefused, NotAModel
from qwen_weights.manifest import Manifest
from qwen_weights.sources.archive import ArchiveSource
from qwen_weights.sources.folder import FolderSource
from qwen_weights.survey import hashing, index
from qwen_weights.survey.known import Known, Stamp

from qwen_deploy.folder import inspect
from tests.holdings import sha256
from tests.model_folder import INDEX, make_model, safetensors, shard_name
from tests.packed import compress, pack, special, tar_bytes

FIRST, SECOND = shard_name(1, 2), shard_name(2, 2)
LATER_NS = 1 << 62
KINDS = ["tar", "zip", "zip-stored", "tar.gz", "tar.zst"]


def quiet(done: int, total: int) -> None:
    pass


def look(path: Path, model: str | None = "Qwen/Tiny", known: Known | None = None) -> dict[str, Any]:
    return index.index(path, model, known or Known(None), quiet)


def manifest_of(answer: dict[str, Any]) -> Manifest:
    return of_the_host.of_document(answer["manifest"])


def refusal(path: Path) -> tuple[str, str]:
    with pytest.raises(NotAModel) as refused:
        look(path)
    return str(refused.value), refused.value.hint or ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def contents_of(folder: Path, prefix: str = "") -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {prefix + path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_host_and_controller_find_the_same_model(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text("x")
    (folder / "configuration.json").write_text("{}")
    (folder / ".cache").mkdir()
    (folder / ".cache/x").write_text("x")
    answer = look(folder)
    theirs = inspect(folder, model="Qwen/Tiny", cache_path=tmp_path / "c.json").manifest
    assert manifest_of(answer).to_json() == theirs.to_json()
    assert (answer["kind"], answer["prefix"]) == ("folder", "")
    assert manifest_of(answer).proof == "none"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "./", "Qwen-Chat/", "下载/Qwen/"])
def test_an_archive_is_the_folder_that_was_packed(
    folder: Path, tmp_path: Path, kind: str, prefix: str
) -> None:
    packed = {"目录.txt": b"x"} if prefix.count("/") == 2 else {}
    path = pack(tmp_path / f"x.{kind}", kind, packed | contents_of(folder, prefix))
    answer = look(path)
    assert manifest_of(answer).artifacts == manifest_of(look(folder)).artifacts
    assert answer["kind"] == "archive"
    source = ArchiveSource("x", str(path), answer["prefix"])
    for artifact in manifest_of(answer).artifacts:
        stream = source.open(artifact, 0)
        content = hashing.head_of(stream, artifact.size + 1)
        assert sha256(content) == artifact.sha256


def test_the_command_tells_how_far_it_is_and_then_the_answer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", str(folder), "--model", "Qwen/Tiny"]) == 0
    *steps, answer = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(step["done"] <= step["total"] for step in steps) and steps
    assert steps[-1]["done"] == steps[-1]["total"]
    assert manifest_of(answer).model == "Qwen/Tiny"


def test_a_refusal_has_its_exit_code_and_its_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").write_bytes(b"7z\xbc\xaf\x27\x1c")
    assert main(["index", str(tmp_path / "x")]) == 19
    assert capsys.readouterr().err.splitlines() == [
        f"error: {tmp_path}/x is a 7z archive: tar, tar.gz, tar.zst and zip are read",
        "hint: Unpack it and name the folder",
    ]


NAMED = [("Qwen-7B-Chat", "Qwen-7B-Chat"), ("我的 Qwen (1)", "Qwen-1"), ("下载", "model")]


@pytest.mark.parametrize(("name", "model"), NAMED)
def test_without_a_name_it_has_that_of_its_folder(
    folder: Path, tmp_path: Path, name: str, model: str
) -> None:
    folder.rename(tmp_path / name)
    assert manifest_of(look(tmp_path / name, None)).model == model
    path = pack(tmp_path / "y", "tar", contents_of(tmp_path / name, f"{name}/"))
    assert manifest_of(look(path, None)).model == model


def test_an_archive_without_a_folder_has_its_own_name(folder: Path, tmp_path: Path) -> None:
    path = pack(tmp_path / "Qwen2.5-7B.tar.gz", "tar.gz", contents_of(folder))
    assert manifest_of(look(path, None)).model == "Qwen2.5-7B"


@pytest.mark.parametrize("is_archive", [False, True])
def test_a_manifest_that_came_along_is_believed_and_checked(
    folder: Path, tmp_path: Path, is_archive: bool
) -> None:
    commit = "0123456789" * 4
    made = manifest_of(look(folder))
    known = of_the_host.make(
        "Qwen/Other",
        made.artifacts,
        commit,
        origin=of_the_host.Origin("modelscope", "master", commit),
        proof="hub",
    )
    (folder / "manifest.json").write_text(known.to_json())
    path = pack(tmp_path / "x", "tar.gz", contents_of(folder, "a/")) if is_archive else folder
    found = manifest_of(look(path, None))
    assert (found.model, found.revision, found.proof) == ("Qwen/Other", commit, "hub")
    assert found.origin == known.origin
    assert manifest_of(look(path)).model == "Qwen/Tiny"


def test_a_list_of_checksums_is_checked(folder: Path) -> None:
    sums = {name: sha256((folder / name).read_bytes()) for name in (FIRST, SECOND)}
    lines = [f"{value}  {name}\n" for name, value in sums.items()]
    (folder / "SHA256SUMS").write_text("".join([*lines, f"{'0' * 64} *README.md\n"]))
    assert manifest_of(look(folder)).proof == "sums"
    (folder / "SHA256SUMS").write_text(lines[0])
    assert manifest_of(look(folder)).proof == "none"
    (folder / "SHA256SUMS").write_text("".join(lines).replace(sums[SECOND], "1" * 64))
    message, hint = refusal(folder)
    assert f"{folder}/{SECOND} was altered: SHA256SUMS says sha256 {'1' * 64}" in message
    assert hint == "Copy or download this file again"
    (folder / "SHA256SUMS").write_text(f"{lines[0]}{'1' * 64}  gone.safetensors\n")
    assert f"{folder} lacks gone.safetensors, which SHA256SUMS names" in refusal(folder)[0]
    (folder / "SHA256SUMS").write_text("what\n")
    assert "line 1 is not a SHA-256 and a name" in refusal(folder)[0]


def test_a_manifest_that_is_wrong_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")
    message, hint = refusal(folder)
    assert f"{folder}: manifest.json: " in message
    assert hint == f"Remove {folder}/manifest.json or put it right"


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return put


def only_pickles(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_text("x")


def cut(folder: Path) -> None:
    os.truncate(folder / FIRST, 500)


BAD = [
    (remove("config.json"), "has no config.json, so it is not a model"),
    (write("config.json", b"{"), "config.json is not JSON"),
    (write("config.json", b"{}"), "config.json names no model_type"),
    (remove("tokenizer.json"), "has no tokenizer"),
    (write("tokenizer_config.json", b"{}"), "has no chat template"),
    (only_pickles, "has only pytorch_model.bin: only safetensors is loaded"),
    (remove(SECOND), f"lacks {SECOND}, which {INDEX} names"),
    (remove(INDEX), f"lacks {INDEX}, without which no shard is found"),
    (write(INDEX, b"[]"), f"{INDEX} has no weight_map"),
    (cut, f"{FIRST} is cut short: 500 of"),
    (write(FIRST, safetensors(1000) + b"x"), f"{FIRST} is too long"),
    (write(FIRST, b"x"), f"{FIRST} has no safetensors header"),
    (write(FIRST, bytes([9, 0, 0, 0, 0, 0, 0, 0, 1])), f"{FIRST} is cut short in its header"),
    (write(FIRST, bytes([1, 0, 0, 0, 0, 0, 0, 0, 1])), f"{FIRST} has a corrupted header"),
]


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "tar.gz"])
@pytest.mark.parametrize(("harm", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_what_is_no_model_is_refused(
    folder: Path, tmp_path: Path, kind: str, harm: Callable[[Path], None], reason: str
) -> None:
    harm(folder)
    path = folder if kind == "folder" else pack(tmp_path / "x", kind, contents_of(folder, "m/"))
    assert reason in refusal(path)[0]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert "nowhere does not exist" in refusal(tmp_path / "nowhere")[0]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


def point(folder: Path, *names: str) -> dict[str, bytes]:
    contents = {name: (folder / name).read_bytes() for name in names}
    for name, content in contents.items():
        (folder / name).write_text(POINTER.format(sha256(content), len(content)))
    return contents


def test_pointer_files_are_named_with_the_way_out(folder: Path, tmp_path: Path) -> None:
    point(folder, FIRST, SECOND)
    message, hint = refusal(folder)
    assert f"{folder} holds git-lfs pointers instead of {FIRST}, {SECOND}" in message
    assert "cloned without git-lfs" in hint
    (folder / ".git").mkdir()
    assert refusal(folder)[1] == f"git -C {folder} lfs pull"
    for kind in ("tar", "zip", "tar.gz"):
        path = pack(tmp_path / "x", kind, contents_of(folder, "m/"))
        assert f"holds git-lfs pointers instead of {FIRST}" in refusal(path)[0]


def test_objects_that_git_lfs_has_fetched_are_the_files(folder: Path) -> None:
    plain = manifest_of(look(folder))
    for content in point(folder, FIRST, SECOND).values():
        sha = sha256(content)
        kept = folder / ".git/lfs/objects" / sha[:2] / sha[2:4] / sha
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(content)
    found = manifest_of(look(folder))
    assert found.artifacts == plain.artifacts
    assert found.proof == "sums"
    kept.write_bytes(content[:-1])
    assert f"git-lfs pointers instead of {SECOND}" in refusal(folder)[0]
    kept.write_bytes(bytes(len(content)))
    assert "has no safetensors header" in refusal(folder)[0] or "corrupted" in refusal(folder)[0]


def test_a_plain_clone_lies_on_the_disk_once(folder: Path, tmp_path: Path) -> None:
    """Cloned without its large files and then fetched: git-lfs keeps the only copy, and the store
    links to it."""
    plain = manifest_of(look(folder))
    environment = os.environ | {
        "HOME": str(tmp_path),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_LFS_SKIP_SMUDGE": "1",
    }

    def git(*words: str, at: Path = folder) -> None:
        subprocess.run(["git", *words], cwd=at, env=environment, check=True, capture_output=True)

    git("lfs", "install")
    git("init", "--quiet")
    git("config", "user.email", "x@example.org")
    git("config", "user.name", "x")
    git("lfs", "track", "*.safetensors")
    git("add", ".")
    git("commit", "--quiet", "--message", "x")
    clone = tmp_path / "clone"
    git("clone", "--quiet", f"file://{folder}", str(clone), at=tmp_path)
    assert f"holds git-lfs pointers instead of {FIRST}, {SECOND}" in refusal(clone)[0]
    git("lfs", "fetch", at=clone)
    found = manifest_of(look(clone))
    assert found.artifacts == plain.artifacts
    source = FolderSource("x", str(clone))
    for artifact in found.artifacts:
        place = source.local_path(artifact)
        assert place is not None and sha256(place.read_bytes()) == artifact.sha256
        assert (".git/lfs/objects" in str(place)) == artifact.path.endswith(".safetensors")


def test_links_within_a_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    plain = manifest_of(look(folder))
    cache = tmp_path / "models--Qwen--Tiny"
    snapshot = cache / "snapshots" / ("a" * 40)
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name, content in contents_of(folder).items():
        (cache / "blobs" / sha256(content)).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{sha256(content)}")
    found = manifest_of(look(snapshot))
    assert (found.artifacts, found.proof) == (plain.artifacts, "sums")
    blob = (snapshot / FIRST).resolve()
    blob.write_bytes(safetensors(1000, seed=77))
    assert "was altered: its cache says" in refusal(snapshot)[0]


def test_links_that_lead_out_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (folder / "notes.txt").symlink_to("../secret")
    message, hint = refusal(folder)
    assert f"{folder}/notes.txt is a link to {tmp_path}/secret, outside the folder" in message
    assert hint == "Copy the file, or remove it"
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").symlink_to("nowhere")
    assert "leads to a file that cannot be read" in refusal(folder)[0]
    (folder / "notes.txt").unlink()
    os.mkfifo(folder / "notes.txt")
    assert "is neither a file nor a folder" in refusal(folder)[0]


def tar_with(*more: tarfile.TarInfo) -> Callable[[dict[str, bytes]], bytes]:
    return lambda contents: tar_bytes(contents, *more)


ODD = [
    (special("x/../../etc/passwd", tarfile.REGTYPE), "would lie outside the folder"),
    (special("/etc/passwd", tarfile.REGTYPE), "would lie outside the folder"),
    (special("a\\b", tarfile.REGTYPE), "would lie outside the folder"),
    (special("m/x", tarfile.SYMTYPE, "/etc/passwd"), "is a link to '/etc/passwd'"),
    (special("m/x", tarfile.LNKTYPE, "m/config.json"), "is a link to 'm/config.json'"),
    (special("m/x", tarfile.FIFOTYPE), "is no ordinary file"),
    (special("m/x", tarfile.CHRTYPE), "is no ordinary file"),
    (special("m/config.json", tarfile.REGTYPE), "holds m/config.json twice"),
]


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize(("member", "reason"), ODD, ids=[one.name + why for one, why in ODD])
def test_members_that_could_do_harm_are_refused(
    folder: Path, tmp_path: Path, kind: str, member: tarfile.TarInfo, reason: str
) -> None:
    packed = tar_bytes(contents_of(folder, "m/"), member)
    (tmp_path / "x").write_bytes(compress(kind, packed))
    assert reason in refusal(tmp_path / "x")[0]


def zip_of(folder: Path, path: Path, *more: tuple[zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents_of(folder, "m/").items():
            archive.writestr(name, content)
        for info, content in more:
            archive.writestr(info, content)
    return path


def test_members_of_a_zip_that_could_do_harm_are_refused(folder: Path, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("m/x")
    link.external_attr = 0o120777 << 16
    assert "is a link" in refusal(zip_of(folder, tmp_path / "x", (link, b"/etc/passwd")))[0]
    outside = zipfile.ZipInfo("../x")
    assert "outside the folder" in refusal(zip_of(folder, tmp_path / "x", (outside, b"")))[0]
    packed = zipfile.ZipInfo("m/x")
    packed.compress_type = zipfile.ZIP_BZIP2
    message = refusal(zip_of(folder, tmp_path / "x", (packed, b"x")))[0]
    assert "compressed in a way that is not read" in message


def test_an_encrypted_zip_is_named(folder: Path, tmp_path: Path) -> None:
    content = bytearray(zip_of(folder, tmp_path / "x").read_bytes())
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(magic)
        while at >= 0:
            content[at + place] |= 1
            at = content.find(magic, at + 1)
    (tmp_path / "x").write_bytes(content)
    message, hint = refusal(tmp_path / "x")
    assert message == f"{tmp_path}/x is encrypted"
    assert "Unpack it" in hint


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_an_archive_that_was_cut_off_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    folder = make_model(tmp_path / "model", shard_bytes=300_000)
    path = pack(tmp_path / "x", kind, contents_of(folder, "m/"))
    os.truncate(path, int(path.stat().st_size * share))
    message, hint = refusal(path)
    assert f"{path} is damaged or was cut off: " in message
    assert hint == "Copy or download the archive again"


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_without_its_end_was_cut_off_between_two_members(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    whole = tar_bytes(contents_of(folder, "m/"))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        end = max(one.offset_data + -(-one.size // 512) * 512 for one in archive)
    for cut in (whole[:end], whole[:end] + b"x" * 512):
        (tmp_path / "x").write_bytes(compress(kind, cut))
        assert "its end is missing" in refusal(tmp_path / "x")[0]


@pytest.mark.parametrize("kind", KINDS[3:])
def test_a_flipped_byte_in_a_compressed_archive_is_noticed(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    path = pack(tmp_path / "x", kind, contents_of(folder, "m/"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "is damaged or was cut off" in refusal(path)[0]


UNKNOWN = [
    (b"hello", "is neither a folder nor an archive of a known kind"),
    (b"", "is empty"),
    (b"Rar!\x1a\x07", "is a rar archive"),
    (b"\xfd7zXZ\x00", "is an xz archive"),
    (b"BZh9", "is a bzip2 archive"),
    (compress("tar.gz", b"no tar"), "is damaged or was cut off"),
]


@pytest.mark.parametrize(
    ("content", "reason"), UNKNOWN, ids=["text", "empty", "rar", "xz", "bzip2", "no tar"]
)
def test_other_files_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x").write_bytes(content)
    assert reason in refusal(tmp_path / "x")[0]


def test_an_archive_of_two_models_is_not_guessed_about(folder: Path, tmp_path: Path) -> None:
    both = contents_of(folder, "a/") | contents_of(folder, "b/")
    message, hint = refusal(pack(tmp_path / "x", "tar", both))
    assert message == f"{tmp_path}/x holds several models: a/, b/"
    assert "name the folder of one" in hint


def test_what_a_mac_packs_beside_is_no_model(folder: Path, tmp_path: Path) -> None:
    contents = contents_of(folder, "m/") | {"__MACOSX/config.json": b"", "._config.json": b""}
    assert look(pack(tmp_path / "x", "zip", contents))["prefix"] == "m/"


def read_counts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    real = hashing._sha256_of

    def counted(open_file: Any, path: str, tally: hashing.Tally) -> str:
        read.append(path)
        return real(open_file, path, tally)

    monkeypatch.setattr(hashing, "_sha256_of", counted)
    return read


def test_a_second_index_of_a_folder_reads_nothing_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_counts(monkeypatch)
    cache = tmp_path / "cache/index.json"
    first = Known(cache, lambda: LATER_NS)
    answer = look(folder, known=first)
    first.save()
    assert len(read) == len(answer["manifest"]["artifacts"])
    read.clear()
    os.link(folder / FIRST, tmp_path / "in the store")
    assert look(folder, known=Known(cache)) == answer
    assert read == []
    (folder / FIRST).write_bytes(safetensors(1000, seed=5))
    assert look(folder, known=Known(cache)) != answer
    assert read == [FIRST]


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_second_index_of_an_archive_reads_nothing_again(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    cache = tmp_path / "index.json"
    path = pack(tmp_path / "x", kind, contents_of(folder, "m/"))
    first = Known(cache, lambda: LATER_NS)
    answer = look(path, known=first)
    first.save()
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert look(path, known=Known(cache)) == answer
    assert look(path, "Other/Name", Known(cache))["manifest"]["model"] == "Other/Name"


def test_what_was_written_just_now_is_not_remembered(folder: Path, tmp_path: Path) -> None:
    stamp = Stamp.of((folder / FIRST).stat())
    known = Known(tmp_path / "x", lambda: stamp.mtime_ns + 1)
    known.put(folder / FIRST, stamp, "x")
    assert known.get(folder / FIRST, stamp) is None


@pytest.mark.parametrize("text", ["", "[]", '{"schema":2}', '{"schema":1,"files":{"x":1}}'])
def test_a_damaged_cache_is_as_good_as_none(folder: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "cache").write_text(text)
    known = Known(tmp_path / "cache", lambda: LATER_NS)
    assert look(folder, known=known) == look(folder)
    known.save()
    assert json.loads((tmp_path / "cache").read_text())["schema"] == 1


def test_a_file_that_changes_while_it_is_read_is_refused(folder: Path) -> None:
    def write_meanwhile(done: int, total: int) -> None:
        (folder / FIRST).touch()

    with pytest.raises(HostRefused, match="changed while it was read"):
        index.index(folder, None, Known(None), write_meanwhile)


def test_an_archive_that_changes_while_it_is_read_is_refused(folder: Path, tmp_path: Path) -> None:
    path = pack(tmp_path / "x", "tar.gz", contents_of(folder))

    def write_meanwhile(done: int, total: int) -> None:
        path.touch()

    with pytest.raises(HostRefused, match="changed while it was read"):
        index.index(path, None, Known(None), write_meanwhile)


def test_a_file_that_is_known_of_a_folder_is_no_archive(folder: Path, tmp_path: Path) -> None:
    known = Known(tmp_path / "cache.json", now_ns=lambda: LATER_NS)
    look(folder, known=known)
    with pytest.raises(NotAModel, match="is neither a folder nor an archive"):
        look(folder / "config.json", known=known)


@pytest.mark.parametrize("below", ["", "snapshots"])
def test_a_hubs_cache_is_told_from_the_model_in_it(
    folder: Path, tmp_path: Path, below: str
) -> None:
    cache = tmp_path / "models--Qwen--Tiny"
    snapshot = cache / "snapshots" / ("c" * 40)
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    message, hint = refusal(cache / below)
    assert "is a hub's cache, not a model" in message
    assert hint == f"Name {snapshot}"
