"""Fixtures: one lab for the whole session, and from it hosts that are bare at a test's start."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from tests.lab import Host, Lab

COUNT = 2


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(COUNT) as lab:
        yield lab
        lab.keep = os.environ.get("QWEN_LAB_KEEP") == "1" and request.session.testsfailed > 0
        if lab.keep:
            print(
                "\nlab: kept, until the next one of this checkout or `python -m tests.lab --remove`"
            )
            print("\n".join(map(lab.login_command, lab.hosts)))


@pytest.fixture
def host(lab: Lab) -> Host:
    return lab.pristine(1)[0]


@pytest.fixture
def hosts(lab: Lab) -> tuple[Host, ...]:
    return lab.pristine(COUNT)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        for host in _hosts_of(item):
            report.sections.append((f"qwen.service on {host.name}", host.evidence()))
    return report


def _hosts_of(item: pytest.Item) -> tuple[Host, ...]:
    fixtures = getattr(item, "funcargs", {})
    if "hosts" in fixtures:
        return tuple(fixtures["hosts"])
    return (fixtures["host"],) if "host" in fixtures else ()
