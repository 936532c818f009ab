"""One streamed answer from an OpenAI-compatible service, and what its refusals mean to a person.

The only user of httpx in the chat; knows no conversation, no command and no terminal.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qwen_deploy.errors import QwenDeployError, UsageError

if TYPE_CHECKING:
    import httpx

LONGEST_MESSAGE = 300
ASK_AGAIN = "`:retry` asks again"


class AnswerFailed(QwenDeployError):
    """The service gave no answer, or not all of it. The hint names commands of the chat."""

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`base_url` ends where `/chat/completions` begins, as with the official client."""

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    silence_seconds: float = 300.0

    def __post_init__(self) -> None:
        # Found here, because the libraries below print the header they cannot send.
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise UsageError("the API key holds characters that no header can carry")

    @property
    def url(self) -> str:
        return f"{self.base_url.rstrip('/')}/chat/completions"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event of the stream brings; most bring only text, or thoughts before it."""

    text: str = ""
    finish_reason: str | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None
    reasoning: str = ""


class Service:
    """What answers at an endpoint. Loads httpx when made, so that no answer waits for it."""

    def __init__(self, endpoint: Endpoint) -> None:
        import httpx

        self.endpoint = endpoint
        # The address is the end of a tunnel: a proxy of the environment cannot reach it, and a
        # connection kept from the last question may have died with the tunnel.
        self._http = httpx.Client(
            headers=endpoint.headers,
            limits=httpx.Limits(max_keepalive_connections=0),
            timeout=httpx.Timeout(10.0, read=endpoint.silence_seconds),
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def stream(self, payload: Mapping[str, object]) -> Generator[Piece]:
        """The pieces of the answer. Closing the iterator closes the connection."""
        import httpx

        at = self.endpoint
        try:
            with self._http.stream("POST", at.url, json=payload) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refused(response, at)
                yield from pieces(events(response.iter_bytes()))
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise AnswerFailed(f"`{at.base_url}` does not answer: {exc}", hint=ASK_AGAIN) from exc
        except httpx.ReadTimeout as exc:
            message = f"nothing came from the service for {at.silence_seconds:g} seconds"
            raise AnswerFailed(message, hint=ASK_AGAIN) from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            message = f"the connection was lost: {_line(str(exc))}"
            raise AnswerFailed(message, hint=ASK_AGAIN) from exc


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of each server-sent event.

    Lines are split as bytes: str.splitlines, and so httpx.iter_lines, would also cut at U+2028
    or U+0085 in the middle of an answer.
    """
    data: list[bytes] = []
    for line in _lines(chunks):
        if line.startswith(b"data:"):
            data.append(line.removeprefix(b"data:").removeprefix(b" "))
        elif not line and data:
            yield b"\n".join(data).decode("utf-8", "replace")
            data.clear()


def pieces(data: Iterable[str]) -> Iterator[Piece]:
    has_ended = False
    for event in data:
        if event.strip() == "[DONE]":
            return
        piece = _piece(event)
        has_ended = has_ended or piece.finish_reason is not None
        yield piece
    if not has_ended:
        raise AnswerFailed("the connection was lost in the middle of the answer", hint=ASK_AGAIN)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.removesuffix(b"\r") for line in lines)


def _piece(event: str) -> Piece:
    try:
        chunk = json.loads(event)
        if chunk.get("error"):
            raise AnswerFailed(f"the answer broke off: {_message(chunk)}", hint=ASK_AGAIN)
        choice = (chunk.get("choices") or [{}])[0]
        delta = choice.get("delta") or {}
        usage = chunk.get("usage") or {}
        # Servers have not agreed on the name of what a model thinks.
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        return Piece(
            _well_formed(delta.get("content") or ""),
            choice.get("finish_reason"),
            _count(usage, "completion_tokens"),
            _count(usage, "prompt_tokens"),
            _well_formed(reasoning),
        )
    except (ValueError, TypeError, AttributeError, LookupError) as exc:
        shown = _line(event[:LONGEST_MESSAGE])
        raise AnswerFailed(f"the service sent what is no part of an answer: {shown}") from exc


def _count(usage: Mapping[str, object], name: str) -> int | None:
    count = usage.get(name)
    return None if count is None else int(str(count))


def _refused(response: httpx.Response, endpoint: Endpoint) -> AnswerFailed:
    said = _body_message(response.text)
    match response.status_code:
        case 400 | 422:
            return AnswerFailed(f"the service refused the request: {said}", hint=_remedy(response))
        case 401 | 403:
            return AnswerFailed(f"the service refused the API key: {said}")
        case 404:
            return AnswerFailed(
                f"the service has no `{endpoint.model}` at `{endpoint.url}`: {said}"
            )
        case 429:
            return _not_now(response, "the service is busy: ")
        case 503:
            return _not_now(response, "the service is not ready: ")
        case status:
            return AnswerFailed(f"the service answered {status}: {said}", hint=ASK_AGAIN)


def _not_now(response: httpx.Response, prefix: str) -> AnswerFailed:
    # Our own service begins with the same words; what stands before another may not.
    message = f"{prefix}{_body_message(response.text).removeprefix(prefix)}"
    seconds = response.headers.get("Retry-After", "")
    if not (seconds.isascii() and seconds.isdecimal()):
        return AnswerFailed(message, hint=ASK_AGAIN)
    return AnswerFailed(
        message, hint=f"{ASK_AGAIN}; wait {seconds} s before it", retry_after=int(seconds)
    )


def _remedy(response: httpx.Response) -> str | None:
    from qwen_deploy.chat.settings import SETTINGS

    error = _error(response.text)
    if error.get("code") == "context_length_exceeded":
        return "`:clear-history` makes room, `:undo` takes the last question back"
    param = error.get("param")
    return f"`:conf {param}=default` takes the setting back" if param in SETTINGS else None


def _error(body: str) -> Mapping[str, object]:
    try:
        error = json.loads(body)["error"]
    except (ValueError, TypeError, LookupError):
        return {}
    return error if isinstance(error, dict) else {}


def _body_message(body: str) -> str:
    return _line(str(_error(body).get("message") or body or "no reason given"))


def _message(chunk: Mapping[str, object]) -> str:
    error = chunk["error"]
    return _line(str(error.get("message") if isinstance(error, dict) else error))


def _line(text: str) -> str:
    line = " ".join(_well_formed(text).split())
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]}..."


def _well_formed(text: str) -> str:
    """JSON may hold lone surrogates, which no request and no terminal can take."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
