"""A bundle as it lies on a disk: read in place, and refused in one sentence if it is not whole."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_deploy import __version__ as VERSION
from qwen_deploy import airgap, bundle, config, release
from qwen_deploy.airgap import Bundle, BundleRefused
from qwen_deploy.config import Deployment
from qwen_deploy.content import Content, ContentChanged, MemoryContent
from qwen_deploy.errors import UsageError
from qwen_deploy.packing import archive
from tests.bundle_file import MODEL, UV, WHEELS, make_bundle, manifest_of


def deployment(**sections: Any) -> Deployment:
    return config.parse(sections, origin="test")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "qwen.tar")


def read_all(content: Content, offset: int = 0) -> bytes:
    with content.open(offset) as reader:
        return reader.read(content.size - offset)


def test_a_bundle_tells_what_is_in_it(path: Path) -> None:
    found = airgap.open(path)
    assert found.model == manifest_of("Qwen/Tiny", MODEL)
    assert found.wheels.model == "qwen-deploy/wheels"
    assert found.index.runtime_python == (3, 11)
    assert found.lock == bundle.lock_path("transformers", "cpu").read_bytes()
    assert found.size == path.stat().st_size


def test_artifacts_are_served_from_where_they_lie(path: Path) -> None:
    contents = airgap.open(path).contents()
    assert {name: read_all(one) for name, one in contents.items()} == MODEL | WHEELS
    assert read_all(contents["config.json"], 1) == b"}"


def test_a_bundle_that_changes_while_it_is_served_is_noticed(path: Path) -> None:
    content = airgap.open(path).contents()["config.json"]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ContentChanged):
        content.open(0)


def test_uv_is_there_for_as_long_as_it_is_needed(path: Path) -> None:
    with airgap.open(path).uv() as uv:
        assert uv.read_bytes() == UV
        assert uv.stat().st_mode & 0o777 == 0o755
        assert uv.parent.stat().st_mode & 0o777 == 0o700
    assert not uv.parent.exists()


def test_any_tar_can_read_it(path: Path) -> None:
    with tarfile.open(path) as opened:
        names = opened.getnames()
        data = opened.extractfile("model/config.json")
        assert data is not None and data.read() == MODEL["config.json"]
    assert names[0] == "bundle.json"


def test_the_same_members_give_the_same_bytes(path: Path, tmp_path: Path) -> None:
    assert make_bundle(tmp_path / "again.tar").read_bytes() == path.read_bytes()


def test_the_service_in_it_is_the_one_of_every_release(path: Path) -> None:
    made = release.make(deployment(), manifest_of("Qwen/Tiny", MODEL), "cpu")
    released = {name: data for name, data in made.files.items() if name.startswith("service/")}
    assert bundle.service_files() == released
    assert {"service/qwen_weights/__main__.py", "systemd/qwen.service"} <= {
        member.path for member in airgap.open(path).index.members
    }


def refusal(path: Path) -> str:
    with pytest.raises(BundleRefused) as refused:
        airgap.open(path)
    assert refused.value.hint or "No such" in refused.value.message
    return refused.value.message.replace(str(path), "FILE")


def test_what_is_no_bundle_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert refusal(path) == "FILE: No such file or directory"
    for content in (b"", b"PK\3\4 something else", bytes(20_000)):
        path.write_bytes(content)
        assert refusal(path) == "FILE is not a bundle of qwen-deploy"
    with tarfile.open(path, "w") as foreign:
        foreign.add(__file__)
    assert refusal(path) == "FILE is not a bundle of qwen-deploy"


def test_a_copy_that_was_cut_short_is_told_wherever_that_was(path: Path) -> None:
    whole = path.read_bytes()
    # A tar ends in zeros that mean nothing; before them every byte counts.
    used = len(whole.rstrip(b"\0"))
    places = {1, 511, 512, 513, 1000, used // 3, used // 2, used - 1000, used - 1}
    for place in sorted(places):
        path.write_bytes(whole[:place])
        told = refusal(path)
        assert "cut short" in told or (place <= 512 and "not a bundle" in told), (place, told)


def test_a_member_that_was_altered_is_found_by_verify(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = bytes(content).index(MODEL["deep/生 词.safetensors"])
    content[at + 5] ^= 1
    path.write_bytes(content)
    parts: list[float] = []
    assert airgap.open(path).problems(parts.append) == ("model/deep/生 词.safetensors",)
    assert parts == sorted(parts) and parts[-1] == 1.0


def test_verify_has_nothing_to_say_about_a_good_one(path: Path) -> None:
    assert airgap.read(path).problems() == ()


def test_an_altered_uv_is_not_sent_to_any_host(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(UV, b"#!/bin/no\n"))
    with pytest.raises(BundleRefused, match="uv was altered"), airgap.open(path).uv():
        pass


def test_another_version_is_refused_but_can_be_shown(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b", lambda index: replace(index, version="9.9.1"))
    assert refusal(path) == f"FILE was made by qwen-deploy 9.9.1, and this is {VERSION}"
    assert airgap.read(path).index.version == "9.9.1"


def test_another_build_of_this_version_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = bundle.shipped_files() | {"service/qwen_service/app.py": b"changed"}
    monkeypatch.setattr(bundle, "shipped_files", lambda: changed)
    told = refusal(path)
    assert told.startswith(f"FILE was made by another build of qwen-deploy {VERSION}")
    assert "service/qwen_service/app.py differs" in told


def document(path: Path) -> dict[str, Any]:
    with tarfile.open(path) as opened:
        file = opened.extractfile("bundle.json")
        assert file is not None
        content: dict[str, Any] = json.load(file)
        return content


def with_document(path: Path, **changes: Any) -> None:
    """The same archive with another index."""
    text = json.dumps(document(path) | changes).encode()
    made = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=made, mode="w") as new:
        for entry in old:
            data = old.extractfile(entry)
            assert data is not None
            content = text if entry.name == "bundle.json" else data.read()
            entry.size = len(content)
            new.addfile(entry, io.BytesIO(content))
    path.write_bytes(made.getvalue())


def test_a_newer_form_is_told_by_the_version_that_reads_it(path: Path) -> None:
    with_document(path, schema=2, version="1.4.0", members="in another form")
    told = refusal(path)
    newer = "FILE was made by a newer qwen-deploy, 1.4.0"
    assert told == f"{newer}, in a form that {VERSION} cannot read"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"program": "other"}, "bundle.json is another program's"),
        ({"schema": True}, "bundle.json is another program's"),
        ({"platform": "darwin"}, "platform should be linux-x86_64"),
        ({"python": "2.7"}, "python '2.7' is not allowed"),
        ({"accelerator": "tpu"}, "accelerator 'tpu' is not allowed"),
        ({"lock": "x"}, "lock 'x' is not allowed"),
        ({"version": "../1"}, "version '../1' is not allowed"),
        ({"members": None}, "members: "),
        ({"members": [{"path": "../x", "size": 1, "sha256": "a" * 64}]}, "leaves the model's"),
        ({"members": [{"path": "x", "size": -1, "sha256": "a" * 64}]}, "count of bytes"),
        ({"members": [{"path": "x", "size": 1, "sha256": "a" * 64}]}, "members lack model/"),
        ({"model": {}}, "model: manifest.json"),
    ],
)
def test_an_index_that_nobody_wrote_is_refused(
    path: Path, changes: dict[str, Any], told: str
) -> None:
    with_document(path, **changes)
    assert told in refusal(path)


def test_members_and_index_must_agree(path: Path) -> None:
    members = document(path)["members"]
    with_document(path, members=[members[1], members[0], *members[2:]])
    assert "was altered: its index names" in refusal(path)
    with_document(path, members=members[1:])
    assert "was altered: its index names" in refusal(path)
    with_document(path, members=[*members, members[-1] | {"path": "zzz"}])
    assert refusal(path).startswith("FILE is cut short or damaged behind model/")


def test_something_behind_the_last_member_is_refused(path: Path, tmp_path: Path) -> None:
    with tarfile.open(path, "a") as longer:
        longer.addfile(tarfile.TarInfo("more"))
    assert refusal(path) == "FILE was altered: its index does not name more"


def test_a_link_is_no_member(path: Path) -> None:
    made = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=made, mode="w") as new:
        for entry in old:
            data = old.extractfile(entry)
            if entry.name == "uv":
                entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/shadow"
            new.addfile(entry, data)
    path.write_bytes(made.getvalue())
    assert "was altered" in refusal(path)


def opened(path: Path) -> Bundle:
    return airgap.open(path)


def test_a_bundle_decides_model_and_accelerator(path: Path) -> None:
    settled = airgap.settle(deployment(), opened(path))
    assert (settled.model.name, settled.runtime.accelerator) == ("Qwen/Tiny", "cpu")


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"runtime": {"accelerator": "cuda"}}, "runtime/accelerator is cuda"),
        ({"model": {"name": "Qwen/Other"}}, "model/name is Qwen/Other"),
    ],
)
def test_a_deployment_that_names_something_else_is_refused(
    path: Path, sections: dict[str, Any], key: str
) -> None:
    with pytest.raises(UsageError, match=key):
        airgap.settle(deployment(**sections), opened(path))


def test_a_file_that_changes_while_it_is_packed_is_not_packed(path: Path, tmp_path: Path) -> None:
    index = airgap.read(path).index
    files: dict[str, Content] = {
        **{name: MemoryContent(data) for name, data in airgap.program_files("cpu").items()},
        **{f"wheels/{name}": MemoryContent(data) for name, data in WHEELS.items()},
        **{f"model/{name}": MemoryContent(data) for name, data in MODEL.items()},
    }
    for other in (b"#!/bin/so\n", b"#!/bin"):
        files["uv"] = MemoryContent(other)
        with pytest.raises(UsageError, match="uv changed while it was packed"):
            archive.write(io.BytesIO(), index, files, lambda done: None)
