"""The loop of the chat: read a line, do what it says, show what comes, until the input ends.

Knows no host: it is given an endpoint and three streams.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path
from typing import TextIO

from qwen_deploy.chat import saved
from qwen_deploy.chat.answer import Answer, receive
from qwen_deploy.chat.client import Endpoint, Service
from qwen_deploy.chat.commands import Outcome, Then, completions, obey
from qwen_deploy.chat.display import write
from qwen_deploy.chat.reader import PlainReader, Reader, TerminalReader
from qwen_deploy.chat.screen import Screen
from qwen_deploy.chat.session import Ending, Session, Turn, history
from qwen_deploy.chat.settings import is_sendable
from qwen_deploy.chat.words import welcome
from qwen_deploy.errors import QwenDeployError, UsageError

INTERRUPTED = 130


def run(
    endpoint: Endpoint,
    session: Session,
    *,
    stdin: TextIO,
    stdout: TextIO,
    stderr: TextIO,
    history: Path | None = None,
) -> int:
    """0; for input that is no terminal, 1 if any line failed and 130 after Ctrl-C.

    `history` is where the lines of a terminal are kept for the next time.
    """
    is_interactive = stdin.isatty() and (stdout.isatty() or stderr.isatty())
    screen = Screen(stdout, stderr, is_interactive=is_interactive, environ=os.environ)
    reader: Reader = PlainReader(stdin)
    if is_interactive:
        reader = _reader(stdin, screen, history)
        screen.note(welcome(endpoint.model, session.language))
    with closing(Service(endpoint)) as service:
        return _Loop(service, reader, screen, session).run()


def _reader(stdin: TextIO, screen: Screen, history: Path | None) -> Reader:
    if not screen.can_edit:
        return PlainReader(stdin, lambda text: write(screen.story, text))
    return TerminalReader(
        stdin, screen.story, complete=completions, note=screen.note, history=history
    )


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
                self._screen.note(welcome(self._model, self._session.language))
            case Then.SAVE | Then.SAVE_OVER:
                replaces = outcome.then is Then.SAVE_OVER
                said = saved.save(self._session, outcome.path, self._model, replaces=replaces)
                self._screen.note(said)
            case Then.LOAD:
                self._session, said = saved.load(self._session, outcome.path)
                self._screen.note(said)
        return outcome.then is not Then.LEAVE

    @property
    def _model(self) -> str:
        return self._service.endpoint.model

    def _ask(self, question: str, *, again: bool) -> None:
        payload = self._session.request(self._model, question, again=again)
        display = self._screen.display(renders=self._session.renders)
        with self._reader.muted():
            try:
                answer = receive(self._service, payload, display.show, clock=time.monotonic)
                turn = Turn(question, answer.text, answer.ending, answer.reasoning)
                self._session = self._session.recorded(turn, again=again)
            finally:
                display.end()
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
