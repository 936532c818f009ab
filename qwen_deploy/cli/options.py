"""The options that several commands share, each declared once, and what they add up to."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from qwen_deploy.cli.output import Mode, Output
from qwen_deploy.errors import QwenDeployError, UsageError, gravest
from qwen_deploy.sizes import RATES, rate_bytes

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
BundleOpt = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="FILE", help="Take everything from a bundle; no network."),
]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which weights, and where they come from."""

    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="SOURCE",
            help="Folder, archive, host:/path, hub or mirror of the checkpoint [default: auto].",
        ),
    ] = None
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Model, as its hub names it.")
    ] = None
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit at the hub.")
    ] = None

    def is_unnamed(self, given: Deployment) -> bool:
        """Nobody has said what the model is called: neither here nor in qwen-deploy.yml."""
        return self.model is None and "name" not in given.model.model_fields_set

    @property
    def named(self) -> str | None:
        """The first that was given."""
        return self.weights or self.model or self.revision

    def overrides(self) -> dict[str, dict[str, Any]]:
        """The same in the words of qwen-deploy.yml."""
        model = {"source": self.weights, "name": self.model, "revision": self.revision}
        return {"model": model}


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """How weights travel to the hosts."""

    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask the hub again for what the hosts already hold.")
    ] = False
    limit_rate: Annotated[
        str | None,
        typer.Option(
            "--limit-rate", metavar="RATE", help="Bytes a second, like 500k or 20M, day and night."
        ),
    ] = None
    fan_out: Annotated[
        FanOut | None, typer.Option("--fan-out", help="How several hosts share one download.")
    ] = None

    def overrides(self) -> dict[str, dict[str, Any]]:
        """The same in the words of qwen-deploy.yml."""
        if self.limit_rate is not None and not rate_bytes(self.limit_rate):
            raise UsageError(f"--limit-rate {self.limit_rate}: should be {RATES}")
        fan_out = self.fan_out.value if self.fan_out else None
        rates = {"limit_rate": self.limit_rate, "night_rate": self.limit_rate}
        return {"weights": {**rates, "fan_out": fan_out}}


def filed_as(name: str) -> str:
    """A note where `is_unnamed` what lies in a folder or an archive."""
    return f"nobody has named it, so that it is filed as {name}: name it with --model"


def command_line() -> str:
    """What was typed, to be pasted again."""
    return shlex.join(["qwen-deploy", *Output.typed])


@dataclass(frozen=True, slots=True)
class Common:
    """The options of every command that works on hosts."""

    host: Annotated[
        list[str],
        typer.Option("--host", metavar="[USER@]ADDRESS[:PORT]", help="Host; may be repeated."),
    ] = field(default_factory=list)
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Instead of qwen-deploy.yml.")
    ] = None
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="FILE", help="SSH private key.")
    ] = None
    accept_new_host_key: Annotated[
        bool, typer.Option("--accept-new-host-key", help="Accept unknown host keys, this once.")
    ] = False
    ask_sudo_password: Annotated[
        bool, typer.Option("--ask-sudo-password", help="Ask for the sudo password.")
    ] = False
    output: Annotated[OutputMode, typer.Option("--output", help="How to print.")] = OutputMode.human
    verbose: Annotated[bool, typer.Option("--verbose", help="Show every task.")] = False

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
    """Registers a function as a command. Its own options are shown before those of `common`, and
    a parameter that is a dataclass takes the options that are its fields."""

    def register(function: Callable[..., int | None]) -> None:
        taken = inspect.signature(function, eval_str=True).parameters
        groups: dict[str, Any] = {
            one.name: one.annotation for one in taken.values() if is_dataclass(one.annotation)
        }
        ordered = sorted(taken.values(), key=lambda one: one.name == "common")
        options = [
            option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for one in ordered
            for option in (_options(groups[one.name]) if one.name in groups else (one,))
        ]

        @functools.wraps(function)
        def call(**given: Any) -> int | None:
            filled = {
                name: group(**{one.name: given.pop(one.name) for one in fields(group)})
                for name, group in groups.items()
            }
            common = filled["common"]
            Output.use(Mode(common.output.value), verbose=common.verbose)
            return function(**filled, **given)

        call.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        call.__annotations__ = {one.name: one.annotation for one in options}
        del call.__wrapped__
        add(app, name, call)

    return register


def _options(group: Any) -> Iterator[inspect.Parameter]:
    """The fields of a dataclass as parameters."""
    hints = get_type_hints(group, include_extras=True)
    for one in fields(group):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        yield inspect.Parameter(
            one.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[one.name], default=default
        )


def add(app: typer.Typer, name: str, function: Callable[..., int | None]) -> None:
    """Its docstring's first paragraph is the help; the rest, examples, ends the help's page."""
    purpose, _, examples = (inspect.getdoc(function) or "").partition("\n\n")
    app.command(name, help=purpose, epilog=examples)(function)
