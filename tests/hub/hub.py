"""The hub: its repositories, its two origins, who may read, and what was asked and sent. Does not
know how bytes leave."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import get_args
from urllib.parse import quote

from tests.hub import gitlfs, huggingface, modelscope
from tests.hub.certificates import Certificate
from tests.hub.messages import Answer, Refusal, Request, Served
from tests.hub.repository import Commit, Repository
from tests.hub.rules import OfAnswers, Protocol, Rules
from tests.hub.server import Pace, Server

_PROTOCOLS = {one.NAME: one for one in (gitlfs, huggingface, modelscope)}


class Hub:
    """`rate` in bytes a second is for all that it sends. Tokens in `accounts` are somebody's, but
    open nothing."""

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int = 0,
        *,
        certificate: Certificate | None = None,
        rate: int | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hub-")
        self.git_root = Path(self._folder.name)
        self.repositories: dict[str, Repository] = {}
        self.accounts: set[str] = set()
        self.rules = Rules()
        self.requests: list[Request] = []
        self.sent_bytes: Counter[str] = Counter()
        self.sent_by: Counter[Protocol] = Counter()
        self._lock = threading.Lock()
        self.released = threading.Event()
        self.is_closed = False
        self.pace = Pace(rate)
        self._servers = (
            Server(self, "hub", (address, port), certificate),
            Server(self, "cdn", (address, 0), certificate),
        )
        self.endpoint, self.cdn = (server.url for server in self._servers)

    def __enter__(self) -> Hub:
        for server in self._servers:
            server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.is_closed = True
        self.released.set()
        for server in self._servers:
            server.stop()
        self._folder.cleanup()

    def add(
        self, repo: str, folder: Path, *, token: str | None = None, is_gated: bool = False
    ) -> Commit:
        git_dir = self.git_root / f"{repo}.git"
        self.repositories[repo] = Repository(git_dir, token, is_gated)
        return self.commit(repo, folder)

    def commit(self, repo: str, folder: Path) -> Commit:
        return self.repositories[repo].commit(folder)

    def git_url(self, repo: str) -> str:
        return f"{self.endpoint}/{repo}.git"

    def cdn_url(self, hub: Protocol, repo: str, commit: str, path: str) -> str:
        return f"{self.cdn}/{hub}/{repo}/{commit}/{quote(path)}?signature=0123"

    def release(self) -> None:
        """What stalls goes on."""
        self.released.set()

    def open(
        self, asked: Request, repo: str, revision: str, branch: str, *, is_listing: bool = False
    ) -> Commit:
        repository = self.repositories.get(repo)
        is_known = asked.token in {one.token for one in self.repositories.values()} | self.accounts
        if asked.token is not None and not is_known:
            raise Refusal(401, "InvalidToken", "Invalid credentials in Authorization header")
        if repository is None:
            status = 404 if asked.token or branch == "master" else 401
            raise Refusal(status, "RepoNotFound", "Repository not found")
        if repository.token and asked.token != repository.token:
            if not repository.is_gated:
                raise Refusal(404 if asked.token else 401, "RepoNotFound", "Repository not found")
            if not is_listing:
                whom = "you are not in the authorized list" if asked.token else "please log in"
                message = f"Access to model {repo} is restricted: {whom}"
                raise Refusal(403 if asked.token else 401, "GatedRepo", message)
        commit = repository.find(revision, branch)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def answer(self, asked: Request) -> Answer:
        with self._lock:
            self.requests.append(asked)
        return self._cdn_answer(asked) if asked.origin == "cdn" else self._hub_answer(asked)

    def sent(self, served: Served, count: int) -> None:
        with self._lock:
            self.sent_bytes[served.file.path] += count
            self.sent_by[served.hub] += count

    def _hub_answer(self, asked: Request) -> Answer:
        for name, protocol in _PROTOCOLS.items():
            for pattern, label, make in protocol.ROUTES:
                if found := pattern.fullmatch(asked.path):
                    fields = found.groupdict()
                    subject = label or fields.get("path") or asked.query.get("FilePath", "")
                    if fault := self._instead(asked, subject, name):
                        return fault
                    try:
                        answer: Answer = make(self, asked, **fields)
                    except Refusal as refusal:
                        answer = protocol.refused(refusal)
                    return answer
        return Answer(404, b"Not found")

    def _cdn_answer(self, asked: Request) -> Answer:
        _, name, owner, model, commit_id, path = asked.path.split("/", 5)
        hub = _PROTOCOLS[name].NAME
        if fault := self._instead(asked, f"cdn/{path}", hub):
            return fault
        commit = self.repositories[f"{owner}/{model}"].find(commit_id, "")
        assert commit is not None
        return Answer(200, Served(commit.files[path], hub), {"ETag": f'"{commit_id}"'})

    def _instead(self, asked: Request, subject: str, hub: Protocol) -> Answer | None:
        for rule in self.rules.take(subject, hub, get_args(OfAnswers), asked.method).values():
            rule.met.set()
            if rule.kind == "loop":
                return Answer(302, b"", {"Location": asked.target})
            if rule.kind == "redirect":
                return Answer(302, b"", {"Location": rule.text})
            return Answer(rule.status, rule.text.encode(), dict(rule.headers))
        return None
