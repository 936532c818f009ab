"""Faults by rule: which request meets which fault, how often. Does not know how one is made."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

Protocol = Literal["huggingface", "modelscope", "git-lfs"]
OfBytes = Literal["drop", "stall", "slow", "flip", "short", "no-ranges"]
OfAnswers = Literal["status", "loop", "redirect"]
OfWords = Literal["xet", "name"]


@dataclass
class Rule:
    """`match` is a pattern of artifact paths, of `cdn/PATH` (their second origin, for OfAnswers),
    or of `@revision`, `@listing`, `@git` and `@batch`.

    `after` is where a fault begins: bytes of one answer for drop and stall, the byte of the file
    for flip, the size that the file seems to have for short."""

    match: str
    kind: OfBytes | OfAnswers | OfWords
    times: int | None = None
    hub: Protocol | None = None
    methods: tuple[str, ...] = ("GET", "POST")
    after: int = 0
    rate: int = 0
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    met: threading.Event = field(default_factory=threading.Event, init=False)


class Rules(list[Rule]):
    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def take(
        self, subject: str, hub: str, kinds: Collection[str], method: str = "GET"
    ) -> dict[str, Rule]:
        """By kind; a rule for some times is taken once less."""
        taken: dict[str, Rule] = {}
        with self._lock:
            for rule in self:
                is_meant = rule.kind in kinds and rule.hub in (None, hub) and method in rule.methods
                if not is_meant or rule.times == 0 or not fnmatchcase(subject, rule.match):
                    continue
                if taken.setdefault(rule.kind, rule) is rule and rule.times:
                    rule.times -= 1
        return taken
