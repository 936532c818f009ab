"""What the chat says of itself in English and in Chinese. Knows no command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

_WELCOME: Mapping[Language, str] = {
    "en": """\
Chat with {model}; use is governed by the license of the model.
:help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves. 中文帮助：:help zh""",
    "zh": """\
与 {model} 对话，使用须遵守模型许可协议。
:help 查看命令，Ctrl-C 停止回答，Ctrl-D 退出。English help: :help en""",
}
NOTES: Mapping[Language, tuple[tuple[str, str], ...]] = {
    "en": (
        ("/NAME", "Do the same as `:NAME`; what is no command is a question"),
        ("::TEXT", "Ask `:TEXT` itself"),
        ("LINE\\", "Go on in the next line; so does Alt-Enter, and a paste keeps its lines"),
        ("Ctrl-C", "Stop the answer and keep what came; at the prompt: clear it, twice: leave"),
    ),
    "zh": (
        ("/NAME", "与 `:NAME` 相同；不是命令的则作为问题发送"),
        ("::TEXT", "发送以冒号开头的文字"),
        ("LINE\\", "行末反斜杠表示换行继续输入，Alt-Enter 亦可；粘贴多行会保持原样"),
        ("Ctrl-C", "停止回答并保留已生成的内容；在输入时清空当前行，连按两次退出"),
    ),
}


def welcome(model: str, language: Language) -> str:
    return _WELCOME[language].format(model=model)


def language_of(environ: Mapping[str, str]) -> Language:
    """As programs find it: the first of these that is set (setlocale(3))."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if locale := environ.get(name):
            return "zh" if locale.lower().startswith("zh") else "en"
    return "en"
