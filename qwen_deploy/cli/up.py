"""`up`: looks at all hosts, shows what would change, asks once, and takes them there. Knows no
SSH."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_deploy.cli.interrupt import interruptible
from qwen_deploy.cli.options import (
    BundleOpt,
    Common,
    ModelOptions,
    TransferOptions,
    YesOpt,
    all_or_error,
    filed_as,
    open_sessions,
)
from qwen_deploy.cli.turn import in_turn, print_results, run_for
from qwen_deploy.errors import QwenDeployError, Refused, UsageError

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


def up(
    common: Common,
    model: ModelOptions,
    transfer: TransferOptions,
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
    from qwen_deploy import airgap, config, pin, prospect, sources

    service = {"port": port, "auth": False if no_auth else None}
    own = {**model.overrides(), **transfer.overrides(), "service": service}
    given = common.deployment()
    deployment = config.override(given, own)
    packed = _opened(bundle, model.named)
    deployment = airgap.settle(deployment, packed) if packed else deployment
    user_key = _user_key(deployment, replace_key=new_api_key)
    settings = common.ssh(deployment)
    hosts = common.hosts(deployment)
    choice = pin.of_bundle(packed) if packed else pin.here(deployment, common.out.reading)
    with (
        open_sessions(hosts, settings, common.out) as sessions,
        packed.uv() if packed else nullcontext() as uv,
    ):
        choice = choice or pin.choose(sessions, deployment, refresh=transfer.refresh)
        is_ours = not packed and sources.parse(deployment.model.source).kind in ("path", "host")
        if is_ours and model.is_unnamed(given):
            choice = choice.noted(filed_as(deployment.model.name))
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


def _user_key(deployment: Deployment, *, replace_key: bool) -> UserKey:
    from qwen_deploy import keys

    path = deployment.service.api_key_file
    if path:
        return keys.UserKey(keys.load(path))
    return keys.UserKey(keys.new_key(), is_made=True, replaces=replace_key)


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


def _agreed(looked: Looked, out: Output, yes: bool) -> bool:
    """Shows the plan and the findings; asks once where something would change."""
    changing = [one for one in looked.prospects if not one.is_unchanged]
    for one in looked.prospects:
        out.value({"event": "plan", **_plan_value(one, looked)})
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


def _plan_value(one: Prospect, looked: Looked) -> dict[str, Any]:
    route, pinned = looked.routes.get(one.host), looked.supply.pinned
    steps = [{"stage": step.stage, "summary": step.summary} for step in one.plan.steps]
    value: dict[str, Any] = {"host": one.host, "release": one.release.id, "steps": steps}
    if route is not None:
        missing = one.plan.transfer_bytes
        eta = route.eta_seconds(missing)
        value["weights"] = {
            "bytes": missing,
            "from": route.place,
            "eta_seconds": eta,
            "proof": pinned.manifest.proof,
            "notes": list(pinned.notes),
        }
    return value


def _plan_lines(one: Prospect, route: Route | None) -> Iterator[str]:
    from qwen_deploy.cli import render

    for step in one.plan.steps:
        missing = one.plan.transfer_bytes
        way = f" {render.way(missing, route)}" if route and missing else ""
        yield f"{step.stage}: {step.summary}{way if step.stage == 'weights' else ''}"


def _up(looked: Looked, wanted: Wanted, settings: SshSettings, out: Output) -> int:
    from qwen_deploy import remote, rollout

    prospects = {one.host: one for one in looked.prospects}
    sessions = [one.session for one in looked.prospects]
    with interruptible(out) as is_interrupted, ExitStack() as stack:

        def run(session: Session) -> Run:
            return run_for(out, settings, session, is_interrupted)

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
        return in_turn(sessions, change, run, out)


def _refused(sessions: Sequence[Session], error: QwenDeployError, out: Output) -> int:
    """Before any host was changed."""
    from qwen_deploy.events import HostFinished

    out.error(error)
    results = [
        HostFinished(one.host.name, outcome, None, None, 0, 0.0)
        for one in sessions
        for outcome in [error.outcome if one.host.name == error.host else "not tried"]
    ]
    print_results(out, results)
    return error.exit_code
