"""What git-lfs leaves in a checkout: pointers in place of files, and its store of the content.
Does not run git."""

from __future__ import annotations

import re
from pathlib import Path

_START = b"version https://git-lfs.github.com/spec/"
LONGEST_POINTER_BYTES = 1024
_OBJECT = re.compile(rb"^oid sha256:([0-9a-f]{64})$", re.MULTILINE)
_SIZE = re.compile(rb"^size (\d{1,18})$", re.MULTILINE)


def pointer(content: bytes) -> tuple[str, int] | None:
    """SHA-256 and size of what it stands for; https://github.com/git-lfs/git-lfs specifies it."""
    if not content.startswith(_START) or len(content) > LONGEST_POINTER_BYTES:
        return None
    sha256, size = _OBJECT.search(content), _SIZE.search(content)
    return (sha256[1].decode(), int(size[1])) if sha256 and size else ("", 0)


def is_checkout(directory: Path) -> bool:
    return (directory / ".git").exists()


def object_path(directory: Path, sha256: str) -> Path:
    """Where git-lfs keeps the content once it has fetched it; it never changes it there."""
    return _git_dir(directory) / "lfs" / "objects" / sha256[:2] / sha256[2:4] / sha256


def _git_dir(directory: Path) -> Path:
    """In a worktree or a submodule `.git` is a file that names the folder, and all worktrees share
    one store (gitrepository-layout(5))."""
    git = directory / ".git"
    if not git.is_file():
        return git
    text = git.read_text(encoding="utf-8", errors="replace").strip()
    named = directory / text.partition("gitdir:")[2].strip()
    common = named / "commondir"
    return named / common.read_text(encoding="utf-8").strip() if common.is_file() else named
