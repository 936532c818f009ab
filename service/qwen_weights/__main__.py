"""The command line on the host: `pull`, `verify` and `wait`. Exit codes are those of errors.py."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import errors, verify
from . import manifest as manifests
from .errors import BadManifest, ChecksumMismatch, WeightsError, in_units
from .manifest import Manifest
from .progress import Progress, StatusFile, error_fields, write_status
from .pull import Limits, Transfer
from .sources.http import HttpSource
from .store import Store
from .wait import wait


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _pull(arguments: argparse.Namespace) -> None:
    try:
        manifest = _load(arguments.manifest)
        source = HttpSource(
            arguments.source,
            token=_token(arguments.token_file),
            stall_seconds=arguments.stall_seconds,
        )
    except WeightsError as error:
        _leave(arguments.status, {"schema": 1, "phase": "failed", "error": error_fields(error)})
        raise
    store = Store(arguments.root)
    progress = Progress(manifest, source.name, store.final_dir(manifest))
    stop = _stop_on_signal(source)
    transfer = Transfer(
        manifest, store, source, limits=_limits(arguments), progress=progress, stop=stop
    )
    try:
        with store.lock(manifest, stop), StatusFile(arguments.status, progress):
            _run(transfer, progress, arguments.root)
    except OSError as error:
        typed = errors.of_host(error, arguments.root, progress.reached())
        progress.failed(typed)
        _leave(arguments.status, progress.snapshot())
        raise typed from error
    print(
        f"{store.final_dir(manifest)}: {len(manifest.artifacts)} artifacts, "
        f"{in_units(manifest.total_bytes)}"
    )


def _run(transfer: Transfer, progress: Progress, root: Path) -> None:
    """Whatever ends the transfer also ends its status."""
    try:
        transfer.run()
    except WeightsError as error:
        progress.failed(error)
        raise
    except OSError as error:
        typed = errors.of_host(error, root, progress.reached())
        progress.failed(typed)
        raise typed from error
    except BaseException as error:
        progress.failed(WeightsError(f"a fault of the transfer: {error!r}"))
        raise


def _leave(path: Path, status: dict[str, Any]) -> None:
    """The error itself is told on stderr, where the journal has it."""
    with suppress(OSError):
        write_status(path, status)


def _verify(arguments: argparse.Namespace) -> None:
    manifest = verify.load(arguments.directory)
    found = verify.problems(
        arguments.directory, manifest, quick=arguments.quick, jobs=arguments.jobs
    )
    for problem in found:
        print(problem)
    if found:
        raise ChecksumMismatch(
            f"{arguments.directory}: {len(found)} of its files are not as proven"
        )
    print(
        f"{len(manifest.artifacts)} artifacts, {in_units(manifest.total_bytes)}: "
        f"{'names and sizes' if arguments.quick else 'every byte'} as in the manifest"
    )


def _wait(arguments: argparse.Namespace) -> None:
    wait(
        arguments.status,
        arguments.directory,
        deadline_seconds=arguments.deadline,
        grace_seconds=arguments.grace,
    )


def _load(path: Path) -> Manifest:
    try:
        return manifests.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadManifest(f"{path}: cannot be read: {error}") from error


def _token(path: Path | None) -> str | None:
    """From a file: an argument could be read by every user of the host."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadManifest(f"{path}: cannot be read: {error}") from error


def _limits(arguments: argparse.Namespace) -> Limits:
    return Limits(arguments.connections, arguments.retry_seconds, arguments.reserve_bytes)


def _stop_on_signal(source: HttpSource) -> threading.Event:
    """A thread takes the signals: a handler could run while the main thread holds a lock."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    stop = threading.Event()

    def await_signal() -> None:
        signal.sigwait(signals)
        stop.set()
        source.close()

    threading.Thread(target=await_signal, name="signals", daemon=True).start()
    return stop


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qwen_weights", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    pull = commands.add_parser("pull", help="bring a revision onto this host, or continue to")
    pull.add_argument("--manifest", type=Path, required=True)
    pull.add_argument("--root", type=_absolute, required=True)
    pull.add_argument("--status", type=Path, required=True, help="written every half second")
    pull.add_argument("--source", required=True, metavar="URL")
    pull.add_argument("--token-file", type=Path)
    pull.add_argument("--connections", type=_count, default=4)
    pull.add_argument("--retry-seconds", type=float, default=60, help="without a single byte")
    pull.add_argument("--stall-seconds", type=float, default=20, help="until it asks again")
    pull.add_argument("--reserve-bytes", type=int, default=Limits.reserve_bytes)
    pull.set_defaults(run=_pull)
    prove = commands.add_parser("verify", help="prove a folder against its manifest")
    prove.add_argument("directory", type=Path, metavar="DIR")
    prove.add_argument("--quick", action="store_true", help="names and sizes only")
    prove.add_argument("--jobs", type=_count, default=verify.cores())
    prove.set_defaults(run=_verify)
    attach = commands.add_parser("wait", help="wait for a transfer and exit with its code")
    attach.add_argument("--status", type=Path, required=True)
    attach.add_argument("--directory", type=Path, required=True)
    attach.add_argument("--deadline", type=float, required=True, metavar="SECONDS")
    attach.add_argument("--grace", type=float, default=10, metavar="SECONDS")
    attach.set_defaults(run=_wait)
    return parser


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(text)
    return count


if __name__ == "__main__":
    sys.exit(main())
