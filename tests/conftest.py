"""Which tests may run beside each other when `make test` uses two processes."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One checkout has one lab, and a module its fixtures: each stays in one process. The group of
    the lab is the largest, so that xdist begins it first, and the rest runs beside it."""
    for item in items:
        is_lab = item.get_closest_marker("lab") is not None
        item.add_marker(pytest.mark.xdist_group("lab" if is_lab else item.nodeid.split("::")[0]))
