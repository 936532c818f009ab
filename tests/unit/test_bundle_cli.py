"""What the commands about bundles print and say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from qwen_deploy.airgap import BundleRefused
from qwen_deploy.cli import bundle
from qwen_deploy.cli.output import Output
from qwen_deploy.errors import UsageError
from tests.bundle_file import MODEL, make_bundle

Program = Callable[..., str]


@pytest.fixture
def program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    """What it prints; runs in a folder with one bundle."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Output, "_current", None)
    make_bundle(tmp_path / "qwen.tar")
    app = typer.Typer()
    bundle.register(app)

    def call(*argv: str) -> str:
        app(["bundle", *argv], standalone_mode=False)
        return capsys.readouterr().out

    return call


def test_show_tells_for_whom_it_is(program: Program) -> None:
    header, row = program("show", "qwen.tar").splitlines()
    assert header.split()[:3] == ["FILE", "SIZE", "MODEL"]
    assert row.split()[0] == "qwen.tar" and row.split()[3] == "Qwen/Tiny"
    told = json.loads(program("show", "qwen.tar", "--output", "json"))
    assert told["event"] == "bundle" and told["accelerator"] == "cpu" and told["wheels"] == 1
    assert told["bytes"] == Path("qwen.tar").stat().st_size
    assert told["weights_bytes"] == sum(map(len, MODEL.values()))


def test_verify_says_that_every_byte_is_as_packed(program: Program) -> None:
    assert program("verify", "qwen.tar").endswith(": every byte as packed\n")
    told = program("verify", "qwen.tar", "--output", "json").splitlines()
    assert json.loads(told[-1])["problems"] == []


def test_verify_names_what_was_altered(program: Program) -> None:
    path = Path("qwen.tar")
    weights = MODEL["deep/生 词.safetensors"]
    path.write_bytes(path.read_bytes().replace(weights, weights[::-1]))
    with pytest.raises(BundleRefused, match="1 of its files differ from what was packed") as told:
        program("verify", "qwen.tar")
    assert told.value.evidence == ("model/deep/生 词.safetensors",)
    assert told.value.exit_code == 2


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("create", "--weights", "host:/data/model"), "lies on a host"),
        (("create", "--python", "3.6"), "3.11 or newer is needed"),
        (("create", "--python", "three"), "3.11 or newer is needed"),
        (("create", "--accelerator", "cpu", "--python", "3.12"), "locked for Python 3.11"),
        (("create", "qwen.tar"), "qwen.tar: exists already"),
    ],
)
def test_what_cannot_be_is_told_at_once(program: Program, argv: tuple[str, ...], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        program(*argv)
