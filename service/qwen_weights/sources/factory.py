"""Makes a source of its entry. Does not know which of them are used."""

from __future__ import annotations

from ..entries import Entry
from ..errors import BadManifest
from . import Patience, Source


def make(entry: Entry, patience: Patience) -> Source:
    """Only what is used is imported."""
    try:
        return _make(entry, patience)
    except BadManifest as error:
        raise BadManifest(f"sources.json: {entry.name}: {error}") from error


def _make(entry: Entry, patience: Patience) -> Source:
    if entry.kind == "peer":
        from .peer import PeerSource

        return PeerSource(entry.name, entry.url, entry.token or "")
    if entry.kind == "folder":
        from .folder import FolderSource

        return FolderSource(entry.name, entry.path)
    if entry.kind == "archive":
        from .archive import ArchiveSource

        return ArchiveSource(entry.name, entry.path, entry.prefix)
    if entry.kind == "git-lfs":
        from .gitlfs import GitLfsSource as WebSource
    else:
        from .http import HttpSource as WebSource  # type: ignore[assignment]
    return WebSource(
        entry.name,
        entry.url,
        token=entry.token,
        headers=dict(entry.headers),
        proxy=entry.proxy,
        ca=entry.ca,
        is_wan=entry.wan,
        patience=patience,
    )
