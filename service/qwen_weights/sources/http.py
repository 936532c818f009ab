"""Files at URLs made by a template, by HTTP ranges. Does not know what the bytes should be, apart
from what a hub says of them beforehand."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from urllib.parse import quote

from qwen_weights.errors import BadManifest, Changed
from qwen_weights.manifest import Artifact
from qwen_weights.sources import Patience, Stubborn
from qwen_weights.sources.connect import split
from qwen_weights.sources.entries import Entry
from qwen_weights.sources.refusal import refuse
from qwen_weights.sources.web import Answer, Request, Web

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_PLACES = re.compile(r"\{(path|query|sha256)\}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class WebSource(ABC):
    """What every source over HTTP does alike with its entry and its answers."""

    def __init__(self, entry: Entry, patience: Patience | None) -> None:
        self._origin = split(entry.url)[1]
        self.name = entry.name
        self.is_wan = entry.wan
        self.has_ranges = True
        self._has_token = entry.token is not None
        self._private = {**dict(entry.headers), **bearer(entry.token)}
        self._web = Web(proxy=entry.proxy, ca=entry.ca, patience=patience)

    def offers(self, artifact: Artifact) -> bool:
        return True

    def open(self, artifact: Artifact, offset: int, end: int | None = None) -> HttpStream:
        answer = self._answer(artifact, offset, end)
        stream = begin(answer, artifact, offset, source=self.name, has_token=self._has_token)
        if offset:
            self.has_ranges = stream.offset == offset
        return stream

    def close(self) -> None:
        self._web.close()

    @abstractmethod
    def _answer(self, artifact: Artifact, offset: int, end: int | None) -> Answer: ...


class HttpSource(WebSource):
    def __init__(self, entry: Entry, patience: Patience | None = None) -> None:
        super().__init__(entry, patience)
        if not _PLACES.search(entry.url):
            raise BadManifest(
                f"{entry.name}: its url should contain {{path}}, {{query}} or {{sha256}}"
            )
        self._template = entry.url

    def _answer(self, artifact: Artifact, offset: int, end: int | None) -> Answer:
        url = fill(self._template, artifact)
        return self._web.ask(Request(url, headers=ranged(offset, end), private=self._private))


class HttpStream:
    def __init__(self, answer: Answer, offset: int, total: int | None) -> None:
        self.offset = offset
        self.total = total
        self.readinto = answer.readinto
        self.close = answer.close


def bearer(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def ranged(offset: int, end: int | None) -> dict[str, str]:
    if not offset and end is None:
        return {}
    return {"Range": f"bytes={offset}-{'' if end is None else end - 1}"}


def fill(template: str, artifact: Artifact) -> str:
    values = {
        "path": quote(artifact.path),
        "query": quote(artifact.path, safe=""),
        "sha256": artifact.sha256,
    }
    return _PLACES.sub(lambda place: values[place[1]], template)


def begin(
    answer: Answer, artifact: Artifact, offset: int, *, source: str, has_token: bool
) -> HttpStream:
    """The stream of an answer, unless it is a refusal or the answer to something else."""
    try:
        if answer.status not in (200, 206):
            refuse(answer, source=source, what=artifact.path, has_token=has_token)
        if answer.header("Content-Encoding") not in ("", "identity"):
            raise Stubborn(f"answered in {answer.header('Content-Encoding')} instead of bytes")
        named = answer.linked_etag
        if _SHA256.fullmatch(named) and named != artifact.sha256:
            raise Changed(
                f"{artifact.path} at {source} is no longer the file of the manifest: "
                f"expected sha256 {artifact.sha256}, it says {named}"
            )
        if answer.status == 200:
            return HttpStream(answer, 0, answer.length)
        return HttpStream(answer, offset, _total_of_range(answer, artifact.path, offset))
    except BaseException:
        answer.close()
        raise


def _total_of_range(answer: Answer, path: str, offset: int) -> int | None:
    match = _CONTENT_RANGE.fullmatch(answer.header("Content-Range"))
    if not match or int(match[1]) != offset:
        raise Stubborn(f"{path}: asked for byte {offset}, was answered another range")
    return None if match[2] == "*" else int(match[2])
