"""Gets the page ready once somebody wants it: gradio is imported in a thread, then its queue runs.

A service that nobody chats with by browser never pays for it. Knows neither paths nor logins.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from qwen_service.lifecycle.readiness import Readiness
from qwen_service.settings import Settings
from qwen_service.webui.texts import BY_LANGUAGE, Language

if TYPE_CHECKING:
    from qwen_service.webui.interface import Page

log = logging.getLogger("qwen_service")

PULSE_SECONDS = 0.25


class Starting:
    def __init__(self, settings: Settings, readiness: Readiness, *, has_login: bool) -> None:
        self._settings = settings
        self._readiness = readiness
        self._has_login = has_login
        self._running: asyncio.Task[None] | None = None
        self.pages: dict[Language, Page] = {}
        self.failure = ""

    def wish(self) -> None:
        """Somebody wants the page; as long as the model loads, that comes first."""
        if self._running is None and self._readiness.state == "ready":
            self._running = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            pages = await asyncio.to_thread(self._make)
        except Exception:
            log.exception("qwen_service: the web UI cannot be shown")
            self.failure = "it cannot be shown; the service's log says why"
            return
        async with AsyncExitStack() as stack:
            for page in pages.values():
                # The service runs without ASGI's lifespan, and this comes after its start anyway.
                await stack.enter_async_context(page.app.router.lifespan_context(page.app))
                page.app.get_blocks().run_startup_events()  # type: ignore[no-untyped-call]
            self.pages = pages
            await self._until_over()
            for page in pages.values():
                # Ends the connections that open tabs hold, which would hold the process.
                page.app.stop_event.set()

    def _make(self) -> dict[Language, Page]:
        from qwen_service.webui.interface import make_page

        # Each request that the page makes is in the log already, as one that came in.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        facts = self._readiness.facts
        thinks = facts.thinks if facts else False
        name = self._settings.model_name
        return {
            language: make_page(name, texts, thinks=thinks, has_login=self._has_login)
            for language, texts in BY_LANGUAGE.items()
        }

    async def _until_over(self) -> None:
        """A service that stops first lets its answers end, those to open pages too."""
        while self._readiness.state != "draining" or self._is_answering():
            await asyncio.sleep(PULSE_SECONDS)

    def _is_answering(self) -> bool:
        return any(page.chatting.is_answering for page in self.pages.values())
