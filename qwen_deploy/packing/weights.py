"""Brings a model's artifacts to this machine with the agent that brings them to hosts, so that they
resume, fail over and are proven in the same way. Knows no bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen_deploy import bundle
from qwen_deploy.agent import pack_agent
from qwen_deploy.config import Weights
from qwen_deploy.errors import UsageError
from qwen_deploy.sources import Pinned
from qwen_deploy.weights import Order, sources_json

_POLL_SECONDS = 0.5


class WeightsMissing(UsageError):
    """The agent's own words; what it had brought is kept."""


def folder_of(root: Path, pinned: Pinned) -> Path:
    return root / "models" / pinned.manifest.directory


def bring(pinned: Pinned, settings: Weights, root: Path, tell: Callable[[str], None]) -> None:
    """Fills `folder_of`, or continues to."""
    root = root.absolute()  # the agent takes no other
    with _running(pinned, settings, root) as (process, directory):
        while process.poll() is None:
            status = _status(directory)
            if total := status.get("bytes_total"):
                tell(f"{status.get('bytes_done', 0) / total:.0%} from {status.get('source', '')}")
            _wait(process)
        if process.returncode:
            error = _status(directory).get("error") or {}
            raise WeightsMissing(
                str(error.get("message") or "the transfer ended without a result"),
                state=f"what was brought is kept in {root}",
                hint="the same command again; it continues",
            )


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return


@contextmanager
def _running(
    pinned: Pinned, settings: Weights, root: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The agent and its private directory, which holds tokens and therefore does not stay."""
    directory = root / "run"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, parents=True)
    order = json.loads(Order((pinned.manifest,), settings).to_json()) | {"root": str(root)}
    files = {
        "agent.pyz": pack_agent(bundle.weights_dir()),
        "order.json": json.dumps(order).encode(),
        "sources.json": sources_json([one.entry for one in pinned.upstreams]),
    }
    for name, data in files.items():
        (directory / name).write_bytes(data)
    argv = [sys.executable, str(directory / "agent.pyz"), "pull", "--dir", str(directory)]
    try:
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                yield process, directory
            finally:
                if process.poll() is None:
                    process.terminate()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _status(directory: Path) -> dict[str, Any]:
    try:
        status: dict[str, Any] = json.loads((directory / "status.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return status
