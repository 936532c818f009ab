"""What the demo does, step by step: each command is shown as typed, run for real, and judged.

Knows no lab but its one host. Does not know the README.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.demo import screen
from tests.demo.transcript import KEY
from tests.fixture_model import fixture_model
from tests.fixture_model.dialogues import answer_to
from tests.lab import Host, Lab
from tests.lab.controller import MODEL_NAME, PROGRAM, configuration

PROMPT = "你好"
WEIGHTS = "Qwen-Fixture"
ASK = f"""\
from openai import OpenAI

client = OpenAI()  # takes both variables from the environment
reply = client.chat.completions.create(
    model="{MODEL_NAME}",
    messages=[{{"role": "user", "content": "{PROMPT}"}}],
    temperature=0,
)
print(reply.choices[0].message.content)
"""
EDITED = "# edited: the model's name, CPU packages, one thread, this machine's package index"


class Unexpected(Exception):
    """Something is not as the README promises."""


class Session:
    """One operator in a folder of its own, in front of one bare host."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._host: Host = lab.hosts[0]
        self._folder = folder
        self._environment = lab.environment | {"no_proxy": self._host.address}
        self._lines: list[str] = []

    def play(self) -> str:
        """The transcript."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        weights = shutil.copytree(fixture_model(), self._folder / WEIGHTS)
        listed = 'cd -- "$1" && sha256sum -- * >SHA256SUMS'  # as a hub's page offers them
        subprocess.run(["sh", "-c", listed, "sh", str(weights)], check=True)
        host = ("--host", f"root@{self._host.address}")
        self._deploy("init", "--weights", f"./{WEIGHTS}")
        self._edit(configuration(self._host))
        story = self._deploy("up", *host, "--yes")
        self._ask(_key_in(story))
        _expect(" yes ", self._deploy("status", *host))
        self._look_on_the_host()
        return "\n".join(self._lines) + "\n"

    def _deploy(self, *arguments: str) -> str:
        self._type(" ".join(("qwen-deploy", *arguments)))
        return self._run(PROGRAM, *arguments)

    def _edit(self, wanted: Mapping[str, Any]) -> None:
        path = self._folder / "qwen-deploy.yml"
        chosen = {name: wanted[name] for name in ("service", "runtime", "pip")}
        chosen["model"] = {"name": MODEL_NAME}
        path.write_text(settled(path.read_text("utf-8"), chosen), "utf-8")
        self._show(EDITED)

    def _ask(self, key: str) -> None:
        (self._folder / "ask.py").write_text(ASK, "utf-8")
        self._type("cat ask.py")
        self._show(ASK.rstrip("\n"))
        url = f"http://{self._host.address}:8000/v1"
        variables = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": key}
        self._type(
            " ".join([*(f"{name}={text}" for name, text in variables.items()), "python ask.py"])
        )
        _expect(answer_to(PROMPT), self._run(sys.executable, "ask.py", **variables))

    def _look_on_the_host(self) -> None:
        """Not through SSH and not through the product."""
        argv = ("systemctl", "status", "qwen", "--no-pager", "--lines=0")
        self._type(" ".join(argv[:3]), f"root@{self._host.name}:~# ")
        shown = self._host.run(argv, check=False).stdout
        self._show(shown.rstrip("\n"))
        _expect("active (running)", shown)

    def _run(self, *argv: str | Path, **variables: str) -> str:
        """Shows what the program prints as it comes."""
        environment = self._environment | variables
        code, text = screen.run(argv, folder=self._folder, environment=environment)
        self._lines += text.rstrip("\n").split("\n")
        if code:
            raise Unexpected(f"exit code {code}: {' '.join(map(str, argv))}")
        return text

    def _type(self, command: str, prompt: str = "$ ") -> None:
        if self._lines:
            self._show("")
        self._show(prompt + command)

    def _show(self, text: str) -> None:
        self._lines += text.split("\n")
        print(text, flush=True)


def settled(annotated: str, chosen: Mapping[str, Mapping[str, Any]]) -> str:
    """The file that `init` wrote, with these keys of its sections uncommented and set."""
    left = {
        (section, key): value for section, keys in chosen.items() for key, value in keys.items()
    }
    lines, section = [], ""
    for line in annotated.splitlines():
        if found := re.fullmatch(r"(\w+):", line):
            section = found[1]
        found = re.match(r"  # (\w+): ", line)
        if found and (section, found[1]) in left:
            line = f"  {found[1]}: {json.dumps(left.pop((section, found[1])))}"
        lines.append(line)
    if left:
        raise Unexpected(f"qwen-deploy.yml has no place for {sorted(left)}")
    return "\n".join(lines) + "\n"


def _key_in(story: str) -> str:
    if found := KEY.search(story):
        return found[0]
    raise Unexpected("`up` showed no API key")


def _expect(part: str, text: str) -> None:
    if part not in text:
        raise Unexpected(f"{part!r} is not in {text!r}")
