"""The errors an operator can meet, each with its exit code. Knows no library and no terminal.

QwenDeployError
├── UsageError            2  the command line or a file says something impossible
├── Refused               3  preflight said no; nothing was changed
├── Unreachable           4  no SSH session
│   ├── AuthRefused       4  wrong user, key or sudo password
│   ├── HostKeyUnknown    4
│   └── HostKeyChanged    4
├── LockHeld              3  somebody else is changing the host
├── RolloutFailed         1  the host is back on its previous release
├── NeedsAttention        5  the host serves nothing, or nobody can tell
└── Interrupted         130
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen_deploy.events import HostFinished, Outcome


class QwenDeployError(Exception):
    """One sentence, and what stands around it in the report of a failure.

    `state` says what the host serves now and `finished` how its change ended; `hint` is one command
    or step that helps; `evidence` holds verbatim lines from the host, `origin` says where from.
    """

    exit_code = 1
    outcome: Outcome = "needs attention"

    def __init__(
        self,
        message: str,
        *,
        host: str | None = None,
        hint: str | None = None,
        state: str | None = None,
        evidence: tuple[str, ...] = (),
        origin: str | None = None,
        finished: HostFinished | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.host = host
        self.hint = hint
        self.state = state
        self.evidence = evidence
        self.origin = origin
        self.finished = finished

    @property
    def serves(self) -> str | None:
        """The proven release that the host serves after the failure, where that is known."""
        return self.finished.release if self.finished else None


class UsageError(QwenDeployError):
    exit_code = 2


class Refused(QwenDeployError):
    exit_code = 3
    outcome = "refused"


class LockHeld(QwenDeployError):
    exit_code = 3
    outcome = "refused"


class Unreachable(QwenDeployError):
    exit_code = 4
    outcome = "unreachable"


class AuthRefused(Unreachable):
    pass


class HostKeyUnknown(Unreachable):
    pass


class HostKeyChanged(Unreachable):
    pass


class RolloutFailed(QwenDeployError):
    exit_code = 1
    outcome = "rolled back"


class NeedsAttention(QwenDeployError):
    exit_code = 5


class Interrupted(QwenDeployError):
    exit_code = 130


# With several hosts the gravest wins; an interruption outweighs only what changed nothing.
GRAVITY = (5, 130, 1, 4, 3, 2, 0)


def gravest(exit_codes: tuple[int, ...]) -> int:
    return min(exit_codes, key=GRAVITY.index, default=0)
