"""One Chromium and two services for all browser tests; each test finds an empty browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from selenium.common.exceptions import UnexpectedAlertPresentException
from selenium.webdriver import Chrome

from tests.browser.chat_page import ChatPage
from tests.browser.chromium import chromium, complaints, fresh_window, requested
from tests.browser.elsewhere import Elsewhere
from tests.fixture_model import fixture_model
from tests.running_service import RunningService


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[Elsewhere]:
    with Elsewhere() as every_other_host:
        yield every_other_host


@pytest.fixture(scope="session")
def window(
    tmp_path_factory: pytest.TempPathFactory, elsewhere: Elsewhere, services: Services
) -> Iterator[Chrome]:
    profile = tmp_path_factory.mktemp("profile")
    with chromium(profile) as driver, fresh_window(driver, elsewhere.address):
        yield driver


@pytest.fixture
def browser(window: Chrome) -> Iterator[Chrome]:
    """With one tab, whose pages complain of nothing that the test has not read; see `opened` and
    `renewed` for what it keeps."""
    requested(window)
    before = window.window_handles
    tab = window.current_window_handle
    yield window
    for handle in set(window.window_handles) - set(before):
        window.switch_to.window(handle)
        window.close()
    window.switch_to.window(tab)
    with suppress(UnexpectedAlertPresentException):
        # Where a dialog was left open, this closes it.
        window.execute_script("return document.title")
    assert complaints(window) == []


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


class Services:
    """They start beside each other, and load their pages while Chromium starts."""

    def __init__(self, started: ExitStack, keys: Keys) -> None:
        self._started = started
        self._keys = keys
        self._echo = self._start_echo()
        self.real = started.enter_context(RunningService(fixture_model()))
        for service in (self._echo, self.real):
            httpx.get(service.wait_ready().url)

    @property
    def echo(self) -> RunningService:
        """A test may end it: the next one gets another."""
        if self._echo.process.poll() is not None:
            self._echo = self._start_echo().wait_ready()
        return self._echo

    def _start_echo(self) -> RunningService:
        settings = {"QWEN_AUTH": "keys", "QWEN_KEYS_FILE": str(self._keys.path)}
        folder = self._keys.path.parent
        service = RunningService(folder, settings, module="tests.browser.fake_service")
        return self._started.enter_context(service)


@pytest.fixture(scope="session")
def services(keys: Keys, key: str) -> Iterator[Services]:
    with ExitStack() as started:
        yield Services(started, keys)


@pytest.fixture
def service(services: Services) -> RunningService:
    return services.real


@pytest.fixture
def echo_service(services: Services) -> RunningService:
    return services.echo


@pytest.fixture
def page(browser: Chrome, service: RunningService) -> ChatPage:
    page = ChatPage(browser, service.url)
    return page if renewed(page) else opened(browser, service.url).wait_usable()


@pytest.fixture
def echo_page(browser: Chrome, echo_service: RunningService, key: str) -> ChatPage:
    page = ChatPage(browser, echo_service.url)
    return page if renewed(page, "tester") else logged_in(browser, echo_service.url, key)


def logged_in(browser: Chrome, url: str, key: str) -> ChatPage:
    """Without the login page, which has tests of its own."""
    cookies = httpx.post(f"{url}/login", data={"key": key}).cookies
    return opened(browser, url, cookies).wait_usable()


def opened(browser: Chrome, url: str, cookies: httpx.Cookies | None = None) -> ChatPage:
    """The page in a browser that keeps nothing else of it."""
    browser.get(f"{url}/ui/icon.svg")
    browser.execute_script("localStorage.clear(); sessionStorage.clear()")
    browser.delete_all_cookies()
    for cookie in cookies.jar if cookies else ():
        browser.add_cookie({"name": cookie.name, "value": cookie.value})
    browser.get(url)
    return ChatPage(browser, url)


# Nothing but conversations sets the page apart from one that was loaded just now.
IS_AS_LOADED = """
    const [url, owner] = arguments;
    const page = document.documentElement;
    return location.href === url && page.lang === "en" && (page.dataset.owner || "") === owner
        && !["qwen.dark", "qwen.settings"].some((key) => key in localStorage)
        && document.querySelector("#question textarea")?.value === ""
        && !document.querySelector("#system")?.checkVisibility()
        && document.querySelector("#question .submit-button") !== null;
"""


def renewed(page: ChatPage, owner: str = "") -> bool:
    """The page that a test before left open, without its conversations: loading it takes longer
    than most tests do."""
    if not page.driver.execute_script(IS_AS_LOADED, f"{page.url}/", owner):
        return False
    page.driver.execute_script("localStorage.clear()")
    page.click("#new")
    page.eventually(lambda: (page.questions(), page.titles()) == ([], []))
    return True
