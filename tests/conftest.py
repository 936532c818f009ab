"""What holds for every test: signals, and which may run beside each other in two processes."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# A shell starts what shall run in the background deaf to Ctrl-C, and so would be all that tests
# start and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


ROOMS = ("tests/lab/", "tests/browser/")


class _ByRoom(LoadScopeScheduling):  # type: ignore[misc]  # xdist is not typed strictly
    """One checkout has one lab, the browser's tests one browser, and a module its fixtures: each
    stays in one process. What has most tests begins first, so the lab does, the rest beside it."""

    def _split_scope(self, nodeid: str) -> str:
        room = next((room for room in ROOMS if nodeid.startswith(room)), None)
        return room or nodeid.split("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _ByRoom(config, log)
