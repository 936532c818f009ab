"""The packed agent on one host's root, ordered as the controller orders it, and the entries with
which it reads the hub."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from qwen_weights import manifest as manifests
from qwen_weights.manifest import Artifact, Manifest

from qwen_deploy.agent import pack_agent
from tests.hub.hub import Hub
from tests.hub.repository import Commit
from tests.hub.sample import REPO

PACKAGE = Path(__file__).parents[2] / "service" / "qwen_weights"
Entry = dict[str, Any]


def manifest_of(commit: Commit) -> Manifest:
    chosen = (file for file in commit.files.values() if not file.path.startswith("."))
    return manifests.make(REPO, (Artifact(file.path, file.size, file.sha256) for file in chosen))


def huggingface(hub: Hub, commit: Commit, **more: Any) -> Entry:
    url = f"{hub.endpoint}/{REPO}/resolve/{commit.id}/{{path}}"
    return _entry("http", "huggingface", url, more)


def modelscope(hub: Hub, commit: Commit, **more: Any) -> Entry:
    """Its branch: the hub is not known to take a commit."""
    url = f"{hub.endpoint}/api/v1/models/{REPO}/repo?Revision=master&FilePath={{query}}"
    return _entry("http", "modelscope", url, more)


def git_lfs(hub: Hub, commit: Commit, **more: Any) -> Entry:
    large = [file.path for file in commit.files.values() if file.is_lfs]
    return _entry("git-lfs", "git-lfs", f"{hub.git_url(REPO)}/info/lfs", {"paths": large} | more)


def entries_of(name: str, hub: Hub, commit: Commit) -> list[Entry]:
    """Everything from one hub; what is no object of git-lfs comes from elsewhere, as it does."""
    if name != "git-lfs":
        return [(huggingface if name == "huggingface" else modelscope)(hub, commit)]
    small = [file.path for file in commit.files.values() if not file.is_lfs]
    return [git_lfs(hub, commit), huggingface(hub, commit, paths=small)]


def _entry(kind: str, name: str, url: str, more: dict[str, Any]) -> Entry:
    common: Entry = {"token": None, "headers": {}, "ca": None, "proxy": None}
    common |= {"wan": True, "paths": None}
    return {"kind": kind, "name": name, "url": url} | common | more


class Agent:
    """`place` is this host: its root, and the folder of its transfer."""

    def __init__(self, place: Path) -> None:
        self.root = place / "root"
        self.run_dir = place / "run"
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.started: list[subprocess.Popen[str]] = []
        (self.run_dir / "agent.pyz").write_bytes(pack_agent(PACKAGE))

    @property
    def status(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.run_dir / "status.json").read_text())
        return read

    def final(self, manifest: Manifest) -> Path:
        return self.root / "models" / manifest.directory

    def partials(self) -> list[Path]:
        return sorted(self.root.glob("partial/*.part"))

    def kept_bytes(self) -> int:
        """What a transfer that ended early leaves to its successor."""
        staged = self.root.glob("models/*/*.tmp/*")
        proven = (path for path in staged if not path.name.startswith("manifest."))
        with suppress(FileNotFoundError):  # on its way from the one place to the other
            return sum(path.stat().st_size for path in (*self.partials(), *proven))
        return -1

    def order(self, manifest: Manifest, *entries: Entry, **limits: float | None) -> None:
        quick = {"connections": 4, "retry_seconds": 0.5, "stall_seconds": 0.2, "reserve_bytes": 0}
        rates = {"rate": None, "night_rate": None, "night": ["22:00", "06:00"]}
        order = {
            "schema": 1,
            "root": str(self.root),
            "manifests": [json.loads(manifest.to_json())],
            "limits": quick | rates | limits,
            "share": None,
            "repair": False,
        }
        self._write("order.json", order)
        self._write("sources.json", {"schema": 1, "authority": None, "sources": entries})

    def _write(self, name: str, document: dict[str, Any]) -> None:
        (self.run_dir / f"{name}.new").write_text(json.dumps(document))
        (self.run_dir / f"{name}.new").replace(self.run_dir / name)

    def start(self, *argv: str | Path) -> subprocess.Popen[str]:
        command = argv or ("pull", "--dir", self.run_dir)
        process = subprocess.Popen(
            [sys.executable, "-I", self.run_dir / "agent.pyz", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *argv: str | Path) -> tuple[int, str]:
        return ended(self.start(*argv))

    def end_all(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit status and what it said on stderr."""
    _, said = process.communicate(timeout=20)
    return process.returncode, said


def until(is_so: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to be so"
        time.sleep(0.002)
