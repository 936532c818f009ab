"""Sends a model folder to a host: starts the transfer there, follows it, and ends it.

The host pulls by HTTP ranges through a reverse tunnel, in a transient unit. Knows neither the
playbooks that wait for it nor how progress is shown.
"""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from qwen_deploy import bundle, commands
from qwen_deploy.agent import pack_agent
from qwen_deploy.errors import NeedsAttention, Unreachable
from qwen_deploy.events import Event, TransferProgress
from qwen_deploy.folder import FolderReport
from qwen_deploy.release import STATE
from qwen_deploy.remote import Session
from qwen_deploy.share import FolderShare

POLL_SECONDS = 0.5


class Transfer:
    """A transfer that runs on the host; follows its status until it has ended."""

    def __init__(self, session: Session, emit: Callable[[Event], None]) -> None:
        self.error: str | None = None
        self._session = session
        self._emit = emit
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="transfer", daemon=True)

    @property
    def has_failed(self) -> bool:
        return self.error is not None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        with suppress(Unreachable):  # whoever needs the host next meets this error too
            while not self._stop.wait(POLL_SECONDS):
                status = self._read()
                self._tell(status)
                if status.get("phase") == "failed":
                    self.error = str(status["error"]["message"])
                if status.get("phase") in ("done", "failed"):
                    return

    def _read(self) -> dict[str, Any]:
        done = self._session.run(commands.read_file(commands.TRANSFER_STATUS), root=True)
        status: dict[str, Any] = json.loads(done.stdout) if done.ok and done.stdout else {}
        return status

    def _tell(self, status: dict[str, Any]) -> None:
        if status:
            self._emit(
                TransferProgress(
                    host=self._session.host.name,
                    phase=status["phase"],
                    bytes_done=status["bytes_done"],
                    bytes_total=status["bytes_total"],
                    bytes_per_second=status.get("rate") or 0.0,
                    eta_seconds=status.get("eta_seconds"),
                )
            )


@contextmanager
def send(
    session: Session, report: FolderReport, emit: Callable[[Event], None]
) -> Iterator[Transfer]:
    """Starts the transfer and serves the folder while entered."""
    with FolderShare(report) as share, session.forward_remote(share.port) as port:
        archive = _archive(
            {
                "agent.pyz": pack_agent(bundle.service_dir() / "qwen_weights"),
                "manifest.json": report.manifest.to_json().encode(),
                "token": share.token.encode(),
            }
        )
        started = session.run(commands.start_transfer(port, STATE), root=True, stdin=archive)
        if not started.ok:
            raise NeedsAttention(
                f"the transfer of weights to `{session.host}` does not start",
                host=session.host.name,
                evidence=tuple(started.stderr.splitlines()[-5:]),
                origin="systemd-run",
            )
        transfer = Transfer(session, emit)
        transfer.start()
        try:
            yield transfer
        finally:
            transfer.stop()
            with suppress(Unreachable):
                session.run(commands.stop_transfer(), root=True)


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
