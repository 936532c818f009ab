"""`weights pull`: brings weights to hosts, without any release. Knows no SSH."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from qwen_deploy.cli.interrupt import interruptible
from qwen_deploy.cli.options import (
    Common,
    ModelOptions,
    TransferOptions,
    all_or_error,
    command_line,
    filed_as,
    open_sessions,
)
from qwen_deploy.errors import Interrupted, QwenDeployError, Refused, Unreachable, gravest
from qwen_deploy.sizes import megabytes

if TYPE_CHECKING:
    from qwen_weights.manifest import Manifest

    from qwen_deploy.cli.output import Output
    from qwen_deploy.config import Deployment
    from qwen_deploy.holdings import Holding
    from qwen_deploy.supply import Route, Supply
    from qwen_deploy.weights import Transfer

HEADER = ("HOST", "OUTCOME", "MODEL", "REVISION", "SIZE", "SECONDS")
# A host may come back from a reboot, a network from a repair.
PATIENCE_SECONDS = 600.0
RETRY_SECONDS = 3.0


def pull(
    common: Common,
    model: ModelOptions,
    transfer: TransferOptions,
    repair: Annotated[
        bool, typer.Option("--repair", help="Prove what is there and fetch only what is damaged.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Start it and leave; it goes on on the hosts.")
    ] = False,
) -> int:
    """Bring weights to hosts, or go on where an earlier transfer ended. Changes no release.

    qwen-deploy weights pull --host root@192.168.110.131 --model Qwen/Qwen2.5-7B-Instruct

    qwen-deploy weights pull --weights modelscope --limit-rate 20M --detach
    """
    from qwen_deploy import config

    own = {**model.overrides(), **transfer.overrides()}
    given = common.deployment()
    deployment = config.override(given, own)
    wish = Wish(
        deployment,
        refresh=transfer.refresh,
        repair=repair,
        detach=detach,
        is_unnamed=model.is_unnamed(given),
    )
    with interruptible(common.out) as is_interrupted:
        return patiently(lambda: _pull(common, wish, is_interrupted), common.out, is_interrupted)


@dataclass(frozen=True, slots=True)
class Wish:
    deployment: Deployment
    refresh: bool
    repair: bool
    detach: bool
    is_unnamed: bool = False


class Lost(Unreachable):
    """The connection to a host on which a transfer goes on, or went down with the host after so
    many bytes."""

    bytes_reached = 0


class _Patience:
    """For hosts that were lost: as long as they get further now and then."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._bytes = -1

    def is_over(self, error: QwenDeployError, now: float) -> bool:
        if isinstance(error, Lost) and error.bytes_reached > self._bytes:
            self._since, self._bytes = now, error.bytes_reached
        return self._since is None or now - self._since > PATIENCE_SECONDS


def patiently(pull: Callable[[], int], out: Output, is_interrupted: Callable[[], bool]) -> int:
    """Comes back to transfers whose hosts, or what they read, could not be reached for a while."""
    patience = _Patience()
    while True:
        try:
            return pull()
        except QwenDeployError as error:
            is_lost = error.exit_code == Unreachable.exit_code
            if not is_lost or patience.is_over(error, time.monotonic()) or is_interrupted():
                raise
            out.note(f"{error.host or 'hub'}  weights   {error.message}; coming back")
            time.sleep(RETRY_SECONDS)


def _go_on(is_interrupted: Callable[[], bool]) -> None:
    """Raises Interrupted: what was not started yet is not started any more."""
    if is_interrupted():
        raise Interrupted(
            "interrupted before anything was started",
            state="nothing was changed; a transfer that was started before goes on",
        )


def _pull(common: Common, wish: Wish, is_interrupted: Callable[[], bool]) -> int:
    from qwen_deploy import fleet, holdings, pin, sources
    from qwen_deploy.weights import Order

    out, deployment = common.out, wish.deployment
    choice = pin.here(deployment, common.out.reading)
    with open_sessions(common.hosts(deployment), common.ssh(deployment), out) as sessions:
        _go_on(is_interrupted)
        choice = choice or pin.choose(sessions, deployment, refresh=wish.refresh)
        _go_on(is_interrupted)
        if wish.is_unnamed and sources.parse(deployment.model.source).kind in ("path", "host"):
            choice = choice.noted(filed_as(deployment.model.name))
        manifest = choice.pinned.manifest
        found = all_or_error(holdings.survey(sessions, manifest), out)
        if wish.repair:
            found = tuple(replace(one, holds=False) for one in found)
        needy = [one.session for one in found if not one.holds]
        supply = pin.supply(needy, deployment, choice, is_held=len(needy) < len(found))
        _go_on(is_interrupted)
        manifest = supply.pinned.manifest
        members = [
            supply.member(one.session, one.facts, (manifest,), holds=one.holds) for one in found
        ]
        for note in supply.pinned.notes if needy else ():
            out.note(f"weights: {note}")
        _tell_routes(out, found, supply, supply.routes(members, deployment.weights.fan_out))
        order = Order((manifest,), deployment.weights, repair=wish.repair)
        if wish.detach and supply.pinned.share is not None and needy:
            raise Refused(
                "nothing was started: this machine itself serves these weights, so it has to stay",
                hint="without --detach",
            )
        _go_on(is_interrupted)
        started = time.monotonic()
        with fleet.bring(members, supply, order, out.event, keeps=True) as transfers:
            if not wish.detach:
                for transfer in transfers.values():
                    transfer.wait(is_interrupted)
                _raise_lost(transfers.values(), is_interrupted())
        seconds = time.monotonic() - started
        code = _tell_pulled(out, found, transfers, manifest, seconds, wish)
        _tell_running(out, transfers, is_served_here=supply.pinned.share is not None)
        return code


def _raise_lost(transfers: Collection[Transfer], is_interrupted: bool) -> None:
    for one in transfers:
        if (one.has_vanished or not one.has_ended) and not is_interrupted:
            message = one.error or f"lost the connection to `{one.session.host}`"
            rest = "the next one continues" if one.has_vanished else "the transfer goes on there"
            state = f"what was received stays on {one.host}, and {rest}"
            lost = Lost(message, host=one.host, state=state, hint=command_line())
            lost.bytes_reached = sum(other.bytes_reached for other in transfers)
            raise lost


def _tell_routes(
    out: Output, found: Sequence[Holding], supply: Supply, routes: Mapping[str, Route]
) -> None:
    pinned = supply.pinned
    for one in found:
        route = routes.get(one.host)
        if route is not None:
            out.note(f"{one.host}  plan      weights: {_planned(one, pinned.manifest, route)}")
            fields = {
                "model": pinned.manifest.model,
                "bytes": one.missing_bytes,
                "from": route.place,
                "eta_seconds": route.eta_seconds(one.missing_bytes),
                "proof": pinned.manifest.proof,
                "notes": list(pinned.notes),
            }
            out.value({"event": "weights_plan", "host": one.host, **fields})


def _planned(one: Holding, manifest: Manifest, route: Route) -> str:
    from qwen_deploy.cli import render

    size = one.missing_bytes
    if not size:  # of what is there, nobody knows yet how much is damaged
        return f"prove {manifest.model} again, and bring what is damaged {route.text}"
    return f"bring {megabytes(size)} of {manifest.model} {render.way(size, route)}"


def _tell_pulled(
    out: Output,
    found: Sequence[Holding],
    transfers: Mapping[str, Transfer],
    manifest: Manifest,
    seconds: float,
    wish: Wish,
) -> int:
    rows, codes = [], []
    for one in found:
        transfer = transfers.get(one.host)
        outcome, code = _outcome(transfer, wish)
        codes.append(code)
        if transfer is not None and transfer.error:
            out.error(_failure(transfer))
        size = megabytes(manifest.total_bytes)
        rows.append((one.host, outcome, manifest.model, manifest.revision, size, f"{seconds:.1f}"))
        fields = {"model": manifest.model, "revision": manifest.revision, "outcome": outcome}
        out.value({"event": "weights", "host": one.host, **fields, "proof": manifest.proof})
    out.table(HEADER, rows)
    return 0 if wish.detach and set(codes) <= {0, 130} else gravest(tuple(codes))


def _tell_running(out: Output, transfers: Mapping[str, Transfer], *, is_served_here: bool) -> None:
    running = ", ".join(name for name, one in transfers.items() if not one.has_ended)
    if running and is_served_here:
        out.note(f"{running} reads from this machine, and waits for it: {command_line()}")
    elif running:
        out.note(f"it goes on on {running}: qwen-deploy weights status")


def _outcome(transfer: Transfer | None, wish: Wish) -> tuple[str, int]:
    if transfer is None:
        return "unchanged", 0
    if transfer.error:
        return "failed", NeedsTransfer.exit_code
    if transfer.phase != "done":
        return "running", Interrupted.exit_code
    was_sound = wish.repair and not transfer.status["bytes_fetched"]
    return "unchanged" if was_sound else "changed", 0


class NeedsTransfer(QwenDeployError):
    """A transfer ended without the weights; what the host serves is as before."""


def _failure(transfer: Transfer) -> NeedsTransfer:
    host = transfer.session.host
    return NeedsTransfer(
        f"`{host}`: {transfer.error}",
        host=host.name,
        state=f"nothing else on {host} was changed; what was received stays and is continued",
        hint=transfer.hint or command_line(),
    )
