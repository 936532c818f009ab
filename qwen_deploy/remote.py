"""SSH sessions: connect, run, stream, hold, forward. The only module that imports fabric.

Host keys are checked as OpenSSH checks them; the library's default would accept any.
Knows nothing of units, releases or models.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import hashlib
import os
import pwd
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko
from fabric import Config, Connection
from paramiko.hostkeys import HostKeyEntry

from qwen_deploy import commands
from qwen_deploy.errors import AuthRefused, HostKeyChanged, HostKeyUnknown, Unreachable
from qwen_deploy.inventory import Host

KEEPALIVE_SECONDS = 10
# Unacknowledged data ends a dead connection after this long (tcp(7), TCP_USER_TIMEOUT).
SILENCE_SECONDS = 30
HEARTBEAT_SECONDS = 15


@dataclass(frozen=True, slots=True)
class SshSettings:
    """How to reach hosts. `jump` is `[user@]address[:port]`, as `ssh -J` takes it."""

    user: str | None = None
    key_file: Path | None = None
    config_file: Path | None = None
    jump: Host | None = None
    connect_seconds: float = 10.0
    accept_new_host_key: bool = False
    sudo_password: str | None = None

    def __repr__(self) -> str:
        return f"SshSettings(user={self.user!r}, key_file={self.key_file!r}, jump={self.jump!r})"


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

    def close(self) -> None:
        self._connection.close()
        if isinstance(self._connection.gateway, Connection):
            self._connection.gateway.close()

    def run(
        self, argv: Sequence[str], *, root: bool = False, stdin: bytes = b"", timeout: float = 120
    ) -> Completed:
        """Runs one command to its end. Raises Unreachable if the connection dies or is silent."""
        with self._lost_connection():
            channel = self._start(argv, root=root, stdin=stdin)
            channel.shutdown_write()
            channel.settimeout(timeout)
            errors: list[bytes] = []
            drain = threading.Thread(target=_drain, args=(channel, errors), daemon=True)
            drain.start()
            output = b"".join(iter(lambda: channel.recv(65536), b""))
            drain.join(timeout)
            status = channel.recv_exit_status()
        done = Completed(
            status, output.decode("utf-8", "replace"), b"".join(errors).decode("utf-8", "replace")
        )
        if root:
            self._check_sudo(done)
        return done

    def stream(self, argv: Sequence[str], *, root: bool = False) -> Iterator[str]:
        """Yields lines as they come, until the command ends."""
        with self._lost_connection():
            channel = self._start(argv, root=root)
            channel.set_combine_stderr(True)
            with channel.makefile("r") as lines:
                for line in lines:
                    yield line.rstrip("\n")

    @contextlib.contextmanager
    def hold(self, argv: Sequence[str]) -> Iterator[tuple[str, int | None]]:
        """Keeps a root command running, fed with heartbeats; yields its first line and, where it
        ended at once, its exit status."""
        with self._lost_connection():
            channel = self._start(argv, root=True)
            with channel.makefile("r") as lines:
                first = lines.readline().strip()
        ended = channel.recv_exit_status() if first != "held" else None
        if ended is not None:
            stderr = channel.recv_stderr(65536).decode("utf-8", "replace")
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
            threading.Thread(target=_join, args=(channel, local_port), daemon=True).start()

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
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            local_port: int = free.getsockname()[1]
        with self._connection.forward_local(
            local_port, remote_port=port, remote_host=address, local_host="127.0.0.1"
        ):
            yield local_port

    @property
    def _transport(self) -> Any:
        return self._connection.transport

    def _start(self, argv: Sequence[str], *, root: bool = False, stdin: bytes = b"") -> Any:
        channel = self._connection.create_session()
        with_password = self._sudo_password is not None
        command = commands.as_root(argv, with_password=with_password) if root else argv
        channel.exec_command(commands.quote(command))
        if root and with_password:
            channel.sendall(f"{self._sudo_password}\n".encode())
        if stdin:
            channel.sendall(stdin)
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
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise Unreachable(
                f"lost the connection to `{self.host}`: {str(error) or 'it was closed'}",
                host=self.host.name,
            ) from error


def _drain(channel: Any, into: list[bytes]) -> None:
    with contextlib.suppress(OSError, EOFError):
        into.extend(iter(lambda: channel.recv_stderr(65536), b""))


def _beat(channel: Any, stop: threading.Event) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        while not stop.wait(HEARTBEAT_SECONDS):
            channel.sendall(b"\n")


def _join(channel: Any, local_port: int) -> None:
    """Copies both ways between a forwarded channel and a local port until either side closes."""
    with (
        contextlib.suppress(OSError, EOFError),
        channel,
        socket.create_connection(("127.0.0.1", local_port)) as local,
    ):
        upward = threading.Thread(target=_copy, args=(channel, local), daemon=True)
        upward.start()
        _copy(local, channel)


def _copy(source: Any, sink: Any) -> None:
    with contextlib.suppress(OSError, EOFError):
        while chunk := source.recv(1 << 16):
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)


def connect(host: Host, settings: SshSettings) -> Session:
    """Opens a session; every way this can fail has its own error (see errors.py)."""
    connection = _connection(host, settings, gateway=settings.jump)
    try:
        connection.open()
    except paramiko.BadHostKeyException as error:
        raise _changed_key(host, error) from error
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


def destination(host: Host, settings: SshSettings) -> str:
    """What a person would write after `ssh` to get to the same place."""
    user = host.user or settings.user
    words = [f"-p {host.port}"] if host.port else []
    words += [f"-i {settings.key_file}"] if settings.key_file else []
    return " ".join([*words, f"{user}@{host.address}" if user else host.address])


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
    hop: Any = connection
    while isinstance(hop, Connection):
        _check_host_keys(hop, settings)
        hop = hop.gateway
    return connection


def _check_host_keys(connection: Connection, settings: SshSettings) -> None:
    named = connection.ssh_config.get("userknownhostsfile", "~/.ssh/known_hosts").split()
    files = [Path(name).expanduser() for name in named]
    for path in (*files, Path("/etc/ssh/ssh_known_hosts")):
        if path.is_file():
            connection.client.load_system_host_keys(str(path))
    policy = _Asked(files[0], accept=settings.accept_new_host_key)
    connection.client.set_missing_host_key_policy(policy)


def _changed_key(host: Host, error: paramiko.BadHostKeyException) -> HostKeyChanged:
    return HostKeyChanged(
        f"the host key of `{host}` has changed: known as {fingerprint(error.expected_key)}, "
        f"now {fingerprint(error.key)}",
        host=host.name,
        hint=f"find out why; if the host was installed anew: ssh-keygen -R {error.hostname!r}",
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
    causes = getattr(error, "errors", {})
    return "; ".join(sorted({str(cause) for cause in causes.values()})) or str(error) or "closed"


def openssh_arguments(settings: SshSettings) -> str:
    """The same choices as arguments for the `ssh` program, which Ansible runs."""
    home = Path("~").expanduser()
    words = []
    config_file = settings.config_file
    # OpenSSH takes the home folder from the user database, everything else from $HOME.
    if home != Path(pwd.getpwuid(os.getuid()).pw_dir):
        own = home / ".ssh" / "config"
        config_file = config_file or (own if own.is_file() else None)
        words += ["-o", f"UserKnownHostsFile={home / '.ssh' / 'known_hosts'}"]
    words += ["-F", str(config_file)] if config_file else []
    words += ["-o", f"ConnectTimeout={int(settings.connect_seconds)}"]
    words += ["-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"]
    if settings.jump:
        jump = settings.jump
        user = jump.user or settings.user
        words += ["-J", f"{user + '@' if user else ''}{jump.address}:{jump.port or 22}"]
    return commands.quote(words)


def operator() -> str:
    """Who is at work, as the lock and the audit log name them."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
