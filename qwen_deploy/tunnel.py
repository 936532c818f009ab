"""Joins sockets of this machine to channels of a session, both ways. Knows no SSH library: a
channel is whatever has a socket's methods.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any


def serve(channel: Any, local_port: int) -> None:
    """Joins a channel that the host opened to a port of ours, in the background."""
    _start(_reach, channel, local_port)


@contextlib.contextmanager
def listening(open_channel: Callable[[Any], Any]) -> Iterator[int]:
    """A port of ours, each of whose clients gets a channel; None for one turns it away."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        _start(_accept, server, open_channel)
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)  # which wakes its thread


def _start(target: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def _reach(channel: Any, local_port: int) -> None:
    with contextlib.suppress(OSError, EOFError), channel:
        join(channel, socket.create_connection(("127.0.0.1", local_port)))


def _accept(server: socket.socket, open_channel: Callable[[Any], Any]) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, origin = server.accept()
            _start(_open, client, open_channel, origin)


def _open(client: socket.socket, open_channel: Callable[[Any], Any], origin: Any) -> None:
    # A session that ends takes its channels along.
    with contextlib.suppress(OSError, EOFError), client:
        channel = open_channel(origin)
        if channel is not None:
            join(channel, client)


def join(channel: Any, local: socket.socket) -> None:
    """Copies until both sides have ended, each of which may go on without the other."""
    with channel, local:
        upward = _start(_copy, channel, local)
        _copy(local, channel)
        upward.join()


def _copy(source: Any, sink: Any) -> None:
    with contextlib.suppress(OSError, EOFError):
        while chunk := source.recv(1 << 16):
            sink.sendall(chunk)
    with contextlib.suppress(OSError, EOFError):
        sink.shutdown(socket.SHUT_WR)
