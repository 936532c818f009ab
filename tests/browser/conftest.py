"""One Chromium and one real service for all browser tests; each test finds an empty browser."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from tests.browser.chat_page import ChatPage
from tests.browser.chromium import chromium, fresh_window, requested
from tests.browser.elsewhere import Elsewhere
from tests.fixture_model import fixture_model
from tests.running_service import RunningService


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[Elsewhere]:
    with Elsewhere() as every_other_host:
        yield every_other_host


@pytest.fixture(scope="session")
def window(tmp_path_factory: pytest.TempPathFactory, elsewhere: Elsewhere) -> Iterator[Chrome]:
    profile = tmp_path_factory.mktemp("profile")
    with chromium(profile) as driver, fresh_window(driver, elsewhere.address):
        yield driver


@pytest.fixture
def browser(window: Chrome) -> Iterator[Chrome]:
    """With one tab; see `opened` for what it keeps."""
    requested(window)
    before = window.window_handles
    tab = window.current_window_handle
    yield window
    for handle in set(window.window_handles) - set(before):
        window.switch_to.window(handle)
        window.close()
    window.switch_to.window(tab)
    # Whatever is shown ends here, also what a dialog holds up.
    window.get("about:blank")
    window.execute_cdp_cmd("Network.clearBrowserCookies", {})


@pytest.fixture(scope="session")
def service() -> Iterator[RunningService]:
    with RunningService(fixture_model()) as running:
        yield running.wait_ready()


class Keys:
    """The keys file of the services that ask for keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys: dict[str, str] = {}

    def add(self, name: str) -> str:
        self._keys[name] = f"sk-{name}-{len(self._keys)}"
        self._write()
        return self._keys[name]

    def remove(self, name: str) -> None:
        del self._keys[name]
        self._write()

    def _write(self) -> None:
        lines = (f"{name} {sha256(key.encode()).hexdigest()}" for name, key in self._keys.items())
        self.path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "keys")


@pytest.fixture(scope="session")
def key(keys: Keys) -> str:
    return keys.add("tester")


@pytest.fixture(scope="session")
def echo_service(keys: Keys, key: str) -> Iterator[RunningService]:
    with fake_service(keys) as running:
        yield running.wait_ready()


@pytest.fixture
def draining_service(keys: Keys, key: str) -> Iterator[RunningService]:
    with fake_service(keys) as running:
        yield running.wait_ready()


def fake_service(keys: Keys) -> RunningService:
    settings = {"QWEN_AUTH": "keys", "QWEN_KEYS_FILE": str(keys.path)}
    return RunningService(keys.path.parent, settings, module="tests.browser.fake_service")


@pytest.fixture
def page(browser: Chrome, service: RunningService) -> ChatPage:
    return opened(browser, service.url).wait_usable()


@pytest.fixture
def echo_page(browser: Chrome, echo_service: RunningService, key: str) -> ChatPage:
    return logged_in(browser, echo_service.url, key)


def logged_in(browser: Chrome, url: str, key: str) -> ChatPage:
    page = opened(browser, url)
    page.log_in(key)
    return page.wait_usable()


def opened(browser: Chrome, url: str) -> ChatPage:
    """The page in a browser that keeps nothing of it."""
    browser.get(f"{url}/ui/icon.svg")
    browser.execute_script("localStorage.clear(); sessionStorage.clear()")
    browser.get(url)
    return ChatPage(browser, url)
