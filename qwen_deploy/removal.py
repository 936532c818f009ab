"""Takes the service off a host. What stays without `purge`: weights, keys, records, the user."""

from __future__ import annotations

import json
import time

from qwen_deploy import commands, steps
from qwen_deploy import facts as host_facts
from qwen_deploy.converge import ASYNC_DIR
from qwen_deploy.errors import NeedsAttention, Unreachable
from qwen_deploy.events import HostFinished
from qwen_deploy.facts import Facts
from qwen_deploy.prospect import ask
from qwen_deploy.release import ETC, INSTALLED, PORT_DIR, ROOT, STATE
from qwen_deploy.remote import Session
from qwen_deploy.steps import Run

PACKAGES_RECORD = f"{STATE}/packages.json"
SERVICE_PATHS = (
    *INSTALLED.values(),
    PORT_DIR,
    "/var/cache/qwen",
    ROOT,
    ASYNC_DIR,
)
PURGED_PATHS = (ETC, STATE, commands.TRANSFER_DIR)


def down(session: Session, run: Run, *, purge: bool) -> HostFinished:
    """Removes the service; a host that never had it is unchanged."""
    started, host = time.monotonic(), session.host.name
    with steps.locked(session, run.operator, "down"):
        question = host_facts.question((), service=None, probe="none", host_paths=(STATE,))
        facts = ask(session, question)
        has_service = facts.current is not None or any(facts.releases) or _has_unit(facts)
        if not has_service and not (purge and facts.digests[STATE]):
            seconds = time.monotonic() - started
            return HostFinished(host, "unchanged", None, None, 0, seconds)
        if purge:  # or a transfer would bring back what is removed
            session.run(commands.stop_transfer(), root=True)
        with steps.stage(run, host, "down"):
            done = run.converge.apply("down.yml", _variables(session, facts, purge))
        if done.status != "done":
            raise NeedsAttention(
                f"`{done.task}` failed on `{host}`",
                host=host,
                state=f"{host} is partly removed",
                evidence=tuple(done.message.splitlines()[-5:]),
                origin=f"output of the task on {host}",
                hint=f"qwen-deploy down --host {host}",
            )
        seconds = time.monotonic() - started
        finished = HostFinished(host, "changed", None, facts.current, done.changed, seconds)
        if not purge:
            steps.record(session, run, "down", finished)
    session.run(commands.forget_runs())
    if purge:
        session.run(commands.remove_lock(), root=True)
    return finished


def _has_unit(facts: Facts) -> bool:
    return bool(facts.unit.get("FragmentPath"))


def _variables(session: Session, facts: Facts, purge: bool) -> dict[str, object]:
    added = _packages_added(session) if purge else []
    return {
        "qwen_service_units": [
            unit for unit in commands.UNITS if facts.units.get(unit, {}).get("FragmentPath")
        ],
        "qwen_service_purge": purge,
        "qwen_service_packages_added": added,
        "qwen_service_lfs_added": "git-lfs" in added,
        "qwen_service_paths": [*SERVICE_PATHS, *(PURGED_PATHS if purge else ())],
    }


def _packages_added(session: Session) -> list[str]:
    done = session.run(commands.read_file(PACKAGES_RECORD), root=True)
    try:
        return [str(name) for name in json.loads(done.stdout)] if done.ok else []
    except ValueError as error:
        raise Unreachable(f"{PACKAGES_RECORD} on `{session.host}` is not JSON") from error
