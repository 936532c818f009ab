"""The service as its own process on a free port, listening like systemd to what it tells."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
DEADLINE_SECONDS = 60
MODEL = "Qwen/tiny"


class RunningService:
    """Started with `with`; the process is ended by SIGTERM, or killed if that does not help."""

    def __init__(self, model_dir: Path, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="qs-")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(Path(self._folder.name, "notify")))
        self._notify.setblocking(False)
        self._log = Path(self._folder.name, "log")
        self._told: list[str] = []
        self.environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(Path(self._folder.name, "notify")),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT / "service"),
            "QWEN_AUTH": "none",
            "QWEN_LISTEN": "127.0.0.1:0",
            "QWEN_MODEL_DIR": str(model_dir),
            "QWEN_MODEL_NAME": MODEL,
            "QWEN_RELEASE": "r-12345678",
            **environment,
        }

    def __enter__(self) -> RunningService:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "qwen_service"],
                env=self.environment,
                stderr=log,
                stdout=log,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._notify.close()
        self._folder.cleanup()

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8")

    @property
    def url(self) -> str:
        def port() -> str | None:
            match = re.search(r"listening on 127\.0\.0\.1:(\d+)", self.log)
            return match and match[1]

        return f"http://127.0.0.1:{self.eventually(port)}"

    def told(self) -> list[str]:
        """All that systemd was told so far, a message an item."""
        while True:
            try:
                self._told.append(self._notify.recv(4096).decode())
            except BlockingIOError:
                return self._told

    def eventually(self, condition: Callable[[], Any]) -> Any:
        """The first true value of the condition, while the process lives."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (value := condition()):
            assert time.monotonic() < deadline, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.02)
        return value

    def wait_ready(self) -> RunningService:
        self.eventually(lambda: any("READY=1" in message for message in self.told()))
        return self

    def wait_status(self, part: str) -> str:
        """The first new status line that holds this part."""
        seen = len(self.told())

        def found() -> str | None:
            return next((line for line in self.told()[seen:] if part in line), None)

        return str(self.eventually(found))

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self) -> int:
        return self.process.wait(DEADLINE_SECONDS)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=DEADLINE_SECONDS, **options)
