"""`python -m tests.bench.origin ADDRESS FOLDER`: serves files by HTTP ranges and says where. Does
as little as possible, so that nothing but its link is measured."""

from __future__ import annotations

import os
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_RANGE = re.compile(r"bytes=(\d+)-(\d+)?")


class Origin(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: str, folder: Path) -> None:
        super().__init__((address, 0), _Request)
        self.folder = folder


class _Request(BaseHTTPRequestHandler):
    server: Origin

    def do_GET(self) -> None:
        with open(self.server.folder / self.path.removeprefix("/"), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = _RANGE.fullmatch(self.headers.get("Range", ""))
            first = int(found[1]) if found else 0
            end = int(found[2]) + 1 if found and found[2] else size
            self.send_response(206 if found else 200)
            self.send_header("Content-Length", str(end - first))
            if found:
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
            self.end_headers()
            file.seek(first)
            self.connection.sendfile(file, first, end - first)

    def log_message(self, format: str, *args: Any) -> None:
        pass


if __name__ == "__main__":
    origin = Origin(sys.argv[1], Path(sys.argv[2]))
    print(f"http://{sys.argv[1]}:{origin.server_port}", flush=True)
    origin.serve_forever()
