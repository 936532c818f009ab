from __future__ import annotations

import dataclasses
import json
import typing

import pytest

from qwen_deploy import events

KINDS: tuple[type, ...] = typing.get_args(events.Event)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_event_is_a_frozen_value_of_one_host(kind: type) -> None:
    fields = dataclasses.fields(kind)
    assert fields[0].name == "host"
    assert not hasattr(kind, "__dict__") or "__slots__" in vars(kind)
    event = kind(*("x" for field in fields))
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.host = "other"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_event_becomes_json(kind: type) -> None:
    event = kind(*("x" for field in dataclasses.fields(kind)))
    assert json.loads(json.dumps(dataclasses.asdict(event)))["host"] == "x"


def test_every_kind_is_in_the_union() -> None:
    declared = {one for one in vars(events).values() if dataclasses.is_dataclass(one)}
    assert declared == set(KINDS)
