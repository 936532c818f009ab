"""`python -m qwen_service`: socket, signals and exit code of the service's process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from qwen_service import engines
from qwen_service.app import create_app
from qwen_service.connection import MOST_HEAD_BYTES, protocol
from qwen_service.lifecycle.notify import Notifier, inherited_socket, watchdog_seconds
from qwen_service.lifecycle.readiness import Readiness
from qwen_service.lifecycle.selftest import SelfTest
from qwen_service.lifecycle.supervisor import Supervisor
from qwen_service.middleware import logs
from qwen_service.settings import Settings, SettingsError, load

log = logging.getLogger("qwen_service")

BACKLOG = 2048
# How long the inference thread may keep Python from the event loop, which asks for it at every
# system call; the default is 5 ms. What it gains was measured on a busy machine only.
SWITCH_SECONDS = 0.001
# Open files that are no connections: libraries, the model, pipes.
OTHER_FILES = 256
# Longer than clients keep idle connections, so that none is closed under a request.
KEEP_ALIVE_SECONDS = 75
# For answers that are written already but not read yet.
FLUSH_SECONDS = 5
# Between the last accept and the first refusal: what was just accepted is still served.
GRACE_SECONDS = 0.1


class Server(uvicorn.Server):
    """uvicorn without its own signal handling: here a signal first drains the engine."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop_accepting(self) -> None:
        for server in self.servers:
            server.close()


def main() -> int:
    logs.set_up()
    sys.setswitchinterval(SWITCH_SECONDS)
    # Nothing is ever looked up in a hub: the model lies in a folder.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    try:
        settings = load(os.environ)
        listener = inherited_socket(os.environ, pid=os.getpid())
        is_inherited = listener is not None
        if listener is None:
            listener = bind(settings.listen)
    except (SettingsError, OSError) as error:
        log.error("qwen_service: %s", error)
        return 1
    log.info("qwen_service: listening on %s", address_of(listener))
    return asyncio.run(serve(settings, listener, is_inherited=is_inherited))


def bind(address: tuple[str, int]) -> socket.socket:
    host, port = address
    try:
        family, *_, resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(resolved[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def address_of(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)


async def serve(settings: Settings, listener: socket.socket, *, is_inherited: bool) -> int:
    notifier = Notifier(os.environ.get("NOTIFY_SOCKET"))
    readiness = Readiness(notifier, model=settings.model_name)
    engine = SelfTest(engines.make(settings), readiness.tested)
    watchdog = watchdog_seconds(os.environ, pid=os.getpid())
    supervisor = Supervisor(settings, engine, readiness, watchdog_seconds=watchdog)
    asked_engine = logs.Transcript(engine) if settings.log_prompts else engine
    server = make_server(settings, create_app(settings, asked_engine, readiness))
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    broken = asyncio.ensure_future(supervisor.run())
    asked = asyncio.ensure_future(signaled())
    await asyncio.wait({serving, broken, asked}, return_when=asyncio.FIRST_COMPLETED)
    if asked.done() and not broken.done():
        if is_inherited:
            # The socket stays open in systemd: new clients wait there for the next process.
            server.stop_accepting()
            await asyncio.sleep(GRACE_SECONDS)
        await supervisor.drain()
    server.should_exit = True
    await serving
    return 0 if asked.done() else 1


def make_server(settings: Settings, app: object) -> Server:
    return Server(
        uvicorn.Config(
            app,  # type: ignore[arg-type]
            http=protocol(head_seconds=settings.head_seconds, most=most_connections(settings)),
            h11_max_incomplete_event_size=MOST_HEAD_BYTES,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FLUSH_SECONDS,
        )
    )


def most_connections(settings: Settings) -> int:
    """As many as the settings say, and files may be open: uvicorn cannot accept beyond that."""
    most_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(settings.max_connections, max(1, most_files - OTHER_FILES))


async def signaled() -> None:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    await asked.wait()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # The inference thread may be deep in an import or a step: nothing waits for it.
    os._exit(code)
