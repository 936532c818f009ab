"""A model folder on the operator's machine, served, and a host with the agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen_deploy.share import Share
from tests.contract.share.serving import SHARD_BYTES, SHARDS, Report, report_of
from tests.hub.agent import Agent
from tests.model_folder import make_model


@pytest.fixture
def new_host(tmp_path: Path) -> Iterator[Callable[[str], Agent]]:
    hosts: list[Agent] = []

    def make(name: str) -> Agent:
        hosts.append(Agent(tmp_path / name))
        return hosts[-1]

    yield make
    for host in hosts:
        host.end_all()


@pytest.fixture
def host(new_host: Callable[[str], Agent]) -> Agent:
    return new_host("host")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", shards=SHARDS, shard_bytes=SHARD_BYTES)


@pytest.fixture
def report(model: Path) -> Report:
    return report_of(model)


@pytest.fixture
def share(report: Report) -> Iterator[Share]:
    with Share(report) as share:
        yield share
