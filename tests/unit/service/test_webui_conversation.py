"""Conversations of the chat page: asked on, undone, edited, and read back from a browser."""

from __future__ import annotations

from dataclasses import replace

import pytest
from qwen_service.webui import display
from qwen_service.webui.conversation import Conversation, Turn, parse
from qwen_service.webui.texts import CHINESE, ENGLISH, choose

WHOLE = Conversation(
    "c1",
    "Hello",
    "Be brief.",
    (
        Turn("user", "Hello"),
        Turn("assistant", "Hi", reasoning="They greet."),
        Turn("user", "Why?"),
        Turn("assistant", "", note="Too many people are asking."),
    ),
)


def test_a_conversation_comes_back_from_the_browser_as_it_went() -> None:
    assert parse(WHOLE.written()) == WHOLE


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"id": 1},
        {"id": "c1", "turns": "no"},
        {"id": "c1", "turns": [1]},
        {"id": "c1", "turns": [{"role": "system", "content": "x"}]},
        {"id": "c1", "turns": [{"role": "user", "content": None}]},
    ],
)
def test_what_is_no_conversation_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        parse(value)


def test_the_model_gets_what_was_said_and_nothing_that_the_page_said() -> None:
    assert WHOLE.messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Why?"},
    ]


def test_the_first_question_names_the_conversation() -> None:
    assert Conversation("c1").asked("\n one\ntwo").title == "one"
    assert len(Conversation("c1").asked("long " * 20).title) == 40
    assert WHOLE.asked("more").title == "Hello"


def test_the_title_goes_with_the_first_question_unless_it_was_given() -> None:
    answered = Conversation("c1").asked("one").answered(Turn("assistant", "1")).asked("two")
    assert answered.edited(2, "three").title == "one"
    assert answered.edited(0, "three").title == "three"
    assert answered.undone()[0].title == "one"
    assert answered.undone()[0].undone()[0].title == ""
    assert answered.edited(0, " \n ").title == ""
    given = replace(answered, title="Numbers")
    assert given.edited(0, "three").title == "Numbers"
    assert given.undone()[0].undone()[0].asked("four").title == "Numbers"


def test_what_the_service_says_of_an_answer_is_shown_as_text() -> None:
    turns = (Turn("user", "Hi"), Turn("assistant", "", note="temperature: <img src=x>"))
    (_, shown) = display.messages(Conversation("c1", turns=turns), ENGLISH)
    assert shown["content"][0]["text"] == "*temperature: &lt;img src=x>*"


def test_questions_and_answers_take_turns_where_an_answer_never_came() -> None:
    asked = Conversation("c1").asked("one").asked("two")
    assert [turn.role for turn in asked.turns] == ["user", "assistant", "user"]
    assert [one["content"] for one in asked.messages()] == ["one", "two"]


def test_undo_retry_and_edit_take_back_what_came_after() -> None:
    undone, question = WHOLE.undone()
    assert (len(undone.turns), question) == (2, "Why?")
    assert Conversation("c1").undone() == (Conversation("c1"), "")
    assert WHOLE.unanswered().turns[-1] == Turn("user", "Why?")
    assert WHOLE.edited(0, "Good day").turns == (Turn("user", "Good day"),)


def test_each_shown_message_belongs_to_a_turn() -> None:
    shown = display.messages(WHOLE, ENGLISH)
    assert [message.get("metadata", {}).get("title") for message in shown] == [
        *(None, "Thoughts"),
        *(None, None, None),
    ]
    turns = [display.turn_of(WHOLE, index, ENGLISH) for index in range(5)]
    assert turns == [0, 1, 1, 2, 3]
    with pytest.raises(ValueError):
        display.turn_of(WHOLE, 5, ENGLISH)


def test_an_answer_is_waited_for_or_did_not_come() -> None:
    asked = Conversation("c1").asked("one")
    texts = [
        display.messages(asked, ENGLISH, is_pending=is_pending)[-1]["content"][0]["text"]
        for is_pending in (True, False)
    ]
    assert texts == ["…", "*No answer came.*"]


def test_thoughts_are_shown_alone_while_the_model_thinks() -> None:
    thinking = Conversation("c1").asked("one").answered(Turn("assistant", "", "Hm"))
    (_, thought) = display.messages(thinking, ENGLISH, is_pending=True)
    assert thought["metadata"] == {"title": "Thoughts", "status": "pending"}


@pytest.mark.parametrize(
    ("cookie", "accepted", "texts"),
    [
        ("", "", ENGLISH),
        ("", "zh-CN,zh;q=0.9,en;q=0.8", CHINESE),
        ("", "fr, zh-TW;q=0.5", CHINESE),
        ("", "en-US,zh;q=0.5", ENGLISH),
        ("zh", "en-US", CHINESE),
        ("en", "zh-CN", ENGLISH),
        ("xx", "zh-CN", CHINESE),
    ],
)
def test_the_language_is_the_chosen_one_or_else_the_browsers(
    cookie: str, accepted: str, texts: object
) -> None:
    assert choose(cookie, accepted) is texts
