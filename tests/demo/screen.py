"""Programs run in front of a person: what they print, live, and what of it stays on the screen.

Where there is a terminal the program gets one too, so that its live line is seen.
"""

from __future__ import annotations

import codecs
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


def run(
    argv: Sequence[str | Path], *, folder: Path, environment: Mapping[str, str]
) -> tuple[int, str]:
    """Exit code, and the text that stays."""
    size = shutil.get_terminal_size()
    reader, writer = pty.openpty() if sys.stdout.isatty() else os.pipe()
    with subprocess.Popen(
        argv,
        cwd=folder,
        env={**environment, "COLUMNS": str(size.columns), "LINES": str(size.lines)},
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
    ) as process:
        os.close(writer)
        printed = []
        for text in _texts(reader):
            printed.append(text)
            sys.stdout.write(text)
            sys.stdout.flush()
    return process.returncode, remaining("".join(printed))


def _texts(reader: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with open(reader, "rb", buffering=0) as file:
        while chunk := _chunk(file.fileno()):
            yield decoder.decode(chunk)


def _chunk(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except OSError:  # How a terminal ends when its last user is gone.
        return b""


def remaining(printed: str) -> str:
    """What a terminal shows in the end, as far as a live line needs one: up, back, erase."""
    lines, row, column = [""], 0, 0
    for number, letter, end, text in CONTROL.findall(printed):
        if text:
            lines[row] = lines[row][:column] + text + lines[row][column + len(text) :]
            column += len(text)
        elif end == "\r":
            column = 0
        elif end == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif letter == "A":
            row = max(0, row - int(number or 1))
        elif letter == "K":
            lines[row] = "" if number == "2" else lines[row][:column]
    return "\n".join(lines[: row + 1])
