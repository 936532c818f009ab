"""What `verify` found damaged in a revision, remembered beside its manifest until it is mended, so
that whoever asks for the revision mends it. Does not know who reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from qwen_weights.disk import write_durably
from qwen_weights.manifest import DAMAGE_NAME

NAME = DAMAGE_NAME
SCHEMA = 1


def record(directory: Path, paths: Iterable[str]) -> None:
    """Who may only read the folder has found it all the same."""
    document = {"schema": SCHEMA, "damaged": sorted(set(paths))}
    with suppress(OSError):
        write_durably(directory / NAME, json.dumps(document, indent=1) + "\n")


def forget(directory: Path) -> None:
    with suppress(OSError):
        directory.joinpath(NAME).unlink(missing_ok=True)


def known(directory: Path) -> tuple[str, ...] | None:
    """The damaged artifacts; none of them by name where the record cannot be read, and None where
    there is none."""
    try:
        document = json.loads(directory.joinpath(NAME).read_text(encoding="utf-8"))
        return tuple(str(path) for path in document["damaged"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError):
        return ()
