"""The runbook: what happens to a host in which order, and what follows when a step fails.

Lock -> weights on their way -> look again -> converge -> prove -> record, or back to the last
proven release, proven too.
Knows neither SSH, nor Ansible, nor the terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from qwen_weights.manifest import Manifest

from qwen_deploy import facts as host_facts
from qwen_deploy import fleet, probes, steps
from qwen_deploy.chain import Member
from qwen_deploy.converge import Converged
from qwen_deploy.errors import (
    Interrupted,
    NeedsAttention,
    QwenDeployError,
    Refused,
    RolloutFailed,
    Unreachable,
)
from qwen_deploy.events import Event, HostFinished, KeyCreated, Outcome
from qwen_deploy.facts import Facts
from qwen_deploy.prospect import EVIDENCE_LINES, Prospect, Wanted, ask, look, refuse, untouched
from qwen_deploy.remote import Session
from qwen_deploy.steps import Run
from qwen_deploy.supply import Supply
from qwen_deploy.weights import Order, Transfer

# How long a release that was proven before may take to be ready again.
RETURN_SECONDS = 1800.0
SERVED = host_facts.question((), service=None)


@contextmanager
def prepared(
    prospects: Sequence[Prospect],
    wanted: Wanted,
    supply: Supply,
    operator: str,
    emit: Callable[[Event], None],
) -> Iterator[Mapping[str, Transfer]]:
    """Locks every host that will change, and starts its weights on their way.

    Raises, before anything happened anywhere, where preflight refuses one of them or somebody else
    holds its lock."""
    changing = [one for one in prospects if not one.is_unchanged]
    for one in changing:
        refuse(one)
    order = Order((supply.pinned.manifest,), wanted.deployment.weights)
    with ExitStack() as stack:
        for one in changing:
            stack.enter_context(steps.locked(one.session, operator, "up"))
        yield stack.enter_context(fleet.bring(members(prospects, supply), supply, order, emit))


def members(prospects: Sequence[Prospect], supply: Supply) -> list[Member]:
    """The hosts as those who read weights, or have them."""
    return [
        supply.member(
            one.session,
            one.facts,
            _proven(one.plan.brings, supply) or (supply.pinned.manifest,),
            holds=not one.plan.brings,
        )
        for one in prospects
    ]


def _proven(brings: Sequence[Manifest], supply: Supply) -> tuple[Manifest, ...]:
    """The model as it was compared with a hub meanwhile."""
    model = supply.pinned.manifest
    return tuple(model if one.revision == model.revision else one for one in brings)


def up(prospect: Prospect, wanted: Wanted, run: Run) -> HostFinished:
    """Takes one host, `prepared` before, to its release. Raises with the state of the host where
    that did not work."""
    started = time.monotonic()
    if prospect.is_unchanged:
        return _unchanged(prospect, run, started)
    # Somebody may have changed the host before the lock was ours.
    prospect = look(prospect.session, wanted)
    try:
        return _forward(prospect, wanted, run, started)
    except QwenDeployError as failure:
        raise _back(prospect, run, failure, started) from failure


def _unchanged(prospect: Prospect, run: Run, started: float) -> HostFinished:
    """Nothing to do; a proof that nobody wrote down, as after a power loss, is written down now."""
    finished = _finished(prospect, "unchanged", prospect.release.id, started)
    if prospect.facts.proven[-1:] != (prospect.release.id,):
        with steps.locked(prospect.session, run.operator, "up"):
            steps.record(prospect.session, run, "up", finished)
    return finished


def _forward(prospect: Prospect, wanted: Wanted, run: Run, started: float) -> HostFinished:
    # Before it is written: nobody could be told of it after a kill.
    _tell_key(prospect, wanted, run)
    converged = steps.converge(prospect, wanted, run)
    if converged.status != "done":
        raise _not_converged(prospect, converged)
    patience = float(wanted.deployment.service.ready_seconds)
    readiness = steps.prove(prospect.session, prospect.release.id, run, patience)
    if not readiness.is_ready:
        raise _not_ready(prospect, readiness)
    finished = _finished(prospect, "changed", prospect.release.id, started, converged.changed)
    steps.record(prospect.session, run, "up", finished)
    return finished


def _tell_key(prospect: Prospect, wanted: Wanted, run: Run) -> None:
    written = prospect.key_files
    if written and written.adds_user_key and wanted.user_key.is_made:
        run.emit(KeyCreated(prospect.host, wanted.user_key.key))


def _not_ready(prospect: Prospect, readiness: probes.Readiness) -> QwenDeployError:
    if readiness.reason == probes.INTERRUPTED:
        return Interrupted("interrupted while the release was proven", host=prospect.host)
    return QwenDeployError(
        f"{prospect.release.id} on `{prospect.host}` is not ready: {readiness.reason}",
        host=prospect.host,
        evidence=steps.journal_evidence(prospect.session),
        origin=steps.JOURNAL_ORIGIN,
        hint=f"qwen-deploy logs --host {prospect.session.host.text} -n 200",
    )


def _not_converged(prospect: Prospect, converged: Converged) -> QwenDeployError:
    host, task = prospect.host, converged.task
    if converged.status == "canceled":
        return Interrupted(f"interrupted at `{task or 'the first task'}`", host=host)
    if converged.status == "unreachable":
        message = f"lost the connection to `{host}` at `{task}`"
    else:
        message = f"`{task or 'the playbook'}` failed on `{host}`"
    return QwenDeployError(
        message,
        host=host,
        evidence=tuple(converged.message.splitlines()[-EVIDENCE_LINES:]),
        origin=f"output of the task on {host}",
    )


def _back(
    prospect: Prospect, run: Run, failure: QwenDeployError, started: float
) -> QwenDeployError:
    """Sees to it that the host serves a proven release, and completes the error with its state."""
    try:
        outcome, state, serves = _restore(prospect, run)
    except QwenDeployError as error:
        outcome, serves = "needs attention", None
        state = f"nobody can tell what {prospect.host} serves: {error.message}"
    finished = _finished(prospect, outcome, serves, started)
    with suppress(Unreachable):  # the state has said so already
        steps.record(prospect.session, run, "up", finished, tried=prospect.release.id)
    return _completed(failure, state, finished)


def _restore(prospect: Prospect, run: Run) -> tuple[Outcome, str, str | None]:
    """Outcome, a sentence, and the proven release that the host serves now."""
    host, session = prospect.host, prospect.session
    facts = ask(session, SERVED)
    answer = facts.answer
    is_well = answer is not None and answer.is_ready and answer.release == facts.current
    if is_well and facts.current == prospect.plan.previous:
        return "rolled back", f"{host} still serves {facts.current}", facts.current
    previous = fallback(facts, unless=prospect.release.id)
    if previous is None:
        if facts.current == prospect.release.id:
            run.converge.apply("stop.yml", {})
        return "needs attention", f"{host} serves nothing: no other release was proven", None
    # Who interrupts the way forward still wants the way back.
    patient = replace(run, is_interrupted=lambda: False)
    steps.activate(session, previous, facts, patient)
    back = steps.prove(session, previous, patient, RETURN_SECONDS)
    if not back.is_ready:
        return "needs attention", f"{host}: {previous} is not ready either: {back.reason}", None
    return "rolled back", f"{host} was rolled back and serves {previous}", previous


def fallback(facts: Facts, *, unless: str | None) -> str | None:
    """The release that was proven last, apart from one."""
    return next((one for one in reversed(facts.proven) if one != unless), None)


def _completed(failure: QwenDeployError, state: str, finished: HostFinished) -> QwenDeployError:
    kind: type[QwenDeployError] = RolloutFailed if finished.release else NeedsAttention
    # An interruption stays one, so that scripts can tell it from a failure.
    kind = Interrupted if isinstance(failure, Interrupted) else kind
    error = kind(
        failure.message,
        host=failure.host,
        hint=failure.hint,
        state=state,
        evidence=failure.evidence,
        origin=failure.origin,
        finished=finished,
    )
    error.outcome = finished.outcome
    return error


def _finished(
    prospect: Prospect, outcome: Outcome, serves: str | None, started: float, changed: int = 0
) -> HostFinished:
    previous = prospect.plan.previous
    seconds = time.monotonic() - started
    return HostFinished(prospect.host, outcome, serves, previous, changed, seconds)


def restart(session: Session, run: Run) -> HostFinished:
    """Restarts the unit and proves the same release again."""
    started = time.monotonic()
    with steps.locked(session, run.operator, "restart"):
        current = _current(session)
        done = run.converge.apply("restart.yml", {})
        return _prove_change(session, run, "restart", current, current, done, started)


def rollback(session: Session, run: Run, to: str | None) -> HostFinished:
    """Makes an earlier release current, the last proven one where none is named, and proves it."""
    started = time.monotonic()
    host = session.host.name
    with steps.locked(session, run.operator, "rollback"):
        facts = ask(session, SERVED)
        target = to or fallback(facts, unless=facts.current)
        there = {str(one["id"]) for one in facts.releases}
        if target is None or target not in there:
            listed = ", ".join(sorted(there - {facts.current or ""})) or "none"
            raise untouched(
                Refused,
                f"`{host}` has no {f'release {target}' if to else 'earlier release'} to return to",
                session,
                hint=f"other releases on {host}: {listed}",
            )
        done = steps.activate(session, target, facts, run)
        return _prove_change(session, run, "rollback", target, facts.current, done, started)


def _current(session: Session) -> str:
    current = ask(session, SERVED).current
    if current is None:
        hint = f"qwen-deploy up --host {session.host.text}"
        raise untouched(Refused, f"`{session.host}` has no release", session, hint=hint)
    return current


def _prove_change(
    session: Session,
    run: Run,
    action: str,
    target: str,
    previous: str | None,
    done: Converged,
    started: float,
) -> HostFinished:
    host = session.host.name
    readiness = steps.prove(session, target, run, RETURN_SECONDS) if done.status == "done" else None
    is_ready = readiness is not None and readiness.is_ready
    seconds = time.monotonic() - started
    outcome: Outcome = "changed" if is_ready else "needs attention"
    finished = HostFinished(host, outcome, target, previous, done.changed, seconds)
    steps.record(session, run, action, finished)
    if is_ready:
        return finished
    if readiness and readiness.reason == probes.INTERRUPTED:
        state = f"{host} was told to serve {target}, which is not proven yet"
        raise Interrupted(f"interrupted at the {action}", host=host, state=state)
    reason = readiness.reason if readiness else f"`{done.task}` failed: {done.message}"
    raise NeedsAttention(
        f"{target} on `{host}` is not ready: {reason}",
        host=host,
        state=f"{host} needs attention",
        evidence=steps.journal_evidence(session),
        origin=steps.JOURNAL_ORIGIN,
        hint=f"qwen-deploy {_way_out(session, target)} --host {session.host.text}",
    )


def _way_out(session: Session, broken: str) -> str:
    """The command that leads to a release that works."""
    other = fallback(ask(session, SERVED), unless=broken)
    return f"rollback {other}" if other else "up"
