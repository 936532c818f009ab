"""The role that makes the environment, run by the real Ansible on this machine, with wheels that a
transfer brings."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from qwen_weights import manifest
from qwen_weights.manifest import Artifact

from qwen_deploy import bundle
from qwen_deploy.agent import pack_agent
from tests.tiny_wheel import lock_line, make_wheel

pytestmark = pytest.mark.contract

WAIT = "Wait for the wheels"
PLAY = """
- hosts: localhost
  gather_facts: false
  roles: [qwen_runtime]
"""


class Host:
    """This machine, with every path of the role below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.venv = folder / "opt/venvs/v-1"
        self.wheels = folder / "models/qwen-deploy--wheels/w-1"
        self.arriving = folder / "arriving"
        for name in ("opt/bin", "opt/venvs", "home/.config/pip", "models/qwen-deploy--wheels"):
            (folder / name).mkdir(parents=True)
        (folder / "play.yml").write_text(PLAY)
        (folder / "pip.conf").write_text("[global]\n")
        (folder / "agent.pyz").write_bytes(pack_agent(bundle.weights_dir()))
        wheel = make_wheel(self.arriving, "torch")
        (folder / "lock").write_text(lock_line(wheel))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        rows = [Artifact(wheel.name, wheel.stat().st_size, digest)]
        text = manifest.make("qwen-deploy/wheels", rows).to_json()
        (self.arriving / "manifest.json").write_text(text)

    def transfer(self, **status: Any) -> None:
        (self.folder / "status.json").write_text(json.dumps(status))

    def arrive(self) -> None:
        self.arriving.rename(self.wheels)

    def start(self, *options: str) -> subprocess.Popen[str]:
        variables = {
            "ansible_python_interpreter": sys.executable,
            "qwen_runtime_root": str(self.folder / "opt"),
            "qwen_runtime_home": str(self.folder / "home"),
            "qwen_runtime_venv_id": "v-1",
            "qwen_runtime_uv": str(bundle.uv_path()),
            "qwen_runtime_lock": str(self.folder / "lock"),
            "qwen_runtime_pip_conf": str(self.folder / "pip.conf"),
            "qwen_runtime_python": sys.executable,
            "qwen_runtime_index_url": "",
            "qwen_runtime_wheels_dir": str(self.wheels),
            "qwen_runtime_agent": str(self.folder / "agent.pyz"),
            "qwen_runtime_status": str(self.folder / "status.json"),
        }
        playbooks = bundle.playbooks_dir()
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(playbooks / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_LOCALHOST_WARNING": "False",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "False",
            "LC_ALL": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
        }
        program = str(Path(sys.executable).parent / "ansible-playbook")
        argv = [program, "-c", "local", "-e", json.dumps(variables), *options]
        return subprocess.Popen(
            [*argv, str(self.folder / "play.yml")],
            env=environment,
            cwd=playbooks,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *options: str) -> tuple[int, str]:
        with self.start(*options) as process:
            output, _ = process.communicate()
        return process.returncode, output


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_the_environment_waits_for_wheels_that_are_on_their_way(host: Host) -> None:
    host.transfer(phase="fetching", pid=os.getpid())
    with host.start() as process:
        assert process.stdout is not None
        for line in process.stdout:
            if WAIT in line:
                assert not host.venv.exists()
                host.arrive()
        rest = process.wait()
    assert rest == 0
    assert (host.venv / ".complete").exists()
    assert list(host.venv.glob("lib/*/site-packages/torch/__init__.py"))

    code, output = host.run()
    assert (code, output.count("changed=0")) == (0, 1), output


def test_a_transfer_that_failed_ends_the_wait_with_its_own_words(host: Host) -> None:
    error = {"kind": "network", "message": "the hub is gone", "exit_code": 15}
    host.transfer(phase="failed", error=error)
    code, output = host.run()
    assert code != 0
    assert "the hub is gone" in output and f"[qwen_runtime : {WAIT}]" in output
    assert not host.venv.exists()


def test_check_mode_tells_what_a_bare_host_lacks_and_makes_nothing(host: Host) -> None:
    before = sorted(host.folder.glob("opt/**/*"))
    code, output = host.run("--check")
    assert code == 0, output
    assert "changed=5" in output
    assert sorted(host.folder.glob("opt/**/*")) == before
