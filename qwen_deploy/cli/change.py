"""The commands that change something: init, up, restart, rollback, down. Knows no SSH."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_deploy.cli.options import Common, add, all_or_error, command, open_sessions
from qwen_deploy.errors import QwenDeployError, Refused, UsageError, gravest

if TYPE_CHECKING:
    from qwen_deploy.cli.output import Output
    from qwen_deploy.config import Deployment
    from qwen_deploy.events import HostFinished
    from qwen_deploy.openssh import SshSettings
    from qwen_deploy.prospect import Prospect, Wanted
    from qwen_deploy.remote import Session
    from qwen_deploy.steps import Run

YES = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Change = Callable[["Session", "Run"], "HostFinished"]


def register(app: typer.Typer) -> None:
    add(app, "init", init)
    command(app, "up")(up)
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
    from qwen_deploy import config
    from qwen_deploy.inventory import parse_hosts

    parse_hosts(host or [])
    chosen: dict[str, Any] = {"hosts": host} if host else {}
    chosen |= {"model": {"source": str(weights)}} if weights else {}
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(config.reference(chosen))
    except FileExistsError as error:
        raise UsageError(f"{path}: exists already", hint=f"edit it, or: rm {path}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    typer.echo(f"wrote {path}", err=True)


def up(
    common: Common,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FOLDER", help="Folder of the checkpoint."),
    ] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to serve on.")] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Serve without asking for an API key.")
    ] = False,
    new_api_key: Annotated[
        bool, typer.Option("--new-api-key", help="Replace the API key and show the new one.")
    ] = False,
    yes: YES = False,
) -> int:
    """Bring hosts to a running, proven service.

    qwen-deploy up --host root@192.168.110.131 --weights ./Qwen2.5-7B-Instruct

    qwen-deploy up --yes --output json
    """
    from qwen_deploy import config, parallel, prospect, rollout

    deployment = common.deployment()
    own: dict[str, dict[str, Any]] = {
        "model": {"source": str(weights) if weights else None},
        "service": {"port": port, "auth": False if no_auth else None},
    }
    deployment = config.override(deployment, own)
    settings = common.ssh(deployment)
    hosts = common.hosts(deployment)
    wanted = _wanted(deployment, replace_key=new_api_key)
    with open_sessions(hosts, settings, common.out) as sessions:
        looked = parallel.each(sessions, lambda session: prospect.look(session, wanted))
        prospects = all_or_error(looked, common.out)
        if not _agreed(prospects, common.out, yes):
            raise Refused(
                "nothing was changed: nobody agreed", hint="the same command again with --yes"
            )
        todo = {one.host: one for one in prospects}
        return _in_turn(
            common.out,
            settings,
            sessions,
            lambda session, run: rollout.up(todo[session.host.name], wanted, run),
        )


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
    yes: YES = False,
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
    with open_sessions(common.hosts(deployment), settings, common.out) as sessions:
        return _in_turn(common.out, settings, sessions, change)


def _wanted(deployment: Deployment, *, replace_key: bool) -> Wanted:
    from qwen_deploy import folder, keys, prospect

    if deployment.model.source is None:
        raise UsageError(
            "no weights are named: give --weights, or `model: source` in qwen-deploy.yml",
            hint="qwen-deploy up --weights ./Qwen2.5-7B-Instruct",
        )
    report = folder.inspect(
        Path(deployment.model.source).expanduser(),
        model=deployment.model.name,
        cache_path=folder.default_cache_path(),
    )
    path = deployment.service.api_key_file
    user_key = (
        keys.UserKey(keys.load(path))
        if path
        else keys.UserKey(keys.new_key(), is_made=True, replaces=replace_key)
    )
    return prospect.want(deployment, report, user_key)


def _agreed(prospects: Sequence[Prospect], out: Output, yes: bool) -> bool:
    """Shows the plan and the findings; asks once where something would change."""
    changing = [one for one in prospects if not one.is_unchanged]
    for one in prospects:
        steps = [{"stage": step.stage, "summary": step.summary} for step in one.plan.steps]
        out.value({"event": "plan", "host": one.host, "release": one.release.id, "steps": steps})
    for one in changing:
        for step in one.plan.steps:
            out.note(f"{one.host}  plan      {step.stage}: {step.summary}")
        for finding in one.findings:
            out.note(f"{one.host}  {finding.level}  {finding.message}")
    if not changing or yes or any(f.level == "refusal" for one in changing for f in one.findings):
        return True
    return out.confirm(f"Change {len(changing)} of {len(prospects)} hosts?")


def _in_turn(
    out: Output, settings: SshSettings, sessions: Sequence[Session], change: Change
) -> int:
    """One host after the other; after a failure the rest stays untouched."""
    from qwen_deploy.events import HostFinished

    codes: list[int] = []
    results: list[HostFinished] = []
    with _interruptible(out) as is_interrupted:
        for session in sessions:
            host = session.host.name
            if gravest(tuple(codes)):
                results.append(HostFinished(host, "not tried", None, None, 0, 0.0))
                continue
            try:
                results.append(change(session, _run(out, settings, session, is_interrupted)))
                codes.append(0)
            except QwenDeployError as error:
                out.error(error)
                failed = HostFinished(host, error.outcome, None, None, 0, 0.0)
                results.append(error.finished or failed)
                codes.append(error.exit_code)
    _print_results(out, results)
    return gravest(tuple(codes))


def _print_results(out: Output, results: Sequence[HostFinished]) -> None:
    from qwen_deploy.cli import render

    for one in results:
        out.event(one)
    out.table(render.RESULT_HEADER, [render.result_row(one) for one in results])


def _run(
    out: Output, settings: SshSettings, session: Session, is_interrupted: Callable[[], bool]
) -> Run:
    from qwen_deploy import openssh, remote
    from qwen_deploy.converge import Converge, Target
    from qwen_deploy.steps import Run

    target = Target(
        host=session.host,
        user=session.user,
        key_file=settings.key_file,
        ssh_arguments=openssh.arguments(settings),
        become=session.user != "root",
        sudo_password=settings.sudo_password,
    )
    return Run(
        converge=Converge(target, out.event),
        emit=out.event,
        operator=remote.operator(),
        is_interrupted=is_interrupted,
    )


@contextmanager
def _interruptible(out: Output) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C ends the step in hand and undoes it; the second leaves at once."""
    pressed: list[int] = []

    def note(number: int, _frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)
        out.note("interrupting; press Ctrl-C again to leave at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(pressed)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
