"""A hub on this machine, as real clients see Hugging Face, ModelScope and a git-lfs server."""

from tests.hub.certificates import Certificate
from tests.hub.hub import Hub
from tests.hub.rules import Rule

__all__ = ["Certificate", "Hub", "Rule"]
