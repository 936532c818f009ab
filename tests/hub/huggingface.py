"""The Hub's API as `huggingface_hub` asks it. Does not know what may go wrong."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.hub.messages import Answer, Refusal, Request, Served, in_json
from tests.hub.repository import File
from tests.hub.rules import Protocol

if TYPE_CHECKING:
    from tests.hub.hub import Hub

NAME: Protocol = "huggingface"
_BRANCH = "main"


def info(hub: Hub, asked: Request, repo: str, revision: str | None = None) -> Answer:
    commit = hub.open(asked, repo, revision or _BRANCH, _BRANCH, is_listing=True)
    siblings = [
        {"rfilename": file.path, "size": file.size, "blobId": file.oid} | _lfs(file, "sha256")
        for file in commit.files.values()
    ]
    about = {"id": repo, "modelId": repo, "sha": commit.id, "siblings": siblings}
    is_gated = "manual" if hub.repositories[repo].is_gated else False
    state = {"private": False, "gated": is_gated, "disabled": False}
    return in_json(about | state | {"tags": [], "downloads": 0, "likes": 0})


def tree(hub: Hub, asked: Request, repo: str, revision: str) -> Answer:
    commit = hub.open(asked, repo, revision, _BRANCH, is_listing=True)
    rows: list[dict[str, Any]] = [
        {"type": "file", "oid": file.oid, "size": file.size, "path": file.path} | _lfs(file, "oid")
        for file in commit.files.values()
    ]
    for rule in hub.rules.take("@listing", NAME, ("name",)).values():
        rows.append({**rows[0], "path": rule.text})
    for row in rows:
        if hub.rules.take(row["path"], NAME, ("xet",)):
            row["xetHash"] = "0" * 64
    return in_json(rows)


def resolve(hub: Hub, asked: Request, repo: str, revision: str, path: str) -> Answer:
    commit = hub.open(asked, repo, revision, _BRANCH)
    file = commit.files.get(path)
    if file is None:
        raise Refusal(404, "EntryNotFound", "Entry not found")
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{file.etag}"'}
    if hub.rules.take(path, NAME, ("xet",), asked.method):
        auth = f"{hub.endpoint}/api/models/{repo}/xet-read-token/{commit.id}"
        headers |= {"X-Xet-Hash": "0" * 64, "Link": f'<{auth}>; rel="xet-auth"'}
    if not file.is_lfs:
        return Answer(200, Served(file, NAME), headers)
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    return Answer(302, b"", headers | {"Location": hub.cdn_url(NAME, repo, commit.id, path)})


def refused(refusal: Refusal) -> Answer:
    headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
    if refusal.code == "InvalidToken":
        del headers["X-Error-Code"]
    return in_json({"error": refusal.message}, refusal.status, **headers)


def _lfs(file: File, key: str) -> dict[str, Any]:
    if not file.is_lfs:
        return {}
    return {"lfs": {key: file.sha256, "size": file.size, "pointerSize": len(file.content)}}


ROUTES = (
    (re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)"), "@revision", info),
    (re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>.+)"), "@revision", info),
    (re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)"), "@listing", tree),
    (re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"), "", resolve),
)
