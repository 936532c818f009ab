"""Which tests may run beside each other when `make test` uses two processes."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling


class _ByRoom(LoadScopeScheduling):  # type: ignore[misc]  # xdist is not typed strictly
    """One checkout has one lab, and a module its fixtures: each stays in one process. What has most
    tests begins first, so the lab does, and the rest runs beside it."""

    def _split_scope(self, nodeid: str) -> str:
        return "lab" if nodeid.startswith("tests/lab/") else nodeid.split("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _ByRoom(config, log)
