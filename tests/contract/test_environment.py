"""The module that builds environments, run by the real Ansible, with a uv that only says it did or
with the real one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_deploy import bundle
from tests.tiny_wheel import lock_line, make_wheel
from tests.wire import refusing_port

pytestmark = pytest.mark.contract

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
LOCK = "torch==2.0\n"
# Makes the environment, installs two packages, and notes whose files it holds open.
UV = """#!/bin/sh
set -e
for last; do :; done
case $1 in
venv) rm -rf "$last"; mkdir -p "$last/lib/python3.11/site-packages" "$last/bin" ;;
pip) cd "$VENV/lib/python3.11/site-packages"; mkdir torch uvicorn ;;
esac
echo "$1 $(readlink /proc/$$/fd/* | grep -c "$VENV.lock")" >> "$LOG"
"""


class Builder:
    """One environment on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.venv = folder / "venvs" / "v-1"
        self.packages = self.venv / "lib/python3.11/site-packages"
        self.venv.parent.mkdir()
        (folder / "lock").write_text(LOCK)
        (folder / "uv").write_text(UV)
        (folder / "uv").chmod(0o755)

    def build(self, **changes: Any) -> bool:
        """Whether anything changed."""
        done = self.run(**changes)
        assert done.returncode == 0, done.stdout + done.stderr
        return "CHANGED" in done.stdout

    def run(self, **changes: Any) -> subprocess.CompletedProcess[str]:
        arguments = {
            "path": str(self.venv),
            "lock": str(self.folder / "lock"),
            "uv": str(self.folder / "uv"),
            "python": "python3",
            "cache": str(self.folder / "cache"),
            "index_url": "https://index.example/simple",
            **changes,
        }
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(PLAYBOOKS / "ansible.cfg"),
            "ANSIBLE_LIBRARY": str(PLAYBOOKS / "library"),
            "ANSIBLE_HOME": str(self.folder / "home"),
            "ANSIBLE_STDOUT_CALLBACK": "minimal",
            "LC_ALL": "C.UTF-8",
            "VENV": str(self.venv),
            "LOG": str(self.folder / "log"),
        }
        ansible = str(Path(sys.executable).parent / "ansible")
        argv = [ansible, "localhost", "-c", "local", "-e"]
        argv += [f"ansible_python_interpreter={sys.executable}"]
        argv += ["-m", "qwen_venv", "-a", json.dumps(arguments)]
        return subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=PLAYBOOKS)

    @property
    def runs_of_uv(self) -> list[str]:
        """Each with the number of descriptors of the lock that it held."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def test_an_environment_is_built_once_and_again_only_if_a_package_is_gone(
    builder: Builder,
) -> None:
    assert builder.build()
    assert builder.runs_of_uv == ["venv 1", "pip 1"], "uv holds the lock as well"
    digest = hashlib.sha256(LOCK.encode()).hexdigest()
    assert (builder.venv / ".complete").read_text() == digest
    assert (builder.venv / ".names").read_text() == "torch\nuvicorn"
    assert sorted(path.name for path in builder.venv.parent.iterdir()) == ["v-1"]

    (builder.packages / "__pycache__").mkdir()
    assert not builder.build()
    assert builder.runs_of_uv == []

    (builder.packages / "uvicorn").rmdir()
    assert builder.build()
    assert builder.runs_of_uv == ["venv 1", "pip 1"]
    assert (builder.packages / "uvicorn").is_dir()


@pytest.fixture
def offline(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As with a bundle: the real uv, wheels in a folder, and whoever asks a network is lost."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{refusing_port()}")
    wheels = builder.folder / "wheels"
    lines = [lock_line(make_wheel(wheels, name)) for name in ("torch", "uvicorn")]
    (wheels / "manifest.json").write_text("beside the wheels, as on hosts")
    (builder.folder / "lock").write_text("".join(lines))
    return {
        "uv": str(bundle.uv_path()),
        "python": sys.executable,
        "index_url": None,
        "find_links": [str(wheels)],
    }


def test_an_environment_is_built_from_a_folder_alone(
    builder: Builder, offline: dict[str, Any]
) -> None:
    assert builder.build(**offline)
    program = "import torch, uvicorn; print(torch.VERSION)"
    python = [str(builder.venv / "bin/python"), "-I", "-c", program]
    assert subprocess.run(python, capture_output=True, text=True).stdout == "1.0\n"
    assert not builder.build(**offline)


def test_a_wheel_that_is_not_in_the_folder_is_named(
    builder: Builder, offline: dict[str, Any]
) -> None:
    (builder.folder / "wheels/uvicorn-1.0-py3-none-any.whl").unlink()
    done = builder.run(**offline)
    assert done.returncode != 0
    assert "uvicorn" in done.stdout and "not found" in done.stdout
    assert not (builder.venv / ".complete").exists()
