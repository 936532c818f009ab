"""systemd's protocols over real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from qwen_service.lifecycle.notify import Notifier, inherited_socket, watchdog_seconds
from qwen_service.lifecycle.readiness import Readiness


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        yield listener


def test_a_message_is_lines_of_assignments(systemd: socket.socket) -> None:
    Notifier(systemd.getsockname()).send(READY=1, STATUS="Serving\nwell")
    assert systemd.recv(1000) == b"READY=1\nSTATUS=Serving well"


def test_an_abstract_address_works() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("")
        listener.settimeout(5)
        name = listener.getsockname()
        Notifier("@" + name[1:].decode()).send(WATCHDOG=1)
        assert listener.recv(1000) == b"WATCHDOG=1"


def test_nobody_listening_is_no_error(tmp_path: Path) -> None:
    Notifier(None).send(READY=1)
    Notifier(str(tmp_path / "gone")).send(READY=1)


def test_each_state_is_told(systemd: socket.socket) -> None:
    readiness = Readiness(Notifier(systemd.getsockname()), model="Qwen/X")
    readiness.loading("weights 43%")
    readiness.ready()
    readiness.draining(30)
    readiness.failed("no memory")
    assert [systemd.recv(1000).decode() for _ in range(4)] == [
        "STATUS=Loading Qwen/X: weights 43%",
        "READY=1\nSTATUS=Serving Qwen/X",
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=45000000\nSTATUS=Draining",
        "STATUS=Failed: no memory",
    ]


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
    ],
)
def test_the_watchdog_is_for_this_process(
    environment: dict[str, str], seconds: float | None
) -> None:
    assert watchdog_seconds(environment, pid=7) == seconds


@pytest.mark.parametrize(
    "environment", [{}, {"LISTEN_PID": "8", "LISTEN_FDS": "1"}, {"LISTEN_PID": "7"}]
)
def test_a_socket_for_another_process_is_left_alone(environment: dict[str, str]) -> None:
    assert inherited_socket(environment, pid=7) is None
