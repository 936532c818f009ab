"""A model's repository: commits of folders, as git objects, with large files as git-lfs pointers.
Does not know how a hub shows them."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf")
_AUTHOR = "Tester <tester@localhost> 1700000000 +0000"


@dataclass(frozen=True)
class File:
    path: str
    place: Path
    size: int
    sha256: str

    @property
    def is_lfs(self) -> bool:
        return self.path.endswith(LFS_SUFFIXES)

    @cached_property
    def content(self) -> bytes:
        """What git holds."""
        if not self.is_lfs:
            return self.place.read_bytes()
        version = "version https://git-lfs.github.com/spec/v1"
        return f"{version}\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def oid(self) -> str:
        return _framed("blob", self.content)[0]

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid


@dataclass(frozen=True)
class Commit:
    id: str
    files: dict[str, File]


@dataclass
class Repository:
    """`token` opens it; to all others it is gated, or not there at all."""

    git_dir: Path
    token: str | None = None
    is_gated: bool = False
    commits: list[Commit] = field(default_factory=list)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def find(self, revision: str, branch: str) -> Commit | None:
        if revision == branch:
            return self.head
        return next((commit for commit in self.commits if commit.id == revision), None)

    def object_file(self, sha256: str) -> File | None:
        every = (file for commit in self.commits for file in commit.files.values())
        return next((file for file in every if file.is_lfs and file.sha256 == sha256), None)

    def commit(self, folder: Path) -> Commit:
        places = {".gitattributes": self._attributes()} | {
            path.relative_to(folder).as_posix(): path
            for path in folder.rglob("*")
            if path.is_file()
        }
        files = [_file(place, path) for path, place in sorted(places.items())]
        tree = self._write_tree({tuple(file.path.split("/")): file for file in files})
        parents = "".join(f"parent {commit.id}\n" for commit in self.commits[-1:])
        text = f"tree {tree}\n{parents}author {_AUTHOR}\ncommitter {_AUTHOR}\n\nUpload\n"
        commit = Commit(self._write("commit", text.encode()), {file.path: file for file in files})
        self.commits.append(commit)
        for branch in ("main", "master"):
            _place(self.git_dir / "refs" / "heads" / branch).write_text(f"{commit.id}\n")
        (self.git_dir / "HEAD").write_text("ref: refs/heads/main\n")
        return commit

    def _attributes(self) -> Path:
        lines = [f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES]
        path = _place(self.git_dir / "attributes")
        path.write_text("".join(lines))
        return path

    def _write_tree(self, files: dict[tuple[str, ...], File]) -> str:
        entries = {}
        for name in {path[0] for path in files}:
            if (name,) in files:
                entries[name] = ("100644", self._write("blob", files[(name,)].content))
            else:
                below = {path[1:]: file for path, file in files.items() if path[0] == name}
                entries[f"{name}/"] = ("40000", self._write_tree(below))
        rows = (
            f"{mode} {name.rstrip('/')}\0".encode() + bytes.fromhex(oid)
            for name, (mode, oid) in sorted(entries.items())
        )
        return self._write("tree", b"".join(rows))

    def _write(self, kind: str, content: bytes) -> str:
        oid, framed = _framed(kind, content)
        _place(self.git_dir / "objects" / oid[:2] / oid[2:]).write_bytes(zlib.compress(framed, 1))
        return oid


def _file(place: Path, path: str) -> File:
    with place.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return File(path, place, place.stat().st_size, sha256)


def _framed(kind: str, content: bytes) -> tuple[str, bytes]:
    framed = f"{kind} {len(content)}\0".encode() + content
    return hashlib.sha1(framed).hexdigest(), framed


def _place(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
