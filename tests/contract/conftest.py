"""One real service over the fixture model, shared by the tests that only ask."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixture_model import fixture_model
from tests.running_service import RunningService

API_KEY = "sk-contract"


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    keys = Path(tmp_path_factory.mktemp("keys"), "keys")
    keys.write_text(f"contract {hashlib.sha256(API_KEY.encode()).hexdigest()}\n")
    settings = {
        "QWEN_AUTH": "keys",
        "QWEN_KEYS_FILE": str(keys),
        "QWEN_MODEL_ALIASES": "gpt-3.5-turbo",
    }
    with RunningService(fixture_model(), settings) as running:
        yield running.wait_ready()


@pytest.fixture(scope="session")
def open_service() -> Iterator[RunningService]:
    """Small, and open to everyone, as `--no-auth` sets it up."""
    settings = {
        "WATCHDOG_USEC": "8000000",
        "QWEN_MAX_BATCH": "2",
        "QWEN_MAX_QUEUE": "1",
        "QWEN_MODEL_ALIASES": "gpt-3.5-turbo,Qwen",
    }
    with RunningService(fixture_model(), settings) as running:
        yield running.wait_ready()


@pytest.fixture(scope="session")
def api_key() -> str:
    return API_KEY
