from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from qwen_weights.manifest import Manifest, Origin

from qwen_deploy.folder import FolderRefused, FolderReport, inspect
from tests.model_folder import INDEX, make_model, safetensors, shard_name

FIRST, SECOND = shard_name(1, 2), shard_name(2, 2)
Inspect = Callable[[Path], FolderReport]


@pytest.fixture
def look(tmp_path: Path) -> Inspect:
    return lambda folder: inspect(folder, model="Qwen/Tiny", cache_path=tmp_path / "c/hashes.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_whole_folder_becomes_a_manifest(look: Inspect, folder: Path) -> None:
    report = look(folder)
    assert [artifact.path for artifact in report.manifest.artifacts] == sorted(
        ["config.json", FIRST, SECOND, INDEX, "tokenizer.json", "tokenizer_config.json"]
    )
    assert all(sha256(folder / a.path) == a.sha256 for a in report.manifest.artifacts)
    assert report.manifest.model == "Qwen/Tiny"
    assert report.manifest.revision.startswith("w-")
    assert [stamp.size for stamp in report.stamps] == [a.size for a in report.manifest.artifacts]


def test_a_copy_elsewhere_has_the_same_revision(
    look: Inspect, folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert look(copy).manifest == look(folder).manifest


def test_what_is_no_part_of_the_model_is_left_out(look: Inspect, folder: Path) -> None:
    before = look(folder).manifest
    for name in ("README.md", "a.PNG", "configuration.json", "manifest.pieces.json"):
        (folder / name).write_text("x")
    for name in (".git/HEAD", ".cache/x", "original/consolidated.pth", "pytorch_model.bin", "a.pt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / ".gitattributes").write_text("x")
    assert look(folder).manifest == before


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        (None, None),
        ("text", None),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "Made Up"}, "unknown"),
        ({"bits": 4}, "unknown"),
    ],
)
def test_the_manifest_tells_how_the_weights_are_quantized(
    look: Inspect, folder: Path, settings: object, method: str | None
) -> None:
    config = {"model_type": "qwen2", "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    assert look(folder).manifest.quantization == method


def test_the_first_generations_files_are_a_model(look: Inspect, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "QWenTokenizer"}')
    (folder / "qwen.tiktoken").write_text("YQ== 0\n")
    (folder / "config.json").write_text('{"model_type": "qwen"}')
    assert "qwen.tiktoken" in [artifact.path for artifact in look(folder).manifest.artifacts]


def test_subfolders_are_part_of_the_model(look: Inspect, folder: Path) -> None:
    (folder / "assets").mkdir()
    (folder / "assets/vocab.txt").write_text("x")
    assert "assets/vocab.txt" in [a.path for a in look(folder).manifest.artifacts]


def test_a_hub_cache_of_links_is_followed(look: Inspect, folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "hub/blobs", tmp_path / "hub/snapshots/c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        shutil.copy(path, blobs / sha256(path))
        (snapshot / path.name).symlink_to(f"../../blobs/{sha256(path)}")
    assert look(snapshot).manifest == look(folder).manifest
    blob = blobs / sha256(folder / FIRST)
    flip_last_byte(blob)
    with pytest.raises(FolderRefused, match=f"{FIRST} was altered: its cache says sha256"):
        look(snapshot)


def test_every_recorded_hash_is_compared(look: Inspect, folder: Path) -> None:
    expected, other = sha256(folder / FIRST), sha256(folder / SECOND)
    (folder / "SHA256SUMS").write_text(f"{expected}  {FIRST}\n{other} *./{SECOND}\n\n")
    look(folder)
    flip_last_byte(folder / FIRST)
    with pytest.raises(FolderRefused) as refused:
        look(folder)
    for part in (str(folder / FIRST), "SHA256SUMS", expected, sha256(folder / FIRST)):
        assert part in str(refused.value)


def test_the_proof_is_the_list_that_came_along(look: Inspect, folder: Path) -> None:
    assert look(folder).manifest.proof == "none"
    lines = [f"{sha256(folder / name)}  {name}\n" for name in (FIRST, SECOND)]
    (folder / "SHA256SUMS").write_text(lines[0])
    assert look(folder).manifest.proof == "none"
    (folder / "SHA256SUMS").write_text("".join(lines))
    assert look(folder).manifest.proof == "sums"
    (folder / "SHA256SUMS").unlink()
    own = json.loads(look(folder).manifest.to_json())
    origin = {"source": "modelscope", "requested": "master", "commit": None}
    (folder / "manifest.json").write_text(json.dumps(own | {"proof": "hub", "origin": origin}))
    found = look(folder).manifest
    assert (found.proof, found.origin) == ("hub", Origin("modelscope", "master"))


def test_a_manifest_may_list_what_is_left_out_now(look: Inspect, folder: Path) -> None:
    own = json.loads(look(folder).manifest.to_json())
    readme = {"path": "README.md", "size": 1, "sha256": "a" * 64}
    own["artifacts"] = sorted([*own["artifacts"], readme], key=lambda row: str(row["path"]))
    (folder / "manifest.json").write_text(json.dumps(own))
    assert "README.md" not in [one.path for one in look(folder).manifest.artifacts]


def test_a_folder_with_a_manifest_keeps_its_revision(look: Inspect, folder: Path) -> None:
    manifest = json.loads(look(folder).manifest.to_json()) | {"revision": "c" * 40}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert look(folder).manifest.revision == "c" * 40
    (folder / "more.json").write_text("{}")
    assert look(folder).manifest.revision.startswith("w-")
    flip_last_byte(folder / SECOND)
    with pytest.raises(FolderRefused, match=r"altered: manifest\.json says sha256"):
        look(folder)


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    as_bytes = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(as_bytes)


def only_pickles(folder: Path) -> None:
    for name in (FIRST, SECOND, INDEX):
        (folder / name).unlink()
    (folder / "pytorch_model.bin").write_text("x")


def pointers(folder: Path) -> None:
    (folder / FIRST).write_text(POINTER)
    (folder / SECOND).write_text(POINTER)


def no_weights(folder: Path) -> None:
    only_pickles(folder)
    (folder / "pytorch_model.bin").unlink()


def corrupted_header(folder: Path) -> None:
    content = bytearray((folder / FIRST).read_bytes())
    content[8:12] = b"\xff\xff\xff\xff"
    (folder / FIRST).write_bytes(content)


def dangling(folder: Path) -> None:
    (folder / FIRST).unlink()
    (folder / FIRST).symlink_to("../../blobs/absent")


def stranger(folder: Path) -> None:
    (folder.parent / "outside").write_text("a secret")
    (folder / "extra.txt").symlink_to("../outside")


def strange_blob(folder: Path) -> None:
    """A hub's cache, but not the one that this folder belongs to."""
    (folder.parent / "other/blobs").mkdir(parents=True)
    (folder.parent / "other/blobs/1").write_text("a secret")
    (folder / "extra.txt").symlink_to("../other/blobs/1")


def linked_folder(folder: Path) -> None:
    (folder / "extra").symlink_to("/")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


SHARD = safetensors(1000)


def as_pointers(folder: Path) -> Path:
    """As `git clone` leaves it without git-lfs's checkout; the store of the objects."""
    store = folder / ".git/lfs/objects"
    for name in (FIRST, SECOND):
        content = (folder / name).read_bytes()
        oid = hashlib.sha256(content).hexdigest()
        place = store / oid[:2] / oid[2:4] / oid
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        pointer = POINTER.replace("sha256:00\nsize 3", f"sha256:{oid}\nsize {len(content)}")
        (folder / name).write_text(pointer)
    return store


def test_a_clone_of_pointers_is_read_from_its_objects(look: Inspect, folder: Path) -> None:
    before = look(folder).manifest
    store = as_pointers(folder)
    report = look(folder)
    assert report.manifest == before
    assert report.manifest.proof == "sums"
    content = report.contents()[FIRST]
    with content.open(10) as reader:
        assert reader.read(content.size) == object_of(store, before, FIRST).read_bytes()[10:]


def test_a_clone_that_is_not_whole_is_refused(look: Inspect, folder: Path) -> None:
    before = look(folder).manifest
    store = as_pointers(folder)
    flip_last_byte(object_of(store, before, FIRST))
    with pytest.raises(FolderRefused, match=f"{FIRST} was altered: git-lfs says sha256"):
        look(folder)
    object_of(store, before, SECOND).unlink()
    with pytest.raises(FolderRefused, match=f"git-lfs pointers instead of {SECOND}") as refused:
        look(folder)
    assert refused.value.hint == f"git -C {folder} lfs pull"


def object_of(store: Path, manifest: Manifest, path: str) -> Path:
    (sha256,) = (one.sha256 for one in manifest.artifacts if one.path == path)
    return store / sha256[:2] / sha256[2:4] / sha256


REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda folder: shutil.rmtree(folder), "does not exist"),
    ("no config", remove("config.json"), "has no config.json"),
    ("config not JSON", write("config.json", "{"), "config.json is not JSON"),
    ("config of nothing", write("config.json", "[]"), "names no model_type"),
    ("config without type", write("config.json", "{}"), "names no model_type"),
    ("no weights", no_weights, "no file ends in .safetensors"),
    ("pickles", only_pickles, "only pytorch_model.bin: only safetensors is loaded"),
    ("pointers", pointers, f"git-lfs pointers instead of {FIRST}, {SECOND}"),
    ("shard missing", remove(SECOND), f"lacks {SECOND}, which {INDEX} names"),
    ("index missing", remove(INDEX), f"lacks {INDEX}"),
    ("index bad", write(INDEX, "{}"), "has no weight_map"),
    ("truncated", write(FIRST, SHARD[:-1]), f"{FIRST} is cut short: {len(SHARD) - 1} of"),
    ("overlong", write(FIRST, SHARD + b"x"), f"{FIRST} is too long"),
    ("cut in header", write(FIRST, SHARD[:20]), f"{FIRST} is cut short in its header"),
    ("empty", write(FIRST, b""), f"{FIRST} has no safetensors header"),
    ("random", write(FIRST, b"\xff" * 500), f"{FIRST} has no safetensors header"),
    ("header corrupted", corrupted_header, f"{FIRST} has a corrupted header"),
    ("no tokenizer", remove("tokenizer.json"), "has no tokenizer"),
    ("no chat template", remove("tokenizer_config.json"), "has no chat template: it is no chat"),
    ("other template", write("tokenizer_config.json", "{}"), "has no chat template: it is no chat"),
    ("stranger", stranger, "extra.txt is a link to "),
    ("strange blob", strange_blob, "extra.txt is a link to "),
    ("dangling link", dangling, f"{FIRST} leads to a file that cannot be read"),
    ("linked folder", linked_folder, "extra is neither a file nor a folder"),
    ("pipe", pipe, "pipe is neither a file nor a folder"),
    ("sums not sums", write("SHA256SUMS", "hello\n"), "line 1 is not a SHA-256 and a name"),
    ("sums miss", write("SHA256SUMS", f"{'0' * 64}  x.safetensors\n"), "lacks x.safetensors"),
    ("bad manifest", write("manifest.json", "{}"), "artifacts is missing"),
    ("bad name", write("a\\b", "x"), "is not a file name"),
]


@pytest.mark.parametrize(
    ("change", "reason"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_a_folder_is_refused_with_its_reason(
    look: Inspect, folder: Path, change: Callable[[Path], object], reason: str
) -> None:
    change(folder)
    with pytest.raises(FolderRefused) as refused:
        look(folder)
    assert reason in str(refused.value)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize("names", [("qwen.tiktoken",), ("vocab.json", "merges.txt")])
def test_every_kind_of_tokenizer_will_do(
    look: Inspect, folder: Path, names: tuple[str, ...]
) -> None:
    (folder / "tokenizer.json").unlink()
    for name in names:
        (folder / name).write_text("{}")
    look(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "qwen.tiktoken"])
def test_every_place_of_a_chat_template_will_do(look: Inspect, folder: Path, name: str) -> None:
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / name).write_text("{}")
    look(folder)


def test_a_folder_without_a_chat_template_is_refused_with_what_to_use(
    look: Inspect, folder: Path
) -> None:
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(FolderRefused) as refused:
        look(folder)
    assert refused.value.message == f"{folder} has no chat template: it is no chat model"
    assert refused.value.hint == "Use the -Instruct or -Chat model of the family"


def test_a_link_out_of_the_folder_is_refused_with_where_it_leads(
    look: Inspect, folder: Path
) -> None:
    stranger(folder)
    with pytest.raises(FolderRefused) as refused:
        look(folder)
    outside = (folder.parent / "outside").resolve()
    assert refused.value.message == (
        f"{folder / 'extra.txt'} is a link to {outside}, outside the folder"
    )
    assert refused.value.hint == "Copy the file, or remove it"


def test_a_link_to_another_file_of_the_model_is_followed(
    look: Inspect, folder: Path, tmp_path: Path
) -> None:
    (folder / "merges.txt").symlink_to("tokenizer.json")
    (tmp_path / "link").symlink_to(folder)
    assert "merges.txt" in [a.path for a in look(tmp_path / "link").manifest.artifacts]


def test_a_file_instead_of_a_folder_is_refused(look: Inspect, folder: Path) -> None:
    with pytest.raises(FolderRefused, match="is not a folder"):
        look(folder / FIRST)


def test_a_file_that_may_not_be_read_is_named() -> None:
    """Root may read everything, so that another user asks."""
    program = (
        "import os, sys, concurrent.futures.thread; from qwen_deploy.folder import *;"
        "os.getuid() or os.setuid(65534);"
        "inspect(Path(sys.argv[1]), model='m', cache_path=Path('/nonexistent/c'))"
    )
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folder = make_model(Path(name, "model"))
        (folder / FIRST).chmod(0)
        argv = [sys.executable, "-c", program, str(folder)]
        ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert f"{folder / FIRST}: cannot be read: Permission denied" in ended.stderr


def test_importing_the_inspection_stays_quick() -> None:
    program = (
        "import sys; import qwen_deploy.folder;"
        "print([m for m in ('pydantic', 'httpx', 'http', 'concurrent.futures', 'logging')"
        " if m in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"
