"""A TCP relay in front of a loopback server, which a test tells how to fail."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Literal

Fault = Literal["drop", "stall", "flip"]
_PIECE_BYTES = 16 << 10


class Wire:
    """Each answer that reaches its byte `at` takes the next of `faults`, while there are any.

    With `hold_after`, everything stands still after so many bytes in all, until `release`."""

    def __init__(
        self,
        port: int,
        *,
        at: int = 200_000,
        faults: Iterable[Fault] = (),
        hold_after: int | None = None,
    ) -> None:
        self._target = ("127.0.0.1", port)
        self._at = at
        self._faults = iter(faults)
        self._hold_after = hold_after
        self._released = threading.Event()
        self.is_held = threading.Event()
        self._lock = threading.Lock()
        self.carried_bytes = 0
        self.connections = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Wire:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._released.set()
        _close(self._listener)
        with self._lock:
            for end in self._sockets:
                _close(end)
        for thread in self._threads:
            thread.join()

    def release(self) -> None:
        self._released.set()

    def _start(self, target: object, *ends: socket.socket) -> None:
        thread = threading.Thread(target=target, args=ends)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                reader, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                with self._lock:
                    self.connections += 1
                    self._sockets += [reader, server]
                self._start(self._ask, reader, server)
                self._start(self._answer, reader, server)

    def _ask(self, reader: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := reader.recv(_PIECE_BYTES):
                server.sendall(piece)
        _close(server)

    def _answer(self, reader: socket.socket, server: socket.socket) -> None:
        carried, is_spent = 0, False
        with contextlib.suppress(OSError):
            while piece := server.recv(_PIECE_BYTES):
                fault = None
                if not is_spent and carried + len(piece) > self._at:
                    is_spent = True
                    with self._lock:
                        fault = next(self._faults, None)
                if fault == "stall":
                    self._released.wait()
                if fault in ("drop", "stall"):
                    break
                if fault == "flip":
                    piece = bytes([piece[0] ^ 1]) + piece[1:]
                self._hold()
                reader.sendall(piece)
                carried += len(piece)
                with self._lock:
                    self.carried_bytes += len(piece)
        _close(reader)

    def _hold(self) -> None:
        if self._hold_after is not None and self.carried_bytes >= self._hold_after:
            self.is_held.set()
            self._released.wait()


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def refusing_port() -> int:
    """A port of this machine where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
