"""How a source of weights can fail, in one sentence each. Knows no protocol."""

from __future__ import annotations

from qwen_deploy.errors import Unreachable, UsageError


class HubError(UsageError):
    """A source that gives no manifest; nothing was changed anywhere."""


class HubRefused(HubError):
    """It knows who asks and says no, or wants to know."""

    exit_code = Unreachable.exit_code


class HubMissing(HubError):
    """No such repository, revision or list."""


class HubUnreachable(HubError):
    """No answer, or none of use; another way there may help."""

    exit_code = Unreachable.exit_code


class ListRefused(HubError):
    """Its list makes no sense, or contradicts what it sends."""

    exit_code = Unreachable.exit_code
