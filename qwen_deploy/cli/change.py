"""The commands that change something: init, up, restart, rollback, down. Knows no SSH."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_deploy.cli.interrupt import interruptible
from qwen_deploy.cli.options import (
    BundleOpt,
    Common,
    FanOutOpt,
    LimitRateOpt,
    ModelOpt,
    RefreshOpt,
    RevisionOpt,
    WeightsOpt,
    YesOpt,
    add,
    all_or_error,
    command,
    open_sessions,
    weights_overrides,
)
from qwen_deploy.errors import QwenDeployError, Refused, UsageError, gravest

if TYPE_CHECKING:
    from qwen_deploy.airgap import Bundle
    from qwen_deploy.cli.output import Output
    from qwen_deploy.config import Deployment
    from qwen_deploy.events import HostFinished
    from qwen_deploy.keys import UserKey
    from qwen_deploy.openssh import SshSettings
    from qwen_deploy.pin import Choice
    from qwen_deploy.prospect import Prospect, Wanted
    from qwen_deploy.remote import Session
    from qwen_deploy.steps import Run
    from qwen_deploy.supply import Route, Supply

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


def up(
    common: Common,
    weights: WeightsOpt = None,
    model: ModelOpt = None,
    revision: RevisionOpt = None,
    refresh: RefreshOpt = False,
    limit_rate: LimitRateOpt = None,
    fan_out: FanOutOpt = None,
    bundle: BundleOpt = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to serve on.")] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Serve without asking for an API key.")
    ] = False,
    new_api_key: Annotated[
        bool, typer.Option("--new-api-key", help="Replace the API key and show the new one.")
    ] = False,
    yes: YesOpt = False,
) -> int:
    """Bring hosts to a running, proven service.

    qwen-deploy up --host root@192.168.110.131 --model Qwen/Qwen2.5-7B-Instruct

    qwen-deploy up --weights ./Qwen2.5-7B-Instruct --yes --output json
    """
    from qwen_deploy import airgap, config, pin, prospect

    own = weights_overrides(weights, model, revision, limit_rate, fan_out)
    own["service"] = {"port": port, "auth": False if no_auth else None}
    deployment = config.override(common.deployment(), own)
    packed = _opened(bundle, weights or model or revision)
    deployment = airgap.settle(deployment, packed) if packed else deployment
    user_key = _user_key(deployment, replace_key=new_api_key)
    settings = common.ssh(deployment)
    hosts = common.hosts(deployment)
    choice = pin.of_bundle(packed) if packed else pin.here(deployment, common.out.reading)
    with (
        open_sessions(hosts, settings, common.out) as sessions,
        packed.uv() if packed else nullcontext() as uv,
    ):
        choice = choice or pin.choose(sessions, deployment, refresh=refresh)
        wanted = prospect.want(deployment, choice.pinned, user_key, bundle=packed, uv=uv)
        fleet = _looked(sessions, wanted, choice, common.out)
        if not _agreed(fleet, common.out, yes):
            raise Refused(
                "nothing was changed: nobody agreed", hint="the same command again with --yes"
            )
        return _up(fleet, wanted, settings, common.out)


def _opened(path: Path | None, named: str | None) -> Bundle | None:
    from qwen_deploy import airgap

    if path is None:
        return None
    if named:
        raise UsageError(f"{path} brings its own model, so `{named}` cannot be asked for beside it")
    return airgap.open(path)


@dataclass(frozen=True, slots=True)
class Looked:
    """All hosts before they are touched, and how their weights will come."""

    prospects: tuple[Prospect, ...]
    supply: Supply
    routes: Mapping[str, Route]


def _looked(sessions: Sequence[Session], wanted: Wanted, choice: Choice, out: Output) -> Looked:
    from qwen_deploy import parallel, pin, prospect, rollout

    looked = parallel.each(sessions, lambda session: prospect.look(session, wanted))
    prospects = all_or_error(looked, out)
    needy = [one.session for one in prospects if one.plan.brings]
    is_held = len(needy) < len(prospects)
    supply = pin.supply(needy, wanted.deployment, choice, is_held=is_held)
    members = rollout.members(prospects, supply)
    return Looked(prospects, supply, supply.routes(members, wanted.deployment.weights.fan_out))


def _up(looked: Looked, wanted: Wanted, settings: SshSettings, out: Output) -> int:
    from qwen_deploy import remote, rollout

    prospects = {one.host: one for one in looked.prospects}
    sessions = [one.session for one in looked.prospects]
    with interruptible(out) as is_interrupted, ExitStack() as stack:

        def run(session: Session) -> Run:
            return _run(out, settings, session, is_interrupted)

        def change(session: Session, one: Run) -> HostFinished:
            one = replace(one, transfers=transfers)
            return rollout.up(prospects[session.host.name], wanted, one)

        try:
            transfers = stack.enter_context(
                rollout.prepared(
                    looked.prospects, wanted, looked.supply, remote.operator(), out.event
                )
            )
        except QwenDeployError as error:
            return _refused(sessions, error, out)
        return _in_turn(sessions, change, run, out)


def _refused(sessions: Sequence[Session], error: QwenDeployError, out: Output) -> int:
    """Before any host was changed."""
    from qwen_deploy.events import HostFinished

    out.error(error)
    results = [
        HostFinished(one.host.name, outcome, None, None, 0, 0.0)
        for one in sessions
        for outcome in [error.outcome if one.host.name == error.host else "not tried"]
    ]
    _print_results(out, results)
    return error.exit_code


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
            return _run(common.out, settings, session, is_interrupted)

        return _in_turn(sessions, change, run, common.out)


def _user_key(deployment: Deployment, *, replace_key: bool) -> UserKey:
    from qwen_deploy import keys

    path = deployment.service.api_key_file
    if path:
        return keys.UserKey(keys.load(path))
    return keys.UserKey(keys.new_key(), is_made=True, replaces=replace_key)


def _agreed(looked: Looked, out: Output, yes: bool) -> bool:
    """Shows the plan and the findings; asks once where something would change."""
    changing = [one for one in looked.prospects if not one.is_unchanged]
    for one in looked.prospects:
        out.value({"event": "plan", **_plan_value(one, looked.routes.get(one.host))})
    for note in looked.supply.pinned.notes if changing else ():
        out.note(f"weights: {note}")
    for one in changing:
        for line in _plan_lines(one, looked.routes.get(one.host)):
            out.note(f"{one.host}  plan      {line}")
        for finding in one.findings:
            out.note(f"{one.host}  {finding.level}  {finding.message}")
    if not changing or yes or any(f.level == "refusal" for one in changing for f in one.findings):
        return True
    return out.confirm(f"Change {len(changing)} of {len(looked.prospects)} hosts?")


def _plan_value(one: Prospect, route: Route | None) -> dict[str, Any]:
    steps = [{"stage": step.stage, "summary": step.summary} for step in one.plan.steps]
    value: dict[str, Any] = {"host": one.host, "release": one.release.id, "steps": steps}
    if route is not None:
        missing = one.plan.transfer_bytes
        eta = route.eta_seconds(missing)
        value["weights"] = {"bytes": missing, "from": route.text, "eta_seconds": eta}
    return value


def _plan_lines(one: Prospect, route: Route | None) -> Iterator[str]:
    from qwen_deploy.cli import render

    for step in one.plan.steps:
        way = f" {render.way(one.plan.transfer_bytes, route)}" if route else ""
        yield f"{step.stage}: {step.summary}{way if step.stage == 'weights' else ''}"


def _in_turn(
    sessions: Sequence[Session], change: Change, run: Callable[[Session], Run], out: Output
) -> int:
    """One host after the other; after a failure the rest stays untouched."""
    from qwen_deploy.events import HostFinished

    codes: list[int] = []
    results: list[HostFinished] = []
    for session in sessions:
        host = session.host.name
        if gravest(tuple(codes)):
            results.append(HostFinished(host, "not tried", None, None, 0, 0.0))
            continue
        try:
            results.append(change(session, run(session)))
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
