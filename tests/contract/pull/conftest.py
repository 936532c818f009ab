"""A hub with one small model, and a host with the agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub
from tests.hub.agent import Agent
from tests.hub.repository import Commit
from tests.hub.sample import REPO, SHARD_BYTES, SHARDS
from tests.model_folder import make_model


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", shards=SHARDS, shard_bytes=SHARD_BYTES)


@pytest.fixture
def commit(hub: Hub, folder: Path) -> Commit:
    return hub.add(REPO, folder)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "host")
    yield agent
    agent.end_all()
