"""Several conversations, and several tabs of one browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.browser.chat_page import ChatPage
from tests.browser.chromium import open_tab
from tests.browser.fake_service import HOLD
from tests.fixture_model.dialogues import answer_to

pytestmark = pytest.mark.browser

ANN = "Nice to meet you, Ann!"


@contextmanager
def other_tab(page: ChatPage) -> Iterator[ChatPage]:
    """It opens what this one shows; afterwards this one is in front again, and both are open."""
    first = page.driver.current_window_handle
    open_tab(page.driver)
    yield ChatPage(page.driver, page.url).open()
    page.driver.switch_to.window(first)


def swap_tabs(page: ChatPage) -> None:
    (other,) = set(page.driver.window_handles[-2:]) - {page.driver.current_window_handle}
    page.driver.switch_to.window(other)


def said(page: ChatPage) -> dict[str, list[str]]:
    """What is kept, by title."""
    return {one["title"]: [turn["content"] for turn in one["turns"]] for one in page.kept() or ()}


def test_conversations_are_opened_renamed_and_deleted(page: ChatPage) -> None:
    page.ask("Hello")
    page.wait_answers(answer_to("Hello"))
    page.click("#new")
    page.eventually(lambda: page.answers() == [])
    page.ask("中国的首都是哪里？")
    page.wait_answers(answer_to("中国的首都是哪里？"))
    assert page.titles() == ["中国的首都是哪里？", "Hello"]

    page.click("#chats label:nth-child(2)")
    page.wait_answers(answer_to("Hello"))
    page.click("#rename")
    prompt = page.eventually(lambda: page.driver.switch_to.alert)
    prompt.send_keys("Greeting")
    prompt.accept()
    page.eventually(lambda: "Greeting" in page.titles())
    page.click("#delete")
    page.eventually(lambda: page.driver.switch_to.alert).accept()
    page.eventually(lambda: page.titles() == ["中国的首都是哪里？"])
    page.wait_answers(answer_to("中国的首都是哪里？"))


def test_tabs_go_on_with_one_conversation_from_where_it_is_or_with_two(page: ChatPage) -> None:
    page.ask("My name is Ann.")
    page.wait_answers(ANN)
    with other_tab(page) as other:
        other.wait_answers(ANN)
        other.ask("What is my name?")
        other.wait_answers(ANN, "Your name is Ann.")
    page.wait_answers(ANN, "Your name is Ann.")
    page.ask("Spell it.")
    page.wait_answers(ANN, "Your name is Ann.", "A-N-N")
    swap_tabs(page)
    page.wait_answers(ANN, "Your name is Ann.", "A-N-N")
    assert page.texts("#notice") == []

    page.click("#new")
    page.ask("Hello")
    page.wait_answers(answer_to("Hello"))
    swap_tabs(page)
    page.press("Undo")
    page.wait_answers(ANN, "Your name is Ann.")
    page.eventually(lambda: len(said(page)["My name is Ann."]) == 4)
    assert said(page)["Hello"] == ["Hello", answer_to("Hello")]


def test_tabs_that_ask_at_once_get_a_conversation_each(echo_page: ChatPage) -> None:
    echo_page.ask("Hello")
    echo_page.wait_answers("Hello")
    with other_tab(echo_page) as other:
        other.wait_answers("Hello")
        other.ask(HOLD)
        other.eventually(lambda: HOLD in str(other.kept()))
    echo_page.ask("Are you there?")
    echo_page.eventually(lambda: "Hello (2)" in echo_page.titles() and echo_page.is_idle())
    assert "“Hello (2)”" in echo_page.find("#notice").text
    swap_tabs(echo_page)
    echo_page.click("#question .stop-button")
    echo_page.wait_answers("Hello", "Stopped.")
    assert said(echo_page) == {
        "Hello": ["Hello", "Hello", HOLD, ""],
        "Hello (2)": ["Hello", "Hello", "Are you there?", ""],
    }
