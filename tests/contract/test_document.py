"""schemathesis over the published document: what it makes up is answered as the document says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.schemas import BaseSchema

from tests.fake_engine import EMBEDDING, FakeEngine
from tests.service_app import Service

Case = schemathesis.Case[Any]

pytestmark = pytest.mark.contract

# The same examples every time.
BOUNDED = settings(
    max_examples=20, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
ACCEPTED: Counter[str] = Counter()


def published(service: Service) -> BaseSchema:
    schema = schemathesis.openapi.from_asgi("/openapi.json", service.app)
    acceptance = schema.config.checks.positive_data_acceptance
    # Fields that are right by themselves may be wrong together, which no schema can say.
    acceptance.expected_statuses = [*acceptance.expected_statuses, "400"]
    return schema


CHAT = published(Service())
EMBEDDINGS = published(Service(engine=FakeEngine(facts=EMBEDDING))).include(path="/v1/embeddings")


@pytest.fixture(scope="module", autouse=True)
def each_route_accepted_something() -> Iterator[None]:
    """What refused everything would fit the document, too."""
    yield
    assert len(ACCEPTED) > 8
    assert [label for label, count in ACCEPTED.items() if not count] == []


def check(case: Case) -> None:
    response = case.call_and_validate()
    ACCEPTED[case.operation.label] += response.status_code == 200


@CHAT.exclude(path="/v1/embeddings").parametrize()
@BOUNDED
def test_answers_are_as_the_document_says(case: Case) -> None:
    check(case)


@EMBEDDINGS.parametrize()
@BOUNDED
def test_embeddings_are_as_the_document_says(case: Case) -> None:
    check(case)
