"""The loop of the chat: read a line, do what it says, show what comes, until the input ends.

Knows no host: it is given an endpoint and three streams.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import TextIO

from qwen_deploy.chat.answer import Answer, receive
from qwen_deploy.chat.client import Endpoint, Service
from qwen_deploy.chat.commands import Outcome, Then, completions, obey, welcome
from qwen_deploy.chat.reader import PlainReader, Reader, TerminalReader
from qwen_deploy.chat.screen import Screen
from qwen_deploy.chat.session import Ending, Session, Turn, history
from qwen_deploy.chat.settings import is_sendable
from qwen_deploy.errors import QwenDeployError, UsageError

INTERRUPTED = 130


def run(
    endpoint: Endpoint, *, stdin: TextIO, stdout: TextIO, stderr: TextIO, seed: int | None = None
) -> int:
    """0; for input that is no terminal, 1 if any line failed and 130 after Ctrl-C."""
    is_interactive = stdin.isatty() and (stdout.isatty() or stderr.isatty())
    screen = Screen(stdout, stderr, is_interactive=is_interactive, environ=os.environ)
    reader: Reader = PlainReader(stdin)
    if is_interactive:
        reader = TerminalReader(stdin, screen.story, complete=completions, note=screen.note)
        screen.note(welcome(endpoint.model))
    with closing(Service(endpoint)) as service:
        return _Loop(service, reader, screen, Session(seed=seed)).run()


def once(
    endpoint: Endpoint, prompt: str, *, stdout: TextIO, stderr: TextIO, seed: int | None = None
) -> int:
    """One answer on stdout; 0, 1 if it failed, 130 if Ctrl-C stopped it."""
    screen = Screen(stdout, stderr, is_interactive=False, environ=os.environ)
    if not prompt.strip() or not is_sendable(prompt):
        screen.note("error: the prompt is empty or not UTF-8")
        return UsageError.exit_code
    payload = Session(seed=seed).request(endpoint.model, prompt, again=False)
    with closing(Service(endpoint)) as service:
        answer = receive(service, payload, screen.piece, clock=time.monotonic)
    screen.end_answer()
    if answer.failure:
        screen.note(f"error: {answer.failure.message}")
        return 1
    return INTERRUPTED if answer.ending is Ending.INTERRUPTED else 0


class _Loop:
    def __init__(self, service: Service, reader: Reader, screen: Screen, session: Session) -> None:
        self._service = service
        self._reader = reader
        self._screen = screen
        self._session = session
        self._has_failed = False

    def run(self) -> int:
        while True:
            try:
                if not self._goes_on():
                    return 1 if self._has_failed and not self._screen.is_interactive else 0
            except KeyboardInterrupt:
                if not self._screen.is_interactive:
                    return INTERRUPTED

    def _goes_on(self) -> bool:
        try:
            line = self._reader.read()
        except EOFError:
            return False
        try:
            return self._follow(self._outcome(line))
        except QwenDeployError as error:
            self._has_failed = True
            self._screen.error(error)
            return True

    def _outcome(self, line: str) -> Outcome:
        if not is_sendable(line):
            raise UsageError("the line is not UTF-8, so it was not sent")
        return obey(self._session, line)

    def _follow(self, outcome: Outcome) -> bool:
        self._session = outcome.session
        if outcome.says:
            self._screen.note(outcome.says)
        match outcome.then:
            case Then.ASK:
                self._ask(outcome.question, again=False)
            case Then.ASK_AGAIN:
                self._ask(outcome.question, again=True)
            case Then.SHOW_HISTORY:
                self._screen.note(history(self._session, self._screen.columns))
            case Then.CLEAR_SCREEN:
                self._screen.clear()
                self._screen.note(welcome(self._service.endpoint.model))
        return outcome.then is not Then.LEAVE

    def _ask(self, question: str, *, again: bool) -> None:
        payload = self._session.request(self._service.endpoint.model, question, again=again)
        answer = receive(self._service, payload, self._screen.piece, clock=time.monotonic)
        self._session = self._session.recorded(
            Turn(question, answer.text, answer.ending), again=again
        )
        self._screen.end_answer()
        self._remark(answer)
        if answer.failure:
            raise answer.failure
        if answer.ending is Ending.INTERRUPTED and not self._screen.is_interactive:
            raise KeyboardInterrupt

    def _remark(self, answer: Answer) -> None:
        speed = answer.speed() if self._screen.is_interactive else ""
        if remark := _remark(answer):
            self._screen.note(remark)
        if speed:
            self._screen.dim(speed)


def _remark(answer: Answer) -> str:
    match answer.ending:
        case Ending.INTERRUPTED if answer.text:
            return "(interrupted; what came is kept)"
        case Ending.INTERRUPTED:
            return "(interrupted before the first word)"
        case Ending.LENGTH:
            return "(stopped at max_tokens)"
        case Ending.STOP if not answer.text:
            return "(the answer is empty)"
    return ""
