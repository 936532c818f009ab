from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from qwen_deploy import pin, prospect, rollout
from qwen_deploy.converge import Converged, Status
from qwen_deploy.errors import (
    Interrupted,
    LockHeld,
    NeedsAttention,
    QwenDeployError,
    Refused,
    RolloutFailed,
    Unreachable,
)
from qwen_deploy.events import Event, HostFinished, KeyCreated, StageFinished, StageStarted
from qwen_deploy.prospect import Wanted
from qwen_deploy.steps import Run
from qwen_deploy.supply import Supply
from tests.fakes import USER_KEY, FakeConverge, FakeHost, FakeSession, deployment, pinned
from tests.model_folder import make_model

OLD, OLDER = "r-0badcafe", "r-00000001"
FAILED = Converged("failed", 1, "Build the virtual environment", "a\nb\nno space left on device")


@dataclass
class Stage:
    """One host, its converge, and everything that was emitted."""

    wanted: Wanted
    host: FakeHost
    converge: FakeConverge
    events: list[Event] = field(default_factory=list)
    is_interrupted: Callable[[], bool] = lambda: False

    @property
    def session(self) -> FakeSession:
        return FakeSession(self.host)

    @property
    def run(self) -> Run:
        return Run(self.converge, self.events.append, "anna@laptop", self.is_interrupted)

    @property
    def new(self) -> str:
        return self.host.release.id

    def fail(self, *playbooks: str, failure: Converged = FAILED, late: str = "") -> None:
        self.converge.failures = dict.fromkeys(playbooks, failure)
        self.converge.late = late

    def up(self) -> HostFinished:
        looked = prospect.look(self.session, self.wanted)
        self.host.story.clear()
        supply = Supply(self.wanted.pinned, {}, {})
        with rollout.prepared(
            [looked], self.wanted, supply, self.run.operator, self.events.append
        ) as transfers:
            return rollout.up(looked, self.wanted, replace(self.run, transfers=transfers))

    def fails_up(self, kind: type[QwenDeployError]) -> QwenDeployError:
        with pytest.raises(QwenDeployError) as failed:
            self.up()
        assert type(failed.value) is kind
        return failed.value

    @property
    def endings(self) -> list[tuple[str, str]]:
        finished = [event for event in self.events if isinstance(event, StageFinished)]
        return [(event.stage, event.summary) for event in finished]

    @property
    def last_audit(self) -> dict[str, Any]:
        return {key: value for key, value in self.host.audit[-1].items() if key != "seconds"}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    wanted = prospect.want(deployment(), pinned(), USER_KEY)
    host = FakeHost(wanted)
    host.has_weights()
    return Stage(wanted, host, FakeConverge(host))


@pytest.fixture
def upgrade(stage: Stage) -> Stage:
    """The host serves an older release, proven before."""
    stage.host.has_proven(OLDER)
    stage.host.has_proven(OLD)
    return stage


def audit_line(
    release: str | None, outcome: str, *, previous: str | None, tried: str | None = None
) -> dict[str, Any]:
    return {
        "who": "anna@laptop",
        "action": "up",
        "release": release,
        "tried": tried,
        "previous": previous,
        "outcome": outcome,
        "proven": release is not None,
    }


def test_a_bare_host_is_converged_proven_and_recorded(stage: Stage) -> None:
    finished = stage.up()
    assert (finished.outcome, finished.release, finished.previous) == ("changed", stage.new, None)
    assert finished.changed == 3
    assert stage.host.story == ["lock", "facts", "up.yml", "facts", "record", "unlock"]
    assert stage.last_audit == audit_line(stage.new, "changed", previous=None)


def test_the_stages_are_told_in_order(stage: Stage) -> None:
    stage.up()
    told = [
        (type(event).__name__, event.stage)
        for event in stage.events
        if isinstance(event, StageStarted | StageFinished)
    ]
    assert told == [
        ("StageStarted", "converge"),
        ("StageFinished", "converge"),
        ("StageStarted", "ready"),
        ("StageFinished", "ready"),
    ]
    assert stage.endings == [("converge", "done"), ("ready", "done")]


@pytest.mark.parametrize("status", ["failed", "canceled", "unreachable"])
def test_a_stage_that_does_not_succeed_is_not_told_as_done(stage: Stage, status: Status) -> None:
    stage.fail("up.yml", failure=Converged(status, 0, "Copy uv"))
    with pytest.raises(QwenDeployError):
        stage.up()
    assert stage.endings == [("converge", status)]


def test_each_proof_is_told_with_its_own_end(upgrade: Stage) -> None:
    upgrade.host.broken.add(upgrade.new)
    upgrade.fails_up(RolloutFailed)
    assert upgrade.endings == [
        ("converge", "done"),
        ("ready", "failed"),
        ("rollback", "done"),
        ("ready", "done"),
    ]


def test_a_made_key_is_shown_once_and_travels_as_files(stage: Stage) -> None:
    stage.up()
    assert [event for event in stage.events if isinstance(event, KeyCreated)] == [
        KeyCreated("gpu-1", USER_KEY.key)
    ]
    written = stage.converge.files["keys"].decode()
    assert [line.split()[0] for line in written.splitlines()] == ["operator", "default"]
    assert USER_KEY.key not in written
    assert stage.converge.files["operator.key"].startswith(b"sk-")


def test_a_key_is_told_before_anything_is_written(stage: Stage) -> None:
    """A kill at any later moment leaves no key that nobody knows."""
    stage.fail("up.yml")
    stage.fails_up(NeedsAttention)
    assert stage.events[:2] == [
        KeyCreated("gpu-1", USER_KEY.key),
        StageStarted("gpu-1", "converge"),
    ]


def test_a_second_up_does_not_even_take_the_lock(stage: Stage) -> None:
    stage.up()
    lines = len(stage.host.audit)
    finished = stage.up()
    assert (finished.outcome, finished.release) == ("unchanged", stage.new)
    assert finished.previous == stage.new
    assert stage.host.story == []
    assert len(stage.host.audit) == lines


def test_a_proof_that_nobody_wrote_down_is_written_down(stage: Stage) -> None:
    """As after a power loss between the proof and its audit line."""
    stage.up()
    stage.host.audit.clear()
    finished = stage.up()
    assert (finished.outcome, finished.release) == ("unchanged", stage.new)
    assert stage.host.story == ["lock", "record", "unlock"]
    assert stage.last_audit == audit_line(stage.new, "unchanged", previous=stage.new)
    stage.up()
    assert stage.host.story == []


def test_a_proof_of_another_release_in_between_is_outdated(stage: Stage) -> None:
    stage.up()
    stage.host.has_proven(OLD)
    stage.host.serve(stage.new)
    assert stage.up().outcome == "unchanged"
    assert stage.last_audit == audit_line(stage.new, "unchanged", previous=stage.new)


def test_a_proof_is_not_written_down_while_somebody_else_holds_the_lock(stage: Stage) -> None:
    stage.up()
    stage.host.audit.clear()
    stage.host.locked_by = {"who": "bert@desk"}
    stage.fails_up(LockHeld)
    assert stage.host.audit == []


def test_an_unproven_host_is_proven_although_nothing_differs(stage: Stage) -> None:
    stage.up()
    stage.host.raw["service"] = None
    assert stage.up().outcome == "changed"
    assert "up.yml" in stage.host.story


def test_a_refused_host_is_not_changed(upgrade: Stage) -> None:
    upgrade.host.raw |= {"has_systemd": False, "machine": "aarch64"}
    error = upgrade.fails_up(Refused)
    assert error.message == "`gpu-1`: the host does not run systemd"
    assert error.evidence == ("aarch64 is not supported; use a host with an x86_64 processor",)
    assert error.state == "gpu-1 was not changed"
    assert (error.exit_code, error.outcome) == (3, "refused")
    assert upgrade.host.story == []
    assert upgrade.host.current == OLD


def test_a_held_lock_says_by_whom_and_since_when(upgrade: Stage) -> None:
    upgrade.host.locked_by = {"who": "bert@desk", "since": "2026-01-02 03:04", "purpose": "up"}
    error = upgrade.fails_up(LockHeld)
    assert error.message == "`gpu-1` is locked by bert@desk for `up` since 2026-01-02 03:04"
    assert error.state == "gpu-1 was not changed"
    assert (error.exit_code, error.outcome) == (3, "refused")
    assert upgrade.host.story == ["lock"]


def test_a_lock_whose_holder_is_unknown_is_a_lock(stage: Stage) -> None:
    stage.host.locked_by = {}
    error = stage.fails_up(LockHeld)
    assert "locked by somebody for `a change` since an unknown time" in error.message


def test_a_failure_before_activation_leaves_the_old_release_serving(upgrade: Stage) -> None:
    upgrade.fail("up.yml")
    error = upgrade.fails_up(RolloutFailed)
    assert error.message == "`Build the virtual environment` failed on `gpu-1`"
    assert error.evidence == ("a", "b", "no space left on device")
    assert error.origin == "output of the task on gpu-1"
    assert error.state == f"gpu-1 still serves {OLD}"
    assert (error.exit_code, error.outcome, error.serves) == (1, "rolled back", OLD)
    assert error.hint is None  # the same command again, which only the command line knows
    assert upgrade.host.story == ["lock", "facts", "up.yml", "facts", "record"]
    expected = audit_line(OLD, "rolled back", previous=OLD, tried=upgrade.new)
    assert upgrade.last_audit == expected


def test_a_failure_tells_how_the_change_of_its_host_ended(upgrade: Stage) -> None:
    upgrade.fail("up.yml")
    finished = upgrade.fails_up(RolloutFailed).finished
    assert finished is not None
    assert finished.seconds > 0
    assert replace(finished, seconds=0) == HostFinished("gpu-1", "rolled back", OLD, OLD, 0, 0)
    assert upgrade.host.audit[-1]["seconds"] == round(finished.seconds, 1)


def test_a_failure_before_activation_of_a_first_release_needs_attention(stage: Stage) -> None:
    stage.fail("up.yml")
    error = stage.fails_up(NeedsAttention)
    assert error.state == "gpu-1 serves nothing: no other release was proven"
    assert (error.exit_code, error.outcome, error.serves) == (5, "needs attention", None)
    assert "stop.yml" not in stage.host.story
    assert stage.last_audit == audit_line(None, "needs attention", previous=None, tried=stage.new)


def test_a_release_that_does_not_get_ready_is_rolled_back_and_that_is_proven(
    upgrade: Stage,
) -> None:
    upgrade.host.broken.add(upgrade.new)
    upgrade.host.journal = (
        "2026-01-02T03:04:05+0000 gpu-1 qwen[7]: loading",
        "2026-01-02T03:04:06+0000 gpu-1 qwen[7]: torch.OutOfMemoryError: CUDA out of memory",
        "2026-01-02T03:04:07+0000 gpu-1 systemd[1]: qwen.service: Failed",
    )
    error = upgrade.fails_up(RolloutFailed)
    assert error.message == f"{upgrade.new} on `gpu-1` is not ready: the unit failed (exit-code)"
    assert error.evidence == ("loading", "torch.OutOfMemoryError: CUDA out of memory")
    assert error.origin == "journal of qwen.service"
    assert error.state == f"gpu-1 was rolled back and serves {OLD}"
    assert error.hint == "qwen-deploy logs --host root@gpu-1 -n 200"
    assert (error.exit_code, error.outcome, error.serves) == (1, "rolled back", OLD)
    assert upgrade.host.current == OLD
    assert upgrade.host.story == [
        *("lock", "facts", "up.yml", "facts", "journal"),
        *("facts", "rollback.yml", "facts", "record"),
    ]
    expected = audit_line(OLD, "rolled back", previous=OLD, tried=upgrade.new)
    assert upgrade.last_audit == expected


def test_a_failure_after_activation_is_rolled_back_too(upgrade: Stage) -> None:
    upgrade.fail("up.yml", late="up.yml")
    error = upgrade.fails_up(RolloutFailed)
    assert error.state == f"gpu-1 was rolled back and serves {OLD}"
    assert upgrade.host.current == OLD


def test_a_first_release_that_does_not_get_ready_is_stopped(stage: Stage) -> None:
    stage.host.broken.add(stage.new)
    error = stage.fails_up(NeedsAttention)
    assert error.state == "gpu-1 serves nothing: no other release was proven"
    assert error.exit_code == 5
    assert "stop.yml" in stage.host.story
    assert stage.last_audit == audit_line(None, "needs attention", previous=None, tried=stage.new)


def test_a_previous_release_that_is_not_ready_either_needs_attention(upgrade: Stage) -> None:
    upgrade.host.broken |= {upgrade.new, OLD}
    error = upgrade.fails_up(NeedsAttention)
    assert error.state == f"gpu-1: {OLD} is not ready either: the unit failed (exit-code)"
    assert (error.exit_code, error.serves) == (5, None)
    assert upgrade.last_audit == audit_line(
        None, "needs attention", previous=OLD, tried=upgrade.new
    )


def test_a_release_that_was_never_proven_is_not_returned_to(upgrade: Stage) -> None:
    upgrade.host.audit[-1]["proven"] = False
    upgrade.host.broken |= {upgrade.new, OLD}
    error = upgrade.fails_up(RolloutFailed)
    assert error.state == f"gpu-1 was rolled back and serves {OLDER}"


def test_an_older_process_under_the_new_link_is_not_taken_for_the_release(
    upgrade: Stage,
) -> None:
    """As after an `up` that was killed between the link and the restart."""
    upgrade.up()
    upgrade.host.raw["service"]["ready"]["release"] = OLD
    assert upgrade.up().outcome == "changed"
    assert upgrade.host.raw["service"]["ready"]["release"] == upgrade.new


def test_an_interrupted_converge_leaves_the_old_release_serving(upgrade: Stage) -> None:
    upgrade.is_interrupted = lambda: True
    error = upgrade.fails_up(Interrupted)
    assert error.message == "interrupted at `Copy uv`"
    assert error.state == f"gpu-1 still serves {OLD}"
    assert (error.exit_code, error.outcome, error.serves) == (130, "rolled back", OLD)
    expected = audit_line(OLD, "rolled back", previous=OLD, tried=upgrade.new)
    assert upgrade.last_audit == expected


def test_an_interrupted_proof_is_rolled_back_and_that_is_not_interrupted(
    upgrade: Stage,
) -> None:
    upgrade.host.slow.add(upgrade.new)
    upgrade.is_interrupted = lambda: upgrade.host.current == upgrade.new
    error = upgrade.fails_up(Interrupted)
    assert error.message == "interrupted while the release was proven"
    assert error.state == f"gpu-1 was rolled back and serves {OLD}"
    assert (error.exit_code, error.outcome, error.serves) == (130, "rolled back", OLD)


def test_an_interrupted_first_release_needs_attention(stage: Stage) -> None:
    stage.is_interrupted = lambda: True
    error = stage.fails_up(Interrupted)
    assert error.state == "gpu-1 serves nothing: no other release was proven"
    assert (error.exit_code, error.outcome) == (130, "needs attention")


@pytest.mark.parametrize("entry", ["up.yml", "journal", "rollback.yml"])
def test_a_connection_lost_in_the_middle_needs_attention(upgrade: Stage, entry: str) -> None:
    upgrade.host.broken.add(upgrade.new)
    upgrade.host.lost_after = entry
    error = upgrade.fails_up(NeedsAttention)
    assert error.state == (
        "nobody can tell what gpu-1 serves: lost the connection to `gpu-1`: it was closed"
    )
    assert (error.exit_code, error.outcome, error.serves) == (5, "needs attention", None)
    assert error.finished is not None
    assert (error.finished.outcome, error.finished.previous) == ("needs attention", OLD)


def test_a_connection_that_converge_lost_is_told_with_the_task(upgrade: Stage) -> None:
    upgrade.fail("up.yml", failure=Converged("unreachable", 0, "Copy uv"))
    upgrade.host.lost_after = "up.yml"
    error = upgrade.fails_up(NeedsAttention)
    assert error.message == "lost the connection to `gpu-1` at `Copy uv`"


def test_a_connection_that_came_back_finds_the_old_release_serving(upgrade: Stage) -> None:
    upgrade.fail("up.yml", failure=Converged("unreachable", 0, "Copy uv"))
    error = upgrade.fails_up(RolloutFailed)
    assert error.state == f"gpu-1 still serves {OLD}"


def test_a_connection_lost_before_anything_changed_is_no_more_than_that(upgrade: Stage) -> None:
    upgrade.host.lost_after = "lock"
    error = upgrade.fails_up(Unreachable)
    assert (error.exit_code, error.outcome) == (4, "unreachable")


def test_a_restart_proves_the_same_release_again(upgrade: Stage) -> None:
    finished = rollout.restart(upgrade.session, upgrade.run)
    assert (finished.outcome, finished.release, finished.previous) == ("changed", OLD, OLD)
    assert upgrade.host.story == ["lock", "facts", "restart.yml", "facts", "record", "unlock"]
    assert upgrade.last_audit == audit_line(OLD, "changed", previous=OLD) | {"action": "restart"}


def test_a_restart_that_fails_needs_attention(upgrade: Stage) -> None:
    upgrade.host.broken.add(OLD)
    with pytest.raises(NeedsAttention) as failed:
        rollout.restart(upgrade.session, upgrade.run)
    assert failed.value.message == f"{OLD} on `gpu-1` is not ready: the unit failed (exit-code)"
    assert failed.value.state == "gpu-1 needs attention"
    assert failed.value.hint == f"qwen-deploy rollback {OLDER} --host root@gpu-1"
    assert upgrade.last_audit["outcome"] == "needs attention"
    assert not upgrade.last_audit["proven"]


def test_a_restart_of_the_only_release_that_fails_leads_to_up(stage: Stage) -> None:
    stage.host.has_proven(OLD)
    stage.host.broken.add(OLD)
    with pytest.raises(NeedsAttention) as failed:
        rollout.restart(stage.session, stage.run)
    assert failed.value.hint == "qwen-deploy up --host root@gpu-1"


def test_a_restart_whose_playbook_fails_says_at_which_task(upgrade: Stage) -> None:
    upgrade.fail("restart.yml", failure=Converged("failed", 0, "Restart the unit", "denied"))
    with pytest.raises(NeedsAttention, match="not ready: `Restart the unit` failed: denied"):
        rollout.restart(upgrade.session, upgrade.run)


def test_a_restart_without_a_release_is_refused(stage: Stage) -> None:
    with pytest.raises(Refused) as refused:
        rollout.restart(stage.session, stage.run)
    assert refused.value.message == "`gpu-1` has no release"
    assert refused.value.state == "gpu-1 was not changed"
    assert refused.value.hint == "qwen-deploy up --host root@gpu-1"


@pytest.mark.parametrize(("named", "target"), [(None, OLDER), (OLDER, OLDER), (OLD, OLD)])
def test_a_rollback_returns_to_the_named_or_the_last_proven_release(
    upgrade: Stage, named: str | None, target: str
) -> None:
    finished = rollout.rollback(upgrade.session, upgrade.run, named)
    assert (finished.outcome, finished.release, finished.previous) == ("changed", target, OLD)
    assert upgrade.host.current == target
    expected = audit_line(target, "changed", previous=OLD) | {"action": "rollback"}
    assert upgrade.last_audit == expected


def test_a_second_rollback_returns_to_where_the_first_came_from(upgrade: Stage) -> None:
    rollout.rollback(upgrade.session, upgrade.run, None)
    assert rollout.rollback(upgrade.session, upgrade.run, None).release == OLD


def test_a_rollback_to_an_unknown_release_is_refused_with_those_there_are(upgrade: Stage) -> None:
    with pytest.raises(Refused) as refused:
        rollout.rollback(upgrade.session, upgrade.run, "r-ffffffff")
    assert refused.value.message == "`gpu-1` has no release r-ffffffff to return to"
    assert refused.value.hint == f"other releases on gpu-1: {OLDER}"
    assert refused.value.state == "gpu-1 was not changed"


def test_a_rollback_without_an_earlier_release_is_refused(stage: Stage) -> None:
    stage.up()
    with pytest.raises(Refused) as refused:
        rollout.rollback(stage.session, stage.run, None)
    assert refused.value.message == "`gpu-1` has no earlier release to return to"
    assert refused.value.hint == "other releases on gpu-1: none"


def test_a_rollback_that_fails_needs_attention(upgrade: Stage) -> None:
    upgrade.host.broken.add(OLDER)
    with pytest.raises(NeedsAttention) as failed:
        rollout.rollback(upgrade.session, upgrade.run, None)
    assert failed.value.message == f"{OLDER} on `gpu-1` is not ready: the unit failed (exit-code)"
    assert failed.value.exit_code == 5
    assert failed.value.hint == f"qwen-deploy rollback {OLD} --host root@gpu-1"


def test_weights_travel_while_the_host_converges(tmp_path: Path) -> None:
    chosen = pin.here(deployment(model={"source": str(make_model(tmp_path / "model"))}))
    assert chosen is not None
    host = FakeHost(prospect.want(deployment(), chosen.pinned, USER_KEY))
    Stage(host.wanted, host, FakeConverge(host)).up()
    entries = [entry for entry in host.story if entry != "facts"]
    assert entries == ["lock", "start weights", "up.yml", "record", "stop weights", "unlock"]
