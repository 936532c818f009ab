"""A change of several hosts, one after the other: what each needs, and the table of what became of
them. Knows no SSH."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qwen_deploy.cli.options import command_line
from qwen_deploy.errors import QwenDeployError, gravest

if TYPE_CHECKING:
    from qwen_deploy.cli.output import Output
    from qwen_deploy.events import HostFinished
    from qwen_deploy.openssh import SshSettings
    from qwen_deploy.remote import Session
    from qwen_deploy.steps import Run

Change = Callable[["Session", "Run"], "HostFinished"]


def in_turn(
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
            error.hint = error.hint or command_line()
            out.error(error)
            failed = HostFinished(host, error.outcome, None, None, 0, 0.0)
            results.append(error.finished or failed)
            codes.append(error.exit_code)
    print_results(out, results)
    return gravest(tuple(codes))


def print_results(out: Output, results: Sequence[HostFinished]) -> None:
    from qwen_deploy.cli import render

    for one in results:
        out.event(one)
    out.table(render.RESULT_HEADER, [render.result_row(one) for one in results])


def run_for(
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
