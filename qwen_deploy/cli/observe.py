"""The commands that only read: status, releases, history, docs. None changes a host."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_deploy.cli.options import Common, add, command
from qwen_deploy.errors import NeedsAttention, QwenDeployError, gravest

if TYPE_CHECKING:
    from qwen_deploy.facts import Facts, Probe
    from qwen_deploy.inventory import Host

GIB = 1 << 30
STATUS_HEADER = ("HOST", "RELEASE", "UNIT", "READY", "MODEL", "UPTIME", "MEMORY", "GPU")


def register(app: typer.Typer) -> None:
    command(app, "status")(status)
    command(app, "releases")(releases)
    command(app, "history")(history)
    add(app, "docs", docs)


def status(common: Common) -> int:
    """Show what each host serves; exit code 0 if every host is ready.

    qwen-deploy status --host root@192.168.110.131

    qwen-deploy status --output json
    """
    asked = _ask_all(common, probe="completion")
    for host, result in asked:
        if isinstance(result, QwenDeployError):
            common.out.error(result)
        else:
            common.out.value({"event": "status", **_status_value(host, result)})
    rows = [_status_row(host, result) for host, result in asked]
    common.out.table(STATUS_HEADER, rows)
    return gravest(tuple(_status_code(result) for _, result in asked))


def _status_code(result: Facts | QwenDeployError) -> int:
    if isinstance(result, QwenDeployError):
        return result.exit_code
    return 0 if result.answer and result.answer.is_ready else NeedsAttention.exit_code


def _status_value(host: Host, facts: Facts) -> dict[str, Any]:
    process = facts.process or {}
    answer = facts.answer
    return {
        "host": host.name,
        "release": facts.current,
        "unit": facts.unit_state,
        "unit_status": facts.unit.get("StatusText", ""),
        "ready": bool(answer and answer.is_ready),
        "reason": _reason(facts),
        "model": _model(facts),
        "uptime_seconds": process.get("uptime_seconds"),
        "memory_bytes": process.get("resident_bytes"),
        "gpus": [dict(gpu) for gpu in facts.gpus],
    }


def _status_row(host: Host, result: Facts | QwenDeployError) -> tuple[str, ...]:
    if isinstance(result, QwenDeployError):
        return (host.name, "-", result.outcome, "no", "-", "-", "-", "-")
    value = _status_value(host, result)
    return (
        host.name,
        value["release"] or "-",
        value["unit"],
        "yes" if value["ready"] else f"no: {value['reason']}",
        value["model"] or "-",
        _duration(value["uptime_seconds"]),
        _gib(value["memory_bytes"]),
        ", ".join(_gpu(gpu) for gpu in result.gpus) or "-",
    )


def _reason(facts: Facts) -> str:
    answer = facts.answer
    if answer is None:
        return facts.unit.get("StatusText") or f"the unit is {facts.unit_state}"
    return "" if answer.is_ready else answer.completion_error or answer.reason


def _model(facts: Facts) -> str | None:
    return str(facts.current_release["model"]) if facts.current_release else None


def _gpu(gpu: Any) -> str:
    return f"{gpu['name']} {gpu['memory.used']}/{gpu['memory.total']} MiB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    days, rest = divmod(int(seconds), 86400)
    clock = time.strftime("%H:%M:%S", time.gmtime(rest))
    return f"{days}d {clock}" if days else clock


def _gib(size: float | None) -> str:
    return "-" if size is None else f"{size / GIB:.2f} GiB"


def releases(common: Common) -> int:
    """List the releases that lie on each host.

    qwen-deploy releases --host root@192.168.110.131

    qwen-deploy releases --output json
    """

    def rows(host: str, facts: Facts) -> list[dict[str, Any]]:
        return [
            {
                "host": host,
                "release": str(one["id"]),
                "state": _release_state(facts, str(one["id"])),
                "model": str(one["model"]),
                "revision": str(one["revision"]),
                "made_at": _iso(float(one["made_at"])),
            }
            for one in sorted(facts.releases, key=lambda one: float(one["made_at"]))
        ]

    return _list(common, "release", rows)


def _release_state(facts: Facts, release: str) -> str:
    if release == facts.current:
        return "current"
    return "proven" if release in facts.proven else "unproven"


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def history(
    common: Common,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Lines per host.")] = 20,
) -> int:
    """Show the audit log: who changed what, when, and how it ended.

    qwen-deploy history --host root@192.168.110.131

    qwen-deploy history -n 100 --output json
    """
    columns = ("time", "who", "action", "release", "previous", "tried", "outcome", "seconds")

    def rows(host: str, facts: Facts) -> list[dict[str, Any]]:
        return [
            {"host": host, **{name: line.get(name) for name in columns}}
            for line in facts.audit[-lines:]
        ]

    return _list(common, "change", rows)


def _list(common: Common, kind: str, rows: Callable[[str, Facts], list[dict[str, Any]]]) -> int:
    """Prints what `rows` makes of each host's facts; a host that fails is told and counted."""
    codes: list[int] = []
    found: list[dict[str, Any]] = []
    for host, result in _ask_all(common, probe="none"):
        if isinstance(result, QwenDeployError):
            common.out.error(result)
            codes.append(result.exit_code)
        else:
            found += rows(host.name, result)
    for row in found:
        common.out.value({"event": kind, **row})
    if found:
        header = tuple(name.upper() for name in found[0])
        common.out.table(header, [[_cell(value) for value in row.values()] for row in found])
    return gravest(tuple(codes))


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)


def _ask_all(common: Common, *, probe: Probe) -> Sequence[tuple[Host, Facts | QwenDeployError]]:
    from qwen_deploy import facts, parallel, prospect, remote

    deployment = common.deployment()
    hosts = common.hosts(deployment)
    settings = common.ssh(deployment)
    question = facts.question((), service=None, probe=probe)

    def ask(host: Host) -> Facts:
        with remote.connect(host, settings) as session:
            return prospect.ask(session, question)

    return tuple(zip(hosts, parallel.each(hosts, ask), strict=True))


def docs() -> None:
    """Print the annotated reference of qwen-deploy.yml.

    qwen-deploy docs

    qwen-deploy docs > qwen-deploy.yml
    """
    from qwen_deploy import reference

    typer.echo(reference.text(), nl=False)
