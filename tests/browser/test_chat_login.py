"""Who may chat where keys are asked for."""

from __future__ import annotations

import httpx
import pytest
from selenium.webdriver import Chrome

from tests.browser.chat_page import ChatPage
from tests.browser.chromium import complaints, open_tab
from tests.browser.conftest import Keys, logged_in, opened
from tests.running_service import RunningService

pytestmark = pytest.mark.browser


def stored(page: ChatPage) -> str:
    """All that any page left in this browser."""
    return str(page.driver.execute_script("return JSON.stringify({...localStorage})"))


def wait_titles(page: ChatPage, titles: list[str]) -> None:
    """Of a page that may be about to load anew."""
    page.eventually(lambda: page.titles() == titles)
    page.wait_usable()
    assert page.titles() == titles


def test_a_wrong_key_is_refused_and_a_right_one_is_not_kept(
    browser: Chrome, echo_service: RunningService, key: str
) -> None:
    page = opened(browser, echo_service.url)
    page.log_in("sk-wrong")
    page.eventually(lambda: page.find("[role=alert]").text == "This API key is not known here.")
    (complaint,) = complaints(browser)
    assert "401" in complaint
    page.log_in(key)
    page.wait_usable()
    page.ask("Hello")
    page.wait_answers("Hello")

    (cookie,) = browser.get_cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    assert key not in str(cookie) + str(page.kept()) + browser.page_source


def test_logging_out_ends_the_session_and_leaves_nothing_behind(echo_page: ChatPage) -> None:
    (cookie,) = echo_page.driver.get_cookies()
    echo_page.ask("My secret")
    echo_page.wait_answers("My secret")
    assert "until you log out" in echo_page.find("#caution").text
    first = echo_page.driver.current_window_handle
    open_tab(echo_page.driver)
    ChatPage(echo_page.driver, echo_page.url).open().wait_answers("My secret")

    echo_page.click("#log-out")
    echo_page.eventually(lambda: echo_page.driver.switch_to.alert).dismiss()
    assert "My secret" in stored(echo_page)
    echo_page.click("#log-out")
    echo_page.eventually(lambda: echo_page.driver.switch_to.alert).accept()
    for tab in (echo_page.driver.current_window_handle, first):
        echo_page.driver.switch_to.window(tab)
        echo_page.eventually(lambda: echo_page.find("input[name=key]"))
        assert "My secret" not in stored(echo_page)
    cookies = {cookie["name"]: cookie["value"]}
    assert httpx.get(f"{echo_page.url}/config", cookies=cookies).status_code == 401


def test_each_key_has_its_own_conversations(echo_page: ChatPage, keys: Keys, key: str) -> None:
    driver = echo_page.driver
    echo_page.ask("My secret")
    echo_page.wait_answers("My secret")
    first = driver.current_window_handle
    open_tab(driver)
    second = driver.current_window_handle
    for other_key, titles in ((keys.add("guest"), []), (key, ["My secret"])):
        # The session ends without a word, as it does when the service starts anew.
        driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        driver.get(echo_page.url)
        echo_page.log_in(other_key)
        for tab in (first, second):
            driver.switch_to.window(tab)
            wait_titles(echo_page, titles)


def test_a_key_that_is_revoked_leads_to_the_login_page(
    browser: Chrome, echo_service: RunningService, keys: Keys
) -> None:
    page = logged_in(browser, echo_service.url, keys.add("revoked"))
    # Once this is there, the page asks for nothing by itself any more.
    page.ask("Hello")
    page.wait_answers("Hello")
    keys.remove("revoked")
    page.ask("Hello again")
    page.eventually(lambda: page.find("input[name=key]"))
    (complaint,) = complaints(browser)
    assert "401" in complaint


def test_nothing_of_the_page_is_open_without_login(echo_service: RunningService) -> None:
    with echo_service.client() as client:
        for path in ("/config", "/gradio_api/queue/data?session_hash=x", "/gradio_api/heartbeat/x"):
            assert client.get(path).status_code == 401, path
        assert client.post("/gradio_api/queue/join", json={}).status_code == 401
        elsewhere = {"origin": "http://evil.example"}
        assert client.post("/login", data={"key": "x"}, headers=elsewhere).status_code == 403
