"""Real Debian hosts on one machine, for tests and for a person to play with."""

from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.shell import LabError

__all__ = ["Host", "Lab", "LabError"]
