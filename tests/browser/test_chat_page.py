"""A conversation in the browser with the real service and the fixture model."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser.chat_page import ChatPage
from tests.fixture_model.dialogues import LONG_ANSWER, answer_to

pytestmark = pytest.mark.browser

COUNT = "Count from 1 to 60, one number a line."
ANN = "Nice to meet you, Ann!"


def test_what_was_said_is_kept_and_told_with_the_next_question(page: ChatPage) -> None:
    page.ask("My name is Ann.")
    page.wait_answers(ANN)
    assert page.questions() == ["My name is Ann."]

    page.driver.refresh()
    page.wait_usable()
    page.wait_answers(ANN)
    page.ask("What is my name?")
    page.wait_answers(ANN, "Your name is Ann.")


def test_stop_keeps_what_came_and_retry_makes_it_anew(page: ChatPage) -> None:
    page.ask(COUNT)
    page.eventually(lambda: page.answers()[0].startswith("1\n2"))
    page.click("#question .stop-button")
    page.eventually(page.is_idle)
    (answer,) = page.answers()
    said, _, note = answer.rpartition("\n")
    assert note == "Stopped."
    assert LONG_ANSWER.startswith(said.strip()) and said.strip() != LONG_ANSWER
    (kept,) = page.kept() or [{}]
    assert LONG_ANSWER.startswith(kept["turns"][1]["content"].strip())

    page.press("Retry")
    page.wait_answers(LONG_ANSWER)


def test_a_first_question_that_is_edited_is_answered_and_names_the_conversation_anew(
    page: ChatPage,
) -> None:
    page.ask("Hello")
    page.wait_answers(answer_to("Hello"))
    assert page.titles() == ["Hello"]
    page.ask("你是谁？")
    page.eventually(lambda: len(page.answers()) == 2 and page.is_idle())
    page.edit("Hello", "你是谁？")
    page.wait_answers(answer_to("你是谁？"))
    assert page.questions() == ["你是谁？"]
    page.eventually(lambda: page.titles() == ["你是谁？"])


def test_undo_gives_the_question_back_and_leaves_nothing_of_it(page: ChatPage) -> None:
    page.ask("Hello")
    page.wait_answers(answer_to("Hello"))
    page.press("Undo")
    page.eventually(lambda: page.question.get_attribute("value") == "Hello")
    assert page.answers() == []
    page.eventually(lambda: page.titles() == [])
    assert page.kept() == []
    page.ask("")
    page.wait_answers(answer_to("Hello"))


def test_the_system_prompt_and_the_settings_reach_the_model(page: ChatPage) -> None:
    page.click("#settings button")
    page.write("#system textarea", "You are a pirate.")
    page.ask("Hello")
    page.wait_answers("Arr, matey! What be ye wanting?")
    page.write("#max-tokens :is(input, textarea)", "3", Keys.TAB)
    page.click("#new")
    page.ask(COUNT)
    cut = "The answer ends here because it reached the limit of tokens."
    page.eventually(lambda: page.answers()[0].endswith(cut))


def test_the_page_stays_dark_and_chinese_when_told_to(page: ChatPage) -> None:
    assert not page.is_dark()
    page.click("#dark")
    page.eventually(page.is_dark)
    page.click("#language")
    page.eventually(lambda: page.find("#new").text == "新对话")
    page.wait_usable()
    page.eventually(page.is_dark)
    assert page.question.get_attribute("placeholder") == "输入问题"
    page.driver.refresh()
    page.wait_usable()
    page.eventually(page.is_dark)
    assert page.find("#new").text == "新对话"
    page.ask("你好")
    page.wait_answers(answer_to("你好"))
