"""Sockets to a server, direct or through a proxy, plain or TLS; all of them can be ended at once.
Does not know what is said on them."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, unquote, urlsplit

from qwen_weights.errors import BadManifest, TokenRefused, Untrusted
from qwen_weights.sources import Interruption, Stubborn, TooSlow

_PORTS = {"http": 80, "https": 443}
_CONNECT_SECONDS = 10.0
_TUNNEL_BUFFER_BYTES = 256 << 10
# Of OpenSSL: X509_verify_cert_error_string(3).
_NOT_YET_VALID, _EXPIRED = 9, 10
_WRONG_NAME = (62, 64)
# What OpenSSL calls an answer that is no record of TLS.
_NO_RECORD = "WRONG_VERSION_NUMBER"


@dataclass(frozen=True)
class Origin:
    """Whom a secret may be told: RFC 6454."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.authority}{port}"

    @property
    def authority(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def split(url: str) -> tuple[SplitResult, Origin]:
    """The URL may be a stranger's, such as that of a redirect."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in _PORTS:
        raise BadManifest(f"{without_secrets(url)!r} is not an http or https URL")
    return parts, Origin(parts.scheme, host, port or _PORTS[parts.scheme])


def without_secrets(url: str) -> str:
    """Neither a password nor a signature is shown."""
    before, mark, rest = url.partition("://")
    netloc, slash, path = rest.partition("/")
    return f"{before}{mark}{netloc.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def basic(parts: SplitResult) -> str | None:
    """The value of an Authorization header for the user and password of a URL."""
    if parts.username is None:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return "Basic " + b64encode(pair.encode()).decode("ascii")


class Connector:
    def __init__(
        self,
        *,
        proxy: str | None = None,
        ca: str | None = None,
        timeout_seconds: float = 20,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._proxy = _proxy_parts(proxy) if proxy else None
        self._ca = ca
        self._tls = _context(ca) if ca else None
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._family: dict[str, int] = {}
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def connect(self, origin: Origin) -> socket.socket:
        try:
            sock = self._reach(origin)
        except (OSError, UnicodeError) as error:  # of a name that no address can have
            raise interruption(error) from error
        if origin.scheme == "http":
            return sock
        return self._secure(sock, origin)

    def release(self, sock: socket.socket) -> None:
        with self._lock:
            self._open.discard(sock)
        sock.close()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for sock in self._open:
                _shut(sock)

    def _keep(self, sock: socket.socket) -> None:
        with self._lock:
            if not self._is_closed:
                self._open.add(sock)
                return
        sock.close()
        raise Interruption("it was closed")

    def _reach(self, origin: Origin) -> socket.socket:
        if self._proxy is None:
            return self._dial(origin.host, origin.port)
        parts, proxy = self._proxy
        try:
            sock = self._dial(proxy.host, proxy.port)
        except OSError as error:
            raise interruption(error, f"the proxy {proxy}: ") from error
        try:
            _ask_proxy(sock, parts, origin)
        except BaseException:
            self.release(sock)
            raise
        return sock

    def _dial(self, host: str, port: int) -> socket.socket:
        """Each address in turn, first those of the family that answered last: a host whose IPv6
        leads nowhere waits for it once."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found.sort(key=lambda entry: entry[0] != self._family.get(host))
        failure: OSError = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            self._keep(sock)
            try:
                sock.settimeout(min(_CONNECT_SECONDS, self._timeout_seconds))
                sock.connect(address)
                sock.settimeout(self._timeout_seconds)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _limit_buffer(sock)
            except OSError as error:
                failure = error
                self.release(sock)
                continue
            self._family[host] = family
            return sock
        raise failure

    def _secure(self, plain: socket.socket, origin: Origin) -> socket.socket:
        context = self._tls = self._tls or _context(None)
        try:
            sock = context.wrap_socket(
                plain, server_hostname=origin.host, do_handshake_on_connect=False
            )
        except (OSError, ValueError) as error:
            raise interruption(error, f"no TLS with {origin}: ") from error
        finally:
            self.release(plain)  # the other one has its descriptor now
        self._keep(sock)
        try:
            sock.do_handshake()
        except ssl.SSLCertVerificationError as error:
            self.release(sock)
            raise Untrusted(self._distrust(error, origin)) from error
        except OSError as error:
            self.release(sock)
            if getattr(error, "reason", None) == _NO_RECORD:
                plain_origin = replace(origin, scheme="http")
                raise Interruption(
                    f"no TLS with {origin}: the server answered plain HTTP: use {plain_origin}"
                ) from error
            raise interruption(error, f"no TLS with {origin}: ") from error
        return sock

    def _distrust(self, error: ssl.SSLCertVerificationError, origin: Origin) -> str:
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self._clock()))
        subject = f"the certificate of {origin}"
        if error.verify_code == _NOT_YET_VALID:
            return f"{subject} is not yet valid by this host's clock, which says {now}: set it"
        if error.verify_code == _EXPIRED:
            return f"{subject} has expired, if this host's clock is right, which says {now}"
        if error.verify_code in _WRONG_NAME:
            return f"{subject} is for another name: {error.verify_message}"
        trusted = "the private CA it was given" if self._ca else "the CAs of this host"
        return f"{subject} is not vouched for by {trusted}: {error.verify_message}"


def interruption(error: BaseException, subject: str = "") -> Interruption:
    """What the system says, as something that may pass."""
    if isinstance(error, socket.timeout):
        return TooSlow(f"{subject}it sent nothing for too long")
    return Interruption(subject + reason(error))


def reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        text = (error.reason or str(error)).replace("_", " ").lower()
    else:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text[:1].lower() + text[1:]


def _proxy_parts(url: str) -> tuple[SplitResult, Origin]:
    parts, origin = split(url)
    if origin.scheme != "http":
        raise BadManifest(f"the proxy {origin} should be reached by http")
    return parts, origin


def _ask_proxy(sock: socket.socket, proxy: SplitResult, origin: Origin) -> None:
    """Also for http: a proxy in between reads and keeps nothing."""
    target = f"{origin.authority}:{origin.port}"
    credentials = basic(proxy)
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if credentials:
        lines.append(f"Proxy-Authorization: {credentials}")
    name = proxy.netloc.rpartition("@")[2]
    answer = http.client.HTTPResponse(sock, method="CONNECT")
    try:
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        answer.begin()
    except (OSError, http.client.HTTPException) as error:
        raise interruption(error, f"the proxy {name}: ") from error
    finally:
        answer.close()
    if answer.status == http.client.PROXY_AUTHENTICATION_REQUIRED:
        what = "refused its user and password" if credentials else "wants a user and password"
        raise TokenRefused(f"the proxy {name} {what}: 407 {answer.reason}")
    if not 200 <= answer.status < 300:
        kind = Stubborn if answer.status in (403, 405) else Interruption
        raise kind(f"the proxy {name} does not reach {target}: {answer.status} {answer.reason}")


def _context(ca: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca is not None:
        try:
            context.load_verify_locations(cadata=ca)
        except (ssl.SSLError, ValueError) as error:
            raise BadManifest(
                f"the private CA is no certificate in PEM: {reason(error)}"
            ) from error
    return context


def _limit_buffer(sock: socket.socket) -> None:
    """What the kernel has received but nobody has read is lost by a kill, and a tunnel's end on
    this host is always quick enough."""
    if sock.getpeername()[0] in ("127.0.0.1", "::1"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _TUNNEL_BUFFER_BYTES)


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):  # it may have ended by itself
        # An SSLSocket's own method would take its state away from under a reader.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
