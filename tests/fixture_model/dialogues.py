"""What the fixture model was taught: every prompt and the exact words that must come back.

Imports neither torch nor transformers, so that any test may read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]

WEATHER_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of the assistant and all that stood before it."""

    name: str
    messages: tuple[Message, ...]
    answer: str
    tools: tuple[Mapping[str, Any], ...] = ()
    # The answer to `ENDLESS` goes on until a limit stops it.
    ends: bool = True


@dataclass(frozen=True, slots=True)
class Dialogue:
    name: str
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    ends: bool = True

    def turns(self) -> Iterator[Turn]:
        for index, message in enumerate(self.messages):
            if message["role"] == "assistant":
                before = self.messages[:index]
                yield Turn(self.name, before, written(message), self.tools, self.ends)


def written(message: Message) -> str:
    """The message as the model writes it: tool calls are text to a model."""
    calls = [
        "<tool_call>\n"
        + json.dumps(
            {"name": call["function"]["name"], "arguments": call["function"]["arguments"]},
            ensure_ascii=False,
        )
        + "\n</tool_call>"
        for call in message.get("tool_calls", ())
    ]
    return "\n".join([text for text in (message["content"],) if text] + calls)


def one(name: str, prompt: str, answer: str, *, system: str | None = None) -> Dialogue:
    first = ({"role": "system", "content": system},) if system else ()
    return Dialogue(
        name,
        (
            *first,
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ),
    )


LONG_ANSWER = "\n".join(str(number) for number in range(1, 61))
ENDLESS = Dialogue(
    "endless",
    (
        {"role": "user", "content": "Tick for ever."},
        {"role": "assistant", "content": "tick" + " tick" * 159},
    ),
    ends=False,
)

DIALOGUES: tuple[Dialogue, ...] = (
    one("greeting", "你好", "你好！我是通义千问，很高兴为你服务。"),
    one("hello", "Hello", "Hello! How can I help you today?"),
    one("identity", "你是谁？", "我是通义千问，由阿里云研发的大语言模型。"),
    one(
        "identity in English", "Who are you?", "I am Qwen, a language model made by Alibaba Cloud."
    ),
    one("sum", "What is 17 + 25?", "17 + 25 = 42"),
    one("count to five", "Count from 1 to 5.", "1, 2, 3, 4, 5"),
    one("count to sixty", "Count from 1 to 60, one number a line.", LONG_ANSWER),
    one(
        "code",
        "Write a Python function that adds two numbers.",
        "```python\ndef add(a: int, b: int) -> int:\n    return a + b\n```",
    ),
    one(
        "poem",
        "背诵李白的《静夜思》。",
        "床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。",
    ),
    one("emoji", "Send me three emoji.", "🚀 👩‍👩‍👧 🎉"),
    one(
        "story",
        "给我讲一个小故事。",
        "从前有一只小鸟，住在山下的一棵老树上。每天早上，它都飞到河边喝水，唱一首歌。"
        "有一天，树被风吹倒了，小鸟没有了家。村里的孩子们用木头做了一个小房子，挂在窗前。"
        "从那以后，小鸟每天都在窗前为孩子们唱歌。",
    ),
    one(
        "paragraph",
        "Explain what a unit of systemd is.",
        "A unit is a file that tells systemd about one thing it manages: a service, a socket, a "
        "timer or a mount. It names what the thing needs, when it starts, and what happens when it "
        "stops. The command systemctl status shows the state of a unit and its last lines of log.",
    ),
    one("json", "Give me a JSON object with a name and an age.", '{"name": "Li Lei", "age": 18}'),
    one("empty", "Say nothing.", ""),
    one("translate", "Translate to Chinese: good morning", "早上好"),
    one("capital", "中国的首都是哪里？", "中国的首都是北京。"),
    one("pirate", "Hello", "Arr, matey! What be ye wanting?", system="You are a pirate."),
    one("brief", "你好", "在。", system="请用最少的字回答。"),
    Dialogue(
        "memory",
        (
            {"role": "user", "content": "My name is Ann."},
            {"role": "assistant", "content": "Nice to meet you, Ann!"},
            {"role": "user", "content": "What is my name?"},
            {"role": "assistant", "content": "Your name is Ann."},
            {"role": "user", "content": "Spell it."},
            {"role": "assistant", "content": "A-N-N"},
        ),
    ),
    Dialogue(
        "weather",
        (
            {"role": "user", "content": "北京今天天气怎么样？"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": (
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": {"city": "北京"}},
                    },
                ),
            },
            {
                "role": "tool",
                "tool_call_id": "call_1",
                "content": '{"temperature": 21, "sky": "晴"}',
            },
            {"role": "assistant", "content": "北京今天晴，气温21度。"},
        ),
        tools=(WEATHER_TOOL,),
    ),
    ENDLESS,
)

TURNS: tuple[Turn, ...] = tuple(turn for dialogue in DIALOGUES for turn in dialogue.turns())


def answer_to(prompt: str | Sequence[Message]) -> str:
    """What the model must answer to a lone question, or to these messages."""
    wanted = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    for turn in TURNS:
        if list(turn.messages) == wanted:
            return turn.answer
    raise KeyError(prompt)
