"""The commands of the chat as functions from a session to a session and what is said.

Knows no network and no terminal: what needs one is asked for by `Then`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto

from qwen_deploy.chat import settings, words
from qwen_deploy.chat.session import Session
from qwen_deploy.errors import UsageError

# An input method for Chinese writes the second one.
COLONS = (":", "：")
# As elsewhere. Questions may begin with it as well, so what is no whole command is one.
SLASH = "/"


class Then(Enum):
    PROMPT = auto()
    ASK = auto()
    ASK_AGAIN = auto()
    SHOW_HISTORY = auto()
    CLEAR_SCREEN = auto()
    SAVE = auto()
    SAVE_OVER = auto()
    LOAD = auto()
    LEAVE = auto()


@dataclass(frozen=True, slots=True)
class Outcome:
    session: Session
    says: str = ""
    then: Then = Then.PROMPT
    question: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    names: tuple[str, ...]
    takes: str
    english: str
    chinese: str
    run: Callable[[Session, str], Outcome]


def obey(session: Session, line: str) -> Outcome:
    """What a line means: a command, or a question; `::text` asks `:text`."""
    text = line.strip().removeprefix("\ufeff").strip()
    if not text:
        return Outcome(session, "the line is empty: type a question, or `:help`")
    if not text.startswith((*COLONS, SLASH)):
        return Outcome(session, then=Then.ASK, question=text)
    if text.startswith(COLONS) and text[1:].startswith(COLONS):
        return Outcome(session, then=Then.ASK, question=text[1:])
    name, argument = (*text[1:].split(None, 1), "", "")[:2]
    command = _BY_NAME.get(name.casefold().replace("！", "!"))
    is_excess = command is not None and argument and not command.takes
    if text.startswith(SLASH) and (command is None or is_excess):
        return Outcome(session, then=Then.ASK, question=text)
    if command is None:
        raise UsageError(f"unknown command `:{name}`", hint=_nearest(name))
    if is_excess:
        raise UsageError(f"`:{name}` takes nothing after it")
    return command.run(session, argument.strip())


def completions(text: str) -> tuple[str, ...]:
    """Whole lines that `text` may become."""
    mark, (head, space, word) = text[:1], text.rpartition(" ")
    if mark not in (COLONS[0], SLASH):
        return ()
    if not space:
        names = (f"{mark}{name}" for command in COMMANDS for name in command.names)
        return tuple(name for name in names if name.startswith(text))
    if head.split(None, 1)[0] != f"{mark}conf":
        return ()
    return tuple(f"{head} {key}=" for key in settings.SETTINGS if key.startswith(word))


def help_text(language: words.Language) -> str:
    rows = [
        (
            " ".join((*(f":{name}" for name in command.names), command.takes)).strip(),
            command.chinese if language == "zh" else command.english,
        )
        for command in COMMANDS
    ]
    rows += words.NOTES[language]
    width = max(len(usage) for usage, _ in rows)
    return "\n".join(f"{usage:<{width}}  {says}" for usage, says in rows)


def _nearest(name: str) -> str:
    import difflib

    nearest = difflib.get_close_matches(name.casefold(), _BY_NAME, n=1, cutoff=0.5)
    known = f"`:{nearest[0]}` is the nearest command" if nearest else "`:help` lists the commands"
    return f"{known}; `::{name}` sends the text `:{name}`"


def _help(session: Session, argument: str) -> Outcome:
    languages = {one: one for one in words.LANGUAGES} | {"": session.language}
    if argument not in languages:
        raise UsageError(f"`:help {argument}`: should be {' or '.join(words.LANGUAGES)}")
    return Outcome(session, help_text(languages[argument]))


def _leave(session: Session, _: str) -> Outcome:
    return Outcome(session, then=Then.LEAVE)


def _clear(session: Session, _: str) -> Outcome:
    return Outcome(session, then=Then.CLEAR_SCREEN)


def _clear_history(session: Session, _: str) -> Outcome:
    if not session.turns:
        return Outcome(session, "the history is empty")
    cleared = f"cleared {_turns(session)}; `:undo` brings them back"
    return Outcome(session.with_turns(()), cleared)


def _history(session: Session, _: str) -> Outcome:
    return Outcome(session, then=Then.SHOW_HISTORY)


def _retry(session: Session, _: str) -> Outcome:
    if not session.turns:
        raise UsageError("nothing was asked yet")
    return Outcome(session, then=Then.ASK_AGAIN, question=session.turns[-1].question)


def _undo(session: Session, _: str) -> Outcome:
    if not session.past:
        raise UsageError("nothing to undo")
    earlier = session.undone()
    return Outcome(earlier, f"the history is back to {_turns(earlier)}")


def _seed(session: Session, argument: str) -> Outcome:
    if not argument:
        return Outcome(session, _seed_shown(session))
    seed = None if argument == settings.DEFAULT else settings.parse_seed(argument)
    session = replace(session, seed=seed)
    return Outcome(session, f"changed; {_seed_shown(session)}")


def _seed_shown(session: Session) -> str:
    if session.seed is None:
        return "random seed: default (none is sent, so answers vary)"
    return f"random seed: {session.seed} (sent with every question)"


def _conf(session: Session, argument: str) -> Outcome:
    if not argument:
        return Outcome(session, settings.table(session.conf))
    session = replace(session, conf=settings.changed(session.conf, argument))
    return Outcome(session, settings.table(session.conf))


def _reset_conf(session: Session, _: str) -> Outcome:
    return Outcome(replace(session, conf={}), settings.table({}))


def _system(session: Session, argument: str) -> Outcome:
    if not argument:
        return Outcome(session, f"system prompt: {session.system or settings.DEFAULT}")
    system = None if argument == settings.DEFAULT else argument
    note = f"; it holds for the next question, after {_turns(session)}" if session.turns else ""
    return Outcome(replace(session, system=system), f"system prompt: {argument}{note}")


def _think(session: Session, argument: str) -> Outcome:
    if argument:
        session = replace(session, thinks=_switch("think", argument, allows_default=True))
    state = {None: "default (as the model does)", True: "on", False: "off"}[session.thinks]
    return Outcome(session, f"thinking before the answer: {state}")


def _markdown(session: Session, argument: str) -> Outcome:
    if argument:
        session = replace(session, renders=bool(_switch("markdown", argument)))
    return Outcome(
        session, f"Markdown of answers is {'drawn' if session.renders else 'left as is'}"
    )


def _switch(name: str, argument: str, *, allows_default: bool = False) -> bool | None:
    states: dict[str, bool | None] = {"on": True, "off": False}
    if allows_default:
        states[settings.DEFAULT] = None
    word = argument.casefold()
    if word not in states:
        raise UsageError(f"`:{name} {argument}`: should be one of {', '.join(states)}")
    return states[word]


def _save(session: Session, argument: str) -> Outcome:
    return Outcome(session, then=Then.SAVE, path=_path("save", argument))


def _save_over(session: Session, argument: str) -> Outcome:
    return Outcome(session, then=Then.SAVE_OVER, path=_path("save!", argument))


def _load(session: Session, argument: str) -> Outcome:
    return Outcome(session, then=Then.LOAD, path=_path("load", argument))


def _path(name: str, argument: str) -> str:
    if not argument or "\0" in argument:
        raise UsageError(f"`:{name}` needs a file", hint=f":{name} chat.json")
    return argument


def _turns(session: Session) -> str:
    return "1 turn" if len(session.turns) == 1 else f"{len(session.turns)} turns"


COMMANDS = (
    Command(("help", "h"), "[en|zh]", "Show this help", "显示帮助", _help),
    Command(("exit", "quit", "q", "bye"), "", "Leave", "退出", _leave),
    Command(("clear", "cl"), "", "Clear the screen", "清屏", _clear),
    Command(
        ("clear-history", "clear-his", "clh"),
        "",
        "Forget all turns",
        "清除对话历史",
        _clear_history,
    ),
    Command(("history", "his"), "", "Show all turns", "显示对话历史", _history),
    Command(
        ("regenerate", "retry"),
        "",
        "Ask the last question again",
        "重新回答上一个问题",
        _retry,
    ),
    Command(("undo",), "", "Undo the last change of the history", "撤销上一次历史变更", _undo),
    Command(
        ("save",),
        "FILE",
        "Write the conversation as JSON, or *.md",
        "保存对话 (JSON 或 *.md)",
        _save,
    ),
    Command(
        ("save!",),
        "FILE",
        "The same in place of an earlier one",
        "同上，并覆盖已保存的文件",
        _save_over,
    ),
    Command(("load",), "FILE", "Go on with a saved conversation", "载入已保存的对话", _load),
    Command(
        ("system",),
        "[TEXT|default]",
        "Show or set the system prompt",
        "查看或设置系统提示",
        _system,
    ),
    Command(
        ("think",),
        "[on|off|default]",
        "Show or switch thinking before the answer",
        "查看或开关思考过程",
        _think,
    ),
    Command(
        ("seed",), "[N|default]", "Show or change the random seed", "查看或修改随机种子", _seed
    ),
    Command(
        ("conf",),
        "[KEY=VALUE ...]",
        "Show or change generation settings; a value may be `default`",
        "查看或修改生成参数，default 表示恢复默认",
        _conf,
    ),
    Command(("reset-conf",), "", "Reset generation settings", "重置生成参数", _reset_conf),
    Command(
        ("markdown",),
        "[on|off]",
        "Draw answers as Markdown, or not",
        "是否渲染 Markdown",
        _markdown,
    ),
)
_BY_NAME = {name: command for command in COMMANDS for name in command.names}
