"""The options that several commands share, each declared once, and what they add up to."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from qwen_deploy.cli.output import Mode, Output
from qwen_deploy.errors import QwenDeployError, UsageError, gravest

if TYPE_CHECKING:
    from qwen_deploy.config import Deployment
    from qwen_deploy.inventory import Host
    from qwen_deploy.openssh import SshSettings
    from qwen_deploy.remote import Session

Result = TypeVar("Result")


class FanOut(StrEnum):
    auto = "auto"
    tree = "tree"
    none = "none"


class OutputMode(StrEnum):
    human = "human"
    json = "json"
    quiet = "quiet"


YesOpt = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
WeightsOpt = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="SOURCE",
        help="Folder, archive, host:/path, hub or mirror of the checkpoint [default: auto].",
    ),
]
ModelOpt = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Model, as its hub names it.")
]
RevisionOpt = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit at the hub.")
]
BundleOpt = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="FILE", help="Take everything from a bundle; no network."),
]
RefreshOpt = Annotated[
    bool, typer.Option("--refresh", help="Ask the hub again for what the hosts already hold.")
]
FanOutOpt = Annotated[
    FanOut | None, typer.Option("--fan-out", help="How several hosts share one download.")
]
LimitRateOpt = Annotated[
    str | None,
    typer.Option("--limit-rate", metavar="RATE", help="Bytes a second, like 20M, day and night."),
]


def weights_overrides(
    weights: str | None,
    model: str | None,
    revision: str | None,
    limit_rate: str | None,
    fan_out: FanOut | None,
) -> dict[str, dict[str, Any]]:
    """What these options say in the words of qwen-deploy.yml."""
    return {
        "model": {"source": weights, "name": model, "revision": revision},
        "weights": {
            "limit_rate": limit_rate,
            "night_rate": limit_rate,
            "fan_out": fan_out.value if fan_out else None,
        },
    }


COMMON: dict[str, tuple[Any, Any]] = {
    "host": (
        Annotated[
            list[str],
            typer.Option("--host", metavar="[USER@]ADDRESS[:PORT]", help="Host; may be repeated."),
        ],
        [],
    ),
    "config": (
        Annotated[
            Path | None,
            typer.Option("--config", metavar="FILE", help="Instead of qwen-deploy.yml."),
        ],
        None,
    ),
    "key_file": (
        Annotated[Path | None, typer.Option("--key-file", metavar="FILE", help="SSH private key.")],
        None,
    ),
    "accept_new_host_key": (
        Annotated[
            bool,
            typer.Option("--accept-new-host-key", help="Accept unknown host keys, this once."),
        ],
        False,
    ),
    "ask_sudo_password": (
        Annotated[bool, typer.Option("--ask-sudo-password", help="Ask for the sudo password.")],
        False,
    ),
    "output": (
        Annotated[OutputMode, typer.Option("--output", help="How to print.")],
        OutputMode.human,
    ),
    "verbose": (Annotated[bool, typer.Option("--verbose", help="Show every task.")], False),
}


def command_line() -> str:
    """What was typed, to be pasted again."""
    return shlex.join(["qwen-deploy", *Output.typed])


@dataclass(frozen=True, slots=True)
class Common:
    """The shared options of one invocation."""

    host: list[str]
    config: Path | None
    key_file: Path | None
    accept_new_host_key: bool
    ask_sudo_password: bool
    output: OutputMode
    verbose: bool

    @property
    def out(self) -> Output:
        return Output.current()

    def deployment(self) -> Deployment:
        from qwen_deploy import config

        if self.config is not None:
            return config.load(self.config)
        return (
            config.load(config.DEFAULT_PATH)
            if config.DEFAULT_PATH.exists()
            else config.Deployment()
        )

    def hosts(self, deployment: Deployment) -> tuple[Host, ...]:
        from qwen_deploy.inventory import parse_hosts

        hosts = parse_hosts(self.host or deployment.hosts)
        if not hosts:
            raise UsageError(
                "no host is named: give --host, or `hosts` in qwen-deploy.yml",
                hint="qwen-deploy init --host root@192.168.110.131",
            )
        return hosts

    def ssh(self, deployment: Deployment) -> SshSettings:
        from qwen_deploy.inventory import parse_host
        from qwen_deploy.openssh import SshSettings

        ssh = deployment.ssh
        return SshSettings(
            user=ssh.user,
            key_file=self.key_file or ssh.key_file,
            config_file=ssh.config_file,
            jump=parse_host(ssh.jump) if ssh.jump else None,
            connect_seconds=float(ssh.connect_seconds),
            accept_new_host_key=self.accept_new_host_key,
            sudo_password=self._sudo_password(ssh.sudo_password_file),
        )

    def _sudo_password(self, path: Path | None) -> str | None:
        if self.ask_sudo_password:
            return str(typer.prompt("sudo password", hide_input=True, err=True))
        if path is None:
            return None
        try:
            return path.read_text("utf-8").rstrip("\n")
        except OSError as error:
            raise UsageError(f"ssh/sudo_password_file: {path}: {error.strerror}") from error


@contextmanager
def open_sessions(
    hosts: Sequence[Host], settings: SshSettings, out: Output
) -> Iterator[tuple[Session, ...]]:
    """One session a host, opened at once; a host that cannot be reached fails the command."""
    from qwen_deploy import parallel, remote

    opened = parallel.each(hosts, lambda host: remote.connect(host, settings))
    with ExitStack() as stack:
        for one in opened:
            if not isinstance(one, QwenDeployError):
                stack.enter_context(one)
        yield all_or_error(opened, out)


def all_or_error(results: Sequence[Result | QwenDeployError], out: Output) -> tuple[Result, ...]:
    """The results, or every error: all printed, the gravest raised."""
    errors = [one for one in results if isinstance(one, QwenDeployError)]
    if not errors:
        return tuple(one for one in results if not isinstance(one, QwenDeployError))
    code = gravest(tuple(error.exit_code for error in errors))
    raised = next(error for error in errors if error.exit_code == code)
    for error in errors:
        if error is not raised:
            out.error(error)
    raise raised


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., int | None]], None]:
    """Registers a function of `common` and own options as a command that takes both."""

    def register(function: Callable[..., int | None]) -> None:
        own = [
            parameter
            for parameter in inspect.signature(function, eval_str=True).parameters.values()
            if parameter.name != "common"
        ]
        keyword = inspect.Parameter.KEYWORD_ONLY
        shared = [
            inspect.Parameter(name, keyword, annotation=annotation, default=default)
            for name, (annotation, default) in COMMON.items()
        ]

        @functools.wraps(function)
        def call(**given: Any) -> int | None:
            common = Common(**{name: given.pop(name) for name in COMMON})
            Output.use(Mode(common.output.value), verbose=common.verbose)
            return function(common, **given)

        call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*(one.replace(kind=keyword) for one in own), *shared]
        )
        call.__annotations__ = {one.name: one.annotation for one in (*own, *shared)}
        del call.__wrapped__
        add(app, name, call)

    return register


def add(app: typer.Typer, name: str, function: Callable[..., int | None]) -> None:
    """Its docstring's first paragraph is the help; the rest, examples, ends the help's page."""
    purpose, _, examples = (inspect.getdoc(function) or "").partition("\n\n")
    app.command(name, help=purpose, epilog=examples)(function)
