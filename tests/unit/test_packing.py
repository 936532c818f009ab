"""Which wheels a lock file means on another machine, and where pip is sent for them."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from qwen_weights.manifest import Artifact
from qwen_weights.manifest import make as make_manifest

from qwen_deploy import bundle
from qwen_deploy.config import PYTORCH_CPU_INDEX, Pip, Weights
from qwen_deploy.errors import Refused, UsageError
from qwen_deploy.packing import Contents, create
from qwen_deploy.packing.wheels import index_arguments, requirements
from qwen_deploy.sources import Pinned

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
LOCK = f"""\
# This file was generated
networkx==3.6.1 ; python_full_version < '3.12' \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
    # via torch
networkx==3.7 ; python_full_version >= '3.12' \\
    --hash=sha256:{C}
colorama==0.4.6 ; sys_platform == 'win32' --hash=sha256:{A}
redis==1.0 ; python_full_version < '3.11.3' --hash=sha256:{A}
torch==2.13.0+cpu --hash=sha256:{B}
"""


@pytest.mark.parametrize(
    ("python", "names"),
    [
        ("3.11", ["networkx==3.6.1", "redis==1.0", "torch==2.13.0+cpu"]),
        ("3.13", ["networkx==3.7", "torch==2.13.0+cpu"]),
    ],
)
def test_markers_are_judged_for_the_hosts_python(python: str, names: list[str]) -> None:
    assert [one.text for one in requirements(LOCK, python)] == names


def test_a_requirement_keeps_its_hashes_and_loses_its_marker() -> None:
    first = requirements(LOCK, "3.11")[0]
    assert first.line == f"networkx==3.6.1 --hash=sha256:{A} --hash=sha256:{B}"


@pytest.mark.parametrize(("accelerator", "python"), [("cpu", "3.11"), ("cuda", "3.12")])
def test_every_line_of_our_own_lock_files_is_understood(accelerator: str, python: str) -> None:
    lock = bundle.lock_path("transformers", accelerator).read_text()
    found = requirements(lock, python)
    assert all(one.hashes and one.text.count("==") == 1 for one in found)
    assert {"torch", "transformers", "uvicorn"} <= {one.text.split("==")[0] for one in found}
    assert not {"colorama"} & {one.text.split("==")[0] for one in found}


OWN = "global.extra-index-url='https://wheels.example/simple'\n"


@pytest.mark.parametrize(
    ("pip", "accelerator", "pip_config", "expected"),
    [
        (Pip(), "cuda", "", []),
        (Pip(), "cpu", "", ["--extra-index-url", PYTORCH_CPU_INDEX]),
        (Pip(), "cpu", OWN, []),
        (Pip(), "cpu", ":env:.find-links='/wheels'\n", []),
        (
            Pip(index_url="tsinghua"),
            "cpu",
            OWN,
            [
                *("--index-url", "https://pypi.tuna.tsinghua.edu.cn/simple"),
                *("--extra-index-url", PYTORCH_CPU_INDEX),
            ],
        ),
        (
            Pip(find_links=("/wheels",), ca_file="/only/on/hosts.pem"),
            "cpu",
            "",
            ["--index-url", "https://pypi.org/simple", "--find-links", "/wheels"],
        ),
        (
            Pip(index_url="http://mirror.example/simple", ca_file=__file__),
            "cuda",
            "",
            ["--index-url", "http://mirror.example/simple", "--cert", __file__],
        ),
    ],
)
def test_pip_asks_where_the_configuration_says_else_where_it_always_asks(
    pip: Pip, accelerator: str, pip_config: str, expected: list[str]
) -> None:
    assert index_arguments(pip, accelerator, pip_config) == expected


def contents(size: int = 1, python: str = "3.11") -> Contents:
    manifest = make_manifest("Qwen/Tiny", [Artifact("config.json", size, A)])
    pinned = Pinned(manifest, (), None)
    return Contents(pinned, python=python, accelerator="cpu", pip=Pip(), settings=Weights())


def unexpected(event: object) -> None:
    raise AssertionError(event)


def test_a_disk_that_is_too_small_is_told_before_anything_is_brought(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"too small for x\.tar: needs .* GiB, has .* GiB free"):
        create(tmp_path / "x.tar", contents(size=1 << 60), unexpected)
    assert not list(tmp_path.iterdir())


def test_a_python_without_cpu_packages_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"locked for Python 3\.11, not for 3\.12"):
        create(tmp_path / "x.tar", contents(python="3.12"), unexpected)


def test_an_older_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_text("mine")
    with pytest.raises(UsageError, match=r"x\.tar: exists already"):
        create(tmp_path / "x.tar", contents(), unexpected)
    assert (tmp_path / "x.tar").read_text() == "mine"


def test_a_folder_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        create(tmp_path / "nowhere" / "x.tar", contents(), unexpected)


def test_two_programs_do_not_write_one_bundle(tmp_path: Path) -> None:
    with (tmp_path / "x.tar.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="is being written by another"):
            create(tmp_path / "x.tar", contents(), unexpected)
    assert (tmp_path / "x.tar.part").exists()
