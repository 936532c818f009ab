"""The steps a change is made of: lock, converge, prove, activate, record. Each is one thing done
to one host; in which order they follow, and what a failure means, is rollout's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from qwen_deploy import bundle, commands, keys, probes, release
from qwen_deploy import facts as host_facts
from qwen_deploy.config import Deployment
from qwen_deploy.converge import Converged
from qwen_deploy.errors import LockHeld, QwenDeployError
from qwen_deploy.events import Event, HostFinished, ProbeTried, StageFinished, StageStarted
from qwen_deploy.facts import Facts
from qwen_deploy.prospect import EVIDENCE_LINES, Prospect, Wanted, ask, untouched
from qwen_deploy.remote import Session
from qwen_deploy.weights import Transfer

JOURNAL_ORIGIN = "journal of qwen.service"


class Converge(Protocol):
    def apply(
        self,
        playbook: str,
        variables: Mapping[str, Any],
        *,
        files: Mapping[str, bytes] | None = None,
        is_canceled: Callable[[], bool] = ...,
    ) -> Converged: ...


@dataclass(frozen=True, slots=True)
class Run:
    """What a change needs beside its host: how to converge, where events go, when to stop, and
    the transfers of weights that run, by host."""

    converge: Converge
    emit: Callable[[Event], None]
    operator: str
    is_interrupted: Callable[[], bool] = lambda: False
    transfers: Mapping[str, Transfer] = field(default_factory=dict)


@dataclass(slots=True)
class Ending:
    summary: str = "done"


@contextmanager
def locked(session: Session, operator: str, purpose: str) -> Iterator[None]:
    """Holds the host's lock. Raises LockHeld, which says by whom and since when."""
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    owner = {"who": operator, "since": now, "purpose": purpose}
    with session.hold(commands.lock(owner)) as (first, ended):
        if ended is not None:
            raise _lock_held(session, commands.parse_lock_owner(first))
        yield


def _lock_held(session: Session, owner: Mapping[str, Any]) -> QwenDeployError:
    return untouched(
        LockHeld,
        f"`{session.host}` is locked by {owner.get('who', 'somebody')} for "
        f"`{owner.get('purpose', 'a change')}` since {owner.get('since', 'an unknown time')}",
        session,
        hint="wait until it is done; the lock ends with the command that holds it",
    )


@contextmanager
def stage(run: Run, host: str, name: str) -> Iterator[Ending]:
    """Tells when a stage begins and ends; whoever is inside may say how it ended."""
    started = time.monotonic()
    ending = Ending()
    run.emit(StageStarted(host, name))
    yield ending
    run.emit(StageFinished(host, name, time.monotonic() - started, ending.summary))


def converge(prospect: Prospect, wanted: Wanted, run: Run) -> Converged:
    """One run of up.yml, while the weights travel beside it."""
    host = prospect.host
    transfer = run.transfers.get(host) if prospect.plan.brings else None
    with stage(run, host, "converge") as ending:

        def is_canceled() -> bool:
            return run.is_interrupted() or (transfer is not None and transfer.has_failed)

        done = run.converge.apply(
            "up.yml",
            _variables(prospect, wanted),
            files=_files(prospect, wanted.deployment),
            is_canceled=is_canceled,
        )
        ending.summary = done.status
    if transfer is not None and transfer.error and done.status != "done":
        return replace(done, status="failed", task="Bring the weights", message=transfer.error)
    return done


def _variables(prospect: Prospect, wanted: Wanted) -> dict[str, Any]:
    chosen = prospect.release
    return {
        **_package_variables(prospect, wanted),
        "qwen_stages": sorted({step.stage for step in prospect.plan.steps}),
        "qwen_host_files_dir": str(bundle.systemd_dir()),
        "qwen_runtime_venv_id": chosen.venv_id,
        "qwen_runtime_uv": str(wanted.uv),
        "qwen_runtime_lock": "{run}/requirements.lock",
        "qwen_runtime_pip_conf": "{run}/pip.conf",
        "qwen_runtime_python": chosen.python,
        "qwen_runtime_agent": commands.TRANSFER_AGENT,
        "qwen_runtime_status": commands.TRANSFER_STATUS,
        "qwen_model_dir": chosen.model_dir,
        "qwen_model_agent": commands.TRANSFER_AGENT,
        "qwen_model_status": commands.TRANSFER_STATUS,
        "qwen_service_release": chosen.id,
        "qwen_service_archive": "{run}/release.tar.gz",
        "qwen_service_port_changes": _port_changes(prospect),
        "qwen_service_key_files": _key_variables(prospect.key_files),
        "qwen_service_restart": prospect.plan.must_restart,
        "qwen_service_expired": list(prospect.plan.expired),
    }


def _package_variables(prospect: Prospect, wanted: Wanted) -> dict[str, Any]:
    """Where the operating system's and Python's packages come from."""
    pip, airgap = wanted.deployment.pip, wanted.bundle
    indexes = pip.indexes_beside(prospect.release.accelerator)
    return {
        "qwen_host_packages": list(wanted.packages),
        "qwen_runtime_index_url": "" if airgap else pip.resolved_index_url,
        "qwen_runtime_extra_index_urls": [] if airgap else list(indexes),
        "qwen_runtime_find_links": [] if airgap else list(pip.find_links),
        "qwen_runtime_ca_file": "" if airgap else pip.ca_file or "",
        "qwen_runtime_wheels_dir": release.model_dir(airgap.wheels) if airgap else "",
    }


def _port_changes(prospect: Prospect) -> bool:
    path = f"{release.PORT_DIR}/listen.conf"
    there = prospect.facts.digests.get(path)
    return there is not None and there != prospect.release.managed[path]


def _files(prospect: Prospect, deployment: Deployment) -> dict[str, bytes]:
    """What Ansible copies from its private directory; secrets among it."""
    written = prospect.key_files
    secret = {"keys": keys.render(written.keys)} if written else {}
    if written and written.operator_key:
        secret["operator.key"] = f"{written.operator_key}\n".encode()
    return {
        "release.tar.gz": prospect.release.pack(),
        "requirements.lock": prospect.release.lock,
        "pip.conf": release.pip_conf(deployment),
        **secret,
    }


def _key_variables(written: keys.KeyFiles | None) -> list[dict[str, str]]:
    if written is None:
        return []
    readable = {"src": "{run}/keys", "name": "keys", "mode": "0640", "group": "qwen"}
    private = {"src": "{run}/operator.key", "name": "operator.key", "mode": "0600", "group": "root"}
    return [private, readable] if written.operator_key else [readable]


def prove(session: Session, wanted_release: str, run: Run, seconds: float) -> probes.Readiness:
    """Waits until the host serves this release, as its own answers show."""
    host = session.host.name
    question = host_facts.question((), service=None)
    with stage(run, host, "ready") as ending:
        readiness = probes.wait_ready(
            lambda: ask(session, question),
            wanted_release,
            deadline_seconds=seconds,
            is_canceled=run.is_interrupted,
            tell=lambda status: run.emit(ProbeTried(host, status)),
        )
        ending.summary = "done" if readiness.is_ready else "failed"
    return readiness


def activate(session: Session, release_id: str, facts: Facts, run: Run) -> Converged:
    """Makes a release that lies on the host current again, and restarts the unit."""
    listen = {str(one["id"]): one.get("listen") for one in facts.releases}
    variables = {
        "qwen_service_release": release_id,
        "qwen_service_restart": True,
        "qwen_service_port_changes": listen.get(release_id) != listen.get(facts.current or ""),
    }
    with stage(run, session.host.name, "rollback"):
        return run.converge.apply("rollback.yml", variables)


def record(
    session: Session, run: Run, action: str, finished: HostFinished, *, tried: str | None = None
) -> None:
    """The audit line; `proven` marks releases that a later failure may fall back to, `tried` names
    the one that failed."""
    proven = finished.outcome in ("changed", "unchanged", "rolled back")
    line = {
        "who": run.operator,
        "action": action,
        "release": finished.release,
        "tried": tried,
        "previous": finished.previous,
        "outcome": finished.outcome,
        "proven": proven and finished.release is not None,
        "seconds": round(finished.seconds, 1),
    }
    session.run(commands.record(line), root=True)


def journal_evidence(session: Session) -> tuple[str, ...]:
    """The last lines of the unit's journal that the service itself wrote."""
    done = session.run(commands.journal("qwen.service", lines=40), root=True)
    lines = [line for line in done.stdout.splitlines() if " systemd[1]: " not in line]
    return tuple(line.split(": ", 1)[-1] for line in lines)[-EVIDENCE_LINES:]
