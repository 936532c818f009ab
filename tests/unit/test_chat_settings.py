from __future__ import annotations

import pytest
from pydantic import ValidationError
from qwen_service.protocol.chat import ChatRequest
from qwen_service.settings import Settings

from qwen_deploy.chat.settings import MOST_STOPS, SETTINGS, Setting, Value, changed, parse_seed
from qwen_deploy.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("temperature=0", {"temperature": 0.0}),
        ("temperature=2 top_p=1", {"temperature": 2.0, "top_p": 1.0}),
        ("top_k=-1 min_p=0.05", {"top_k": -1, "min_p": 0.05}),
        ("repetition_penalty=1.05", {"repetition_penalty": 1.05}),
        (
            "presence_penalty=-2 frequency_penalty=2",
            {"presence_penalty": -2.0, "frequency_penalty": 2.0},
        ),
        ("max_tokens=1", {"max_tokens": 1}),
        ("stop=END", {"stop": ("END",)}),
        ("stop=a=b", {"stop": ("a=b",)}),
        ('stop="two words" top_k=5', {"stop": ("two words",), "top_k": 5}),
        ('stop=["a", "\\n"] top_k=5', {"stop": ("a", "\n"), "top_k": 5}),
        ('stop="default"', {"stop": ("default",)}),
        ("  top_k=1   top_k=2 ", {"top_k": 2}),
    ],
)
def test_assignments_are_typed(text: str, expected: dict[str, Value]) -> None:
    result = dict(changed({}, text))
    assert result == expected
    assert [type(value) for value in result.values()] == [type(v) for v in expected.values()]


def test_default_takes_one_setting_back() -> None:
    assert dict(changed({"top_k": 1, "min_p": 0.1}, "top_k=default stop=default")) == {"min_p": 0.1}


@pytest.mark.parametrize(
    "text",
    [
        "temperature=-0.1",
        "temperature=2.1",
        "temperature=nan",
        "temperature=inf",
        "temperature=1e999",
        "temperature=hot",
        "temperature=[1]",
        "temperature=__import__('os')",
        "top_p=-0.01",
        "top_p=1.01",
        "top_k=-2",
        "top_k=1.5",
        "top_k=99999999999999999999",
        "min_p=2",
        "repetition_penalty=0",
        "repetition_penalty=10.1",
        "presence_penalty=3",
        "frequency_penalty=-3",
        "max_tokens=0",
        "max_tokens=" + "9" * 5000,
        'stop=""',
        "stop=[]",
        "stop=[1]",
        'stop=["a",""]',
        'stop="\\ud800"',
        'stop=["' + '","'.join("a" * 33) + '"]',
    ],
)
def test_values_out_of_range_are_refused_saying_what_they_should_be(text: str) -> None:
    with pytest.raises(UsageError, match="should be"):
        changed({}, text)


@pytest.mark.parametrize(
    "text",
    [
        "temperature",
        "=1",
        "temperature=",
        "temperature= 1",
        "a b=1",
        'stop="open',
        'stop=["a"',
        'stop="a"b',
        "stop=" + "[" * 100_000,
    ],
)
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        changed({}, text)


def is_taken_by_the_service(key: str, value: float) -> bool:
    try:
        ChatRequest.model_validate({"model": "m", "messages": [{"role": "user"}], key: value})
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("key", "setting"), [(k, it) for k, it in SETTINGS.items() if isinstance(it, Setting)]
)
def test_a_range_is_the_one_the_service_takes(key: str, setting: Setting) -> None:
    step = 1 if setting.is_whole else 0.01
    assert is_taken_by_the_service(key, setting.low) is not setting.low_excluded
    assert is_taken_by_the_service(key, setting.low + step)
    assert not is_taken_by_the_service(key, setting.low - step)
    assert is_taken_by_the_service(key, setting.high)
    assert not is_taken_by_the_service(key, setting.high + step)


def test_as_many_stop_words_are_taken_as_the_service_takes() -> None:
    assert Settings.__dataclass_fields__["max_stops"].default == MOST_STOPS


def test_nothing_changes_when_one_of_several_is_wrong() -> None:
    conf = {"top_k": 1}
    with pytest.raises(UsageError):
        changed(conf, "top_k=2 top_p=9")
    assert conf == {"top_k": 1}


@pytest.mark.parametrize(("text", "seed"), [("0", 0), ("-1", -1), (str(2**63 - 1), 2**63 - 1)])
def test_a_seed_is_any_whole_number_of_64_bits(text: str, seed: int) -> None:
    assert parse_seed(text) == seed


@pytest.mark.parametrize("text", ["x", "1.5", "", str(2**63), "9" * 5000])
def test_what_is_no_seed_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a seed"):
        parse_seed(text)
