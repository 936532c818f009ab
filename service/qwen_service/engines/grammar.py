"""Constraints on an answer's text by llguidance: compiled beside the steps, then a mask a token.

The only module that imports llguidance. Knows neither tensors nor requests.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

from llguidance import LLMatcher, LLParserLimits
from llguidance.hf import from_tokenizer

from qwen_service.engine import Constraint, Refused

MOST_TEXT_BYTES = 256 * 1024
MOST_COMPILED = 16
# Between the parts of a JSON text, as people and programs write it: a blank, or a line's end and an
# indentation. Any number of blanks would let a model fill its answer with them.
WHITESPACE = r"( |\n[ \t]{0,40})"
# A step's share of fuel is some 15 ms; the library's own numbers otherwise.
LIMITS = {"verbose_errors": False}
# What the library says of a schema, and how it is told; the rest speaks of the schema's own words.
CAUSES = {
    r"NoExtensionBias|Unsatisfiable schema: anyOf is empty": "nothing satisfies it",
    r"Unsatisfiable schema: (.+)": "nothing satisfies it: {}",
    r"Unimplemented keys: \[(.+?)\]": "{} cannot be kept to",
    r"oneOf constraints": "oneOf can be kept to where no value fits two of its schemas",
    r"Resource '(.+?)' is not present": "{} lies elsewhere, and nothing is fetched",
    r"Pointer '(.+?)' does not exist": "it has nothing at #{}",
    r"Invalid type: (.+)": "there is no type {}",
    r"Unknown format: (.+)": "there is no format {}",
    r"Expected \S+(?: integer)? for ('.+?')": "{} has a wrong value",
    r"regex parse error:(?s:.+)error: (.+)": "a pattern in it is wrong: {}",
}
MOST_CAUSE_LENGTH = 200


class Guide:
    """Follows one answer: which tokens may come next, and whether it is whole."""

    def __init__(self, matcher: LLMatcher, param: str, thought: Thought | None) -> None:
        self._matcher = matcher
        self._param = param
        self._thought = thought
        self._has_begun = False

    @property
    def is_over(self) -> bool:
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def refusal(self) -> Refused | None:
        if not self._matcher.is_error():
            return None
        return _refused("what the answer must keep to is too complex", self._param)

    def allowed(self) -> bytearray | None:
        """A byte for each token, 0 where it is forbidden; None where anything goes."""
        if self._thought and self._thought.is_open:
            return None
        allowed = bytearray(self._matcher.compute_logit_bias())
        if self._thought and not self._has_begun:
            allowed[self._thought.begin] = 1
        return allowed

    def accept(self, token: int) -> None:
        if self._thought and self._thought.is_open:
            self._thought.is_open = token != self._thought.end
        elif self._thought and not self._has_begun and token == self._thought.begin:
            self._thought.is_open = True
        else:
            self._matcher.consume_token(token)
        self._has_begun = True


class Thought:
    """The tokens around a thought, and whether one is open."""

    def __init__(self, begin: int, end: int, *, is_open: bool) -> None:
        self.begin = begin
        self.end = end
        self.is_open = is_open


class Grammars:
    """Compiles constraints for one tokenizer; safe from several threads."""

    def __init__(self, tokenizer: Any, *, vocabulary: int, ends: Collection[int]) -> None:
        """Takes seconds and stops every other thread: not for when requests are being answered."""
        self._tokenizer = from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(ends))
        self._lock = threading.Lock()
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        names = tokenizer.get_vocab()
        self._begin, self._end = names.get("<think>"), names.get("</think>")

    def guide(self, constraint: Constraint, opened: str) -> Guide:
        """Raises `Refused`; may take a second."""
        with self._lock:
            matcher = self._matcher(constraint).deep_copy()
        thought = None
        if constraint.may_think and self._begin is not None and self._end is not None:
            thought = Thought(self._begin, self._end, is_open=bool(opened))
        return Guide(matcher, constraint.param, thought)

    def _matcher(self, constraint: Constraint) -> LLMatcher:
        key = (constraint.kind, constraint.text)
        if key not in self._compiled:
            self._compiled[key] = self._compile(constraint)
            if len(self._compiled) > MOST_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return self._compiled[key]

    def _compile(self, constraint: Constraint) -> LLMatcher:
        grammar = _grammar(constraint)
        # Its log would write answers to the journal.
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
        if not matcher.is_error():
            matcher.compute_logit_bias()
        if matcher.is_error():
            raise _unusable(constraint, matcher.get_error())
        return matcher


def _grammar(constraint: Constraint) -> str:
    if len(constraint.text.encode("utf-8", "surrogatepass")) > MOST_TEXT_BYTES:
        raise _unusable(constraint, f"it is larger than {MOST_TEXT_BYTES} bytes")
    text = constraint.text if constraint.kind != "json_object" else '{"type": "object"}'
    try:
        if constraint.kind == "lark":
            return LLMatcher.grammar_from_lark(text)
        schema = json.loads(text)
        if not isinstance(schema, dict):
            raise _unusable(constraint, "it should be an object")
        # Options of the library's own, which nobody offers here.
        schema.pop("x-guidance", None)
        return LLMatcher.grammar_from_json_schema(
            schema, overrides={"whitespace_pattern": WHITESPACE}
        )
    except (ValueError, RecursionError, TypeError) as error:
        raise _unusable(constraint, "it cannot be read") from error


def _unusable(constraint: Constraint, error: str) -> Refused:
    what = f"a schema of the {constraint.param}" if constraint.kind == "lark" else "the JSON schema"
    return _refused(f"{what} cannot be used: {_cause(error)}", constraint.param)


def _cause(error: str) -> str:
    """In the caller's words; the library goes on with the grammar and its own state."""
    error = error.partition("failed to compile JSON schema: ")[2] or error
    for pattern, cause in CAUSES.items():
        if found := re.search(pattern, error):
            return cause.format(*found.groups())[:MOST_CAUSE_LENGTH]
    return error.partition("\n")[0][:MOST_CAUSE_LENGTH]


def _refused(message: str, param: str) -> Refused:
    is_format = param == "response_format"
    code = "invalid_response_format" if is_format else "invalid_function_parameters"
    return Refused(message, param=param, code=code)
