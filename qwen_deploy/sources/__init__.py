"""Where a model comes from: one question to the source that the operator named, one answer that
pins every byte. The hubs' own libraries are imported only when they are asked.

Knows neither hosts nor plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_deploy.errors import UsageError
from qwen_deploy.hashes import Progress
from qwen_deploy.sources.network import Network, Patience, direct, through
from qwen_deploy.sources.pinned import UNVERIFIED, Pinned, Upstream
from qwen_deploy.sources.refusals import (
    HubError,
    HubMissing,
    HubRefused,
    HubUnreachable,
    ListRefused,
)
from qwen_deploy.sources.settings import Settings, Source, parse

if TYPE_CHECKING:
    from qwen_deploy.sources.wire import Wire

__all__ = [
    "UNVERIFIED",
    "HubError",
    "HubMissing",
    "HubRefused",
    "HubUnreachable",
    "ListRefused",
    "Network",
    "Patience",
    "Pinned",
    "Settings",
    "Source",
    "Upstream",
    "direct",
    "from_index",
    "parse",
    "pin",
    "through",
]


def pin(
    settings: Settings,
    *,
    network: Network = direct,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> Pinned:
    """What the source holds now. Raises a HubError, or CheckpointRefused for what is no model.

    `host:/path` is asked on a host, and comes here by `from_index`."""
    source = parse(settings.source)
    if source.kind == "host":
        raise UsageError(f"model/source: {settings.source} lies on hosts, which have to be asked")
    if source.kind == "path":
        from qwen_deploy.sources import local

        return local.pin(settings, Path(source.place), progress)
    from qwen_deploy.sources.wire import Wire

    with Wire(network, ca_file=settings.ca_file, patience=patience) as wire:
        return _ask(settings, source, network, wire)


def _ask(settings: Settings, source: Source, network: Network, wire: Wire) -> Pinned:
    from qwen_deploy.sources import auto, gitlfs, huggingface, mirror, modelscope, pinning

    url = source.place or None
    if source.kind == "auto":
        return auto.pin(settings, wire)
    if source.kind == "git-lfs":
        return gitlfs.pin(settings, wire, network, url)
    if source.kind == "mirror":
        return pinning.pin(mirror.ask(settings, wire, source.place), settings)
    hub = huggingface if source.kind == "huggingface" else modelscope
    return pinning.pin(hub.ask(settings, wire, url), settings)


def from_index(path: str, document: Mapping[str, Any]) -> Pinned:
    """Of what `index` of the agent printed last about a path on a host."""
    from qwen_deploy.sources import local

    return local.from_index(path, document)
