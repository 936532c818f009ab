"""The commands that change what is there: init, restart, rollback, down. Knows no SSH."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_deploy.cli import up
from qwen_deploy.cli.interrupt import interruptible
from qwen_deploy.cli.options import Common, YesOpt, add, command, open_sessions
from qwen_deploy.cli.turn import Change, in_turn, run_for
from qwen_deploy.errors import Refused, UsageError

if TYPE_CHECKING:
    from qwen_deploy.remote import Session
    from qwen_deploy.steps import Run


def register(app: typer.Typer) -> None:
    add(app, "init", init)
    command(app, "up")(up.up)
    command(app, "restart")(restart)
    command(app, "rollback")(rollback)
    command(app, "down")(down)


def init(
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="[USER@]ADDRESS[:PORT]", help="Host; may be repeated."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FOLDER", help="Folder of the checkpoint.")
    ] = None,
    path: Annotated[Path, typer.Argument(metavar="FILE")] = Path("qwen-deploy.yml"),
) -> None:
    """Write an annotated qwen-deploy.yml.

    qwen-deploy init --host root@192.168.110.131 --weights ./Qwen2.5-7B-Instruct

    qwen-deploy init staging.yml
    """
    from qwen_deploy import reference
    from qwen_deploy.inventory import parse_hosts

    parse_hosts(host or [])
    chosen: dict[str, Any] = {"hosts": host} if host else {}
    chosen |= {"model": {"source": str(weights)}} if weights else {}
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(reference.text(chosen))
    except FileExistsError as error:
        raise UsageError(f"{path}: exists already", hint=f"edit it, or: rm {path}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    typer.echo(f"wrote {path}", err=True)


def restart(common: Common) -> int:
    """Restart the unit and wait until the release is proven again.

    qwen-deploy restart --host root@192.168.110.131

    qwen-deploy restart
    """
    from qwen_deploy import rollout

    return _change(common, rollout.restart)


def rollback(
    common: Common,
    release: Annotated[
        str | None, typer.Argument(help="Release [default: the one proven before].")
    ] = None,
) -> int:
    """Make an earlier release current and prove it.

    qwen-deploy rollback --host root@192.168.110.131

    qwen-deploy rollback r-3f9c2a1b
    """
    from qwen_deploy import rollout

    return _change(common, lambda session, run: rollout.rollback(session, run, release))


def down(
    common: Common,
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Also remove weights, keys, user, records and packages."),
    ] = False,
    yes: YesOpt = False,
) -> int:
    """Remove the service, but keep weights, keys and records.

    qwen-deploy down --host root@192.168.110.131

    qwen-deploy down --purge --yes
    """
    from qwen_deploy import removal

    question = "Remove the service" + (" and everything it left behind?" if purge else "?")
    if not yes and not common.out.confirm(question):
        raise Refused("nothing was removed: nobody agreed", hint="qwen-deploy down --yes")
    return _change(common, lambda session, run: removal.down(session, run, purge=purge))


def _change(common: Common, change: Change) -> int:
    deployment = common.deployment()
    settings = common.ssh(deployment)
    with (
        open_sessions(common.hosts(deployment), settings, common.out) as sessions,
        interruptible(common.out) as is_interrupted,
    ):

        def run(session: Session) -> Run:
            return run_for(common.out, settings, session, is_interrupted)

        return in_turn(sessions, change, run, common.out)
