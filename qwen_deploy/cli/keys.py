"""The commands about API keys: create, list, revoke, on all hosts at once. Knows no SSH."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from qwen_deploy.cli.options import Common, all_or_error, command, open_sessions
from qwen_deploy.errors import QwenDeployError, Refused, Unreachable, gravest

if TYPE_CHECKING:
    from qwen_deploy.access import ListedKey, NewKey
    from qwen_deploy.cli.output import Output
    from qwen_deploy.inventory import Host
    from qwen_deploy.remote import Session

Answer = TypeVar("Answer")
HEADER = ("HOST", "NAME", "CREATED", "RPM", "REQUESTS", "TOKENS IN", "TOKENS OUT")
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.")]


def register(parent: typer.Typer) -> None:
    app = typer.Typer(
        help="Create, list and revoke API keys, without a restart.", no_args_is_help=True
    )
    command(app, "create")(create)
    command(app, "list")(list_)
    command(app, "revoke")(revoke)
    parent.add_typer(app, name="keys")


def create(
    common: Common,
    name: NameArgument,
    rpm: Annotated[
        int | None, typer.Option("--rpm", min=1, help="Requests a minute that it may make.")
    ] = None,
) -> int:
    """Make an API key that every host accepts at once, and show it, this once.

    qwen-deploy keys create anna --host root@192.168.110.131

    KEY=$(qwen-deploy keys create team-7 --rpm 60)
    """
    from qwen_deploy import access, parallel, remote

    new = access.make(name, rpm)
    operator = remote.operator()
    with _reached(common) as reached:
        checked = _each(reached, lambda session: access.require_new(session, name))
        if _errors(checked):
            return _told(common.out, (name,), checked, lambda *_: "not tried")
        sessions = [one for one in reached.values() if not isinstance(one, QwenDeployError)]
        made = parallel.each(sessions, lambda session: access.create(session, new, operator))
        results = dict(zip(reached, made, strict=True))
        for host, result in results.items():
            _say_doubt(host, result, f"nobody can tell whether {host.name} accepts `{name}`")
        _show(common.out, new, [host.name for host in results if host not in _errors(results)])
        return _told(common.out, (name,), results, lambda *_: "created")


def _show(out: Output, new: NewKey, hosts: Sequence[str]) -> None:
    if not hosts:
        return
    out.note(f"the key `{new.name}`, shown this once:")
    out.line(new.key)
    limit = new.requests_per_minute
    out.value(
        {"event": "key", "name": new.name, "key": new.key, "rpm": limit, "hosts": list(hosts)}
    )


def list_(common: Common) -> int:
    """List the API keys of each host, and how much each asked since the service started.

    qwen-deploy keys list --host root@192.168.110.131

    qwen-deploy keys list --output json
    """
    from qwen_deploy import access, parallel

    deployment = common.deployment()
    with open_sessions(common.hosts(deployment), common.ssh(deployment), common.out) as sessions:
        found = all_or_error(parallel.each(sessions, access.listed), common.out)
    rows = [(one.host.name, key) for one, keys in zip(sessions, found, strict=True) for key in keys]
    for host, key in rows:
        common.out.value(
            {
                "event": "listed_key",
                "host": host,
                "name": key.name,
                "created": key.created,
                "rpm": key.requests_per_minute,
                "usage": dict(key.usage) if key.usage is not None else None,
            }
        )
    common.out.table(HEADER, [(host, *_cells(key)) for host, key in rows])
    return 0


def _cells(key: ListedKey) -> tuple[str, ...]:
    counts = ("requests", "prompt_tokens", "completion_tokens")
    usage = [str(key.usage[name]) for name in counts] if key.usage else ["-"] * len(counts)
    return (key.name, key.created or "-", str(key.requests_per_minute or "-"), *usage)


def revoke(
    common: Common,
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Names of the keys.")],
) -> int:
    """Make every host refuse API keys from now on; what they have begun runs to its end.

    qwen-deploy keys revoke anna --host root@192.168.110.131

    qwen-deploy keys revoke team-7 team-8 --output json
    """
    from qwen_deploy import access, keys, remote

    asked = tuple(dict.fromkeys(map(keys.check_name, names)))
    operator = remote.operator()
    with _reached(common) as reached:
        # Not all or nothing: a key that leaked is to work on as few hosts as possible.
        found = _each(reached, lambda session: access.revoke(session, asked, operator))
    for host, result in found.items():
        _say_doubt(host, result, f"{host.name} may still accept {_quoted(asked)}")
    code = _told(
        *(common.out, asked, found),
        lambda revoked, name: "revoked" if name in revoked else "unknown",
    )
    answers = [one for one in found.values() if not isinstance(one, QwenDeployError)]
    known = [name for name in asked if any(name in revoked for revoked in answers)]
    for name in known:
        common.out.note(f"`{name}`: what it has begun runs to its end; it begins nothing more")
    if len(known) < len(asked) and not _errors(found):
        raise _unknown(common, [name for name in asked if name not in known], found, bool(known))
    return code


def _unknown(
    common: Common, names: Sequence[str], hosts: Iterable[Host], others_were: bool
) -> QwenDeployError:
    kind = QwenDeployError if others_were else Refused
    given = [word for host in common.host for word in ("--host", host)]
    return kind(
        f"there is no key {_quoted(names)} on {', '.join(host.name for host in hosts)}",
        state="the others were revoked" if others_were else "nothing was changed",
        hint=shlex.join(["qwen-deploy", "keys", "list", *given]),
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


@contextmanager
def _reached(common: Common) -> Iterator[dict[Host, Session | QwenDeployError]]:
    """A session, or why there is none, for every host."""
    from qwen_deploy import parallel, remote

    deployment = common.deployment()
    hosts = common.hosts(deployment)
    settings = common.ssh(deployment)
    opened = parallel.each(hosts, lambda host: remote.connect(host, settings))
    with ExitStack() as stack:
        for one in opened:
            if not isinstance(one, QwenDeployError):
                stack.enter_context(one)
        yield dict(zip(hosts, opened, strict=True))


def _each(
    reached: dict[Host, Session | QwenDeployError], call: Callable[[Session], Answer]
) -> dict[Host, Answer | QwenDeployError]:
    from qwen_deploy import parallel

    def attempt(one: Session | QwenDeployError) -> Answer:
        if isinstance(one, QwenDeployError):
            raise one
        return call(one)

    return dict(zip(reached, parallel.each(tuple(reached.values()), attempt), strict=True))


def _errors(results: dict[Host, Answer | QwenDeployError]) -> dict[Host, QwenDeployError]:
    return {host: one for host, one in results.items() if isinstance(one, QwenDeployError)}


def _say_doubt(host: Host, result: object, state: str) -> None:
    """A host that was lost on the way has no state of its own to tell."""
    if isinstance(result, Unreachable):
        result.state = result.state or state


def _told(
    out: Output,
    names: Sequence[str],
    results: Mapping[Host, Answer | QwenDeployError],
    outcome: Callable[[Answer, str], str],
) -> int:
    """Says what became of each key on each host; returns the exit code."""
    codes = []
    for host, result in results.items():
        if isinstance(result, QwenDeployError):
            out.error(result)
            codes.append(result.exit_code)
        for name in names:
            became = (
                result.outcome if isinstance(result, QwenDeployError) else outcome(result, name)
            )
            out.value({"event": "host_key", "host": host.name, "name": name, "outcome": became})
            out.note(f"{host.name}  keys      {name}: {became}")
    return gravest(tuple(codes))
