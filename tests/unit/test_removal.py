from __future__ import annotations

from typing import Any

import pytest

from qwen_deploy import removal
from qwen_deploy.converge import Converged
from qwen_deploy.errors import NeedsAttention
from qwen_deploy.events import HostFinished
from qwen_deploy.release import INSTALLED, ROOT, STATE
from qwen_deploy.steps import Run
from tests.fakes import (
    ACTIVE_UNIT,
    FakeConverge,
    FakeHost,
    FakeSession,
    wanted_of,
)

RELEASE = "r-0badcafe"


@pytest.fixture
def host() -> FakeHost:
    return FakeHost(wanted_of())


@pytest.fixture
def served(host: FakeHost) -> FakeHost:
    host.has_proven(RELEASE)
    host.raw["digests"][STATE] = "directory"
    return host


def down(host: FakeHost, *, purge: bool, **failures: Converged) -> tuple[HostFinished, Any]:
    converge = FakeConverge(host, {f"{name}.yml": one for name, one in failures.items()})
    run = Run(converge, lambda event: None, "anna@laptop")
    return removal.down(FakeSession(host), run, purge=purge), converge.variables


def test_the_service_goes_and_the_audit_log_says_so(served: FakeHost) -> None:
    finished, variables = down(served, purge=False)
    assert (finished.outcome, finished.release, finished.previous) == ("changed", None, RELEASE)
    assert served.audit[-1]["action"] == "down"
    assert served.audit[-1]["proven"] is False
    assert {*INSTALLED.values(), ROOT} <= set(variables["qwen_service_paths"])
    assert STATE not in variables["qwen_service_paths"]
    assert variables["qwen_service_units"] == ["qwen.service", "qwen.socket"]
    assert variables["qwen_service_packages_added"] == []


def test_a_purge_takes_state_and_the_packages_that_were_added(served: FakeHost) -> None:
    lines = len(served.audit)
    served.files[removal.PACKAGES_RECORD] = '["git", "git-lfs"]'
    _, variables = down(served, purge=True)
    assert {"/etc/qwen-deploy", STATE} <= set(variables["qwen_service_paths"])
    assert variables["qwen_service_packages_added"] == ["git", "git-lfs"]
    assert variables["qwen_service_lfs_added"] is True
    assert len(served.audit) == lines, "the log itself is gone"


def test_a_host_that_never_had_the_service_is_unchanged(host: FakeHost) -> None:
    for purge in (False, True):
        finished, _ = down(host, purge=purge)
        assert finished.outcome == "unchanged"
    assert "down.yml" not in host.story


def test_a_unit_without_a_release_is_removed(host: FakeHost) -> None:
    """As an `up` that was killed may leave it."""
    host.raw["units"]["qwen.service"] = ACTIVE_UNIT
    assert down(host, purge=False)[0].outcome == "changed"


def test_what_only_a_purge_removes_does_not_count_without_it(host: FakeHost) -> None:
    host.raw["digests"][STATE] = "directory"
    assert down(host, purge=False)[0].outcome == "unchanged"
    assert down(host, purge=True)[0].outcome == "changed"


def test_a_removal_that_fails_says_what_is_left(served: FakeHost) -> None:
    with pytest.raises(NeedsAttention) as failed:
        down(served, purge=False, down=Converged("failed", 2, "Remove the files", "x\nbusy"))
    assert failed.value.message == "`Remove the files` failed on `gpu-1`"
    assert failed.value.evidence == ("x", "busy")
    assert failed.value.state == "gpu-1 is partly removed"
