"""An operator at work: the installed program in a folder of its own, with a lab's SSH settings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests import pip_settings
from tests.fixture_model import fixture_model
from tests.lab import Host, Lab

PROGRAM = Path(sys.executable).parent / "qwen-deploy"
MODEL_NAME = "Qwen/Fixture"


def configuration(*hosts: Host, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """What qwen-deploy.yml needs in the lab; `sections` go on top, key by key."""
    pip = pip_settings.load()
    made: dict[str, Any] = {
        "hosts": [f"root@{host.address}" for host in hosts],
        "model": {"source": str(fixture_model()), "name": MODEL_NAME},
        "service": {"threads": 1},
        "runtime": {"accelerator": "cpu"},
        "pip": {
            **({"index_url": pip.index_url} if pip.index_url else {}),
            "extra_index_urls": list(pip.extra_index_urls),
            "find_links": list(pip.find_links),
            **({"ca_file": str(pip.ca_file)} if pip.ca_file else {}),
        },
    }
    for name, values in sections.items():
        made[name] = {**made.get(name, {}), **values}
    return made


class Controller:
    """Runs the program as a subprocess; each folder is an operator's working folder."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.environment = dict(lab.environment)

    def configure(self, *hosts: Host, **sections: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(configuration(*hosts, **sections), allow_unicode=True)
        (self.folder / "qwen-deploy.yml").write_text(text)

    def run(
        self, *arguments: str, expect: int | None = 0, stdin: str = "", timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        story = f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert expect is None or done.returncode == expect, story
        assert "Traceback" not in done.stderr, story
        return done

    def events(self, *arguments: str, expect: int | None = 0) -> list[dict[str, Any]]:
        done = self.run(*arguments, "--output", "json", expect=expect)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Runs it beside the test, events on its standard output."""
        return subprocess.Popen(
            [PROGRAM, *arguments, "--output", "json"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )


def events_of(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """As they come, until the program ends."""
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)
