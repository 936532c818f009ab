"""The process from its start to the first answer."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest
from qwen_service.lifecycle.notify import Notifier
from qwen_service.lifecycle.readiness import Readiness
from qwen_service.lifecycle.selftest import SelfTest
from qwen_service.lifecycle.supervisor import Supervisor

from tests.fake_engine import FakeEngine
from tests.service_app import MODEL, SETTINGS

DEADLINE_SECONDS = 60


@pytest.fixture
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("thawed")
def test_what_was_loaded_is_never_gone_over_again() -> None:
    ready = asyncio.Event()

    class Watched(Readiness):
        def ready(self) -> None:
            super().ready()
            ready.set()

    async def start() -> None:
        readiness = Watched(Notifier(None), model=MODEL)
        engine = SelfTest(FakeEngine(), readiness.tested)
        running = asyncio.ensure_future(
            Supervisor(SETTINGS, engine, readiness, watchdog_seconds=None).run()
        )
        async with asyncio.timeout(DEADLINE_SECONDS):
            await ready.wait()
        running.cancel()
        await asyncio.wait({running})

    assert gc.get_freeze_count() == 0
    asyncio.run(start())
    assert gc.get_freeze_count() > 0
