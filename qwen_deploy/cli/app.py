"""The application: its commands, and the one place where errors end. Knows no business rules."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer

from qwen_deploy.cli import bench, bundle, change, interact, keys, observe, weights
from qwen_deploy.cli.output import Output
from qwen_deploy.errors import QwenDeployError, UsageError

app = typer.Typer(
    name="qwen-deploy",
    help="From a bare Linux host that answers SSH to a proven, OpenAI-compatible Qwen service.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would double the time that --help takes
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for module in (change, observe, interact, bench, keys, weights, bundle):
    module.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        from qwen_deploy import __version__

        typer.echo(f"qwen-deploy {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """From a bare Linux host that answers SSH to a proven, OpenAI-compatible Qwen service."""


def run(argv: Sequence[str]) -> int:
    """Runs one command line; returns its exit code (see errors.py)."""
    Output.typed = tuple(argv)
    try:
        code = app(list(argv) or ["--help"], prog_name=app.info.name, standalone_mode=False)
    except typer.Abort:
        return _interrupted()
    except typer.TyperException as error:
        return _failed(_usage(error))
    except QwenDeployError as error:
        return _failed(error)
    except BrokenPipeError:
        # Whoever read our output has seen enough (python docs, signal: "Note on SIGPIPE").
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _bug(error)
    return code if isinstance(code, int) else 0


def _failed(error: QwenDeployError) -> int:
    Output.current().error(error)
    return error.exit_code


def _usage(error: typer.TyperException) -> UsageError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "qwen-deploy"
    message = error.format_message().rstrip(".")
    return UsageError(message[:1].lower() + message[1:], hint=f"{command} --help")


def _interrupted() -> int:
    sys.stderr.write("interrupted\n")
    return 130


def _bug(error: Exception) -> int:
    """Not a failure anyone foresaw: the last frame for the eye, the rest for a report."""
    state_dir = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state_dir / "qwen-deploy" / "traceback.log"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    sys.stderr.write(
        f"error: a bug in qwen-deploy: {type(error).__name__}: {error}\n\n"
        f"    {Path(frame.filename).name}:{frame.lineno}: {frame.line}\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)))
        sys.stderr.write(
            f"\nhint: report it with {path}; the hosts say what they serve: qwen-deploy status\n"
        )
    except OSError:
        traceback.print_exception(error)
    return 1
