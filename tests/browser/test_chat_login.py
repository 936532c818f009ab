"""Who may chat where keys are asked for."""

from __future__ import annotations

import httpx
import pytest
from selenium.webdriver import Chrome

from tests.browser.chat_page import ChatPage
from tests.browser.conftest import Keys, logged_in, opened
from tests.running_service import RunningService

pytestmark = pytest.mark.browser


def test_a_wrong_key_is_refused_and_a_right_one_is_not_kept(
    browser: Chrome, echo_service: RunningService, key: str
) -> None:
    page = opened(browser, echo_service.url)
    page.log_in("sk-wrong")
    page.eventually(lambda: page.find("[role=alert]").text == "This API key is not known here.")
    page.log_in(key)
    page.wait_usable()
    page.ask("Hello")
    page.wait_answers("Hello")

    (cookie,) = browser.get_cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    assert key not in str(cookie) + str(page.kept()) + browser.page_source


def test_logging_out_ends_the_session(echo_page: ChatPage) -> None:
    cookie = echo_page.driver.get_cookies()[0]
    echo_page.click("#log-out")
    echo_page.eventually(lambda: echo_page.find("input[name=key]"))
    cookies = {cookie["name"]: cookie["value"]}
    assert httpx.get(f"{echo_page.url}/config", cookies=cookies).status_code == 401


def test_a_key_that_is_revoked_leads_to_the_login_page(
    browser: Chrome, echo_service: RunningService, keys: Keys
) -> None:
    page = logged_in(browser, echo_service.url, keys.add("guest"))
    keys.remove("guest")
    page.ask("Hello")
    page.eventually(lambda: page.find("input[name=key]"))


def test_nothing_of_the_page_is_open_without_login(echo_service: RunningService) -> None:
    with echo_service.client() as client:
        for path in ("/config", "/gradio_api/queue/data?session_hash=x", "/gradio_api/heartbeat/x"):
            assert client.get(path).status_code == 401, path
        assert client.post("/gradio_api/queue/join", json={}).status_code == 401
        elsewhere = {"origin": "http://evil.example"}
        assert client.post("/login", data={"key": "x"}, headers=elsewhere).status_code == 403
