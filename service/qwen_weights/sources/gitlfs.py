"""The objects of a git-lfs server, found by its batch API. Does not know git, nor which files of a
repository are objects.

https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from qwen_weights.errors import BadManifest, Missing
from qwen_weights.manifest import Artifact
from qwen_weights.sources import Patience, Stubborn
from qwen_weights.sources.connect import split
from qwen_weights.sources.entries import Entry
from qwen_weights.sources.http import WebSource, ranged
from qwen_weights.sources.refusal import refuse
from qwen_weights.sources.web import Answer, Request

_MEDIA_TYPE = "application/vnd.git-lfs+json"
_STALE = (401, 403, 404, 410)
_MARGIN_SECONDS = 5


@dataclass(frozen=True)
class _Action:
    """Where an object can be read, for a while."""

    href: str
    headers: Mapping[str, str] = field(repr=False)
    ends_at: float


class GitLfsSource(WebSource):
    def __init__(
        self,
        entry: Entry,
        patience: Patience | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(entry, patience)
        self._url = entry.url.rstrip("/") + "/objects/batch"
        self._clock = clock
        self._actions: dict[str, _Action] = {}
        self._lock = threading.Lock()

    def _answer(self, artifact: Artifact, offset: int, end: int | None) -> Answer:
        answer = self._ask_for(self._action(artifact), offset, end)
        if answer.status not in _STALE:
            return answer
        answer.close()
        self._forget(artifact)
        return self._ask_for(self._action(artifact), offset, end)

    def _ask_for(self, action: _Action, offset: int, end: int | None) -> Answer:
        is_own = split(action.href)[1] == self._origin
        private = {**(self._private if is_own else {}), **action.headers}
        answer = self._web.ask(Request(action.href, headers=ranged(offset, end), private=private))
        answer.is_home = answer.is_home and is_own
        return answer

    def _action(self, artifact: Artifact) -> _Action:
        with self._lock:
            known = self._actions.get(artifact.sha256)
        if known and known.ends_at > self._clock():
            return known
        action = self._ask_batch(artifact)
        with self._lock:
            self._actions[artifact.sha256] = action
        return action

    def _forget(self, artifact: Artifact) -> None:
        with self._lock:
            self._actions.pop(artifact.sha256, None)

    def _ask_batch(self, artifact: Artifact) -> _Action:
        body = {
            "operation": "download",
            "transfers": ["basic"],
            "objects": [{"oid": artifact.sha256, "size": artifact.size}],
            "hash_algo": "sha256",
        }
        kinds = {"Accept": _MEDIA_TYPE, "Content-Type": _MEDIA_TYPE}
        request = Request(
            self._url, headers=kinds, private=self._private, body=json.dumps(body).encode()
        )
        with closing(self._web.ask(request)) as answer:
            if answer.status != 200:
                refuse(answer, source=self.name, what=artifact.path, has_token=self._has_token)
            text = answer.text()
        try:
            return self._chosen(json.loads(text)["objects"][0], artifact)
        except (ValueError, LookupError, TypeError, BadManifest) as error:
            raise Stubborn("its batch API answered something else") from error

    def _chosen(self, row: Mapping[str, Any], artifact: Artifact) -> _Action:
        if "error" in row:
            raise Missing(
                f"{self.name} has no {artifact.path}: "
                f"{row['error']['code']} {row['error']['message']}"
            )
        if "actions" not in row:
            raise Missing(f"{self.name} has no {artifact.path}: it offers no download")
        download = row["actions"]["download"]
        split(download["href"])
        headers = {str(key): str(value) for key, value in (download.get("header") or {}).items()}
        seconds = download.get("expires_in")
        ends_at = self._clock() + seconds - _MARGIN_SECONDS if seconds else float("inf")
        return _Action(download["href"], headers, ends_at)
