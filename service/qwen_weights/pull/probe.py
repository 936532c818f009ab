"""`probe`: how soon and how quickly each source of the WAN answers this host. Writes nothing, and
reads no more than shows that."""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from qwen_weights.errors import Untrusted, WeightsError
from qwen_weights.manifest import Artifact
from qwen_weights.pull import order as orders
from qwen_weights.pull.order import Order
from qwen_weights.sources import Interruption, Patience, Source
from qwen_weights.sources.entries import EntriesFile, Entry
from qwen_weights.sources.factory import make

_MOST_BYTES = 2 << 20
_MOST_SECONDS = 3.0
_READ_BYTES = 256 << 10
_KINDS = ("http", "git-lfs")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("probe", help="measure the sources of an order from this host")
    parser.add_argument("--dir", type=Path, required=True, help="with order.json and sources.json")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    order = orders.read(arguments.dir)
    entries = EntriesFile(arguments.dir).read().sources
    print(json.dumps({"sources": probe(order, entries)}))


def probe(
    order: Order, entries: Sequence[Entry], *, seconds: float = _MOST_SECONDS
) -> list[dict[str, Any]]:
    """All at once, in their order."""
    probes = [_Probe(entry, order, seconds) for entry in entries if entry.kind in _KINDS]
    for one in probes:
        one.start()
    deadline = time.monotonic() + seconds
    return [one.result(deadline) for one in probes]


class _Probe:
    """A thread that is left behind where it does not end in time, as a resolver may not."""

    def __init__(self, entry: Entry, order: Order, seconds: float) -> None:
        self._entry = entry
        self._artifact = _largest(entry, order)
        self._seconds = seconds
        self._source: Source | None = None
        self._error: str | None = None
        self._kind: str | None = None
        self._is_reached = False
        self._is_final = False
        self._first_after: float | None = None
        self._bytes = 0
        self._ended_after = 0.0
        self._thread = threading.Thread(target=self._measure, name="probe", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def result(self, deadline: float) -> dict[str, Any]:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        source = self._source
        if self._thread.is_alive() and source:
            source.close()
        rate = self._rate()
        error = None if self._first_after is not None else self._error or "no answer in time"
        return {
            "name": self._entry.name,
            "ok": error is None,
            "reached": error is None or self._is_reached,
            "final": error is not None and self._is_final,
            "error": error,
            "kind": error and self._kind,
            "seconds_to_first_byte": self._first_after and round(self._first_after, 3),
            "rate": rate and round(rate),
        }

    def _rate(self) -> float | None:
        if self._first_after is None:
            return None
        return self._bytes / max(self._ended_after, 0.001)

    def _measure(self) -> None:
        try:
            source = make(self._entry, Patience(stall_seconds=self._seconds))
            self._source = source
            with closing(source):
                self._read(source)
        except Interruption as error:
            self._error, self._is_reached = str(error), error.is_answer
        except WeightsError as error:
            # No certificate can be checked where nobody answers, but who answers may be anybody.
            self._error, self._is_reached = str(error), not isinstance(error, Untrusted)
            self._is_final, self._kind = True, error.kind

    def _read(self, source: Source) -> None:
        if self._artifact is None:
            raise Interruption("it is meant to have none of the files")
        began = time.monotonic()
        end = min(_MOST_BYTES, self._artifact.size)
        buffer = memoryview(bytearray(_READ_BYTES))
        whole = end == self._artifact.size
        with closing(source.open(self._artifact, 0, None if whole else end)) as stream:
            while self._bytes < end and (count := stream.readinto(buffer)):
                self._ended_after = time.monotonic() - began
                if self._first_after is None:
                    self._first_after = self._ended_after
                self._bytes += count


def _largest(entry: Entry, order: Order) -> Artifact | None:
    offered = [
        artifact
        for manifest in order.manifests
        for artifact in manifest.artifacts
        if entry.paths is None or artifact.path in entry.paths
    ]
    return max(offered, key=lambda artifact: artifact.size, default=None)
