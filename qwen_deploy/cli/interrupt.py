"""What Ctrl-C and a polite kill mean while something is being changed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qwen_deploy.cli.output import Output


@contextmanager
def interruptible(out: Output) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C ends the step in hand and undoes it; the second leaves at once."""
    pressed: list[int] = []

    def note(number: int, _frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)
        out.note("interrupting; press Ctrl-C again to leave at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(pressed)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
