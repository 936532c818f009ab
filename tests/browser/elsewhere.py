"""Every other host at once: a proxy that notes what is asked of it and answers nothing.

A browser that must use it for all but one origin cannot reach another host unseen.
"""

from __future__ import annotations

import socketserver
import threading
from types import TracebackType


class Elsewhere:
    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Note(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                asked.append(self.rfile.readline(65536).decode("latin-1").strip())
                self.wfile.write(b"HTTP/1.1 502 Nobody\r\ncontent-length: 0\r\n\r\n")

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Note)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Elsewhere:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
