"""How a source of weights can fail, in one sentence each. Knows no protocol."""

from __future__ import annotations

from qwen_deploy.errors import UsageError


class HubError(UsageError):
    """A source that gives no manifest; nothing was changed anywhere."""


class HubRefused(HubError):
    """It knows who asks and says no, or wants to know."""


class HubMissing(HubError):
    """No such repository, revision or list."""


class HubUnreachable(HubError):
    """No answer, or none of use; another way there may help."""


class ListRefused(HubError):
    """Its list makes no sense, or contradicts what it sends."""
