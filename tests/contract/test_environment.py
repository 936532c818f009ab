"""The module that builds environments, run by the real Ansible with a uv that only says it did."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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

    def build(self) -> bool:
        """Whether anything changed."""
        arguments = {
            "path": str(self.venv),
            "lock": str(self.folder / "lock"),
            "uv": str(self.folder / "uv"),
            "python": "python3",
            "cache": str(self.folder / "cache"),
            "index_url": "https://index.example/simple",
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
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=PLAYBOOKS)
        assert done.returncode == 0, done.stdout + done.stderr
        return "CHANGED" in done.stdout

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
