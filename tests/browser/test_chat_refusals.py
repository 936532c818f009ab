"""What the page says when the service does not answer, and that a closed tab frees its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from selenium.webdriver import Chrome

from tests.browser.chat_page import ChatPage
from tests.browser.chromium import open_tab
from tests.browser.fake_service import HOLD
from tests.running_service import MODEL, RunningService

pytestmark = pytest.mark.browser

BUSY = "Too many people are asking right now. Try again in a moment."
NOT_READY = "The service takes no questions right now. Try again in a moment."


@contextmanager
def held(service: RunningService, key: str) -> Iterator[None]:
    """The one place of the service, taken by somebody else."""
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": HOLD}]}
    headers = {"authorization": f"Bearer {key}"}
    with (
        service.client(headers=headers) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        assert answer.status_code == 200
        yield


def is_free(service: RunningService, key: str) -> bool:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "free?"}]}
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.post(f"{service.url}/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code in (200, 429)
    return answer.status_code == 200


def test_a_full_service_says_so_and_answers_later(
    echo_page: ChatPage, echo_service: RunningService, key: str
) -> None:
    with held(echo_service, key):
        echo_page.ask("Hello")
        echo_page.wait_answers(BUSY)
    echo_page.eventually(lambda: is_free(echo_service, key))
    echo_page.press("Retry")
    echo_page.wait_answers("Hello")


def test_a_setting_that_makes_no_sense_is_refused_in_words(echo_page: ChatPage) -> None:
    echo_page.click("#settings button")
    echo_page.write("#temperature :is(input, textarea)", "warm")
    echo_page.ask("Hello")
    echo_page.eventually(lambda: "temperature" in echo_page.answers()[0])
    echo_page.eventually(echo_page.is_idle)


def test_a_closed_tab_frees_its_place(
    browser: Chrome, echo_page: ChatPage, echo_service: RunningService, key: str
) -> None:
    first = browser.current_window_handle
    open_tab(browser)
    ChatPage(browser, echo_page.url).open().ask(HOLD)
    echo_page.eventually(lambda: not is_free(echo_service, key))
    browser.close()
    browser.switch_to.window(first)
    echo_page.eventually(lambda: is_free(echo_service, key))


def test_stop_frees_the_place_of_an_answer_that_did_not_begin(
    echo_page: ChatPage, echo_service: RunningService, key: str
) -> None:
    echo_page.ask(HOLD)
    echo_page.eventually(lambda: not is_free(echo_service, key))
    echo_page.click("#question .stop-button")
    echo_page.wait_answers("Stopped.")
    assert is_free(echo_service, key)


def test_a_service_that_drains_says_so_and_ends(
    echo_page: ChatPage, echo_service: RunningService, key: str
) -> None:
    with held(echo_service, key):
        echo_service.terminate()
        told = echo_service.told
        echo_service.eventually(lambda: any("STOPPING=1" in line for line in told()))
        echo_page.ask("Hello")
        echo_page.wait_answers(NOT_READY)
    assert echo_service.exit_code() == 0
