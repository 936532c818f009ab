"""The real application and server over the fake engine, in a thread and on a free port."""

from __future__ import annotations

import threading
from types import TracebackType

from qwen_service.__main__ import bind, make_server
from qwen_service.settings import Settings

from tests.fake_engine import FakeEngine
from tests.service_app import SETTINGS, Service

DEADLINE_SECONDS = 60


class FakeService:
    """Started with `with`."""

    def __init__(self, engine: FakeEngine | None = None, settings: Settings = SETTINGS) -> None:
        self._service = Service(settings, engine)
        self.engine = self._service.engine
        self.app = self._service.app
        self._listener = bind(("127.0.0.1", 0))
        self._server = make_server(settings, self.app)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    def __enter__(self) -> FakeService:
        # Who connects waits in the listener's queue until the server takes them.
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join(DEADLINE_SECONDS)
        self._listener.close()
        assert not self._thread.is_alive()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"
