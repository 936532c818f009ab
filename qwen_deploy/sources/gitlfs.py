"""A repository of git and git-lfs, read with the operator's git, without its large files: hosts
fetch those by the batch API, small ones from a hub that it belongs to, else from this machine."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import ssl
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qwen_weights import checkpoint
from qwen_weights.manifest import Origin

from qwen_deploy.content import MemoryFiles
from qwen_deploy.errors import UsageError
from qwen_deploy.sources import huggingface, listing, modelscope, pinning, upstreams
from qwen_deploy.sources.listing import Listed, Listing
from qwen_deploy.sources.network import Network
from qwen_deploy.sources.pinned import Pinned, Upstream
from qwen_deploy.sources.refusals import HubMissing, HubRefused, HubUnreachable, ListRefused
from qwen_deploy.sources.settings import Endpoint, HubName, Settings, ca_text, endpoint
from qwen_deploy.sources.wire import Wire

_REVISION = re.compile(r"[\w.][\w./-]*", re.ASCII)
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:ext-.*\n)*"
    rb"oid sha256:([0-9a-f]{64})\nsize (\d+)\n"
)
_POINTER_BYTES = 1024
_GIT_SECONDS = 300
_NO_SUCH_REF = 2  # git-ls-remote(1), --exit-code
_FILE_MODES = ("100644", "100755")
_NOT_INHERITED = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_CONFIG_COUNT")


def pin(settings: Settings, wire: Wire, network: Network, url: str | None = None) -> Pinned:
    """Raises a HubError."""
    remote = _remote(settings, url)
    _check_reachable(remote, wire)
    with tempfile.TemporaryDirectory(prefix="qwen-deploy-git-") as folder:
        git = _Git(Path(folder), remote, _environment(settings, network, remote, Path(folder)))
        tree = git.read(settings.revision)
    made = pinning.pin(_listing(settings, remote, tree), settings)
    if remote.raw or not tree.plain:
        return made
    return replace(made, share=MemoryFiles(tree.plain))


@dataclass(frozen=True, slots=True)
class _Remote:
    """`at` is the hub whose repository it is, where it is one's."""

    url: str
    at: Endpoint | None
    hub: HubName | None

    @property
    def place(self) -> str:
        return self.url.partition("://")[2].removeprefix("www.")

    @property
    def raw(self) -> bool:
        """Whether small files are to be had by a URL each."""
        return self.hub is not None

    @property
    def repo(self) -> str:
        prefix = f"{self.at.url}/" if self.at else ""
        return self.url.removeprefix(prefix).removesuffix(".git")

    @property
    def lfs_url(self) -> str:
        """https://github.com/git-lfs/git-lfs/blob/main/docs/api/server-discovery.md"""
        return f"{self.url.removesuffix('.git')}.git/info/lfs"

    @property
    def headers(self) -> Mapping[str, str]:
        if self.at is None or self.at.token is None:
            return {}
        given = base64.b64encode(f"oauth2:{self.at.token}".encode()).decode()
        return {"Authorization": f"Basic {given}"}


def _remote(settings: Settings, url: str | None) -> _Remote:
    """A hub's own, where the URL begins as the hub's endpoint does."""
    hubs = {"modelscope": modelscope.signed_in, "huggingface": huggingface.signed_in}
    places = {
        hub: hubs[hub](endpoint(settings, hub)) for hub in (modelscope.NAME, huggingface.NAME)
    }
    if url is None:
        at = places[modelscope.NAME]
        return _Remote(f"{at.url}/{settings.name}.git", at, modelscope.NAME)
    for hub, at in places.items():
        if url.startswith(f"{at.url}/"):
            return _Remote(url, at, hub)
    return _Remote(url, None, None)


def _check_reachable(remote: _Remote, wire: Wire) -> None:
    """Git says what went wrong in prose only."""
    reply = wire.get(f"{remote.url}/info/refs?service=git-upload-pack", remote.headers)
    if reply.ok and "git-upload-pack" in reply.headers.get("content-type", ""):
        return
    if reply.status in (401, 403):
        whose = "the token that it was given" if remote.headers else "everyone without a token"
        raise HubRefused(
            f"{remote.place} refuses {whose}, or is not there",
            hint="Name a file with your token: weights/huggingface_token_file or "
            "weights/modelscope_token_file",
        )
    raise HubMissing(f"{remote.place} is no git repository: it answers {reply.status}")


@dataclass(frozen=True, slots=True)
class _Tree:
    """The model's files of one commit: those that git holds, and pointers to the others."""

    commit: str
    plain: Mapping[str, bytes] = field(default_factory=dict)
    pointers: Mapping[str, Listed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Blob:
    mode: str
    oid: str
    path: str


class _Git:
    def __init__(self, folder: Path, remote: _Remote, environment: Mapping[str, str]) -> None:
        self._folder = folder / "repository.git"
        self._remote = remote
        self._environment = environment

    def read(self, revision: str | None) -> _Tree:
        if revision and not _REVISION.fullmatch(revision):
            raise UsageError(f"model/revision: {revision!r} is no branch, tag or commit")
        self._run("init", "--quiet", "--bare")
        self._fetch(revision or "HEAD")
        commit = self._run("rev-parse", "--verify", "FETCH_HEAD^{commit}").decode().strip()
        blobs = self._blobs(commit)
        contents = self._contents([blob.oid for blob in blobs])
        plain = {blob.path: contents[blob.oid] for blob in blobs}
        pointers = {path: row for path in plain if (row := _pointer(path, plain[path]))}
        return _Tree(commit, {path: plain[path] for path in plain.keys() - pointers}, pointers)

    def _fetch(self, revision: str) -> None:
        try:
            self._run("fetch", "--quiet", "--depth=1", "--no-tags", self._remote.url, revision)
        except _GitFailed as error:
            known = self._start("ls-remote", "--exit-code", self._remote.url, revision)
            if known.returncode == _NO_SUCH_REF:
                raise HubMissing(
                    f"{self._remote.place} has no revision `{revision}`",
                    hint="Leave model/revision out for the newest of its default branch",
                ) from error
            raise HubUnreachable(f"{self._remote.place} cannot be read: {error}") from error

    def _blobs(self, commit: str) -> list[_Blob]:
        rows = self._run("ls-tree", "-r", "-z", commit).decode("utf-8", "surrogateescape")
        blobs = {}
        for row in rows.split("\0")[:-1]:
            about, path = row.split("\t", 1)
            mode, _, oid = about.split(" ")
            blobs[path] = _Blob(mode, oid, path)
        place = self._remote.place
        for path in blobs:
            listing.check_name(place, path)
        wanted = [blobs[path] for path in checkpoint.select(blobs)]
        for blob in wanted:
            if blob.mode not in _FILE_MODES:
                raise ListRefused(f"{place}: {blob.path} is a link or a submodule, not a file")
        return wanted

    def _contents(self, oids: Sequence[str]) -> dict[str, bytes]:
        """As git-cat-file(1) puts them one after the other."""
        asked = "".join(f"{oid}\n" for oid in oids).encode()
        told = io.BytesIO(self._run("cat-file", "--batch", stdin=asked))
        contents = {}
        for oid in oids:
            size = int(told.readline().split()[2])
            contents[oid] = told.read(size)
            told.read(1)
        return contents

    def _run(self, *argv: str, stdin: bytes = b"") -> bytes:
        done = self._start(*argv, stdin=stdin)
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise _GitFailed(lines[-1] if lines else f"git exits with {done.returncode}")
        return done.stdout

    def _start(self, *argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                ["git", f"--git-dir={self._folder}", *argv],
                input=stdin,
                capture_output=True,
                env=self._environment,
                timeout=_GIT_SECONDS,
            )
        except FileNotFoundError as error:
            raise UsageError("git is not installed here", hint="apt-get install git") from error
        except subprocess.TimeoutExpired as error:
            raise HubUnreachable(f"{self._remote.place} is too slow for git") from error


class _GitFailed(Exception):
    """Its last line, which says what it could not do."""


def _pointer(path: str, content: bytes) -> Listed | None:
    match = _POINTER.match(content) if len(content) <= _POINTER_BYTES else None
    return Listed(path, int(match[2]), match[1].decode()) if match else None


def _environment(
    settings: Settings, network: Network, remote: _Remote, folder: Path
) -> dict[str, str]:
    """The operator's, with what must not be in an argument that others see (git-config(1))."""
    given = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true"}
    config = {"http.lowSpeedLimit": "100", "http.lowSpeedTime": "30"}
    for name, value in remote.headers.items():
        config[f"http.{remote.url}.extraHeader"] = f"{name}: {value}"
    if network.proxy:
        config["http.proxy"] = network.proxy
        given |= {"no_proxy": "", "NO_PROXY": ""}
    if authorities := ca_text(settings):
        bundle = folder / "authorities.pem"
        system = ssl.get_default_verify_paths().cafile
        bundle.write_text((Path(system).read_text() if system else "") + "\n" + authorities)
        given["GIT_SSL_CAINFO"] = str(bundle)
    inherited = {name: os.environ[name] for name in os.environ if name not in _NOT_INHERITED}
    given["GIT_CONFIG_COUNT"] = str(len(config))
    for number, (key, value) in enumerate(config.items()):
        given |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return inherited | given


def _listing(settings: Settings, remote: _Remote, tree: _Tree) -> Listing:
    rows = [
        *tree.pointers.values(),
        *(
            Listed(path, len(content), hashlib.sha256(content).hexdigest())
            for path, content in tree.plain.items()
        ),
    ]
    return Listing(
        remote.place,
        Origin("git-lfs", settings.revision, tree.commit),
        listing.select(remote.place, rows),
        _upstreams(settings, remote, tree),
        lambda row: tree.plain.get(row.path, b""),
    )


def _upstreams(settings: Settings, remote: _Remote, tree: _Tree) -> tuple[Upstream, ...]:
    made = []
    if tree.pointers:
        lfs = upstreams.wan(
            settings, "git-lfs", remote.lfs_url, kind="git-lfs", headers=remote.headers
        )
        made.append(lfs.only(list(tree.pointers)))
    raw = _raw(settings, remote, tree.commit)
    if raw and tree.plain:
        made.append(raw.only(list(tree.plain)))
    return tuple(made)


def _raw(settings: Settings, remote: _Remote, commit: str) -> Upstream | None:
    if remote.at is None:
        return None
    if remote.hub == "huggingface":
        return huggingface.upstream(settings, remote.at, remote.repo, commit, huggingface.NAME)
    return modelscope.upstream(settings, remote.at, remote.repo, settings.revision, modelscope.NAME)
