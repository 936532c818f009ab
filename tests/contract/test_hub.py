"""The real clients accept the loopback hub, and stumble over its faults as they do elsewhere: what
our own transfer meets there is what it meets outside."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub import Hub, Rule
from tests.hub.clients import Clients, ended
from tests.model_folder import make_model, shard_name

pytestmark = pytest.mark.contract

REPO = "Qwen/Tiny"
SHARD_BYTES = 2_000_000
FIRST = shard_name(1, 2)
Client = Callable[[str, Path], subprocess.Popen[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def clients(hub: Hub, tmp_path: Path) -> Clients:
    return Clients(hub, tmp_path / "home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = make_model(tmp_path / "model", shard_bytes=SHARD_BYTES)
    (folder / "assets").mkdir()
    (folder / "assets" / "logo 千问.txt").write_text("in a folder")
    return folder


def wrong_files(folder: Path, got: Path) -> list[str]:
    return [
        path.name
        for path in folder.rglob("*")
        if path.is_file() and path.read_bytes() != (got / path.relative_to(folder)).read_bytes()
    ]


def test_every_client_downloads_the_right_bytes(
    hub: Hub, clients: Clients, folder: Path, tmp_path: Path
) -> None:
    commit = hub.add(REPO, folder)
    programs: dict[str, Client] = {
        "huggingface": clients.hf,
        "modelscope": clients.modelscope,
        "git-lfs": clients.git,
    }
    started = {name: start(REPO, tmp_path / name) for name, start in programs.items()}
    for name, client in started.items():
        status, printed = ended(client)
        assert status == 0, printed
        assert wrong_files(folder, tmp_path / name) == []
    shards = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert hub.sent_by["git-lfs"] == shards
    assert hub.sent_bytes[FIRST] == 3 * (folder / FIRST).stat().st_size
    head = clients.start("git", "-C", tmp_path / "git-lfs", "rev-parse", "HEAD")
    assert ended(head) == (0, f"{commit.id}\n")


def test_hf_keeps_a_wrong_byte_and_modelscope_does_not(
    hub: Hub, clients: Clients, folder: Path, tmp_path: Path
) -> None:
    hub.add(REPO, folder)
    for name in ("huggingface", "modelscope"):
        hub.rules.append(Rule(FIRST, "flip", after=1_000_000, times=1, hub=name))
    hf, modelscope = tmp_path / "hf", tmp_path / "modelscope"
    started = clients.hf(REPO, hf), clients.modelscope(REPO, modelscope)
    assert [ended(client)[0] for client in started] == [0, 0]
    assert wrong_files(folder, hf) == [FIRST]
    assert wrong_files(folder, modelscope) == []
    size = (folder / FIRST).stat().st_size
    assert hub.sent_bytes[FIRST] == 3 * size


def test_git_lfs_names_a_wrong_object(
    hub: Hub, clients: Clients, folder: Path, tmp_path: Path
) -> None:
    commit = hub.add(REPO, folder)
    hub.rules.append(Rule(FIRST, "flip", after=7))
    status, printed = ended(clients.git(REPO, tmp_path / "got"))
    assert status != 0
    assert f"expected OID {commit.files[FIRST].sha256}" in printed


def test_a_connection_cut_is_resumed_where_it_broke(
    hub: Hub, clients: Clients, folder: Path, tmp_path: Path
) -> None:
    hub.add(REPO, folder)
    hub.rules.append(Rule(FIRST, "drop", after=1_500_000, times=1))
    status, printed = ended(clients.modelscope(REPO, tmp_path / "got"))
    assert status == 0, printed
    assert wrong_files(folder, tmp_path / "got") == []
    assert hub.sent_bytes[FIRST] == (folder / FIRST).stat().st_size
    asked = [one for one in hub.requests if one.origin == "cdn" and FIRST in one.path]
    assert [one.headers.get("Range") for one in asked] == [None, "bytes=1500000-"]


def test_a_gated_repository_wants_a_token_and_the_other_origin_never_sees_it(
    hub: Hub, clients: Clients, folder: Path, tmp_path: Path
) -> None:
    hub.add(REPO, folder, token="hf_right", is_gated=True)
    hub.accounts.add("hf_other")
    none, right, other, unknown = (
        clients.start(
            "hf", "download", REPO, "--local-dir", tmp_path / f"got{token}", HF_TOKEN=token
        )
        for token in ("", "hf_right", "hf_other", "hf_unknown")
    )
    assert ended(right)[0] == 0
    for refused, words in (
        (none, "requires approval"),
        (other, "requires approval"),
        (unknown, "401"),
    ):
        status, printed = ended(refused)
        assert status == 1 and words in printed
    assert {one.token for one in hub.requests if one.origin == "cdn"} == {None}


def test_an_announced_xet_store_misleads_hf(
    hub: Hub, clients: Clients, folder: Path, tmp_path: Path
) -> None:
    hub.add(REPO, folder)
    hub.rules.append(Rule("*.safetensors", "xet", methods=("HEAD", "GET")))
    argv = ("hf", "download", REPO, "--local-dir", tmp_path / "got")
    status, printed = ended(clients.start(*argv))
    assert status == 1 and "xet-read-token" in printed
    assert ended(clients.start(*argv, HF_HUB_DISABLE_XET="1"))[0] == 0


def test_a_hub_busy_at_first_ends_hf_and_not_modelscope(
    hub: Hub, clients: Clients, folder: Path, tmp_path: Path
) -> None:
    hub.add(REPO, folder)
    hub.rules.append(Rule("@revision", "status", times=1, hub="huggingface"))
    hub.rules.append(Rule("@listing", "status", times=1, hub="modelscope"))
    started = clients.hf(REPO, tmp_path / "hf"), clients.modelscope(REPO, tmp_path / "modelscope")
    assert [ended(client)[0] for client in started] == [1, 0]
