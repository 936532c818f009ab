"""Talking to systemd: the notify socket and the listening socket it hands over.

sd_notify(3) and sd_listen_fds(3) in plain Python. Knows nothing of the service's state.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping

FIRST_INHERITED_FD = 3
SEND_SECONDS = 1.0


class Notifier:
    """Sends assignments to systemd; says nothing where nobody listens."""

    def __init__(self, address: str | None) -> None:
        # A leading @ stands for the abstract namespace.
        self._address = "\0" + address[1:] if address and address[0] == "@" else address

    def send(self, **assignments: str | int) -> None:
        if not self._address:
            return
        lines = (f"{name}={_one_line(value)}" for name, value in assignments.items())
        message = "\n".join(lines).encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # systemd reads at once, unless it is restarting itself: it is not waited for long.
            sender.settimeout(SEND_SECONDS)
            with contextlib.suppress(OSError):
                sender.sendto(message, self._address)


def _one_line(value: str | int) -> str:
    return " ".join(str(value).split())


def watchdog_seconds(environment: Mapping[str, str], *, pid: int) -> float | None:
    """The period within which systemd wants to hear of progress, if it does."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid) or not microseconds.isdecimal():
        return None
    return int(microseconds) / 1e6


def inherited_socket(environment: Mapping[str, str], *, pid: int) -> socket.socket | None:
    """The listening socket of the unit's .socket, if systemd passed one to this process."""
    if environment.get("LISTEN_PID") != str(pid) or environment.get("LISTEN_FDS", "0") == "0":
        return None
    inherited = socket.socket(fileno=FIRST_INHERITED_FD)
    inherited.set_inheritable(False)
    return inherited
