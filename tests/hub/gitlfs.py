"""Git over HTTP by git's own CGI program, and the batch API of git-lfs. Does not know what may go
wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.hub.messages import Answer, Refusal, Request, in_json
from tests.hub.rules import Protocol

if TYPE_CHECKING:
    from tests.hub.hub import Hub

NAME: Protocol = "git-lfs"
_BRANCH = "main"


def git(hub: Hub, asked: Request, repo: str, rest: str) -> Answer:
    hub.open(asked, repo, _BRANCH, _BRANCH)
    environment = {
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_PROJECT_ROOT": str(hub.git_root),
        "PATH": os.environ["PATH"],
        "PATH_INFO": f"/{repo}.git/{rest}",
        "REQUEST_METHOD": asked.method,
        "QUERY_STRING": urlsplit(asked.target).query,
        "CONTENT_TYPE": asked.headers.get("Content-Type", ""),
        "CONTENT_LENGTH": str(len(asked.body)),
        "HTTP_CONTENT_ENCODING": asked.headers.get("Content-Encoding", ""),
        "GIT_PROTOCOL": asked.headers.get("Git-Protocol", ""),
    }
    argv = ("git", "http-backend")
    done = subprocess.run(argv, input=asked.body, stdout=subprocess.PIPE, env=environment)
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
    return Answer(int(headers.pop("Status", "200")[:3]), body, headers)


def batch(hub: Hub, asked: Request, repo: str) -> Answer:
    commit = hub.open(asked, repo, _BRANCH, _BRANCH)
    objects: list[dict[str, Any]] = []
    for wanted in json.loads(asked.body)["objects"]:
        file = hub.repositories[repo].object_file(wanted["oid"])
        if file is None:
            error = {"code": 404, "message": "Object does not exist on the server"}
            objects.append(wanted | {"error": error})
        else:
            href = hub.cdn_url(NAME, repo, commit.id, file.path)
            objects.append(wanted | {"actions": {"download": {"href": href, "expires_in": 3600}}})
    return _lfs_json({"transfer": "basic", "objects": objects})


def refused(refusal: Refusal) -> Answer:
    answer = _lfs_json({"message": refusal.message}, refusal.status)
    if refusal.status == 401:
        answer.headers.update({"WWW-Authenticate": 'Basic realm="git"'})
    return answer


def _lfs_json(document: dict[str, Any], status: int = 200) -> Answer:
    return in_json(document, status, **{"Content-Type": "application/vnd.git-lfs+json"})


_REPO = r"/(?P<repo>[^/]+/[^/]+?)(?:\.git)?"
ROUTES = (
    (re.compile(f"{_REPO}/info/lfs/objects/batch"), "@batch", batch),
    (re.compile(f"{_REPO}/(?P<rest>info/refs|git-upload-pack)"), "@git", git),
)
