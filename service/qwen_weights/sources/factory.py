"""Makes a source of its entry. Does not know which of them are used."""

from __future__ import annotations

from qwen_weights.errors import BadManifest
from qwen_weights.sources import Patience, Source
from qwen_weights.sources.entries import Entry


def make(entry: Entry, patience: Patience) -> Source:
    """Only what is used is imported."""
    try:
        return _make(entry, patience)
    except BadManifest as error:
        raise BadManifest(f"sources.json: {entry.name}: {error}") from error


def _make(entry: Entry, patience: Patience) -> Source:
    if entry.kind == "peer":
        from qwen_weights.sources.peer import PeerSource

        return PeerSource(entry.name, entry.url, entry.token or "")
    if entry.kind == "folder":
        from qwen_weights.sources.folder import FolderSource

        return FolderSource(entry.name, entry.path)
    if entry.kind == "archive":
        from qwen_weights.sources.archive import ArchiveSource

        return ArchiveSource(entry.name, entry.path, entry.prefix)
    if entry.kind == "git-lfs":
        from qwen_weights.sources.gitlfs import GitLfsSource

        return GitLfsSource(entry, patience)
    from qwen_weights.sources.http import HttpSource

    return HttpSource(entry, patience)
