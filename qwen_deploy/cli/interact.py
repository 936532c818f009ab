"""The commands that stay connected: logs and chat. Neither runs a playbook."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from qwen_deploy.cli.options import Common, all_or_error, command, open_sessions
from qwen_deploy.errors import NeedsAttention, QwenDeployError, UsageError

if TYPE_CHECKING:
    from qwen_deploy.chat.client import Endpoint
    from qwen_deploy.remote import Session


def register(app: typer.Typer) -> None:
    command(app, "logs")(logs)
    command(app, "chat")(chat)


def logs(
    common: Common,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    since: Annotated[
        str | None, typer.Option("--since", help="As journalctl takes it, like '10 min ago'.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Lines per host.")] = 100,
) -> int:
    """Show the journal of the unit.

    qwen-deploy logs --host root@192.168.110.131 -f

    qwen-deploy logs --since "10 min ago" -n 1000
    """
    from qwen_deploy import commands

    argv = commands.journal("qwen.service", lines=lines, since=since, follow=follow)
    deployment = common.deployment()
    with open_sessions(common.hosts(deployment), common.ssh(deployment), common.out) as sessions:
        ended: list[QwenDeployError | BrokenPipeError] = []
        is_one_of_many = len(sessions) > 1

        def show(host: str, line: str) -> None:
            common.out.line(f"{host}  {line}" if is_one_of_many else line)
            common.out.value({"event": "log", "host": host, "line": line})

        readers = [
            threading.Thread(target=_copy, args=(session, argv, show, ended))
            for session in sessions
        ]
        for reader in readers:
            reader.daemon = True  # Ctrl-C waits for none of them
            reader.start()
        for reader in readers:
            reader.join()
        for error in ended:
            if isinstance(error, BrokenPipeError):
                raise error
        all_or_error(ended, common.out)
    return 0


def _copy(
    session: Session,
    argv: list[str],
    show: Callable[[str, str], None],
    ended: list[QwenDeployError | BrokenPipeError],
) -> None:
    """Runs in a thread, so it leaves the error that ended it behind."""
    try:
        for line in session.stream(argv, root=True):
            show(session.host.name, line)
    except (QwenDeployError, BrokenPipeError) as error:
        ended.append(error)


def chat(
    common: Common,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of every answer.")] = None,
    once: Annotated[
        str | None, typer.Option("--once", metavar="PROMPT", help="Answer this and exit.")
    ] = None,
) -> int:
    """Talk to the model in the terminal, through an SSH tunnel.

    qwen-deploy chat --host root@192.168.110.131

    echo 你好 | qwen-deploy chat
    """
    from qwen_deploy.chat import repl

    deployment = common.deployment()
    hosts = common.hosts(deployment)
    if len(hosts) > 1:
        raise UsageError(
            "one host answers at a time", hint=f"qwen-deploy chat --host {hosts[0].text}"
        )
    with open_sessions(hosts, common.ssh(deployment), common.out) as (session,):
        port, address, key, model = _service(session)
        with session.forward_local(port, address) as local_port:
            endpoint = _endpoint(local_port, key, model)
            if once is not None:
                return repl.once(endpoint, once, stdout=sys.stdout, stderr=sys.stderr, seed=seed)
            return repl.run(
                endpoint, stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr, seed=seed
            )


def _endpoint(port: int, key: str, model: str) -> Endpoint:
    from qwen_deploy.chat.client import Endpoint

    return Endpoint(base_url=f"http://127.0.0.1:{port}/v1", api_key=key or "none", model=model)


def _service(session: Session) -> tuple[int, str, str, str]:
    """Port, address as seen from the host, operator's key and model of what the host serves."""
    from qwen_deploy import commands, facts, prospect

    known = prospect.ask(session, facts.question((), service=None, probe="ready"))
    served = known.current_release
    if served is None or known.unit_state not in ("active", "activating"):
        raise NeedsAttention(
            f"`{session.host}` serves nothing",
            host=session.host.name,
            state=f"the unit on {session.host} is {known.unit_state}",
            hint=f"qwen-deploy status --host {session.host.text}",
        )
    address, _, port = str(served["listen"]).rpartition(":")
    key = session.run(commands.read_file(prospect.OPERATOR_KEY), root=True).stdout.strip()
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return int(port), reached, key, str(served["model"])
