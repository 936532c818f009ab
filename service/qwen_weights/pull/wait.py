"""Waits for a transfer that runs elsewhere, by its status file. Knows nothing else of it."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from qwen_weights.errors import BadManifest, DeadlinePassed, Missing, TransferDied, WeightsError
from qwen_weights.store import damage
from qwen_weights.store.inspection import has_all, load

_POLL_SECONDS = 0.2


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("wait", help="wait for a transfer and exit with its code")
    parser.add_argument("--status", type=Path, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True, metavar="SECONDS")
    parser.add_argument("--grace", type=float, default=10, metavar="SECONDS")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    wait(
        arguments.status,
        arguments.directory,
        deadline_seconds=arguments.deadline,
        grace_seconds=arguments.grace,
    )


class TransferFailed(WeightsError):
    """The transfer's own error, passed on."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def wait(
    status_path: Path, directory: Path, *, deadline_seconds: float, grace_seconds: float
) -> None:
    """Returns when the folder is whole.

    A transfer without a process gets `grace_seconds`: systemd may be starting it, or again."""
    ends_at = time.monotonic() + deadline_seconds
    alive_at = time.monotonic()
    while not is_whole(directory):
        status = read_status(status_path)
        if status.get("phase") == "failed":
            error = status.get("error") or {}
            raise TransferFailed(error.get("message", "no reason known"), error.get("exit_code", 1))
        if is_running(status):
            alive_at = time.monotonic()
        if time.monotonic() - alive_at > grace_seconds:
            raise TransferDied(_died(status, status_path))
        if time.monotonic() > ends_at:
            raise DeadlinePassed(f"no end after {deadline_seconds:g} s: {_reached(status)}")
        time.sleep(_POLL_SECONDS)


def is_whole(directory: Path) -> bool:
    try:
        return has_all(directory, load(directory)) and damage.known(directory) is None
    except (Missing, BadManifest):
        return False


def read_status(path: Path) -> dict[str, Any]:
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def is_running(status: dict[str, Any]) -> bool:
    pid = status.get("pid")
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _died(status: dict[str, Any], path: Path) -> str:
    if not status:
        return f"no transfer is running: {path} is not there"
    return f"the transfer (process {status.get('pid')}) ended without a result: {_reached(status)}"


def _reached(status: dict[str, Any]) -> str:
    done, total = status.get("bytes_done", 0), status.get("bytes_total", 0)
    return f"{done} of {total} bytes are on this host, and the next transfer continues there"
