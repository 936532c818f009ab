"""How a transfer of the agent ended."""

from __future__ import annotations

from tests.hub.agent import Agent, manifest_of
from tests.hub.repository import Commit


def assert_whole(agent: Agent, commit: Commit) -> None:
    manifest = manifest_of(commit)
    final = agent.final(manifest)
    for artifact in manifest.artifacts:
        content = commit.files[artifact.path].place.read_bytes()
        assert (final / artifact.path).read_bytes() == content, artifact.path
    extra = {path.name for path in final.iterdir()} - {one.path for one in manifest.artifacts}
    assert extra <= {"manifest.json", "manifest.pieces.json"}
    assert agent.partials() == []


def total(commit: Commit) -> int:
    return manifest_of(commit).total_bytes


def sentence(said: str) -> str:
    """The one that it ended with."""
    lines = said.splitlines()
    assert lines and lines[-1].startswith("error: ") and "Traceback" not in said, said
    return lines[-1]
