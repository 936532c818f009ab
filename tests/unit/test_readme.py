"""The READMEs say what the program does: commands, codes, paths, keys, and the demo's session."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from qwen_deploy import config, errors, facts, release, removal
from qwen_deploy.cli.app import app
from tests.demo.session import ASK, EDITED
from tests.demo.transcript import Step, parse, session_of
from tests.service_app import Service

ROOT = Path(__file__).resolve().parents[2]
ENGLISH, CHINESE = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md"))
REFERENCE = (ROOT / "service/README.md").read_text("utf-8")
READMES = pytest.mark.parametrize("readme", [ENGLISH, CHINESE], ids=["English", "Chinese"])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(readme: str, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(readme) if name == language]


def tables(readme: str) -> list[list[list[str]]]:
    """Rows of cells, without the header."""
    found = re.findall(r"(?:^\|.*\|\n)+", BLOCK.sub("", readme), re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in one.splitlines()[2:]]
        for one in found
    ]


def program() -> Any:
    """A group of click's, of which typer has a copy of its own."""
    return typer.main.get_command(app)


def typed_commands(readme: str) -> Iterator[list[str]]:
    """The arguments of every `qwen-deploy …` that a reader might type."""
    lines = [step.command for step in parse(session_of(readme))]
    lines += [line.split("#")[0] for text in blocks(readme, "sh") for line in text.splitlines()]
    lines += re.findall(r"`(qwen-deploy [^`]+)`", readme)
    lines += [f"qwen-deploy {text}" for text in re.findall(r"`((?:up|weights) [^`]+)`", readme)]
    return (line.split()[1:] for line in lines if line.startswith("qwen-deploy "))


@READMES
def test_every_command_is_listed_in_the_order_of_help(readme: str) -> None:
    listed = [row[0].strip("`") for row in tables(readme)[1]]
    assert listed == list(program().commands)


def test_commands_are_described_as_help_does() -> None:
    told = {name: (one.help or "").split("\n\n")[0] for name, one in program().commands.items()}
    listed = {row[0].strip("`"): row[1] for row in tables(ENGLISH)[1]}
    assert listed == {name: " ".join(text.split()) for name, text in told.items()}


@READMES
def test_commands_to_be_typed_exist_with_their_options(readme: str) -> None:
    for name, *arguments in typed_commands(readme):
        command = program().commands[name]
        if hasattr(command, "commands"):
            command = command.commands[arguments.pop(0)]
        known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        used = {word for word in arguments if word.startswith("-")}
        assert used <= known | {"--help"}, (name, arguments)


@READMES
def test_exit_codes_are_those_of_the_errors(readme: str) -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.QwenDeployError)}
    assert {int(row[0]) for row in tables(readme)[2]} == codes | {0}
    graver = [str(code) for code in errors.GRAVITY if code not in (2, 0)]
    assert ", ".join(graver) in readme.replace("、", ", ")


@READMES
def test_the_table_of_changes_names_every_path(readme: str) -> None:
    shown = {path.strip("`") for row in tables(readme)[0] for path in re.findall("`[^`]+`", row[0])}
    purged = {path for path in removal.PURGED_PATHS if not path.startswith("/run/")}
    assert {*release.INSTALLED.values(), release.ROOT, *purged} <= shown
    for path in removal.SERVICE_PATHS:
        covered = any(Path(one).is_relative_to(path) for one in shown if one.startswith("/"))
        assert covered or path.startswith("/run/"), path
    assert {"qwen", *facts.PACKAGES} <= shown
    assert release.PIP_CONF.removeprefix(f"{release.STATE}/") in readme
    assert f"{config.Service().address}:{config.Service().port}" in readme


@READMES
def test_the_configuration_is_valid(readme: str) -> None:
    (text,) = blocks(readme, "yaml")
    assert config.parse(yaml.safe_load(text), origin="README").pip.index_url == "tsinghua"
    for section, key in re.findall(r"`(model|weights|service|pip|ssh|runtime)\.(\w+)", readme):
        assert key in type(getattr(config.Deployment(), section)).model_fields, key


@READMES
def test_every_mirror_is_named(readme: str) -> None:
    listed = re.search(r"(?:`\w+`(?:, |、)?){4,}", readme)
    assert listed
    assert re.findall(r"\w+", listed[0]) == list(config.PIP_MIRRORS)


@READMES
def test_every_target_of_make_is_named(readme: str) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^(\w+):.*## ", makefile, re.MULTILINE)) - {"help"}
    development = readme.split("\n## ")[-1]
    assert {name for name in targets if f"`{name}`" in development} == targets


def test_both_languages_say_the_same() -> None:
    assert BLOCK.findall(ENGLISH)[:4] == BLOCK.findall(CHINESE)[:4]
    assert len(re.findall(r"^## ", ENGLISH, re.MULTILINE)) == len(
        re.findall(r"^## ", CHINESE, re.MULTILINE)
    )
    for ours, theirs in zip(tables(ENGLISH), tables(CHINESE), strict=True):
        assert len(ours) == len(theirs)
    codes = [set(re.findall(r"`[^`\n]+`", BLOCK.sub("", text))) for text in (ENGLISH, CHINESE)]
    assert codes[0] ^ codes[1] <= {"`--purge`"}


@READMES
def test_a_reader_is_not_kept_long(readme: str) -> None:
    assert len(readme.splitlines()) <= 250
    assert not re.search(r"\b(simply|just|easy|easily|please)\b", readme, re.IGNORECASE)
    assert not re.search(r"[\U0001F000-\U0001FAFF]|!\[", readme)


@READMES
def test_the_session_is_the_demos(readme: str) -> None:
    """The lab plays it for real and compares; here only what needs no host."""
    steps = parse(session_of(readme))
    assert [step.command.split()[0] for step in steps] == [
        *("qwen-deploy", "qwen-deploy", "cat"),
        *("OPENAI_BASE_URL=" + _url(steps), "qwen-deploy", "systemctl"),
    ]
    assert EDITED in steps[0].output
    assert "\n".join(steps[2].output).strip() == ASK.strip()


def _url(steps: tuple[Step, ...]) -> str:
    address = steps[1].command.split("@")[1].split()[0]
    return f"http://{address}:{config.Service().port}/v1"


def test_python_in_the_readme_compiles() -> None:
    for text in (one for each in (ENGLISH, CHINESE, REFERENCE) for one in blocks(each, "python")):
        subprocess.run([sys.executable, "-c", f"compile({text!r}, 'README', 'exec')"], check=True)


def test_the_reference_names_keys_and_commands_that_exist() -> None:
    for section, key in re.findall(r"`(model|service)\.(\w+)", REFERENCE):
        assert key in type(getattr(config.Deployment(), section)).model_fields, key
    for name, *_ in re.findall(r"`qwen-deploy (\w+)([^`]*)`", REFERENCE):
        assert name in program().commands


def test_the_reference_lists_every_route() -> None:
    listed = {path for row in tables(REFERENCE)[0] for path in re.findall(r"`(/[^`]*)`", row[0])}
    paths = Service().get("/openapi.json").json()["paths"]
    assert {re.sub(r"{\w+(:path)?}", "NAME", path) for path in paths} <= listed
    assert len(paths) > 10


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", ENGLISH + CHINESE))
def test_files_that_are_linked_exist(path: str) -> None:
    assert (ROOT / path).exists()
