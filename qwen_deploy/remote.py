"""SSH sessions: connect, run, stream, hold, forward. The only module that imports fabric.

Host keys are checked as OpenSSH checks them; the library's default would accept any.
Knows nothing of units, releases or models.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import hashlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko
from fabric import Config, Connection
from paramiko.hostkeys import HostKeyEntry

from qwen_deploy import commands, tunnel
from qwen_deploy.errors import (
    AuthRefused,
    HostKeyChanged,
    HostKeyUnknown,
    Unreachable,
    UsageError,
)
from qwen_deploy.inventory import Host
from qwen_deploy.openssh import SshSettings, destination

# What goes wrong is told in our own errors; without a handler it would be printed as well.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

KEEPALIVE_SECONDS = 10
# Unacknowledged data ends a dead connection after this long (tcp(7), TCP_USER_TIMEOUT).
SILENCE_SECONDS = 30
HEARTBEAT_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Completed:
    exit_status: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.exit_status == 0


class _Asked(paramiko.MissingHostKeyPolicy):
    """Refuses an unknown host key, or accepts it once and writes it down."""

    def __init__(self, known_hosts: Path, *, accept: bool) -> None:
        self._known_hosts = known_hosts
        self._accept = accept

    def missing_host_key(self, client: Any, hostname: str, key: paramiko.PKey) -> None:
        if not self._accept:
            raise _UnknownKey(hostname, key)
        self._known_hosts.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = self._known_hosts.read_text() if self._known_hosts.exists() else ""
        separator = "" if not text or text.endswith("\n") else "\n"
        with self._known_hosts.open("a") as file:
            file.write(separator + (HostKeyEntry([hostname], key).to_line() or ""))


class _UnknownKey(paramiko.SSHException):
    def __init__(self, hostname: str, key: paramiko.PKey) -> None:
        super().__init__(hostname)
        self.hostname = hostname
        self.fingerprint = fingerprint(key)


def fingerprint(key: paramiko.PKey) -> str:
    """As `ssh-keygen -l` prints it."""
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


class Session:
    """One open SSH connection to one host. Not for use by two threads in the same call."""

    def __init__(self, host: Host, connection: Connection, sudo_password: str | None) -> None:
        self.host = host
        self._connection = connection
        self._sudo_password = sudo_password

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def user(self) -> str:
        return str(self._connection.user)

    @property
    def is_open(self) -> bool:
        return bool(self._connection.is_connected)

    def close(self) -> None:
        for hop in _hops(self._connection):
            hop.close()

    def run(
        self, argv: Sequence[str], *, root: bool = False, stdin: bytes = b"", timeout: float = 120
    ) -> Completed:
        """Runs one command to its end. Raises Unreachable if the connection dies or is silent."""
        with self._lost_connection(), self._start(argv, root=root) as channel:
            channel.settimeout(timeout)
            errors: list[bytes] = []
            # All three at once: each side may have to wait for another.
            others = [
                threading.Thread(target=_feed, args=(channel, stdin), daemon=True),
                threading.Thread(target=_drain, args=(channel, errors), daemon=True),
            ]
            for other in others:
                other.start()
            output = b"".join(iter(lambda: channel.recv(65536), b""))
            for other in others:
                other.join(timeout)
            status = _status(channel)
        done = Completed(status, _text(output), _text(b"".join(errors)))
        if root:
            self._check_sudo(done)
        return done

    def stream(self, argv: Sequence[str], *, root: bool = False) -> Iterator[str]:
        """Yields lines as they come, until the command ends. Raises UsageError where it failed."""
        last: deque[str] = deque(maxlen=5)
        with self._lost_connection(), self._start(argv, root=root) as channel:
            channel.set_combine_stderr(True)
            with channel.makefile("rb") as lines:
                for line in lines:
                    last.append(_text(line))
                    yield last[-1].rstrip("\n")
            status = _status(channel)
        if root:
            self._check_sudo(Completed(status, "", "".join(last)))
        if status > 0:
            said = "".join(last).strip() or f"exit status {status}"
            raise UsageError(f"`{argv[0]}` on `{self.host}` failed: {said}")

    @contextlib.contextmanager
    def hold(self, argv: Sequence[str]) -> Iterator[tuple[str, int | None]]:
        """Keeps a root command running, fed with heartbeats; yields its first line and, where it
        ended at once, its exit status."""
        with self._lost_connection():
            channel = self._start(argv, root=True)
            with channel.makefile("rb") as lines:
                first = _text(lines.readline()).strip()
            ended = _status(channel) if first != "held" else None
        if ended is not None:
            stderr = _text(channel.recv_stderr(65536))
            self._check_sudo(Completed(ended, first, stderr))
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(channel, stop), daemon=True)
        beat.start()
        try:
            yield first, ended
        finally:
            stop.set()
            channel.close()

    @contextlib.contextmanager
    def forward_remote(self, local_port: int) -> Iterator[int]:
        """Lets the host's loopback reach a port of our loopback; yields the host's port."""
        transport = self._transport

        def accept(channel: Any, _origin: Any, _server: Any) -> None:
            tunnel.serve(channel, local_port)

        try:
            port = transport.request_port_forward("127.0.0.1", 0, accept)
        except paramiko.SSHException as error:
            raise Unreachable(
                f"sshd on `{self.host}` refuses to forward a port",
                host=self.host.name,
                hint="allow it: set `AllowTcpForwarding yes` in the host's sshd_config",
            ) from error
        try:
            yield port
        finally:
            with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
                transport.cancel_port_forward("127.0.0.1", port)

    @contextlib.contextmanager
    def forward_local(self, port: int, address: str = "127.0.0.1") -> Iterator[int]:
        """A port of this machine's loopback that reaches `address:port` as seen from the host."""
        transport = self._transport

        def open_channel(origin: Any) -> Any:
            with contextlib.suppress(paramiko.SSHException):
                return transport.open_channel("direct-tcpip", (address, port), origin)

        with tunnel.listening(open_channel) as local_port:
            yield local_port

    def dial(self, address: str, port: int) -> Any:
        """A channel to `address:port` as seen from the host. Raises OSError where there is none."""
        try:
            return self._transport.open_channel("direct-tcpip", (address, port), ("127.0.0.1", 0))
        except paramiko.SSHException as error:
            raise OSError(f"no connection to {address}:{port} from {self.host}: {error}") from error

    @property
    def _transport(self) -> Any:
        return self._connection.transport

    def _start(self, argv: Sequence[str], *, root: bool = False) -> Any:
        channel = self._connection.create_session()
        with_password = self._sudo_password is not None
        command = commands.as_root(argv, with_password=with_password) if root else argv
        channel.exec_command(commands.quote(command))
        if root and with_password:
            with contextlib.suppress(OSError):  # it ended already, and will say why
                channel.sendall(f"{self._sudo_password}\n".encode())
        return channel

    def _check_sudo(self, done: Completed) -> None:
        refusal = commands.sudo_refusal(done.exit_status, done.stderr) if not done.ok else None
        if refusal:
            raise AuthRefused(
                f"`{self._connection.user}` on `{self.host}` {refusal}",
                host=self.host.name,
                hint="connect as root, or give the password: --ask-sudo-password",
            )

    @contextlib.contextmanager
    def _lost_connection(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            message = f"`{self.host}` was silent for too long"
            raise Unreachable(message, host=self.host.name) from error
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise Unreachable(
                f"lost the connection to `{self.host}`: {str(error) or 'it was closed'}",
                host=self.host.name,
            ) from error


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _status(channel: Any) -> int:
    """The exit status, or -1 for a command that a signal ended."""
    status: int = channel.recv_exit_status()
    # A channel that closed without an end of its output went down with its connection.
    if status == -1 and not channel.eof_received:
        raise EOFError
    return status


def _feed(channel: Any, stdin: bytes) -> None:
    # A command may end without having read everything.
    with contextlib.suppress(OSError, EOFError):
        channel.sendall(stdin)
        channel.shutdown_write()


def _drain(channel: Any, into: list[bytes]) -> None:
    with contextlib.suppress(OSError, EOFError):
        into.extend(iter(lambda: channel.recv_stderr(65536), b""))


def _beat(channel: Any, stop: threading.Event) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        while not stop.wait(HEARTBEAT_SECONDS):
            channel.sendall(b"\n")


def connect(host: Host, settings: SshSettings) -> Session:
    """Opens a session; every way this can fail has its own error (see errors.py)."""
    for name, path in (("key_file", settings.key_file), ("config_file", settings.config_file)):
        if path is not None and not path.is_file():
            raise UsageError(f"ssh/{name}: {path}: no such file")
    connection = _connection(host, settings, gateway=settings.jump)
    try:
        connection.open()
    except paramiko.BadHostKeyException as error:
        raise _changed_key(host, connection, error) from error
    except _UnknownKey as error:
        raise _unknown_key(host, error) from error
    except (paramiko.AuthenticationException, paramiko.PasswordRequiredException) as error:
        raise _auth_refused(host, connection, error) from error
    except (OSError, EOFError, paramiko.SSHException) as error:
        if "No authentication methods available" in str(error):
            raise _auth_refused(host, connection, error) from error
        raise Unreachable(
            f"`{host}` cannot be reached: {_reason(connection, error)}",
            host=host.name,
            hint=f"ssh {destination(host, settings)} true",
        ) from error
    connection.transport.set_keepalive(KEEPALIVE_SECONDS)
    with contextlib.suppress(OSError, AttributeError):
        connection.transport.sock.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_SECONDS * 1000
        )
    return Session(host, connection, settings.sudo_password)


def _connection(host: Host, settings: SshSettings, gateway: Host | None) -> Connection:
    config = Config(
        runtime_ssh_path=str(settings.config_file) if settings.config_file else None,
        overrides={"timeouts": {"connect": int(settings.connect_seconds)}},
    )
    keys = {"key_filename": [str(settings.key_file)]} if settings.key_file else {}
    connection = Connection(
        host.address,
        user=host.user or settings.user or None,
        port=host.port,
        config=config,
        gateway=_connection(gateway, settings, None) if gateway else None,
        connect_kwargs={**keys, "banner_timeout": settings.connect_seconds * 2},
    )
    for hop in _hops(connection):
        _check_host_keys(hop, settings)
    return connection


def _hops(connection: Any) -> Iterator[Connection]:
    """The connection and those through which it goes."""
    while isinstance(connection, Connection):
        yield connection
        connection = connection.gateway


def _check_host_keys(connection: Connection, settings: SshSettings) -> None:
    named = connection.ssh_config.get("userknownhostsfile", "~/.ssh/known_hosts").split()
    files = [Path(name).expanduser() for name in named]
    for path in (*files, Path("/etc/ssh/ssh_known_hosts")):
        if path.is_file():
            connection.client.load_system_host_keys(str(path))
    policy = _Asked(files[0], accept=settings.accept_new_host_key)
    connection.client.set_missing_host_key_policy(policy)


def _changed_key(
    host: Host, connection: Connection, error: paramiko.BadHostKeyException
) -> HostKeyChanged:
    ports = {hop.host: hop.port for hop in _hops(connection)}
    port = ports.get(error.hostname, 22)
    known_as = error.hostname if port == 22 else f"[{error.hostname}]:{port}"
    return HostKeyChanged(
        f"the host key of `{host}` has changed: known as {fingerprint(error.expected_key)}, "
        f"now {fingerprint(error.key)}",
        host=host.name,
        hint="find out why; if the host was installed anew: "
        + commands.quote(["ssh-keygen", "-R", known_as]),
    )


def _unknown_key(host: Host, error: _UnknownKey) -> HostKeyUnknown:
    return HostKeyUnknown(
        f"the host key of `{error.hostname}` is unknown: {error.fingerprint}",
        host=host.name,
        hint="compare the fingerprint with the host's, then accept it once: "
        f"qwen-deploy status --host {host} --accept-new-host-key",
    )


def _auth_refused(host: Host, connection: Connection, error: Exception) -> AuthRefused:
    keys = connection.connect_kwargs.get("key_filename")
    tried = f" with {', '.join(keys)}" if keys else " with the keys of the agent and of ~/.ssh"
    return AuthRefused(
        f"`{host}` does not let `{connection.user}` in{tried}: {error}".rstrip(". "),
        host=host.name,
        hint=f"ssh-copy-id {connection.user}@{connection.host}, or name another key: --key-file",
    )


def _reason(connection: Connection, error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer from {connection.host}:{connection.port}"
    if isinstance(error, socket.gaierror):
        return f"no address is known for {connection.host}"
    causes = {getattr(cause, "strerror", None) for cause in getattr(error, "errors", {}).values()}
    return "; ".join(sorted(filter(None, causes))) or str(error) or "closed"


def operator() -> str:
    """Who is at work, as the lock and the audit log name them."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
