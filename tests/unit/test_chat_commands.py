from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_deploy.chat.commands import COMMANDS, Then, completions, help_text, obey
from qwen_deploy.chat.session import Ending, Session, Turn, history
from qwen_deploy.chat.words import Language, language_of, welcome
from qwen_deploy.errors import UsageError

TALKED = Session(turns=(Turn("1+1?", "2"), Turn("你好", "你好！")))


@pytest.mark.parametrize(
    ("line", "then", "question"),
    [
        ("你好", Then.ASK, "你好"),
        ("  a : b  \n", Then.ASK, "a : b"),
        ("\ufeff你好\r\n", Then.ASK, "你好"),
        ("::help", Then.ASK, ":help"),
        ("::", Then.ASK, ":"),
        ("：：好", Then.ASK, "：好"),
        ("", Then.PROMPT, ""),
        ("\u3000 \n", Then.PROMPT, ""),
        (":help", Then.PROMPT, ""),
        (":h", Then.PROMPT, ""),
        ("：help", Then.PROMPT, ""),
        (":HELP", Then.PROMPT, ""),
        (":exit", Then.LEAVE, ""),
        (":quit", Then.LEAVE, ""),
        (":q", Then.LEAVE, ""),
        ("/help", Then.PROMPT, ""),
        ("/Exit", Then.LEAVE, ""),
        ("/bye", Then.LEAVE, ""),
        ("/retry", Then.ASK_AGAIN, "你好"),
        ("/think", Then.PROMPT, ""),
        ("/", Then.ASK, "/"),
        ("/etc/hosts: what is it?", Then.ASK, "/etc/hosts: what is it?"),
        ("/helper", Then.ASK, "/helper"),
        ("/hlep", Then.ASK, "/hlep"),
        ("//help", Then.ASK, "//help"),
        ("/history of Rome", Then.ASK, "/history of Rome"),
        ("/clear\n/exit", Then.ASK, "/clear\n/exit"),
        (":clear", Then.CLEAR_SCREEN, ""),
        (":cl", Then.CLEAR_SCREEN, ""),
        (":history", Then.SHOW_HISTORY, ""),
        (":his", Then.SHOW_HISTORY, ""),
        (":retry", Then.ASK_AGAIN, "你好"),
        (":regenerate", Then.ASK_AGAIN, "你好"),
        ("a\n:q", Then.ASK, "a\n:q"),
    ],
)
def test_a_line_is_a_command_or_a_question(line: str, then: Then, question: str) -> None:
    outcome = obey(TALKED, line)
    assert (outcome.then, outcome.question) == (then, question)
    assert outcome.session == TALKED


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (
            ":hlep",
            "unknown command `:hlep`",
            "`:help` is the nearest command; `::hlep` sends the text `:hlep`",
        ),
        (":)", "unknown command `:)`", "`:help` lists the commands; `::)` sends the text `:)`"),
        (":", "unknown command `:`", "`:help` lists the commands; `::` sends the text `:`"),
        (":exit now", "`:exit` takes nothing after it", None),
        (":think maybe", "`:think maybe`: should be one of on, off, default", None),
        (":markdown default", "`:markdown default`: should be one of on, off", None),
        (":help fr", "`:help fr`: should be en or zh", None),
        (":save", "`:save` needs a file", ":save chat.json"),
        (":save!", "`:save!` needs a file", ":save! chat.json"),
        ("/think maybe", "`:think maybe`: should be one of on, off, default", None),
        (":load", "`:load` needs a file", ":load chat.json"),
        (":seed x", "`x` is not a seed: should be a whole number of 64 bits", None),
        (f":seed {2**63}", f"`{2**63}` is not a seed: should be a whole number of 64 bits", None),
        (
            ":conf temperature",
            "`temperature` is not an assignment",
            "format: :conf key=value [key=value ...]",
        ),
        (
            ":conf top_p=0.5 heat=1",
            "`heat` is not a generation setting",
            "known are temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, "
            "frequency_penalty, max_tokens, stop",
        ),
    ],
)
def test_a_mistyped_command_is_an_error_and_never_a_question(
    line: str, message: str, hint: str | None
) -> None:
    with pytest.raises(UsageError) as caught:
        obey(TALKED, line)
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize("line", [":clear-history", ":clear-his", ":clh"])
def test_a_cleared_history_says_how_much_and_can_be_brought_back(line: str) -> None:
    cleared = obey(TALKED, line)
    assert cleared.says == "cleared 2 turns; `:undo` brings them back"
    assert cleared.session.turns == ()
    back = obey(cleared.session, ":undo")
    assert back.says == "the history is back to 2 turns"
    assert back.session == TALKED


def test_an_empty_history_is_cleared_without_a_step_to_undo() -> None:
    assert obey(Session(), ":clh").session == Session()


def test_undo_takes_back_a_turn_and_then_the_one_before() -> None:
    session = Session()
    for turn in TALKED.turns:
        session = session.recorded(turn, again=False)
    assert obey(session, ":undo").session.turns == TALKED.turns[:1]
    assert obey(obey(session, ":undo").session, ":undo").session == Session()
    with pytest.raises(UsageError, match="nothing to undo"):
        obey(Session(), ":undo")


def test_a_retry_replaces_the_answer_and_undo_restores_it() -> None:
    answered = TALKED.recorded(Turn("你好", "您好。"), again=True)
    assert [turn.answer for turn in answered.turns] == ["2", "您好。"]
    assert answered.undone() == TALKED


def test_a_retry_that_brings_nothing_keeps_the_earlier_answer() -> None:
    assert TALKED.recorded(Turn("你好", "", Ending.FAILED), again=True) == TALKED


def test_nothing_can_be_retried_before_the_first_question() -> None:
    with pytest.raises(UsageError, match="nothing was asked yet"):
        obey(Session(), ":retry")


def test_the_seed_is_unset_until_given_and_can_be_taken_back() -> None:
    assert obey(Session(), ":seed").says == "random seed: default (none is sent, so answers vary)"
    seeded = obey(Session(), ":seed 1234")
    assert seeded.says == "changed; random seed: 1234 (sent with every question)"
    assert obey(seeded.session, ":seed").says == "random seed: 1234 (sent with every question)"
    assert obey(seeded.session, ":seed default").session == Session()


def test_the_system_prompt_is_shown_set_and_taken_back() -> None:
    assert obey(Session(), ":system").says == "system prompt: default"
    set_ = obey(TALKED, ":system 你是 一个诗人。")
    assert set_.session.system == "你是 一个诗人。"
    assert set_.says.endswith("it holds for the next question, after 2 turns")
    assert obey(set_.session, ":system default").session == TALKED


def test_settings_are_shown_changed_and_reset() -> None:
    changed = obey(Session(), ':conf temperature=0.5 max_tokens=8 stop=["好","。"]')
    assert dict(changed.session.conf) == {
        "temperature": 0.5,
        "max_tokens": 8,
        "stop": ("好", "。"),
    }
    shown = obey(changed.session, ":conf").says.splitlines()
    assert shown[0] == "temperature         0.5"
    assert shown[1] == "top_p               default"
    assert shown[-1] == 'stop                ["好", "。"]'
    reset = obey(changed.session, ":reset-conf")
    assert reset.session == Session()
    assert all(line.endswith("default") for line in reset.says.splitlines())


def test_a_request_carries_system_turns_settings_and_seed() -> None:
    session = Session(
        turns=(
            Turn("a", "A"),
            Turn("b", "", Ending.FAILED),
            Turn("c", "C and", Ending.INTERRUPTED),
        ),
        system="S",
        seed=7,
        conf={"top_p": 0.5, "stop": ("x",)},
    )
    assert session.request("m", "d", again=False) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "A"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "C and"},
            {"role": "user", "content": "d"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "top_p": 0.5,
        "stop": ("x",),
        "seed": 7,
    }


def test_a_request_says_nothing_about_what_was_not_set_and_a_retry_drops_the_last_turn() -> None:
    assert TALKED.request("m", "你好", again=True) == {
        "model": "m",
        "messages": [
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "你好"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_history_is_numbered_and_marks_what_is_not_whole() -> None:
    session = Session(
        turns=(Turn("a", "A"), Turn("b", "B an", Ending.INTERRUPTED), Turn("c", "", Ending.FAILED)),
        system="S",
    )
    assert history(session, 30) == (
        "======== History (3) =========\n"
        "System: S\n"
        "User[1]: a\n"
        "Qwen[1]: A\n"
        "User[2]: b\n"
        "Qwen[2]: B an (interrupted)\n"
        "User[3]: c\n"
        "Qwen[3]: (failed)\n"
        "=============================="
    )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_help_names_every_command_in_the_language_of_the_person(language: Language) -> None:
    shown = help_text(language)
    for command in COMMANDS:
        assert all(f":{name}" in shown for name in command.names)
        assert (command.english in shown, command.chinese in shown) == (
            language == "en",
            language == "zh",
        )
    assert "Qwen/Q" in welcome("Qwen/Q", language)
    assert obey(Session(language=language), ":help").says == shown
    assert obey(Session(), f":help {language}").says == shown


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "", "LC_MESSAGES": "zh_TW"}, "zh"),
    ],
)
def test_the_language_is_that_of_the_locale(environ: dict[str, str], expected: str) -> None:
    assert language_of(environ) == expected


def test_thinking_is_switched_and_sent_only_when_somebody_did() -> None:
    assert (
        obey(Session(), ":think").says == "thinking before the answer: default (as the model does)"
    )
    off = obey(Session(), ":think off")
    assert off.says == "thinking before the answer: off"
    sent = off.session.request("m", "q", again=False)
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    assert obey(off.session, ":think ON").session.thinks is True
    assert obey(off.session, ":think default").session == Session()


def test_drawing_of_markdown_is_switched() -> None:
    off = obey(Session(), ":markdown off")
    assert (off.session.renders, off.says) == (False, "Markdown of answers is left as is")
    assert obey(off.session, ":markdown on").session == Session()


def test_files_are_asked_for_by_name() -> None:
    saved = obey(TALKED, ":save my chat.json")
    assert (saved.then, saved.path, saved.session) == (Then.SAVE, "my chat.json", TALKED)
    assert obey(TALKED, ":load ~/a.json").then is Then.LOAD
    for line in (":save! my chat.json", "/save! my chat.json", "：save！ my chat.json"):
        assert obey(TALKED, line) == replace(saved, then=Then.SAVE_OVER)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("h", ()),
        (":he", (":help",)),
        ("/he", ("/help",)),
        (":sav", (":save", ":save!")),
        (":clear-", (":clear-history", ":clear-his")),
        (":conf to", (":conf top_p=", ":conf top_k=")),
        ("/conf to", ("/conf top_p=", "/conf top_k=")),
        (":conf top_k=1 min", (":conf top_k=1 min_p=",)),
        (":system to", ()),
    ],
)
def test_tab_completes_commands_and_settings(text: str, expected: tuple[str, ...]) -> None:
    assert completions(text) == expected
