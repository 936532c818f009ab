"""The real clients as programs, set up for one hub and a home of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.hub.hub import Hub

# Its own program takes seconds to start: it imports PyTorch where there is one.
_MODELSCOPE = (
    "import sys; from modelscope_hub.compat.snapshot_download import snapshot_download; "
    "snapshot_download(sys.argv[1], local_dir=sys.argv[2])"
)


class Clients:
    def __init__(self, hub: Hub, home: Path) -> None:
        self._hub = hub
        home.mkdir(exist_ok=True)
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(home),
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "MODELSCOPE_ENDPOINT": hub.endpoint,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_NOSYSTEM": "1",
        }

    def hf(self, repo: str, folder: Path) -> subprocess.Popen[str]:
        return self.start("hf", "download", repo, "--local-dir", folder)

    def modelscope(self, repo: str, folder: Path) -> subprocess.Popen[str]:
        return self.start(sys.executable, "-c", _MODELSCOPE, repo, folder)

    def git(self, repo: str, folder: Path) -> subprocess.Popen[str]:
        smudge = ("filter.lfs.process=git-lfs filter-process", "filter.lfs.required=true")
        settings = [word for setting in smudge for word in ("-c", setting)]
        return self.start("git", *settings, "clone", self._hub.git_url(repo), folder)

    def start(self, *argv: str | Path, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            argv,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def ended(client: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str]:
    printed, _ = client.communicate(timeout=seconds)
    return client.returncode, printed
