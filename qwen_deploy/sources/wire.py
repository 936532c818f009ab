"""Small answers over HTTP, for every protocol of a hub: retried, bounded in size and time, and each
way to fail in one sentence. The only one that opens connections to hubs from this machine.

Knows no hub: an answer of any status below 500, save 429, is for the caller to judge.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from qwen_deploy.errors import UsageError
from qwen_deploy.sources.network import Network, Patience
from qwen_deploy.sources.refusals import HubMissing, HubUnreachable, ListRefused

if TYPE_CHECKING:
    import httpx

_MOST_BYTES = 64 << 20
_REDIRECTS = 5
_REDIRECTED = (301, 302, 303, 307, 308)
_ANSWER_SECONDS = 120.0
_LONGEST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class _Again(Exception):
    """It may pass; `error` is what it is called if it does not."""

    def __init__(self, error: HubUnreachable, after_seconds: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.after_seconds = after_seconds


class Wire:
    """Closed by whoever opened it. Used by several threads at once."""

    def __init__(
        self, network: Network, *, ca_file: Path | None = None, patience: Patience | None = None
    ) -> None:
        self._network = network
        self._patience = patience or Patience()
        self._ca_file = ca_file
        self._lock = threading.Lock()
        self._clients: dict[tuple[str | None, bool], httpx.Client] = {}

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Reply:
        """Follows redirects; what says who asks stays with the origin that it was meant for."""
        sent = dict(headers or {})
        for _ in range(_REDIRECTS + 1):
            reply = self.ask("GET", url, sent)
            if reply.status not in _REDIRECTED or "location" not in reply.headers:
                return reply
            following = urljoin(url, reply.headers["location"])
            if _origin(following) != _origin(url):
                sent = {name: sent[name] for name in sent if name.lower() not in _SECRET}
            if urlsplit(url).scheme == "https" and urlsplit(following).scheme != "https":
                raise HubUnreachable(f"{_host(url)} leads away from https")
            url = following
        raise HubUnreachable(f"{_host(url)} leads in a circle: more than {_REDIRECTS} redirects")

    def ask(self, method: str, url: str, headers: Mapping[str, str]) -> Reply:
        """One answer as it is, redirects too. Raises HubUnreachable where there is none of use."""
        for tried in range(1, self._patience.tries + 1):
            try:
                return self._ask_once(method, url, headers)
            except _Again as again:
                pause = 2.0 ** (tried - 1) if again.after_seconds is None else again.after_seconds
                if tried == self._patience.tries or pause > _LONGEST_PAUSE_SECONDS:
                    raise again.error from again
            self._patience.pause(pause)
        raise AssertionError("a last try either answers or raises")

    def _ask_once(self, method: str, url: str, headers: Mapping[str, str]) -> Reply:
        with (
            self._typed(url),
            self._client(url).stream(method, url, headers=dict(headers)) as response,
        ):
            _refuse_busy(url, response.status_code, response.headers.get("retry-after"))
            fields = {name.lower(): value for name, value in response.headers.items()}
            for name in ("content-encoding", "transfer-encoding"):
                fields.pop(name, None)  # the body below is decoded
            return Reply(response.status_code, fields, _body(url, response))

    def _client(self, url: str) -> httpx.Client:
        proxy = self._network.proxy_for(url)
        is_tls = "https" in (urlsplit(url).scheme, urlsplit(proxy or "").scheme)
        with self._lock:
            if (proxy, is_tls) not in self._clients:
                self._clients[proxy, is_tls] = self._new_client(proxy, is_tls)
            return self._clients[proxy, is_tls]

    def _new_client(self, proxy: str | None, is_tls: bool) -> httpx.Client:
        import httpx

        patience = self._patience
        timeout = httpx.Timeout(patience.silence_seconds, connect=patience.connect_seconds)
        # Only who asks https: needs the authorities, which take a moment to read.
        verify = _trust(self._ca_file) if is_tls else False
        return httpx.Client(proxy=proxy, verify=verify, timeout=timeout, trust_env=False)

    @contextmanager
    def _typed(self, url: str) -> Iterator[None]:
        import httpx

        try:
            yield
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise HubMissing(f"{url} is no URL that can be asked: {error}") from error
        except httpx.ProxyError as error:
            raise self._unreachable(url, f"the proxy says: {error}") from error
        except httpx.ConnectTimeout as error:
            raise self._unreachable(url, "no answer") from error
        except httpx.ConnectError as error:
            raise self._unreachable(url, _cause(error)) from error
        except httpx.TimeoutException as error:
            raise self._unreachable(url, "it was silent for too long") from error
        except httpx.HTTPError as error:
            raise _Again(self._unreachable(url, f"the connection broke: {error}")) from error

    def _unreachable(self, url: str, why: str) -> HubUnreachable:
        proxy = self._network.proxy_for(url)
        by = f" through the proxy {_host(proxy)}" if proxy else ""
        return HubUnreachable(
            f"{_host(url)} cannot be reached from here{by}: {why}".rstrip(". "),
            hint=_HINTS.get(why),
        )


_SECRET = ("authorization", "cookie")
_UNTRUSTED = "its certificate is not trusted"
# Of OpenSSL, x509_vfy.h
_REASONS = {
    9: "its certificate is not valid yet: is the clock right?",
    10: "its certificate has expired: is the clock right?",
    62: "its certificate is for another name",
    64: "its certificate is for another address",
}
_PLAIN = "it answered plain HTTP instead of TLS"
_HINTS = {
    _UNTRUSTED: "Name its authority's certificate: weights/ca_file",
    _PLAIN: "Name it with http:// instead of https://",
}


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    import httpx

    context = httpx.create_ssl_context()
    context.load_default_certs()
    if ca_file is None:
        return context
    try:
        context.load_verify_locations(ca_file.expanduser())
    except (OSError, ssl.SSLError) as error:
        message = f"weights/ca_file: {ca_file}: no certificate can be read"
        raise UsageError(message) from error
    return context


def _refuse_busy(url: str, status: int, retry_after: str | None) -> None:
    if status != 429 and status < 500:
        return
    seconds = _seconds(retry_after)
    asks = f" and asks to wait {seconds:.0f} s" if seconds else ""
    what = "is asked too often (429)" if status == 429 else f"answers {status}"
    raise _Again(HubUnreachable(f"{_host(url)} {what}{asks}", hint="Try again later"), seconds)


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After is a number of seconds, or a date (RFC 9110)."""
    if retry_after is None:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    with suppress(ValueError):
        until = parsedate_to_datetime(retry_after)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    return None


def _body(url: str, response: httpx.Response) -> bytes:
    body = bytearray()
    deadline = time.monotonic() + _ANSWER_SECONDS
    for piece in response.iter_bytes():
        body += piece
        if len(body) > _MOST_BYTES:
            raise ListRefused(f"{_host(url)} sends more than {_MOST_BYTES >> 20} MiB at once")
        if time.monotonic() > deadline:
            raise HubUnreachable(f"{_host(url)} is too slow: {len(body)} bytes in two minutes")
    return bytes(body)


def _cause(error: Exception) -> str:
    """The library tells the reason of a broken connection only in the chain of causes."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _REASONS.get(cause.verify_code, _UNTRUSTED)
        if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
            return _PLAIN
        if isinstance(cause, ssl.SSLError):
            return f"no TLS there: {cause.reason or cause}"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


def _host(url: str) -> str:
    """As messages name it: without what may be secret."""
    return urlsplit(url).netloc.rpartition("@")[2] or url
