"""The command line on the host. Exit codes are those of errors.py. Does not know what the commands
do: each has its module."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from qwen_weights.errors import WeightsError

_MODULES = {
    "pull": "pull.command",
    "wait": "pull.wait",
    "probe": "pull.probe",
    "verify": "store.verify",
    "index": "survey.index",
    "list": "housekeeping.listing",
    "prune": "housekeeping.prune",
}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser(words).parse_args(words)
    try:
        arguments.run(arguments)
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Only the command that is meant is loaded: from an archive, loading means compiling."""
    parser = argparse.ArgumentParser(prog="qwen_weights", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    meant = [word for word in words[:1] if word in _MODULES]
    for name in meant or _MODULES:
        import_module(f"{__package__}.{_MODULES[name]}").add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
