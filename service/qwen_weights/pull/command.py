"""`pull`: puts a transfer together from order.json and sources.json, runs it, shares what it
brings, and leaves its status. Knows neither how bytes are brought nor where they end."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from qwen_weights import errors
from qwen_weights.errors import BadManifest, WeightsError, in_units
from qwen_weights.pull import order as orders
from qwen_weights.pull.account import Account
from qwen_weights.pull.fetch import Fetcher
from qwen_weights.pull.order import Order
from qwen_weights.pull.pool import Pool
from qwen_weights.pull.progress import NAME as STATUS
from qwen_weights.pull.progress import Progress, StatusFile, failed_before, write_status
from qwen_weights.pull.rate import Limiter
from qwen_weights.pull.reading import Reader
from qwen_weights.pull.transfer import Parts, Transfer
from qwen_weights.relay.ancestor import Pace
from qwen_weights.relay.judge import Judge
from qwen_weights.relay.relays import Relays
from qwen_weights.relay.share import RelayServer, Share
from qwen_weights.relay.shelf import Shelf
from qwen_weights.sources.entries import EntriesFile
from qwen_weights.sources.factory import make
from qwen_weights.sources.peer import PeerSource
from qwen_weights.store import Store

_LOOK_SECONDS = 1.0


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("pull", help="bring what an order asks for, or continue to")
    parser.add_argument("--dir", type=Path, required=True, help="with order.json and sources.json")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    directory = arguments.dir.absolute()
    status = directory / STATUS
    try:
        order = orders.read(directory)
        pulling = Pulling(order, directory)
    except WeightsError as error:
        with suppress(OSError):  # the error itself is told on stderr, where the journal has it
            write_status(status, failed_before(error))
        raise
    _stop_on_signal(pulling)
    with StatusFile(status, pulling.progress):
        pulling.run()
    for manifest in order.manifests:
        print(
            f"{pulling.store.final_dir(manifest)}: {len(manifest.artifacts)} artifacts, "
            f"{in_units(manifest.total_bytes)}"
        )


class Pulling:
    """One transfer with everything that works for it."""

    def __init__(
        self,
        order: Order,
        directory: Path,
        *,
        look_seconds: float = _LOOK_SECONDS,
        pace: Pace | None = None,
    ) -> None:
        self._order = order
        self._look_seconds = look_seconds
        self._directory = directory
        self._entries_file = EntriesFile(directory)
        entries = self._entries_file.read()
        self._authority = entries.authority
        self._stop = threading.Event()
        self._has_ended = threading.Event()
        contents = {a.sha256: a for one in order.manifests for a in one.artifacts}
        self._shelf = Shelf(contents.values())
        self.store = Store(order.root)
        self.progress = Progress(order.manifests, order.manifest_id)
        self._account = Account(self.progress)
        self._relays = Relays(
            self._shelf.have,
            sum(artifact.size for artifact in contents.values()),
            warn=self.progress.warn,
            pace=pace or Pace(retry_seconds=order.limits.retry_seconds),
        )
        self._pool = Pool(
            partial(make, patience=order.limits.patience),
            self.progress,
            self._stop,
            retry_seconds=order.limits.retry_seconds,
            relays=self._relays,
        )
        self.progress.ask_sources(self._pool.report)
        self._pool.replace(entries.sources)

    def run(self) -> None:
        """Whatever ends the transfer also ends its status."""
        try:
            with self._sharing() as door:
                transfer = Transfer(self._order, self._parts())
                with self._relays, self._watching():
                    transfer.run()
                transfer.record_pieces()
                # Only now that nothing is asked of those above, they can be idle too.
                if door:
                    door.wait_until_idle(self._stop)
        except WeightsError as error:
            self.progress.failed(error)
            raise
        except OSError as error:
            typed = errors.of_host(error, self._order.root, self.progress.reached())
            self.progress.failed(typed)
            raise typed from error
        except BaseException as error:
            self.progress.failed(WeightsError(f"a fault of the transfer: {error!r}"))
            raise
        finally:
            self._shelf.end()

    def stop(self) -> None:
        """From another thread; what came stays."""
        self._stop.set()
        self._pool.close()

    def _parts(self) -> Parts:
        limiter = Limiter(self._order.limits.rates, self._stop)
        reader = Reader(self._pool, self.progress, limiter, self._stop)
        judge = Judge(self._find_authority)
        fetcher = Fetcher(self._pool, reader, self._shelf, self.progress, judge=judge)
        return Parts(
            self.store,
            self._pool,
            reader,
            fetcher,
            self._shelf,
            self._account,
            self.progress,
            self._stop,
        )

    def _find_authority(self) -> PeerSource | None:
        for source in self._pool.sources:
            if isinstance(source, PeerSource) and source.name == self._authority:
                return source
        return None

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Whoever replaces sources.json is heard within a second."""
        thread = threading.Thread(target=self._watch, name="sources", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._has_ended.set()
            thread.join()

    def _watch(self) -> None:
        while not self._has_ended.wait(self._look_seconds):
            if not self._entries_file.has_changed():
                continue
            try:
                entries = self._entries_file.read()
                self._authority = entries.authority
                self._pool.replace(entries.sources)
            except BadManifest as error:
                self.progress.warn(f"{error}; the sources before stay")

    @contextmanager
    def _sharing(self) -> Iterator[RelayServer | None]:
        with ExitStack() as stack:
            door = self._open_door(self._order.share) if self._order.share else None
            if door:
                stack.enter_context(door)
                self.progress.shared_at(door)
            yield door

    def _open_door(self, share: Share) -> RelayServer | None:
        """Where it was before a restart, if it can be: peers look for it there."""
        ports = (share.port,) if share.port else (*self._port_before(), 0)
        for port in ports:
            try:
                return RelayServer(replace(share, port=port), self._shelf, self._account)
            except OSError as error:
                reason = error.strerror or str(error)
        self.progress.warn(f"nobody can read from this host: {share.address}: {reason}")
        return None

    def _port_before(self) -> tuple[int, ...]:
        try:
            before = json.loads((self._directory / STATUS).read_text(encoding="utf-8"))
            return (int(before["share"]["port"]),)
        except (OSError, ValueError, TypeError, KeyError):
            return ()


def _stop_on_signal(pulling: Pulling) -> None:
    """A thread takes the signals: a handler could run while the main thread holds a lock."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def await_signal() -> None:
        signal.sigwait(signals)
        pulling.stop()

    threading.Thread(target=await_signal, name="signals", daemon=True).start()
