"""The commands about what weights lie on hosts: status, cancel, verify, list, prune. Knows no
SSH."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from qwen_deploy.cli import pull
from qwen_deploy.cli.options import Common, YesOpt, all_or_error, command, open_sessions
from qwen_deploy.errors import NeedsAttention, Refused
from qwen_deploy.sizes import megabytes

if TYPE_CHECKING:
    from qwen_deploy.inventory import Host
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
    from qwen_deploy.cli import render

    found = _each(common, lambda session: _looked_at(session, common))
    rows = []
    for session, (told, unfinished) in found.items():
        host = session.host
        fields = {"status": told, "unfinished": list(unfinished)}
        common.out.value({"event": "transfer", "host": host.name, **fields})
        shown = [told] if told or not unfinished else []
        shown += [{**one, "phase": render.UNFINISHED} for one in unfinished]
        rows += [(host.name, *render.transfer_cells(one)) for one in shown]
        for line in (*_remarks(told), *_ways_on(host, unfinished)):
            common.out.note(f"{host.name}  weights   {line}")
    common.out.table(STATUS_HEADER, rows)
    return 1 if any(_has_failed(told) for told, _ in found.values()) else 0


Unfinished = Sequence[Mapping[str, Any]]


def _looked_at(session: Session, common: Common) -> tuple[Mapping[str, Any], Unfinished]:
    """The transfer that runs or ran last, and those of which only bytes are left."""
    from qwen_deploy import agent, commands
    from qwen_deploy.weights import Transfer

    told = Transfer(session, common.out.event).look()
    if told.get("phase") not in (None, "done", "failed"):
        return told, ()
    unfinished = agent.listing(session)["unfinished"]
    if told.get("phase") != "done":
        # Of the one that ended, its own row tells.
        own = told.get("revision")
        return told, [one for one in unfinished if not told or one["revision"] != own]
    is_there = session.run(commands.has_folder(told["directory"]), root=True).ok
    return (told if is_there else {**told, "phase": REMOVED}), unfinished


def _remarks(told: Mapping[str, Any]) -> Iterator[str]:
    from qwen_deploy import fleet
    from qwen_deploy.cli import render

    if _has_failed(told):
        yield str(told["error"]["message"])
    elif told.get("phase") == REMOVED:
        yield f"brought, but {told['directory']} is gone now"
    elif reason := render.waits_for(told):
        is_ours = any(one["name"] == fleet.OPERATOR for one in told["sources"])
        way = "; it goes on with the same `weights pull`, where these weights lie"
        yield f"nothing comes: {reason}{way if is_ours else ''}"


def _ways_on(host: Host, unfinished: Unfinished) -> Iterator[str]:
    from qwen_deploy.cli import render

    for one in unfinished:
        kept = f"{megabytes(one['bytes_done'])} of {megabytes(one['bytes_total'])}"
        way = f"qwen-deploy {render.going_on(host, one)}"
        yield f"{kept} of {one['model']} {one['revision']} are kept, to go on: {way}"


def _has_failed(status: Mapping[str, Any]) -> bool:
    """One that somebody ended, or that went down with its host, has not failed."""
    is_over = status.get("phase") == "failed"
    return is_over and status["error"]["kind"] not in ("stopped", "down")


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
            stage = "damaged" if verdict.get("is_there", True) else "missing"
            common.out.note(f"{host}  {stage}   {render.problem(verdict, problem)}")
        damaged += [] if verdict["ok"] else [host]
    common.out.table(("HOST", "MODEL", "REVISION", "SIZE", "VERDICT"), rows)
    if damaged:
        raise NeedsAttention(
            f"weights are not as they were proven on {', '.join(dict.fromkeys(damaged))}",
            state="a service that runs goes on with what it has loaded",
            hint="qwen-deploy weights pull, with the options that brought them; it mends them",
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
        for line in _list_notes(session.host, listing):
            common.out.note(f"{host}  {line}")
    common.out.table(LIST_HEADER, rows)
    return 0


def _list_notes(host: Host, listing: Mapping[str, Any]) -> Iterator[str]:
    from qwen_deploy.cli import render

    for model in listing["models"]:
        if said := render.trouble(host, model):
            yield f"weights   {said}"
    for way in _ways_on(host, listing["unfinished"]):
        yield f"partial   {way}"
    if listing["partial_bytes"]:
        yield f"partial   {megabytes(listing['partial_bytes'])} of unfinished transfers"
    if listing["wheels_bytes"]:
        yield f"wheels    {megabytes(listing['wheels_bytes'])} of Python packages from a bundle"


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
        if not needed:
            common.out.note("nothing to remove")
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
