"""Files by a URL template against a server that answers as told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from qwen_weights.errors import BadManifest, Changed, Missing, TokenRefused, WeightsError
from qwen_weights.manifest import Artifact
from qwen_weights.sources import Interruption, Patience
from qwen_weights.sources.entries import Entry
from qwen_weights.sources.http import HttpSource

from tests.contract.agent.loopback import Server, answering, files, serving

pytestmark = pytest.mark.contract

CONTENT = b"0123456789"
NAME = "a b/ü%.x"
ARTIFACT = Artifact(NAME, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(answering(200, CONTENT)) as server:
        yield server


def source_of(server: Server, template: str = "/base/{path}", **options: Any) -> HttpSource:
    entry = Entry("http", "mirror", server.url + template, **options)
    return HttpSource(entry, Patience(stall_seconds=5))


def read(
    source: HttpSource, offset: int = 0, end: int | None = None
) -> tuple[bytes, int, int | None]:
    content, buffer = b"", memoryview(bytearray(4))
    with closing(source.open(ARTIFACT, offset, end)) as stream:
        while count := stream.readinto(buffer):
            content += buffer[:count]
        return content, stream.offset, stream.total


@pytest.mark.parametrize(
    ("template", "target"),
    [
        ("/base/{path}", "/base/a%20b/%C3%BC%25.x"),
        (
            "/api/repo?Revision=x&FilePath={query}",
            "/api/repo?Revision=x&FilePath=a%20b%2F%C3%BC%25.x",
        ),
        ("/blobs/{sha256}", f"/blobs/{ARTIFACT.sha256}"),
    ],
)
def test_a_file_is_asked_for_by_the_template(server: Server, template: str, target: str) -> None:
    source = source_of(server, template, token="t", headers=(("Cookie", "m=1"),))
    assert read(source) == (CONTENT, 0, 10)
    ((asked, headers),) = server.asked
    assert asked == target
    assert (headers["Authorization"], headers["Cookie"]) == ("Bearer t", "m=1")
    assert "Range" not in headers


def test_the_rest_or_a_part_is_asked_for_as_a_range(server: Server) -> None:
    server.answer = files({"f": CONTENT})
    source = source_of(server, "/f?{path}")
    assert read(source, 4) == (CONTENT[4:], 4, 10)
    assert read(source, 0, 3) == (CONTENT[:3], 0, 10)
    assert read(source, 4, 6) == (CONTENT[4:6], 4, 10)
    asked = [headers["Range"] for _, headers in server.asked]
    assert asked == ["bytes=4-", "bytes=0-2", "bytes=4-5"]
    assert source.has_ranges


def test_a_server_without_ranges_begins_at_the_start(server: Server) -> None:
    source = source_of(server)
    assert read(source, 4) == (CONTENT, 0, 10)
    assert not source.has_ranges
    assert read(source) == (CONTENT, 0, 10)
    assert not source.has_ranges


def test_another_range_than_asked_is_not_taken(server: Server) -> None:
    server.answer = answering(206, CONTENT, Content_Range="bytes 0-9/10")
    with pytest.raises(Interruption, match="another range"):
        read(source_of(server), 4)


def test_what_is_packed_is_not_taken(server: Server) -> None:
    server.answer = answering(200, CONTENT, Content_Encoding="gzip")
    with pytest.raises(Interruption, match="in gzip instead of bytes"):
        read(source_of(server))


LASTING = [
    (404, Missing, "mirror has no a b/ü%.x: 404 Not Found"),
    (410, Missing, "410 Gone"),
    (409, Changed, "no longer the file of the manifest"),
    (416, Changed, "no longer the file of the manifest"),
]


@pytest.mark.parametrize(("status", "kind", "reason"), LASTING)
def test_refusals_that_stay_are_typed(
    server: Server, status: int, kind: type[WeightsError], reason: str
) -> None:
    server.answer = answering(status)
    with pytest.raises(kind, match=reason):
        read(source_of(server))


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_refusals_that_may_pass_are_interruptions(server: Server, status: int) -> None:
    server.answer = answering(status, Retry_After="7")
    with pytest.raises(Interruption, match=f"answered {status}") as interrupted:
        read(source_of(server))
    assert interrupted.value.retry_after == 7


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("Wed, 21 Oct 2026 07:28:09 GMT", 9), ("Wed, 21 Oct 2026 07:00:00 GMT", 0), ("soon", None)],
)
def test_a_retry_after_date_is_compared_with_the_servers_clock(
    server: Server, told: str, seconds: float | None
) -> None:
    def answer(request: Any) -> None:
        request.send_response_only(503)
        for name, value in (
            ("Date", "Wed, 21 Oct 2026 07:28:00 GMT"),
            ("Retry-After", told),
            ("Content-Length", "0"),
        ):
            request.send_header(name, value)
        request.end_headers()

    server.answer = answer
    with pytest.raises(Interruption) as interrupted:
        read(source_of(server))
    assert interrupted.value.retry_after == seconds


ENTRY = [
    (None, 401, {}, "mirror wants a token for a b/ü%.x, and none was given: 401 Unauthorized"),
    ("t", 401, {}, "mirror refused the token for a b/ü%.x: 401 Unauthorized"),
    ("t", 403, {}, "mirror refused the token for a b/ü%.x: 403 Forbidden"),
    (None, 401, {"X_Error_Code": "GatedRepo"}, "is gated: ask for access with an account, and"),
    ("t", 403, {"X_Error_Code": "GatedRepo"}, "is gated: ask for access with the account of the"),
]


@pytest.mark.parametrize(("token", "status", "headers", "words"), ENTRY)
def test_who_may_not_read_is_told_why(
    server: Server, token: str | None, status: int, headers: dict[str, str], words: str
) -> None:
    server.answer = answering(status, **headers)
    with pytest.raises(TokenRefused, match=words):
        read(source_of(server, token=token))


@pytest.mark.parametrize(
    ("content", "headers", "told"),
    [
        (b"", {"X_Error_Message": "Visit https://hub/m"}, ": Visit https://hub/m"),
        (json.dumps({"Code": 1, "Message": "无权限"}).encode(), {}, ": 无权限"),
        (b'{"error": "Access is restricted"}', {}, ": Access is restricted"),
        (b"first line\nsecond", {}, ": first line"),
        (b"\x1b[31mred", {}, r": \?\[31mred"),
        (b"<html>no</html>", {"Content_Type": "text/html"}, "Forbidden"),
        (b"x" * 1000, {}, r"x\.\.\."),
    ],
)
def test_the_servers_own_words_are_passed_on(
    server: Server, content: bytes, headers: dict[str, str], told: str
) -> None:
    server.answer = answering(403, content, **headers)
    with pytest.raises(TokenRefused, match=f"{told}$"):
        read(source_of(server))


def test_a_signature_that_ran_out_is_no_refusal_of_the_token(server: Server) -> None:
    with serving(answering(403, b"Request has expired")) as storage:
        server.answer = answering(302, Location=storage.url)
        with pytest.raises(Interruption, match=f"its storage {storage.url} answered 403 .*expired"):
            read(source_of(server, token="t"))


def test_a_hub_that_names_other_content_has_changed(server: Server) -> None:
    with serving(answering(200, CONTENT)) as storage:
        etag = f'"{"0" * 64}"'
        server.answer = answering(302, Location=storage.url, X_Linked_Etag=etag)
        with pytest.raises(Changed, match=f"expected sha256 {ARTIFACT.sha256}, it says 0000"):
            read(source_of(server))
        right = f'"{ARTIFACT.sha256}"'
        server.answer = answering(302, Location=storage.url, X_Linked_Etag=right)
        assert read(source_of(server))[0] == CONTENT


def test_a_server_that_hangs_up_may_come_back(server: Server) -> None:
    server.answer = lambda request: None
    with pytest.raises(Interruption):
        read(source_of(server))


@pytest.mark.parametrize(
    "url", ["ftp://x/{path}", "file:///{path}", "{path}", "http://", "http://[/"]
)
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(BadManifest, match="not an http or https URL"):
        HttpSource(Entry("http", "x", url))


def test_a_url_without_a_place_for_the_file_is_refused() -> None:
    with pytest.raises(BadManifest, match=r"should contain {path}, {query} or {sha256}"):
        HttpSource(Entry("http", "x", "http://127.0.0.1/file"))
