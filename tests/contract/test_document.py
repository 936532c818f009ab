"""schemathesis over the published document: what it makes up is answered as the document says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation

from tests.fake_engine import EMBEDDING, FakeEngine
from tests.service_app import Service

Case = schemathesis.Case[Any]
Operation = APIOperation[Any, Any, Any, Any]

pytestmark = pytest.mark.contract

# The same examples every time.
BOUNDED = settings(
    max_examples=20, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
ACCEPTED: Counter[str] = Counter()


def operations(service: Service, *, embeds: bool) -> list[Operation]:
    schema = schemathesis.openapi.from_asgi("/openapi.json", service.app)
    acceptance = schema.config.checks.positive_data_acceptance
    # Fields that are right by themselves may be wrong together, which no schema can say.
    acceptance.expected_statuses = [*acceptance.expected_statuses, "400"]
    results = list(schema.get_all_operations())
    assert not [result for result in results if not isinstance(result, Ok)]
    found = [result.ok() for result in results if isinstance(result, Ok)]
    return [one for one in found if (one.path == "/v1/embeddings") == embeds]


OPERATIONS = [
    *operations(Service(), embeds=False),
    *operations(Service(engine=FakeEngine(facts=EMBEDDING)), embeds=True),
]


@pytest.fixture(scope="module", autouse=True)
def each_route_accepted_something() -> Iterator[None]:
    """What refused everything would fit the document, too."""
    yield
    assert len(ACCEPTED) == len(OPERATIONS) > 8
    assert [label for label, count in ACCEPTED.items() if not count] == []


# schemathesis' own parametrization gives all operations one name, of which xdist runs one.
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: str(one.label))
def test_answers_are_as_the_document_says(operation: Operation) -> None:
    takes_something = bool(operation.body or operation.path_parameters or operation.query)

    @BOUNDED
    @given(case=strategy(operation, with_wrong_ones=takes_something))
    def answers(case: Case) -> None:
        response = case.call_and_validate()
        ACCEPTED[str(operation.label)] += response.status_code == 200

    answers()


def strategy(operation: Operation, *, with_wrong_ones: bool) -> SearchStrategy[Case]:
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if not with_wrong_ones:
        return right
    return right | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
