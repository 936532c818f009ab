"""ModelScope's API as its SDK asks it. Does not know what may go wrong."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.hub.messages import Answer, Refusal, Request, Served, in_json
from tests.hub.repository import Commit
from tests.hub.rules import Protocol

if TYPE_CHECKING:
    from tests.hub.hub import Hub

NAME: Protocol = "modelscope"
_BRANCH = "master"


def acceleration(hub: Hub, asked: Request) -> Answer:
    return _data({"InternalRegionQueryAddress": ""})


def info(hub: Hub, asked: Request, repo: str) -> Answer:
    hub.open(asked, repo, _BRANCH, _BRANCH)
    owner, name = repo.split("/")
    return _data({"Path": owner, "Name": name, "Revision": _BRANCH})


def revisions(hub: Hub, asked: Request, repo: str) -> Answer:
    commit = hub.open(asked, repo, _BRANCH, _BRANCH)
    branch = {"Revision": _BRANCH, "CommitId": commit.id, "CreatedAt": 1700000000}
    return _data({"RevisionMap": {"Branches": [branch], "Tags": []}})


def files(hub: Hub, asked: Request, repo: str) -> Answer:
    commit = _commit(hub, asked, repo)
    rows: list[dict[str, Any]] = [
        {"Path": file.path, "Name": file.place.name, "Type": "blob", "Size": file.size}
        | {"Sha256": file.sha256, "Revision": commit.id, "IsLFS": file.is_lfs}
        for file in commit.files.values()
    ]
    for rule in hub.rules.take("@listing", NAME, ("name",)).values():
        rows.append({**rows[0], "Path": rule.text})
    return _data({"Files": rows})


def content(hub: Hub, asked: Request, repo: str) -> Answer:
    commit, path = _commit(hub, asked, repo), asked.query["FilePath"]
    file = commit.files.get(path)
    if file is None:
        raise Refusal(404, "10010205001", f"file {path} not found")
    if not file.is_lfs:
        return Answer(200, Served(file, NAME))
    location = hub.cdn_url(NAME, repo, commit.id, path)
    return Answer(302, b"", {"X-Linked-ETag": f'"{file.sha256}"', "Location": location})


def refused(refusal: Refusal) -> Answer:
    return in_json({"Code": refusal.code, "Message": refusal.message}, refusal.status)


def _commit(hub: Hub, asked: Request, repo: str) -> Commit:
    return hub.open(asked, repo, asked.query.get("Revision", _BRANCH), _BRANCH)


def _data(document: dict[str, Any]) -> Answer:
    return in_json({"Code": 200, "Success": True, "Message": "success", "Data": document})


_REPO = r"/api/v1/models/(?P<repo>[^/]+/[^/]+)"
ROUTES = (
    (re.compile("/api/v1/repos/internalAccelerationInfo"), "@acceleration", acceleration),
    (re.compile(_REPO), "@revision", info),
    (re.compile(f"{_REPO}/revisions"), "@revision", revisions),
    (re.compile(f"{_REPO}/repo/files"), "@listing", files),
    (re.compile(f"{_REPO}/repo"), "", content),
)
