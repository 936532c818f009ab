"""The commands that stay connected: logs, chat and open. None runs a playbook."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen_deploy.cli import reach
from qwen_deploy.cli.options import Common, OutputMode, all_or_error, command, open_sessions
from qwen_deploy.cli.reach import Elsewhere
from qwen_deploy.errors import QwenDeployError, UsageError

if TYPE_CHECKING:
    from qwen_deploy.chat.session import Session as ChatSession
    from qwen_deploy.chat.words import Language
    from qwen_deploy.remote import Session


def register(app: typer.Typer) -> None:
    command(app, "logs")(logs)
    command(app, "chat")(chat)
    command(app, "open")(open_)


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


@dataclass(frozen=True, slots=True)
class Wishes:
    """How answers should be, from the first one on."""

    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="From 0, always the likeliest, to 2.")
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Most tokens of an answer.")
    ] = None
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of every answer.")] = None
    think: Annotated[
        bool | None, typer.Option("--think/--no-think", help="Think before the answer, or not.")
    ] = None

    def session(self, language: Language) -> ChatSession:
        from qwen_deploy.chat import settings
        from qwen_deploy.chat.session import Session

        if self.system is not None and not settings.is_sendable(self.system):
            raise UsageError("--system: not UTF-8")
        conf = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return Session(
            system=self.system or None,
            seed=None if self.seed is None else settings.seed_of(self.seed),
            thinks=self.think,
            conf={key: settings.value_of(key, it) for key, it in conf.items() if it is not None},
            language=language,
        )


def chat(
    common: Common,
    wishes: Wishes,
    elsewhere: Elsewhere,
    once: Annotated[
        str | None,
        typer.Option(
            "--once", metavar="PROMPT", help="Answer this and what a pipe brings (-: only that)."
        ),
    ] = None,
) -> int:
    """Talk to the model in the terminal, through an SSH tunnel.

    qwen-deploy chat --host root@192.168.110.131

    qwen-deploy chat --once "Summarize this:" --temperature 0 < report.txt
    """
    from qwen_deploy.chat import repl, words
    from qwen_deploy.chat.once import once as answer
    from qwen_deploy.chat.once import prompt_of

    as_json = common.output is OutputMode.json
    if as_json and once is None:
        raise UsageError("--output json is for one answer", hint='qwen-deploy chat --once "你好"')
    session = wishes.session(words.language_of(os.environ))
    reach.check_one(common, "chat", elsewhere)
    prompt = None if once is None else prompt_of(once, sys.stdin)
    streams = {"stdout": sys.stdout, "stderr": sys.stderr}
    with reach.endpoint(common, elsewhere) as endpoint:
        if prompt is not None:
            return answer(endpoint, prompt, session, **streams, as_json=as_json)
        history = _state_dir(os.environ) / "chat-history"
        return repl.run(endpoint, session, stdin=sys.stdin, **streams, history=history)


def _state_dir(environ: Mapping[str, str]) -> Path:
    home = environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "qwen-deploy"


def open_(
    common: Common,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open a browser, or print the address.")
    ] = True,
) -> int:
    """Open the web UI of a host in the browser, through a tunnel.

    qwen-deploy open --host root@192.168.110.131

    qwen-deploy open --no-browser
    """
    import webbrowser

    from qwen_deploy.chat.pages import check_web_ui

    reach.check_one(common, "open")
    with reach.tunneled(common) as tunnel:
        address = f"http://127.0.0.1:{tunnel.port}/"
        check_web_ui(address, tunnel.host)
        common.out.line(address)
        common.out.value({"event": "open", "host": tunnel.host.name, "url": address})
        if browser and not webbrowser.open(address):
            common.out.note("no browser was found: open the address yourself")
        common.out.note(f"{tunnel.host}: tunneled until Ctrl-C")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0
