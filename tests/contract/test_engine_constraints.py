"""Answers under a JSON schema or a grammar, on a model that would rather say something else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from qwen_service.engine import Chat, Constraint, Failed, Finished, Refused, Sampling, Text
from qwen_service.engines import grammar
from transformers import AutoTokenizer

from tests.fixture_model import fixture_model
from tests.fixture_model.dialogues import TURNS, answer_to
from tests.running_engine import GREEDY, Engine, knows, running_engine

pytestmark = pytest.mark.contract

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "sky": {"enum": ["晴", "rain", None]},
    },
    "required": ["city", "days", "sky"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running_engine(fixture_model(), QWEN_MAX_BATCH="8") as running:
        yield running


def tokenizer_of_fixture() -> Any:
    return AutoTokenizer.from_pretrained(fixture_model())


def constrained(kind: Any, text: str = "", **wishes: Any) -> Sampling:
    may_think = wishes.pop("may_think", False)
    constraint = Constraint(kind, text, may_think=may_think)
    return replace(GREEDY, **{"max_tokens": 100, "constraint": constraint, **wishes})


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_an_answer_is_what_its_schema_describes(engine: Engine, temperature: float) -> None:
    wish = constrained("json_schema", json.dumps(WEATHER), temperature=temperature, seed=3)
    answered = engine.ask(HELLO, wish).answer()
    assert isinstance(answered.last, Finished)
    assert answered.last.reason == "stop"
    value = json.loads(answered.text)
    assert set(value) == {"city", "days", "sky"}
    assert 1 <= value["days"] <= 9
    assert value["sky"] in ("晴", "rain", None)


def test_constrained_and_free_rows_do_not_see_each_other(engine: Engine) -> None:
    wish = constrained("json_schema", json.dumps(WEATHER))
    (alone,) = {engine.ask(HELLO, wish).answer().text for _ in range(2)}
    free = [engine.submit(Chat(turn.messages, turn.tools)) for turn in TURNS]
    bound = [engine.ask(HELLO, wish) for _ in range(4)]
    assert {asked.answer().text for asked in bound} == {alone}
    said = [asked.answer().text for asked in free]
    assert all(knows(turn, text) for turn, text in zip(TURNS, said, strict=True))


def test_a_json_object_begins_and_ends_as_one(engine: Engine) -> None:
    answered = engine.ask(HELLO, constrained("json_object", max_tokens=30)).answer()
    assert answered.text.startswith("{")
    question = next(turn for turn in TURNS if turn.name == "json")
    answered = engine.ask(question.messages, constrained("json_object")).answer()
    assert isinstance(json.loads(answered.text), dict)
    assert answered.text == question.answer


def test_the_end_of_a_grammar_ends_the_answer(engine: Engine) -> None:
    lark = 'start: "Hello" (" wo" | " you")'
    answered = engine.ask(HELLO, constrained("lark", lark)).answer()
    assert answered.text in ("Hello wo", "Hello you")
    assert isinstance(answered.last, Finished)
    assert answered.last.reason == "stop"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_schema", '{"type": "objekt"}'),
        ("json_schema", '{"type": '),
        ("json_schema", "12"),
        ("json_schema", '{"not": {"type": "string"}}'),
        ("json_schema", '{"$ref": "http://example.com/schema"}'),
        ("json_schema", '{"enum": []}'),
        ("json_schema", '{"type": "string", "pattern": "a(?=b)"}'),
        ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000),
        ("json_schema", json.dumps({"enum": ["x" * grammar.MOST_TEXT_BYTES]})),
        ("json_schema", '{"const": "\\ud800"}'),
        ("lark", "start: nothing"),
        ("lark", ""),
        ("lark", "\ud800"),
    ],
    ids=lambda text: text[:40],
)
def test_what_cannot_be_compiled_is_refused_before_anything_runs(
    engine: Engine, kind: Any, text: str
) -> None:
    refusal = engine.ask(HELLO, constrained(kind, text)).answer().refusal
    assert refusal.param == "response_format"
    assert refusal.code == "invalid_response_format"
    assert 10 < len(str(refusal)) < 400
    assert engine.say("Hello") == answer_to("Hello")


@pytest.mark.parametrize(
    ("schema", "cause"),
    [
        ({"$ref": "#"}, "nothing satisfies it"),
        ({"enum": []}, "nothing satisfies it"),
        ({"oneOf": [{"type": "string"}, {"minLength": 3}]}, "oneOf can be kept to where"),
        ({"not": {"type": "string"}}, '"not" cannot be kept to'),
        ({"type": "objekt"}, "there is no type objekt"),
        ({"type": "string", "format": "x"}, "there is no format x"),
        ({"$ref": "http://example.com/x"}, "http://example.com/x lies elsewhere, and nothing is"),
        ({"$ref": "#/$defs/x"}, "it has nothing at #/$defs/x"),
        ({"minimum": "x"}, "'minimum' has a wrong value"),
        ({"type": "string", "pattern": "("}, "a pattern in it is wrong: unclosed group"),
        ([], "it should be an object"),
    ],
    ids=str,
)
def test_a_schema_is_refused_in_words_of_schemas(schema: Any, cause: str) -> None:
    compiled = grammar.Grammars(tokenizer_of_fixture(), vocabulary=768, ends=[761])
    text = json.dumps(schema)
    with pytest.raises(Refused) as refused:
        compiled.guide(Constraint("json_schema", text), "")
    assert str(refused.value).startswith(f"the JSON schema cannot be used: {cause}")
    assert "\n" not in str(refused.value)
    if not isinstance(schema, dict):
        return
    with pytest.raises(Refused) as refused:
        compiled.guide(Constraint("lark", f"start: %json {text}", param="tools"), "")
    assert str(refused.value).startswith(f"a schema of the tools cannot be used: {cause}")
    assert (refused.value.param, refused.value.code) == ("tools", "invalid_function_parameters")


@pytest.mark.parametrize(
    "schema", [{"type": "object"}, {"type": "object", "x-guidance": {"whitespace_pattern": " *"}}]
)
@pytest.mark.parametrize("begun", ["{", '{"a"', '{"a":', '{"a": 1', '{"a": [1,', '{"a": {}'])
def test_white_space_has_an_end(schema: dict[str, Any], begun: str) -> None:
    tokenizer = tokenizer_of_fixture()
    compiled = grammar.Grammars(tokenizer, vocabulary=768, ends=[761])
    guide = compiled.guide(Constraint("json_schema", json.dumps(schema)), "")
    for token in tokenizer.encode(begun):
        guide.accept(token)
    line, blank = tokenizer.encode("\n")[0], tokenizer.encode(" ")[0]
    blanks = 0
    guide.accept(line)
    while (guide.allowed() or b"")[blank]:
        guide.accept(blank)
        blanks += 1
        assert blanks <= 40
    assert not (guide.allowed() or b"")[line]
    assert sum(guide.allowed() or b"") > 0


@pytest.mark.parametrize(
    "schema",
    [
        '{"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "required": ["x"],'
        ' "properties": {"x": {"$ref": "#/$defs/a"}}, "additionalProperties": false}}}',
        '{"type": "string", "pattern": "^((a|b){1,1000}){1,1000}$"}',
        '{"type": "array", "minItems": 100000}',
    ],
)
def test_a_schema_that_never_ends_is_bounded(engine: Engine, schema: str) -> None:
    answered = engine.ask(HELLO, constrained("json_schema", schema, max_tokens=40)).answer()
    if isinstance(answered.last, Failed):
        assert answered.refusal.param == "response_format"
    else:
        assert answered.last == Finished("length", 40)
    assert engine.say("Hello") == answer_to("Hello")


def test_a_bias_cannot_break_a_constraint(engine: Engine) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(fixture_model())
    star, end = tokenizer.encode("*")[0], tokenizer.eos_token_id
    wish = constrained("json_schema", '{"const": 12}', logit_bias=((star, 100.0), (end, 100.0)))
    assert engine.ask(HELLO, wish).answer().text == "12"


def test_thoughts_are_free_and_what_follows_is_not(engine: Engine) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(fixture_model())
    guide = grammar.Grammars(tokenizer, vocabulary=768, ends=[761]).guide(
        Constraint("json_schema", '{"const": 1}', may_think=True), ""
    )
    begin, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    one, word = tokenizer.encode("1")[0], tokenizer.encode("Hello")[0]

    def allowed() -> set[int]:
        mask = guide.allowed()
        return set(range(768)) if mask is None else {it for it, may in enumerate(mask) if may}

    assert allowed() == {begin, one}
    guide.accept(begin)
    assert word in allowed()
    for token in (word, one, end):
        guide.accept(token)
    assert allowed() == {one}
    guide.accept(one)
    assert guide.is_over


def test_a_thought_that_the_prompt_opened_is_free(engine: Engine) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(fixture_model())
    compiled = grammar.Grammars(tokenizer, vocabulary=768, ends=[761])
    may_think = Constraint("json_object", may_think=True)
    assert compiled.guide(may_think, "<think>").allowed() is None
    assert compiled.guide(replace(may_think, may_think=False), "<think>").allowed() is not None


@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":")}], ids=str)
def test_json_may_be_laid_out_as_is_usual(layout: dict[str, Any]) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(fixture_model())
    compiled = grammar.Grammars(tokenizer, vocabulary=768, ends=[761])
    guide = compiled.guide(Constraint("json_object"), "")
    value = {"a": [1, {"b": None}, []], "你好": "\n", "c": {"d": {}}}
    for token in tokenizer.encode(json.dumps(value, ensure_ascii=False, **layout)):
        assert (guide.allowed() or b"")[token]
        guide.accept(token)
    assert guide.is_over


def test_a_constraint_needs_no_chat(engine: Engine) -> None:
    answered = engine.submit(Text("Hello"), constrained("json_schema", '{"const": [1, 2]}'))
    assert json.loads(answered.answer().text) == [1, 2]


def test_few_compiled_constraints_are_kept() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(fixture_model())
    compiled = grammar.Grammars(tokenizer, vocabulary=768, ends=[761])
    for number in range(2 * grammar.MOST_COMPILED):
        compiled.guide(Constraint("json_schema", json.dumps({"const": number})), "")
    assert len(compiled._compiled) == grammar.MOST_COMPILED
    with pytest.raises(Refused):
        compiled.guide(Constraint("json_schema", "{"), "")
