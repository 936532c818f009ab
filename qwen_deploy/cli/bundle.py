"""The commands about bundles: create, show, verify. Knows no SSH."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_deploy.cli.options import Common, ModelOptions, command, filed_as
from qwen_deploy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwen_deploy.airgap import Bundle
    from qwen_deploy.cli.output import Output
    from qwen_deploy.config import Deployment
    from qwen_deploy.sources import Pinned

HEADER = ("FILE", "SIZE", "MODEL", "REVISION", "PYTHON", "ACCELERATOR", "WHEELS", "VERSION")
FileArg = Annotated[Path, typer.Argument(metavar="FILE", help="The bundle.")]


class Accelerator(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


def register(parent: typer.Typer) -> None:
    app = typer.Typer(
        help="Everything that hosts without a network need, in one file.", no_args_is_help=True
    )
    command(app, "create")(create)
    command(app, "show")(show)
    command(app, "verify")(verify)
    parent.add_typer(app, name="bundle")


def create(
    common: Common,
    model: ModelOptions,
    path: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The bundle [default: MODEL-ACCELERATOR.tar]."),
    ] = None,
    python: Annotated[
        str, typer.Option("--python", metavar="VERSION", help="Python of the hosts.")
    ] = "3.11",
    accelerator: Annotated[
        Accelerator | None,
        typer.Option("--accelerator", help="cuda runs on the CPU too [default: cuda]."),
    ] = None,
) -> None:
    """Write weights, wheels, uv and the service into one file for `up --bundle`.

    qwen-deploy bundle create --weights ./Qwen2.5-7B-Instruct

    qwen-deploy bundle create qwen.tar --weights modelscope --accelerator cpu
    """
    from qwen_deploy import config, packing

    given = common.deployment()
    deployment = config.override(given, model.overrides())
    chosen = _accelerator(accelerator, given)
    target = path or Path(f"{deployment.model.name.rpartition('/')[2]}-{chosen}.tar")
    packing.check(target, python, chosen)
    pinned = _pinned(deployment)
    for note in pinned.notes:
        common.out.note(note)
    if pinned.share is not None and model.is_unnamed(given):
        common.out.note(filed_as(deployment.model.name))
    contents = packing.Contents(
        pinned, python=python, accelerator=chosen, pip=given.pip, settings=deployment.weights
    )
    _show(packing.create(target, contents, common.out.event), common.out)


def _pinned(deployment: Deployment) -> Pinned:
    source = deployment.model.source
    if source.startswith("host:"):
        raise UsageError(
            f"{source} lies on a host, and a bundle is made on this machine",
            hint="copy it here, and name the folder: --weights",
        )
    from qwen_deploy import pin

    return (pin.here(deployment) or pin.choose((), deployment, refresh=True)).pinned


def _accelerator(chosen: Accelerator | None, deployment: Deployment) -> str:
    """The CUDA build is the one that runs on every host."""
    configured = deployment.runtime.accelerator
    return chosen.value if chosen else "cuda" if configured == "auto" else configured


def show(common: Common, path: FileArg) -> None:
    """Show what is in a bundle.

    qwen-deploy bundle show Qwen2.5-7B-Instruct-cuda.tar

    qwen-deploy bundle show qwen.tar --output json
    """
    from qwen_deploy import airgap

    _show(airgap.read(path), common.out)


def verify(common: Common, path: FileArg) -> None:
    """Prove every byte of a bundle, as after a copy.

    qwen-deploy bundle verify Qwen2.5-7B-Instruct-cuda.tar

    qwen-deploy bundle verify qwen.tar --output json
    """
    from qwen_deploy import airgap
    from qwen_deploy.sizes import megabytes

    found = airgap.read(path)
    problems = found.problems(_teller(path, common.out))
    common.out.value({"event": "verified", "file": str(path), "problems": problems})
    if problems:
        raise airgap.damaged(path, problems)
    count, size = len(found.index.members), megabytes(found.index.total_bytes)
    common.out.line(f"{path}: {count} files, {size}: every byte as packed")


def _teller(path: Path, out: Output) -> Callable[[float], None]:
    from qwen_deploy.events import TaskStarted

    said = -1

    def tell(done: float) -> None:
        nonlocal said
        if int(done * 100) > said:
            said = int(done * 100)
            out.event(TaskStarted(path.name, "verify", f"{said} %"))

    return tell


def _show(found: Bundle, out: Output) -> None:
    from qwen_deploy.sizes import megabytes

    index = found.index
    told: dict[str, Any] = {
        "file": str(found.path),
        "bytes": found.size,
        "model": index.model.model,
        "revision": index.model.revision,
        "weights_bytes": index.model.total_bytes,
        "python": index.python,
        "accelerator": index.accelerator,
        "wheels": len(index.wheels.artifacts),
        "version": index.version,
    }
    out.value({"event": "bundle", **told})
    shown = ("file", "model", "revision", "python", "accelerator", "wheels", "version")
    name, *rest = (str(told[key]) for key in shown)
    out.table(HEADER, [(name, megabytes(found.size), *rest)])
