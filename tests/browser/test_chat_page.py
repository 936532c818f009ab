"""A conversation in the browser with the real service and the fixture model."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.browser.chat_page import ChatPage
from tests.browser.chromium import open_tab
from tests.fixture_model.dialogues import LONG_ANSWER, answer_to

pytestmark = pytest.mark.browser

COUNT = "Count from 1 to 60, one number a line."


def test_an_answer_streams_in_and_is_kept(page: ChatPage) -> None:
    page.ask("你好")
    page.wait_answers(answer_to("你好"))
    assert page.questions() == ["你好"]
    assert page.titles() == ["你好"]

    page.driver.refresh()
    page.wait_usable()
    page.wait_answers(answer_to("你好"))


def test_a_second_question_is_asked_with_all_that_was_said(page: ChatPage) -> None:
    page.ask("My name is Ann.")
    page.wait_answers("Nice to meet you, Ann!")
    page.ask("What is my name?")
    page.wait_answers("Nice to meet you, Ann!", "Your name is Ann.")


def test_stop_keeps_what_came(page: ChatPage) -> None:
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


def test_an_answer_is_made_again(page: ChatPage) -> None:
    page.ask(COUNT)
    page.eventually(lambda: page.answers()[0].startswith("1\n2"))
    page.click("#question .stop-button")
    page.eventually(page.is_idle)
    page.press("Retry")
    page.wait_answers(LONG_ANSWER)


def test_a_question_is_edited_and_answered_anew(page: ChatPage) -> None:
    page.ask("Hello")
    page.wait_answers(answer_to("Hello"))
    page.ask("你是谁？")
    page.eventually(lambda: len(page.answers()) == 2 and page.is_idle())
    page.press("Edit", 0)
    area = page.eventually(lambda: page.find("#chat .edit-textarea"))
    page.eventually(lambda: area.get_attribute("value") == "Hello")
    ActionChains(page.driver).click(area).key_down(Keys.CONTROL).send_keys("a").key_up(
        Keys.CONTROL
    ).send_keys("你是谁？").perform()
    page.press("Submit")
    page.wait_answers(answer_to("你是谁？"))
    assert page.questions() == ["你是谁？"]


def test_undo_gives_the_question_back(page: ChatPage) -> None:
    page.ask("Hello")
    page.wait_answers(answer_to("Hello"))
    page.press("Undo")
    page.eventually(lambda: page.question.get_attribute("value") == "Hello")
    assert page.answers() == []
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


def test_two_tabs_do_not_undo_each_other(page: ChatPage) -> None:
    first = page.driver.current_window_handle
    open_tab(page.driver)
    second = page.driver.current_window_handle
    ChatPage(page.driver, page.url).open()
    page.driver.switch_to.window(first)
    page.ask("Hello")
    page.wait_answers(answer_to("Hello"))
    page.driver.switch_to.window(second)
    page.ask("你是谁？")
    page.wait_answers(answer_to("你是谁？"))
    assert sorted(one["title"] for one in page.kept() or ()) == ["Hello", "你是谁？"]


def test_the_page_speaks_chinese_when_told_to(page: ChatPage) -> None:
    page.click("#language")
    page.eventually(lambda: page.find("#new").text == "新对话")
    page.wait_usable()
    assert page.question.get_attribute("placeholder") == "输入问题"
    page.ask("Hello")
    page.wait_answers(answer_to("Hello"))
    page.driver.refresh()
    page.wait_usable()
    assert page.find("#new").text == "新对话"


def test_dark_stays_dark(page: ChatPage) -> None:
    assert not page.is_dark()
    page.click("#dark")
    page.eventually(page.is_dark)
    page.driver.refresh()
    page.wait_usable()
    page.eventually(page.is_dark)
