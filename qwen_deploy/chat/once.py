"""One question and its answer, for scripts: the answer alone on stdout, the story on stderr.

Knows no host: it is given an endpoint and streams.
"""

from __future__ import annotations

import json
import os
import stat
import time
from contextlib import closing
from typing import TextIO

from qwen_deploy.chat.answer import Answer, receive
from qwen_deploy.chat.client import Endpoint, Service
from qwen_deploy.chat.screen import Screen
from qwen_deploy.chat.session import Ending, Session
from qwen_deploy.chat.settings import is_sendable
from qwen_deploy.errors import QwenDeployError, UsageError

INTERRUPTED = 130
STDIN = "-"
SCHEMA = 1


def prompt_of(argument: str, stdin: TextIO) -> str:
    """What to ask: the argument, what a pipe or file brings, or one above the other.

    A terminal is read only for `-`: nobody knows that the program would wait for them.
    """
    parts = [] if argument == STDIN else [argument]
    if argument == STDIN or _brings_text(stdin):
        parts.append(stdin.buffer.read().decode("utf-8", "surrogateescape"))
    prompt = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    if not prompt:
        raise UsageError("the prompt is empty", hint='qwen-deploy chat --once "你好"')
    if not is_sendable(prompt):
        raise UsageError("the prompt is not UTF-8")
    return prompt


def once(
    endpoint: Endpoint,
    prompt: str,
    session: Session,
    *,
    stdout: TextIO,
    stderr: TextIO,
    as_json: bool = False,
) -> int:
    """0, 1 if the answer failed, 130 if Ctrl-C stopped it. As JSON it is one object in any case."""
    screen = Screen(stdout, stderr, is_interactive=False, environ=os.environ)
    display = screen.display(renders=False)
    payload = session.request(endpoint.model, prompt, again=False)
    with closing(Service(endpoint)) as service:
        show = (lambda _: None) if as_json else display.show
        answer = receive(service, payload, show, clock=time.monotonic)
    display.end()
    if as_json:
        stdout.write(json.dumps(_object(answer, endpoint.model), ensure_ascii=False) + "\n")
        stdout.flush()
    if answer.failure:
        screen.error(_for_scripts(answer))
        return answer.failure.exit_code
    if answer.ending is not Ending.STOP:
        screen.note(f"({answer.ending})")
    return INTERRUPTED if answer.ending is Ending.INTERRUPTED else 0


def _brings_text(stdin: TextIO) -> bool:
    try:
        mode = os.fstat(stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _for_scripts(answer: Answer) -> QwenDeployError:
    """Without the commands of the chat, which a script has not."""
    assert answer.failure
    wait = answer.failure.retry_after
    hint = f"ask again in {wait} s" if wait is not None else None
    return QwenDeployError(answer.failure.message, hint=hint)


def _object(answer: Answer, model: str) -> dict[str, object]:
    ended_early = answer.ending in (Ending.INTERRUPTED, Ending.FAILED)
    rate = answer.tokens_per_second()
    failure = _for_scripts(answer) if answer.failure else None
    return {
        "schema": SCHEMA,
        "model": model,
        "answer": answer.text,
        "reasoning": answer.reasoning or None,
        "finish_reason": str(answer.ending) if ended_early else answer.finish_reason,
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.tokens,
        },
        "seconds": {
            "first_token": _seconds(answer, answer.first_at),
            "total": _seconds(answer, answer.ended_at),
        },
        "tokens_per_second": rate and round(rate, 2),
        "error": failure and {"message": failure.message, "hint": failure.hint},
    }


def _seconds(answer: Answer, at: float | None) -> float | None:
    return None if at is None else round(at - answer.asked_at, 3)
