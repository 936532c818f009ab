"""The service that a person wants to talk to: of one host, through SSH, or at any base URL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_deploy.cli.options import Common, open_sessions
from qwen_deploy.errors import NeedsAttention, QwenDeployError, UsageError

if TYPE_CHECKING:
    from qwen_deploy.chat.client import Endpoint
    from qwen_deploy.inventory import Host
    from qwen_deploy.load.request import Target
    from qwen_deploy.remote import Session

NO_KEY = "none"


@dataclass(frozen=True, slots=True)
class Served:
    """What a host serves: its port, the address as seen from there, operator's key and model."""

    host: Host
    port: int
    address: str
    key: str = field(repr=False)
    model: str
    listens: str


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A server that is no host of ours."""

    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="Base URL of another server, ending in /v1."),
    ] = None
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="API key for --url.")
    ] = None
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Model at --url [default: its first]."),
    ] = None

    def endpoint(self) -> Endpoint | None:
        """None where no URL is given. Asks the server for its models if none is named."""
        from qwen_deploy.chat.client import Endpoint
        from qwen_deploy.chat.pages import first_model

        if self.url is None:
            for name, given in (("--api-key-file", self.api_key_file), ("--model", self.model)):
                if given is not None:
                    raise UsageError(f"{name} goes with --url; of a host it is known")
            return None
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"--url {self.url}: should begin with http:// or https://")
        url = self.url.rstrip("/")
        key = _key(self.api_key_file) if self.api_key_file else NO_KEY
        # Made first: it refuses a key that no header can carry.
        endpoint = Endpoint(base_url=url, api_key=key, model=self.model or "")
        return replace(endpoint, model=self.model or first_model(url, key))


@dataclass(frozen=True, slots=True)
class Tunnel:
    host: Host
    port: int
    served: Served


def _key(path: Path) -> str:
    try:
        key = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {path}: cannot be read: {error}") from error
    if not key or len(key.split()) != 1:
        raise UsageError(f"--api-key-file {path}: should hold one key, without blanks")
    return key


def check_one(common: Common, name: str, elsewhere: Elsewhere | None = None) -> None:
    """An error unless exactly one server is named, before anything is asked or read."""
    if elsewhere is not None and elsewhere.url is not None:
        if common.host:
            raise UsageError("--host and --url name two servers: give one of them")
        return
    hosts = common.hosts(common.deployment())
    if len(hosts) > 1:
        raise UsageError(
            "one host answers at a time", hint=f"qwen-deploy {name} --host {hosts[0].text}"
        )


@contextmanager
def endpoint(common: Common, elsewhere: Elsewhere) -> Iterator[Endpoint]:
    from qwen_deploy.chat.client import Endpoint

    other = elsewhere.endpoint()
    if other is not None:
        yield other
        return
    with tunneled(common) as tunnel:
        served = tunnel.served
        base_url = f"http://127.0.0.1:{tunnel.port}/v1"
        yield Endpoint(base_url=base_url, api_key=served.key, model=served.model)


@contextmanager
def target(common: Common, elsewhere: Elsewhere, *, direct: bool) -> Iterator[tuple[Target, str]]:
    """Where to send load, and in words how it gets there: a tunnel of ours would be the bottleneck
    of many streams, so the `ssh` program makes it."""
    from qwen_deploy import sshtunnel
    from qwen_deploy.load.request import Target

    other = elsewhere.endpoint()
    if other is not None:
        yield Target(other.base_url, other.model, other.api_key or NO_KEY), other.base_url
        return
    deployment = common.deployment()
    settings = common.ssh(deployment)
    with open_sessions(common.hosts(deployment), settings, common.out) as (session,):
        served = of(session)
        host = served.host
        if direct:
            url = _direct(served)
            yield Target(url, served.model, served.key), f"{url}, direct"
            return
        with sshtunnel.forwarded(host, settings, served.address, served.port) as path:
            base = Target("http://localhost/v1", served.model, served.key, path)
            yield base, f"port {served.port} of {host}, through ssh -L"


def _direct(served: Served) -> str:
    if served.listens in ("127.0.0.1", "::1", "localhost"):
        raise UsageError(
            f"the service of `{served.host}` listens on {served.listens} only",
            hint="leave --direct out: ssh gets there",
        )
    address = served.host.address
    return f"http://{f'[{address}]' if ':' in address else address}:{served.port}/v1"


@contextmanager
def tunneled(common: Common) -> Iterator[Tunnel]:
    """A port of ours that reaches the host's service, and goes on doing so: where the connection
    is lost, the next client gets a new one."""
    from qwen_deploy import remote, tunnel

    deployment = common.deployment()
    settings = common.ssh(deployment)
    with open_sessions(common.hosts(deployment), settings, common.out) as (session,):
        served = of(session)
        lasting = _Lasting(session, lambda: remote.connect(session.host, settings), common.out.note)
        try:
            with tunnel.listening(lambda _: lasting.dial(served)) as port:
                yield Tunnel(session.host, port, served)
        finally:
            lasting.close()


def of(session: Session) -> Served:
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
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.strip("[]"), address.strip("[]"))
    return Served(
        host=session.host,
        port=int(port),
        address=reached,
        key=key or NO_KEY,
        model=str(served["model"]),
        listens=address.strip("[]"),
    )


class _Lasting:
    """Channels of a session, and of the one that takes its place when it is lost."""

    def __init__(
        self, session: Session, connect: Callable[[], Session], note: Callable[[str], None]
    ) -> None:
        self._session = session
        self._connect = connect
        self._note = note
        self._lock = threading.Lock()
        self._own: Session | None = None

    def dial(self, served: Served) -> Any:
        """None where the host cannot be reached, or nothing listens there."""
        with suppress(OSError, EOFError):
            return self._alive().dial(served.address, served.port)
        return None

    def close(self) -> None:
        if self._own:
            self._own.close()

    def _alive(self) -> Session:
        with self._lock:
            if self._session.is_open:
                return self._session
            self.close()
            self._note(f"{self._session.host}: the SSH connection was lost; opening another")
            try:
                self._session = self._own = self._connect()
            except QwenDeployError as error:
                self._note(f"error: {error.message}")
                raise OSError(error.message) from error
            return self._session
