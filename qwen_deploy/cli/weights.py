"""The commands about what weights lie on hosts: status, cancel, verify, list, prune. Knows no
SSH."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from qwen_deploy.cli import pull
from qwen_deploy.cli.options import Common, YesOpt, all_or_error, command, open_sessions
from qwen_deploy.errors import NeedsAttention, Refused
from qwen_deploy.sizes import megabytes

if TYPE_CHECKING:
    from qwen_deploy.remote import Session

Answer = TypeVar("Answer")
STATUS_HEADER = ("HOST", "PHASE", "MODEL", "REVISION", "DONE", "RATE", "LEFT", "SOURCE")
REMOVED = "removed"  # what `status` adds to the phases of the agent
LIST_HEADER = ("HOST", "MODEL", "REVISION", "SIZE", "PROOF", "VERIFIED", "USED BY")


def register(parent: typer.Typer) -> None:
    app = typer.Typer(
        help="Bring, prove, list and remove model weights on hosts.", no_args_is_help=True
    )
    command(app, "pull")(pull.pull)
    command(app, "status")(status)
    command(app, "cancel")(cancel)
    command(app, "verify")(verify)
    command(app, "list")(list_)
    command(app, "prune")(prune)
    parent.add_typer(app, name="weights")


@contextmanager
def _sessions(common: Common) -> Iterator[tuple[Session, ...]]:
    deployment = common.deployment()
    with open_sessions(common.hosts(deployment), common.ssh(deployment), common.out) as sessions:
        yield sessions


def _each(common: Common, ask: Callable[[Session], Answer]) -> dict[Session, Answer]:
    """What every host answered."""
    from qwen_deploy import parallel

    with _sessions(common) as sessions:
        answers = all_or_error(parallel.each(sessions, ask), common.out)
        return dict(zip(sessions, answers, strict=True))


def status(common: Common) -> int:
    """Show the transfer of weights on each host.

    qwen-deploy weights status --host root@192.168.110.131

    qwen-deploy weights status --output json
    """
    from qwen_deploy import commands
    from qwen_deploy.cli import render
    from qwen_deploy.weights import Transfer

    def look(session: Session) -> Mapping[str, Any]:
        told = Transfer(session, common.out.event).look()
        if told.get("phase") != "done":
            return told
        is_there = session.run(commands.has_folder(told["directory"]), root=True).ok
        return told if is_there else {**told, "phase": REMOVED}

    found = _each(common, look)
    rows = []
    for session, told in found.items():
        host = session.host.name
        common.out.value({"event": "transfer", "host": host, "status": told})
        rows.append((host, *render.transfer_cells(told)))
        if _has_failed(told):
            common.out.note(f"{host}  weights   {told['error']['message']}")
        if told.get("phase") == REMOVED:
            common.out.note(f"{host}  weights   brought, but {told['directory']} is gone now")
    common.out.table(STATUS_HEADER, rows)
    return 1 if any(_has_failed(told) for told in found.values()) else 0


def _has_failed(status: Mapping[str, Any]) -> bool:
    """Somebody who ended it is no failure."""
    return status.get("phase") == "failed" and status["error"]["kind"] != "stopped"


def cancel(common: Common) -> int:
    """End the transfer of weights on each host; what it brought stays for the next one.

    qwen-deploy weights cancel --host root@192.168.110.131

    qwen-deploy weights cancel
    """
    from qwen_deploy import commands

    def end(session: Session) -> str:
        return session.run(commands.cancel_transfer(), root=True).stdout.strip()

    found = _each(common, end)
    for session, outcome in found.items():
        common.out.value({"event": "cancel", "host": session.host.name, "outcome": outcome})
    common.out.table(("HOST", "OUTCOME"), [(one.host.name, what) for one, what in found.items()])
    return 0


def verify(
    common: Common,
    quick: Annotated[bool, typer.Option("--quick", help="Names and sizes only.")] = False,
) -> int:
    """Prove every byte of the weights on each host again, without a network.

    qwen-deploy weights verify --host root@192.168.110.131

    qwen-deploy weights verify --quick
    """
    from qwen_deploy import agent
    from qwen_deploy.cli import render

    found = _each(common, lambda session: agent.verify(session, quick=quick))
    rows = []
    damaged = []
    for session, verdict in ((one, verdict) for one, all_ in found.items() for verdict in all_):
        host = session.host.name
        common.out.value({"event": "verified", "host": host, **verdict})
        rows.append((host, *render.verdict_cells(verdict)))
        for problem in verdict["problems"]:
            common.out.note(f"{host}  damaged   {render.problem(verdict, problem)}")
        damaged += [] if verdict["ok"] else [host]
    common.out.table(("HOST", "MODEL", "REVISION", "SIZE", "VERDICT"), rows)
    if damaged:
        raise NeedsAttention(
            f"weights are not as they were proven on {', '.join(dict.fromkeys(damaged))}",
            state="the services run on with what they have loaded",
            hint="qwen-deploy weights pull --repair, with the options that brought them",
        )
    return 0


def list_(common: Common) -> int:
    """List the models on each host: how large, how proven, and which releases need them.

    qwen-deploy weights list --host root@192.168.110.131

    qwen-deploy weights list --output json
    """
    from qwen_deploy import agent
    from qwen_deploy.cli import render

    found = _each(common, agent.listing)
    rows = []
    for session, listing in found.items():
        host = session.host.name
        common.out.value({"event": "weights_list", "host": host, **listing})
        rows += [(host, *render.model_cells(one)) for one in listing["models"]]
        if listing["partial_bytes"]:
            size = megabytes(listing["partial_bytes"])
            common.out.note(f"{host}  partial   {size} of unfinished transfers")
    common.out.table(LIST_HEADER, rows)
    return 0


def prune(common: Common, yes: YesOpt = False) -> int:
    """Remove weights that no release on the host needs, and what unfinished transfers left.

    qwen-deploy weights prune --host root@192.168.110.131

    qwen-deploy weights prune --yes
    """
    from qwen_deploy import agent, parallel, remote, steps

    def remove(session: Session) -> Mapping[str, Any]:
        with steps.locked(session, remote.operator(), "weights prune"):
            return agent.prune(session, dry_run=False)

    with _sessions(common) as sessions:
        asked = parallel.each(sessions, lambda session: agent.prune(session, dry_run=True))
        would = dict(zip(sessions, all_or_error(asked, common.out), strict=True))
        _tell_removals(common, would, "removes" if yes else "would remove")
        needed = [session for session, told in would.items() if told["removed"]]
        if needed and not yes and not common.out.confirm(f"Remove this on {len(needed)} hosts?"):
            raise Refused("nothing was removed: nobody agreed", hint="the same with --yes")
        removed = all_or_error(parallel.each(needed, remove), common.out)
    rows = [
        (session.host.name, megabytes(told["bytes"]))
        for session, told in zip(needed, removed, strict=True)
    ]
    for session, told in zip(needed, removed, strict=True):
        common.out.value({"event": "pruned", "host": session.host.name, **told})
    common.out.table(("HOST", "FREED"), rows)
    return 0


def _tell_removals(common: Common, found: Mapping[Session, Mapping[str, Any]], what: str) -> None:
    for session, told in found.items():
        for one in told["removed"]:
            size = megabytes(one["bytes"])
            common.out.note(f"{session.host.name}  prune     {what} {one['path']} ({size})")
