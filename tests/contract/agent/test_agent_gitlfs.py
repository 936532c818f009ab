"""The batch API of git-lfs against a server that answers as told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from qwen_weights.errors import Missing, TokenRefused
from qwen_weights.manifest import Artifact
from qwen_weights.sources import Interruption, Patience
from qwen_weights.sources.entries import Entry
from qwen_weights.sources.gitlfs import GitLfsSource

from tests.contract.agent.loopback import Request, Server, answering, files, serving

pytestmark = pytest.mark.contract

CONTENT = b"0123456789"
ARTIFACT = Artifact("model.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def storage() -> Iterator[Server]:
    with serving(files({"object": CONTENT})) as server:
        yield server


@pytest.fixture
def server(storage: Server) -> Iterator[Server]:
    with serving(offering({"href": f"{storage.url}/object?a", "header": {"X-Key": "k1"}})) as hub:
        yield hub


def offering(download: dict[str, Any]) -> Any:
    return telling({"actions": {"download": download}})


def telling(row: dict[str, Any]) -> Any:
    row = {"oid": ARTIFACT.sha256, "size": ARTIFACT.size, **row}
    document = json.dumps({"transfer": "basic", "objects": [row]}).encode()
    return answering(200, document)


def source_of(server: Server, *, token: str | None = None, **options: Any) -> GitLfsSource:
    entry = Entry("git-lfs", "lfs", f"{server.url}/o/m.git/info/lfs", token)
    return GitLfsSource(entry, Patience(stall_seconds=5), **options)


def read(source: GitLfsSource, offset: int = 0, end: int | None = None) -> bytes:
    buffer = memoryview(bytearray(100))
    with closing(source.open(ARTIFACT, offset, end)) as stream:
        assert stream.offset == offset
        return bytes(buffer[: stream.readinto(buffer)])


def test_an_object_is_read_where_the_batch_says(server: Server, storage: Server) -> None:
    source = source_of(server, token="t")
    assert read(source) == CONTENT
    assert read(source, 4, 6) == CONTENT[4:6]
    ((target, headers),) = server.asked
    assert target == "/o/m.git/info/lfs/objects/batch"
    assert headers["Authorization"] == "Bearer t"
    assert headers["Content-Type"] == headers["Accept"] == "application/vnd.git-lfs+json"
    asked = json.loads(server.bodies[0])
    assert asked["objects"] == [{"oid": ARTIFACT.sha256, "size": 10}]
    assert (asked["operation"], asked["transfers"]) == ("download", ["basic"])
    first, second = (headers for _, headers in storage.asked)
    assert first["X-Key"] == "k1" and "Authorization" not in first
    assert second["Range"] == "bytes=4-5"


def test_an_address_that_ran_out_is_renewed(server: Server, storage: Server) -> None:
    def only_with_new_key(request: Request) -> None:
        if request.headers["X-Key"] == "k2":
            files({"object": CONTENT})(request)
        else:
            request.answer(403, b"expired")

    source = source_of(server)
    assert read(source) == CONTENT
    storage.answer = only_with_new_key
    server.answer = offering({"href": f"{storage.url}/object", "header": {"X-Key": "k2"}})
    assert read(source, 4) == CONTENT[4:]
    assert len(server.asked) == 2


def test_an_address_is_asked_for_again_after_its_time(server: Server, storage: Server) -> None:
    now = [1000.0]
    server.answer = offering({"href": f"{storage.url}/object", "expires_in": 60})
    source = source_of(server, clock=lambda: now[0])
    for at, batches in ((1000, 1), (1050, 1), (1056, 2)):
        now[0] = at
        assert read(source) == CONTENT
        assert len(server.asked) == batches


def test_a_storage_that_always_refuses_may_come_back(server: Server, storage: Server) -> None:
    storage.answer = answering(403)
    with pytest.raises(Interruption, match=r"its storage .* answered 403"):
        read(source_of(server))


def test_the_token_goes_to_objects_of_the_same_server_only(server: Server) -> None:
    def both(request: Request) -> None:
        if request.command == "POST":
            offering({"href": f"{server.url}/object"})(request)
        else:
            files({"object": CONTENT})(request)

    server.answer = both
    assert read(source_of(server, token="t")) == CONTENT
    assert [headers["Authorization"] for _, headers in server.asked] == ["Bearer t"] * 2


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"error": {"code": 404, "message": "Object does not exist"}}, "404 Object does not exist"),
        ({}, "offers no download"),
    ],
)
def test_what_the_server_does_not_have_is_missing(
    server: Server, row: dict[str, Any], words: str
) -> None:
    server.answer = telling(row)
    with pytest.raises(Missing, match=f"lfs has no model.bin: .*{words}"):
        read(source_of(server))


def test_a_refused_token_is_told_in_the_servers_words(server: Server) -> None:
    server.answer = answering(401, b'{"message": "Credentials needed"}')
    with pytest.raises(TokenRefused, match="none was given: 401 Unauthorized: Credentials needed"):
        read(source_of(server))


@pytest.mark.parametrize(
    "document", [b"", b"[]", b'{"objects": []}', b'{"objects": [{"actions": {}}]}']
)
def test_an_answer_that_is_no_batch_may_pass(server: Server, document: bytes) -> None:
    server.answer = answering(200, document)
    with pytest.raises(Interruption, match="its batch API answered something else"):
        read(source_of(server))
