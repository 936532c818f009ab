"""The program in this very process, from its arguments to what it prints and its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from qwen_deploy.cli.app import run
from qwen_deploy.cli.output import Output


@dataclass(frozen=True)
class Printed:
    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Program = Callable[..., Printed]


def running(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *before: str
) -> Program:
    """Its arguments follow those that stand `before` them."""

    def call(*argv: str) -> Printed:
        monkeypatch.setattr(Output, "_current", None)
        code = run((*before, *argv))
        captured = capsys.readouterr()
        return Printed(code, captured.out, captured.err)

    return call
