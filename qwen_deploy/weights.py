"""A transfer of weights on one host: starts it in a transient unit, feeds it sources, follows its
status and ends it. Knows neither the other hosts nor how progress is shown.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from qwen_weights import manifest as manifests
from qwen_weights.manifest import Manifest

from qwen_deploy import agent, commands
from qwen_deploy.config import Weights
from qwen_deploy.errors import NeedsAttention, QwenDeployError, Refused, Unreachable
from qwen_deploy.events import Event, TransferProgress, Warned
from qwen_deploy.release import STATE
from qwen_deploy.remote import Session

POLL_SECONDS = 0.5
# A relay that nobody asks ends; the next host may still be starting.
IDLE_SECONDS = 120
DOOR_SECONDS = 15.0
RESERVE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Door:
    """Where a host lets the others read from it."""

    address: str
    port: int
    token: str


@dataclass(frozen=True, slots=True)
class Order:
    """What a host is to bring, and how; `entries` of sources.json may follow later. What is in the
    `sequence` is read one after the other, before the rest."""

    manifests: tuple[Manifest, ...]
    settings: Weights
    door: Door | None = None
    repair: bool = False
    sequence: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return manifests.manifest_id(self.manifests)

    @property
    def proof(self) -> str:
        """Of that which is least proven."""
        known = [one.proof for one in self.manifests if one.proof]
        return max(known, key=manifests.PROOFS.index, default="none")

    def to_json(self) -> bytes:
        day, night = self.settings.rates
        content = {
            "schema": 1,
            "root": STATE,
            "manifests": [json.loads(one.to_json()) for one in self.manifests],
            "limits": {
                "connections": self.settings.connections,
                "retry_seconds": self.settings.retry_seconds,
                "stall_seconds": 20,
                "reserve_bytes": RESERVE_BYTES,
                "rate": day,
                "night_rate": night,
                "night": self.settings.night.split("-"),
            },
            "share": _share(self.door),
            "repair": self.repair,
            "sequence": list(self.sequence),
        }
        return json.dumps(content).encode()


def _share(door: Door | None) -> dict[str, Any] | None:
    if door is None:
        return None
    return {
        "address": door.address,
        "port": door.port,
        "token": door.token,
        "idle_seconds": IDLE_SECONDS,
    }


def _reads_host(entries: Sequence[Mapping[str, Any]]) -> bool:
    return any(entry["kind"] in ("folder", "archive") for entry in entries)


def new_token() -> str:
    return secrets.token_urlsafe(32)


def sources_json(entries: Sequence[Mapping[str, Any]], authority: str | None = None) -> bytes:
    return json.dumps({"schema": 1, "authority": authority, "sources": list(entries)}).encode()


class Transfer:
    """A transfer that runs on the host, whether anybody looks or not."""

    def __init__(self, session: Session, emit: Callable[[Event], None]) -> None:
        self.session = session
        self.error: str | None = None
        self.hint: str | None = None
        self.has_vanished = False
        self.bytes_reached = 0
        self.status: Mapping[str, Any] = {}
        self.is_ours = False
        self.proof: str | None = None
        self._emit = emit
        self._warned = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="transfer", daemon=True)

    @property
    def host(self) -> str:
        return self.session.host.name

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", ""))

    @property
    def has_failed(self) -> bool:
        return self.error is not None

    @property
    def has_ended(self) -> bool:
        return self.has_failed or self.phase == "done"

    def start(self, order: Order, entries: Sequence[Mapping[str, Any]]) -> None:
        """Starts it, or joins the one that brings the same already. Raises Refused where the
        host receives something else, Unreachable where it goes down."""
        self.proof = order.proof
        done = self.session.run(
            commands.start_transfer(order.id, STATE, reads_host=_reads_host(entries)),
            root=True,
            stdin=packed(order, entries),
        )
        if done.exit_status == commands.BUSY:
            raise self._busy()
        if done.exit_status == commands.GOING_DOWN:
            raise Unreachable(f"`{self.session.host}` is going down", host=self.host)
        if not done.ok:
            raise NeedsAttention(
                f"the transfer of weights to `{self.session.host}` does not start",
                host=self.host,
                evidence=tuple(done.stderr.splitlines()[-5:]),
                origin="systemd-run",
            )
        self.is_ours = done.stdout.strip() == "started"
        if not self.is_ours:
            self._emit(Warned(self.host, self._joined()))

    def _joined(self) -> str:
        end = f"qwen-deploy weights cancel --host {self.session.host.text}"
        return (
            "the same transfer runs there already: it reads from the sources of this command now, "
            f"but within its own limits; for others, `{end}`, then this command again"
        )

    def _busy(self) -> QwenDeployError:
        status = self.look()
        host = self.session.host
        return Refused(
            f"`{host}` is receiving {status.get('model', 'something else')} "
            f"{status.get('revision', '')}".rstrip(),
            host=self.host,
            state=f"{self.host} was not changed",
            hint=f"wait for it, or end it: qwen-deploy weights cancel --host {host.text}",
        )

    def door(self) -> Door | None:
        """Where it lets others read, as it says itself: another run may have opened it."""
        deadline = time.monotonic() + DOOR_SECONDS
        while not (share := self.look().get("share")) and not self.has_ended:
            if time.monotonic() > deadline:
                return None
            self._stop.wait(POLL_SECONDS / 5)
        done = self.session.run(commands.read_file(commands.TRANSFER_ORDER), root=True)
        asked = json.loads(done.stdout).get("share") if done.ok and done.stdout else None
        if not share or not asked:
            return None
        return Door(str(share["address"]), int(share["port"]), str(asked["token"]))

    def feed(self, entries: Sequence[Mapping[str, Any]], authority: str | None) -> None:
        """Gives it other sources; it takes them while it runs."""
        content = sources_json(entries, authority)
        put = commands.replace_secret(commands.TRANSFER_SOURCES)
        self.session.run(put, root=True, stdin=content)

    def look(self) -> Mapping[str, Any]:
        done = self.session.run(commands.transfer_status(), root=True)
        self.status = commands.parse_transfer_status(done.stdout)
        self.bytes_reached = max(self.bytes_reached, self.status.get("bytes_done", 0))
        if self.phase == "failed":
            error = self.status["error"]
            self.error, self.hint = str(error["message"]), error.get("hint")
            self.has_vanished = error["kind"] == commands.DOWN
        return self.status

    def follow(self) -> None:
        self._thread.start()

    def leave(self) -> None:
        """Stops looking; the transfer goes on."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def wait(self, is_canceled: Callable[[], bool]) -> None:
        """Until it has ended, the connection is lost or somebody has had enough."""
        while self._thread.is_alive() and not is_canceled():
            self._thread.join(POLL_SECONDS)

    def end(self) -> None:
        """Ends it on the host; what reached the disk stays."""
        self.leave()
        with suppress(Unreachable):
            self.session.run(commands.stop_transfer(), root=True)

    def close_door(self) -> None:
        """Ends a transfer that is done and only gives to others; its status stays."""
        self.leave()
        with suppress(Unreachable):
            self.session.run(commands.cancel_transfer(), root=True)

    def _follow(self) -> None:
        with suppress(Unreachable):  # whoever needs the host next meets this error too
            while not self._stop.wait(POLL_SECONDS):
                had_status = bool(self.status)
                self._tell(self.look())
                if had_status and not self.status:
                    self.has_vanished = True
                    self.error = "the transfer is gone, as after a restart of the host"
                if self.has_ended:
                    return

    def _tell(self, status: Mapping[str, Any]) -> None:
        if not status:
            return
        warnings = status.get("warnings", [])
        for warning in warnings[self._warned :]:
            self._emit(Warned(self.host, str(warning)))
        self._warned = len(warnings)
        self._emit(
            TransferProgress(
                host=self.host,
                phase=status["phase"],
                source=str(status.get("source") or ""),
                bytes_done=status["bytes_done"],
                bytes_total=status["bytes_total"],
                bytes_per_second=status.get("rate") or 0.0,
                eta_seconds=status.get("eta_seconds"),
                proof=self.proof,
            )
        )


def packed(order: Order, entries: Sequence[Mapping[str, Any]]) -> bytes:
    """The weights program with what it is to bring."""
    return agent.archive({"order.json": order.to_json(), "sources.json": sources_json(entries)})
