"""A mirror by its URL alone: asks which kind answers there, and reads a plain folder of files with
`manifest.json` or `SHA256SUMS`. Knows no hub's protocol beyond what tells it apart."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

from qwen_weights import manifest as manifests
from qwen_weights import sums
from qwen_weights.checkpoint import SUMS_NAME, select
from qwen_weights.errors import BadManifest
from qwen_weights.manifest import Manifest, Origin

from qwen_deploy.checkpoint import refusals
from qwen_deploy.sources import huggingface, listing, modelscope, upstreams
from qwen_deploy.sources.listing import Listed, Listing
from qwen_deploy.sources.refusals import HubMissing, HubRefused, HubUnreachable, ListRefused
from qwen_deploy.sources.settings import Settings
from qwen_deploy.sources.wire import Reply, Wire

_ASKERS = 8
_HF_KEYS = {"modelId", "siblings", "error"}
_MS_KEYS = {"Code"}
_AS_IT_IS = {"Accept-Encoding": "identity"}
_TOTAL = re.compile(r"bytes 0-0/(\d+)")


def ask(settings: Settings, wire: Wire, url: str) -> Listing:
    name = urlsplit(url).netloc.rpartition("@")[2]
    found = _Answers.of(settings, wire, url)
    if found.manifest or found.sums:
        return _Folder(settings, wire, url, name).listing(found.manifest, found.sums)
    by_hub = (
        (found.huggingface, _HF_KEYS, huggingface.ask),
        (found.modelscope, _MS_KEYS, modelscope.ask),
    )
    # The one that knows the model before the one that only sounds like its hub.
    for reply, keys, ask_hub in sorted(by_hub, key=lambda one: not one[0].ok):
        if keys & _fields(reply).keys():
            return ask_hub(settings, wire, url, name)
    if {401, 403} & found.statuses:
        raise HubRefused(f"{url} lets nobody read without a password")
    raise HubMissing(
        f"{url} answers neither as Hugging Face nor as ModelScope, and has neither "
        f"{manifests.NAME} nor {SUMS_NAME}",
        hint=_root_hint(settings, wire, url) or f"Write one there: sha256sum * > {SUMS_NAME}",
    )


def _root_hint(settings: Settings, wire: Wire, url: str) -> str | None:
    """Of the page of a model, as copied from a browser or a `git clone`."""
    root, _, name = url.removesuffix(".git").rpartition("/")
    root, _, owner = root.rpartition("/")
    if not urlsplit(root).netloc or not manifests.MODEL.fullmatch(f"{owner}/{name}"):
        return None
    try:
        found = _Answers.of(replace(settings, name=f"{owner}/{name}"), wire, root)
    except HubUnreachable:
        return None
    if not (
        _HF_KEYS & _fields(found.huggingface).keys() or _MS_KEYS & _fields(found.modelscope).keys()
    ):
        return None
    way = f"git-lfs+{url}" if url.endswith(".git") else root
    return f"Name the mirror and the model: --weights {way} --model {owner}/{name}"


@dataclass(frozen=True, slots=True)
class _Answers:
    manifest: bytes | None
    sums: bytes | None
    huggingface: Reply
    modelscope: Reply
    statuses: frozenset[int]

    @classmethod
    def of(cls, settings: Settings, wire: Wire, url: str) -> _Answers:
        revision = quote(settings.revision or modelscope.BRANCH, safe="")
        urls = (
            f"{url}/{manifests.NAME}",
            f"{url}/{SUMS_NAME}",
            f"{url}/api/models/{settings.name}",
            f"{url}/api/v1/models/{settings.name}/repo/files?Revision={revision}",
        )
        with ThreadPoolExecutor(len(urls)) as pool:
            answers = list(pool.map(lambda one: _answer(wire, one), urls))
        if all(isinstance(answer, HubUnreachable) for answer in answers):
            raise next(answer for answer in answers if isinstance(answer, HubUnreachable))
        manifest, listed, as_hf, as_ms = (
            Reply(0, {}, b"") if isinstance(answer, HubUnreachable) else answer
            for answer in answers
        )
        # A server of web pages may answer everything with one of them.
        return cls(
            manifest.body if manifest.ok and "artifacts" in _fields(manifest) else None,
            listed.body if listed.ok and not listed.body.lstrip().startswith(b"<") else None,
            as_hf,
            as_ms,
            frozenset(one.status for one in (manifest, listed, as_hf, as_ms)),
        )


def _answer(wire: Wire, url: str) -> Reply | HubUnreachable:
    """A server may stumble over what it does not know."""
    try:
        return wire.get(url)
    except HubUnreachable as error:
        return error


def _fields(reply: Reply) -> Mapping[str, Any]:
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


class _Folder:
    def __init__(self, settings: Settings, wire: Wire, url: str, name: str) -> None:
        self._settings = settings
        self._wire = wire
        self._url = url
        self._name = name

    @property
    def _place(self) -> str:
        return self._url.partition("://")[2].rpartition("@")[2]

    def listing(self, manifest: bytes | None, sums_list: bytes | None) -> Listing:
        if manifest:
            recorded = self._parsed(manifest)
            rows = [Listed(one.path, one.size, one.sha256) for one in recorded.artifacts]
            files = listing.select(self._place, rows)
            whole = len(files) == len(rows)
            return self._listing(files, recorded.revision if whole else None)
        with refusals():
            sha256s = sums.parse(self._place, sums_list or b"")
        for path in sha256s:  # before it becomes part of a URL
            listing.check_name(self._place, path)
        wanted = select(sha256s)
        with ThreadPoolExecutor(_ASKERS) as pool:
            sizes = list(pool.map(self._size, wanted))
        rows = [Listed(path, size, sha256s[path]) for path, size in zip(wanted, sizes, strict=True)]
        return self._listing(listing.select(self._place, rows), None)

    def _parsed(self, manifest: bytes) -> Manifest:
        try:
            return manifests.parse(manifest.decode())
        except (ValueError, BadManifest) as error:
            raise ListRefused(f"{self._place}/{error}") from error

    def _listing(self, files: tuple[Listed, ...], revision: str | None) -> Listing:
        return Listing(
            self._place,
            Origin("folder"),
            files,
            (upstreams.wan(self._settings, self._name, f"{self._url}/{{path}}"),),
            self._read,
            proof="sums",
            revision=revision,
        )

    def _read(self, row: Listed) -> bytes:
        return self._answer(row.path, partial(self._wire.get, self._address(row.path))).body

    def _size(self, path: str) -> int:
        """Else of a range, since not every server tells a length to HEAD."""
        address = self._address(path)
        reply = self._wire.ask("HEAD", address, _AS_IT_IS)
        if reply.ok and reply.headers.get("content-length", "").isdigit():
            return int(reply.headers["content-length"])
        headers = {"Range": "bytes=0-0", **_AS_IT_IS}
        reply = self._answer(path, partial(self._wire.get, address, headers))
        total = _TOTAL.fullmatch(reply.headers.get("content-range", ""))
        if not total:
            raise ListRefused(f"{self._place} does not say how large {path} is")
        return int(total[1])

    def _address(self, path: str) -> str:
        return f"{self._url}/{quote(path)}"

    def _answer(self, path: str, ask: Callable[[], Reply]) -> Reply:
        reply = ask()
        if not reply.ok:
            raise listing.broken_promise(self._place, path, reply.status)
        return reply
