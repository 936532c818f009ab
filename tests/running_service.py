"""The service as its own process on a free port, listening like systemd to what it tells."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
DEADLINE_SECONDS = 180
MODEL = "Qwen/tiny"
# What systemd does between fork and exec: the socket becomes descriptor 3, for this very pid.
INHERIT = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3);"
    "os.environ |= {'LISTEN_FDS': '1', 'LISTEN_PID': str(os.getpid())};"
    "os.execv(sys.executable, [sys.executable, '-P', '-m', sys.argv[2]])"
)


class RunningService:
    """Started with `with`; the process is ended by SIGTERM, or killed if that does not help."""

    def __init__(
        self,
        model_dir: Path,
        environment: Mapping[str, str] | None = None,
        *,
        listener: socket.socket | None = None,
        module: str = "qwen_service",
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="qs-")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(Path(self._folder.name, "notify")))
        self._log = Path(self._folder.name, "log")
        self._told: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._listener = listener
        self._module = module
        self._environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(Path(self._folder.name, "notify")),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join((str(ROOT / "service"), str(ROOT))),
            "QWEN_AUTH": "none",
            "QWEN_LISTEN": "127.0.0.1:0",
            "QWEN_MODEL_DIR": str(model_dir),
            "QWEN_MODEL_NAME": MODEL,
            "QWEN_RELEASE": "r-12345678",
            **(environment or {}),
        }

    def __enter__(self) -> RunningService:
        inherited = [self._listener.fileno()] if self._listener else []
        start = ("-c", INHERIT, str(inherited[0])) if inherited else ("-P", "-m")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *start, self._module],
                env=self._environment,
                stderr=log,
                stdout=log,
                pass_fds=inherited,
            )
        self._reader.start()
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
        self._notify.sendto(b"", self._notify.getsockname())
        self._reader.join()
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

    def _read(self) -> None:
        while message := self._notify.recv(4096):
            self._told.append(message.decode())

    def told(self) -> list[str]:
        """All that systemd was told so far, a message an item."""
        return list(self._told)

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
