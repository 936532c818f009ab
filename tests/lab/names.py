"""What the lab of one checkout is called, and where it keeps its things. Makes none of them."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
# What labs of all checkouts share on this machine: locks, and what forwarding was before.
SHARED_DIR = Path("/run/qwen-deploy-lab")
MACHINE_LOCK = SHARED_DIR / "machine.lock"
BRIDGE_PATTERN = re.compile(r"qd-[0-9a-f]{6}")
# Set for every program that a test starts, so that a sweep can tell them from a stranger's.
MARK_VARIABLE = "QWEN_LAB"


@dataclass(frozen=True, slots=True)
class Names:
    """The digest is six digits long because a network link's name has at most 15 characters."""

    digest: str

    @property
    def bridge(self) -> str:
        return f"qd-{self.digest}"

    @property
    def rule_comment(self) -> str:
        return f"qwen-deploy-lab-{self.digest}"

    @property
    def lock_path(self) -> Path:
        return SHARED_DIR / f"{self.digest}.lock"

    @property
    def directory(self) -> Path:
        return cache_dir() / "labs" / self.digest

    def host(self, number: int) -> str:
        return f"qd-{self.digest}-{number}"


def of_checkout(checkout: Path = CHECKOUT) -> Names:
    return Names(hashlib.sha256(str(checkout).encode()).hexdigest()[:6])


def link(host: str) -> str:
    """The machine's end of a host's cable, as systemd-nspawn names it."""
    return f"vb-{host}"


def cache_dir() -> Path:
    chosen = os.environ.get("QWEN_LAB_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(chosen or Path.home() / ".cache").resolve() / "qwen-deploy-lab"
