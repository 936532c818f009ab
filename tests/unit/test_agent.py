from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from qwen_deploy.agent import pack_agent

PACKAGE = Path(__file__).parents[2] / "service" / "qwen_weights"
SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pyz"
    path.write_bytes(pack_agent(PACKAGE))
    return path


def test_the_packed_agent_runs_alone(agent: Path) -> None:
    argv = [sys.executable, "-I", str(agent), "pull", "--help"]
    assert "--dir" in subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_the_same_sources_give_the_same_bytes(agent: Path, tmp_path: Path) -> None:
    copy = tmp_path / PACKAGE.name
    for source in SOURCES:
        target = copy / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__/x.pyc").write_bytes(b"x")
    assert pack_agent(copy) == agent.read_bytes()


def test_the_packed_agent_holds_sources_only(agent: Path) -> None:
    with zipfile.ZipFile(agent) as archive:
        assert all(name.endswith(".py") for name in archive.namelist())


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_agent_needs_no_newer_python_than_hosts_have(source: Path) -> None:
    ast.parse(source.read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_agent_needs_nothing_but_the_standard_library(source: Path) -> None:
    imported = {
        (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
        for alias in node.names
    }
    allowed = sys.stdlib_module_names | {PACKAGE.name}
    assert {name.split(".")[0] for name in imported} <= allowed
