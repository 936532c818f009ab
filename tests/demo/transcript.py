"""Console transcripts: parse them, and tell where two differ in more than names and numbers.

Knows neither how a transcript was made nor what its commands do.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest

PROMPT = re.compile(r"(?:[\w.-]+@[\w.-]+:\S*#|\$) ")
KEY = re.compile(r"\bsk-[\w-]+")
# What differs from run to run or from machine to machine holds a digit, but for days of the week.
VARYING = re.compile(r"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)\b|\S*\d\S*")
# systemd shows these only where it can account for them.
ACCOUNTING = ("Memory", "CPU", "Tasks", "IO", "IP")
SESSION = re.compile(r"(?<=```console\n).*?(?=```)", re.DOTALL)


def session_of(readme: str) -> str:
    """The transcript in a README: its one block marked as a console's."""
    (found,) = SESSION.findall(readme)
    return str(found)


def with_session(readme: str, transcript: str) -> str:
    return SESSION.sub(lambda _: transcript, readme)


@dataclass(frozen=True, slots=True)
class Step:
    command: str
    output: tuple[str, ...]


def parse(text: str) -> tuple[Step, ...]:
    """A command is a line with a prompt; what follows, up to the next, is what it printed."""
    steps: list[Step] = []
    for line in text.splitlines():
        if found := PROMPT.match(line):
            steps.append(Step(line[found.end() :], ()))
        elif steps:
            last = steps.pop()
            steps.append(Step(last.command, (*last.output, line)))
    return tuple(steps)


def differences(expected: str, actual: str) -> tuple[str, ...]:
    """Empty where both show the same commands with outputs of the same shape."""
    found: list[str] = []
    for wanted, real in zip_longest(parse(expected), parse(actual)):
        if wanted is None or real is None or _shape(wanted.command) != _shape(real.command):
            shown = [f"$ {step.command}" if step else "nothing" for step in (wanted, real)]
            return (*found, f"{shown[0]} became {shown[1]}")
        found += [f"$ {wanted.command}: {line}" for line in _changed(wanted, real)]
    return tuple(found)


def _changed(wanted: Step, real: Step) -> list[str]:
    """Lines may change places: stages run side by side."""
    before, after = _shapes(wanted), _shapes(real)
    lost = [f"no longer: {line}" for line in (before - after).elements()]
    return lost + [f"is new: {line}" for line in (after - before).elements()]


def _shapes(step: Step) -> Counter[str]:
    shapes = (_shape(line) for line in step.output)
    return Counter(
        shape
        for shape in shapes
        if shape and not shape.startswith(tuple(f"{n}:" for n in ACCOUNTING))
    )


def _shape(line: str) -> str:
    """The line without blanks to align it, and with `#` for every run of varying words."""
    line = VARYING.sub("#", KEY.sub("sk-1", line))
    return re.sub(r"#(?: #)+", "#", " ".join(line.split()))
